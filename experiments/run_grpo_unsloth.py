"""Fine-tune a language model on the agents' work: by rewards of its own completions (GRPO).

    python experiments/run_grpo_unsloth.py --dataset codiesp --data-dir DIR --output OUT

Rewarded is what can be checked: that inference can read a completion, that its quotes are the
note's words, and that it is right, which for analyze means that its terms lead locate to the gold
codes. Nothing is paid for length. With a GPU, unsloth and vLLM, these train and generate; otherwise
a line tells so, and TRL and PEFT do. Documents, and what happens after a kill, are as in
run_training.py.

Writes OUT/best, an adapter on the recipe's base; log.jsonl, the scores and rewards by epoch; the
rest as run_training.py. Source: Shao et al. 2024, DeepSeekMath.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from clh.evaluation import recipes
from clh.training import language, trainer

if TYPE_CHECKING:
    from transformers import Trainer

    from agents.training.examples import AgentExample

Reward = Literal["format_reward", "verbatim_reward", "code_f1_reward"]


class GrpoRecipe(language.LanguageModelRecipe):
    """What recipes/run_grpo.yaml says."""

    generations: PositiveInt
    temperature: PositiveFloat
    beta: NonNegativeFloat
    rewards: dict[Reward, PositiveFloat]


def main() -> int:
    """Train, and keep the best."""
    parser = trainer.training_parser(__doc__, "experiments/recipes/run_grpo.yaml")
    arguments = recipes.parse_arguments(parser)

    unsloth = language.find_unsloth(needed=["vllm"])  # before TRL, which it changes

    from agents.training.rewards import reward_functions
    from agents.training.training_set import load_training_set

    recipe = recipes.read_recipe(arguments.recipe, GrpoRecipe, arguments.set)
    data = load_training_set(arguments, recipe)
    folder, cache_dir = data.folder.path, data.pipeline.settings.cache_dir
    trainable = language.load_model(recipe, cache_dir, unsloth, vllm=True)
    functions = reward_functions(recipe.rewards, data.find_codes)
    trained = grpo_trainer(
        trainable, data.train, functions, recipe, folder, use_vllm=unsloth is not None
    )
    language.train_model(trained, trainable, recipe, folder, data.evaluate)
    return 0


def grpo_trainer(
    trainable: language.TrainableModel,
    examples: Sequence["AgentExample"],
    functions: list[Callable[..., Any]],
    recipe: GrpoRecipe,
    folder: Path,
    *,
    use_vllm: bool,
) -> "Trainer":
    """The trainer that teaches what the reward functions reward."""
    from trl import GRPOConfig, GRPOTrainer

    from agents.training.rewards import reward_columns

    return GRPOTrainer(
        trainable.model,
        reward_funcs=functions,
        args=GRPOConfig(
            **trainer.trainer_arguments(recipe, folder),
            reward_weights=[*recipe.rewards.values()],
            num_generations=recipe.generations,
            max_completion_length=recipe.reply_tokens,
            temperature=recipe.temperature,
            beta=recipe.beta,
            use_vllm=use_vllm,
        ),
        train_dataset=language.to_dataset(
            map(
                reward_columns,
                language.select_fitting(examples, trainable.tokenizer, recipe.max_tokens),
            )
        ),
        processing_class=trainable.tokenizer,
        peft_config=trainable.adapter,
    )


if __name__ == "__main__":
    recipes.run_script(main)
