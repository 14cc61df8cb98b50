"""Fine-tune a language model on the agents' work: by rewards of its own replies (GRPO).

    python experiments/run_grpo_unsloth.py --dataset codiesp --data-dir DIR --output OUT

Rewarded is what can be checked: that inference can read a reply, that its quotes are the note's
words, and that it is right, which for analyze means that its terms lead locate to the gold codes.
Nothing is paid for length. With a GPU, unsloth and vLLM, these train and generate; otherwise a line
says so, and TRL and PEFT do. Documents, and what happens after a kill, are as in run_training.py.

Writes OUT/best, an adapter on the recipe's base; log.jsonl, the scores and rewards by epoch; the
rest as run_training.py. Source: Shao et al. 2024, DeepSeekMath.
"""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from clh.evaluation import recipes
from clh.training import language, loop


class GrpoRecipe(language.Recipe):
    """What recipes/run_grpo.yaml says."""

    generations: PositiveInt
    temperature: PositiveFloat
    beta: NonNegativeFloat
    rewards: dict[Literal["format", "verbatim", "correct"], PositiveFloat]


def main() -> int:
    """Train, and keep the best."""
    parser = loop.parser(__doc__, "experiments/recipes/run_grpo.yaml")
    arguments = recipes.parse_arguments(parser)

    unsloth = language.find_unsloth(needed=["vllm"])

    from trl import GRPOConfig, GRPOTrainer

    from agents.training import examples

    recipe = recipes.read_recipe(arguments.recipe, GrpoRecipe, arguments.set)
    lessons = examples.prepare(arguments, recipe)
    folder = lessons.folder.path
    student = language.load(recipe, lessons.context.settings.cache_dir, unsloth, vllm=True)
    asked = language.fitting(lessons.learned, student.tokenizer, recipe.max_tokens)
    judge = examples.Judge(asked, lessons.context)
    trainer = GRPOTrainer(
        student.model,
        reward_funcs=[getattr(judge, name) for name in recipe.rewards],
        args=GRPOConfig(
            **loop.settings(recipe, folder),
            reward_weights=[*recipe.rewards.values()],
            num_generations=recipe.generations,
            max_completion_length=recipe.reply_tokens,
            temperature=recipe.temperature,
            beta=recipe.beta,
            use_vllm=unsloth is not None,
        ),
        train_dataset=language.rows(
            {"prompt": list(one.messages), "item": place} for place, one in enumerate(asked)
        ),
        processing_class=student.tokenizer,
        peft_config=student.adapter,
    )
    language.train(trainer, student, recipe, folder, lessons.score)
    return 0


if __name__ == "__main__":
    recipes.run_script(main)
