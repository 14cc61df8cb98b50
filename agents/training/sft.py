"""Supervised fine-tuning on the agents' prompts, as run_training.py and run_unsloth.py do it."""

import argparse
from types import ModuleType

from agents.training.training_set import load_training_set
from clh.evaluation import recipes
from clh.training import language


def fine_tune(arguments: argparse.Namespace, unsloth: ModuleType | None = None) -> None:
    """Train a language model on the right completions, and keep the best epoch in OUT/best.

    Raises InputError for a recipe or data that cannot be used.
    """
    recipe = recipes.read_recipe(arguments.recipe, language.SftRecipe, arguments.set)
    data = load_training_set(arguments, recipe)
    folder = data.folder.path
    trainable = language.load_model(recipe, data.pipeline.settings.cache_dir, unsloth)
    trained = language.sft_trainer(trainable, data.train, recipe, folder)
    language.train_model(trained, trainable, recipe, folder, data.evaluate)
