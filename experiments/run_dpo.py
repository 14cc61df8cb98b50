"""Fine-tune a language model on the agents' work: by preference for what is right over its own.

    python experiments/run_dpo.py --dataset codiesp --data-dir DIR --output OUT

The base of the recipe, an adapter of run_training.py for one, completes the prompts of the training
documents. Where its completion is worse than the right one, the two make a pair. Documents, and
what happens after a kill, are as in run_training.py.

Writes OUT/best, an adapter on that base; log.jsonl, the scores by epoch and the margins between the
rewards of both completions; pairs.jsonl, a pair for each example or null; the rest as
run_training.py. Source: Rafailov et al. 2023, Direct Preference Optimization.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat

from clh.evaluation import recipes
from clh.training import language, trainer

if TYPE_CHECKING:
    from transformers import Trainer

    from agents.training.preference_pairs import PreferencePair


class DpoRecipe(language.LanguageModelRecipe):
    """What recipes/run_dpo.yaml says."""

    loss: Literal["apo_zero", "sigmoid"]
    beta: PositiveFloat


def main() -> int:
    """Make the pairs, train, and keep the best."""
    parser = trainer.training_parser(__doc__, "experiments/recipes/run_dpo.yaml")
    arguments = recipes.parse_arguments(parser)

    from agents.training.preference_pairs import PAIRS, collect_pairs
    from agents.training.training_set import load_training_set
    from clh.models.language import LocalModel

    recipe = recipes.read_recipe(arguments.recipe, DpoRecipe, arguments.set)
    data = load_training_set(arguments, recipe, PAIRS)
    folder, cache_dir = data.folder.path, data.pipeline.settings.cache_dir
    trainable = language.load_model(recipe, cache_dir)
    load_base = partial(
        LocalModel, recipe.base, cache_dir, max_tokens=recipe.reply_tokens, think=recipe.think
    )
    pairs = collect_pairs(data, load_base, data.find_codes)
    trained = dpo_trainer(trainable, pairs, recipe, folder)
    language.train_model(trained, trainable, recipe, folder, data.evaluate)
    return 0


def dpo_trainer(
    trainable: language.TrainableModel,
    pairs: Sequence["PreferencePair"],
    recipe: DpoRecipe,
    folder: Path,
) -> "Trainer":
    """The trainer that teaches to prefer the chosen completion of each pair."""
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        trainable.model,
        args=DPOConfig(
            **trainer.trainer_arguments(recipe, folder),
            max_length=None,
            loss_type=[recipe.loss],
            beta=recipe.beta,
        ),
        train_dataset=language.to_dataset(
            {
                "prompt": list(pair.prompt),
                "chosen": language.assistant_turn(pair.completion),
                "rejected": language.assistant_turn(pair.rejected),
            }
            for pair in language.select_fitting(pairs, trainable.tokenizer, recipe.max_tokens)
        ),
        processing_class=trainable.tokenizer,
        peft_config=trainable.adapter,
    )


if __name__ == "__main__":
    recipes.run_script(main)
