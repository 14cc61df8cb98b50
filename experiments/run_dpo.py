"""Fine-tune a language model on the agents' work: by preference for what is right over its own.

    python experiments/run_dpo.py --dataset codiesp --data-dir DIR --output OUT

The base of the recipe, an adapter of run_training.py for one, answers the questions of the training
documents. Where its reply is worse than the right one, the two make a pair. Documents, and what
happens after a kill, are as in run_training.py.

Writes OUT/best, an adapter on that base; log.jsonl, the scores by epoch and the margins between the
rewards of both replies; pairs.jsonl, a pair for each question or null; the rest as run_training.py.
"""

import asyncio
from typing import Literal

from pydantic import PositiveFloat

from clh.evaluation import recipes
from clh.training import language, loop


class DpoRecipe(language.Recipe):
    """What recipes/run_dpo.yaml says."""

    loss: Literal["apo_zero", "sigmoid"]
    beta: PositiveFloat


def main() -> int:
    """Find the mistakes, train, and keep the best."""
    parser = loop.parser(__doc__, "experiments/recipes/run_dpo.yaml")
    arguments = recipes.parse_arguments(parser)

    from tqdm import tqdm
    from trl import DPOConfig, DPOTrainer

    from agents.training import examples
    from clh.models.language import LocalModel

    recipe = recipes.read_recipe(arguments.recipe, DpoRecipe, arguments.set)
    lessons = examples.prepare(arguments, recipe, "pairs.jsonl")
    folder, cache_dir = lessons.folder.path, lessons.context.settings.cache_dir
    student = language.load(recipe, cache_dir)
    judge = examples.Judge(lessons.learned, lessons.context)
    done = len(lessons.folder.lines("pairs.jsonl"))
    if done < len(judge.items):
        base = LocalModel(
            recipe.base, cache_dir, max_tokens=recipe.reply_tokens, think=recipe.think
        )
        with tqdm(total=len(judge.items), initial=done, unit="question") as bar:
            for start in range(done, len(judge.items), examples.AT_ONCE):
                places = range(start, min(start + examples.AT_ONCE, len(judge.items)))
                for pair in asyncio.run(examples.mistakes(places, judge, base)):
                    lessons.folder.append("null" if pair is None else pair.model_dump_json())
                    bar.update()
    pairs = [
        examples.Preference.model_validate_json(line)
        for line in lessons.folder.lines("pairs.jsonl")
        if line != "null"
    ]
    trainer = DPOTrainer(
        student.model,
        args=DPOConfig(
            **loop.settings(recipe, folder),
            max_length=None,
            loss_type=[recipe.loss],
            beta=recipe.beta,
        ),
        train_dataset=language.rows(
            {
                "prompt": list(one.messages),
                "chosen": language.said(one.reply),
                "rejected": language.said(one.rejected),
            }
            for one in language.fitting(pairs, student.tokenizer, recipe.max_tokens)
        ),
        processing_class=student.tokenizer,
        peft_config=student.adapter,
    )
    language.train(trainer, student, recipe, folder, lessons.score)
    return 0


if __name__ == "__main__":
    recipes.run_script(main)
