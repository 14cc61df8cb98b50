"""Fine-tune a language model on the agents' work as run_training.py does, with unsloth on a GPU.

    python experiments/run_unsloth.py --dataset codiesp --data-dir DIR --output OUT

Takes the recipe of run_training.py, and writes the same files. Without a GPU or without unsloth a
line says so, and TRL and PEFT train as they do there. unsloth has to be installed in an environment
of its own, as it needs older releases of transformers and TRL.
"""

from clh.evaluation import recipes
from clh.training import language, loop


def main() -> int:
    """Train, and keep the best."""
    parser = loop.parser(__doc__, "experiments/recipes/run_training.yaml")
    arguments = recipes.parse_arguments(parser)

    unsloth = language.find_unsloth()

    from agents.training import examples

    recipe = recipes.read_recipe(arguments.recipe, language.SupervisedRecipe, arguments.set)
    lessons = examples.prepare(arguments, recipe)
    folder = lessons.folder.path
    student = language.load(recipe, lessons.context.settings.cache_dir, unsloth)
    trainer = language.supervised(student, lessons.learned, recipe, folder)
    language.train(trainer, student, recipe, folder, lessons.score)
    return 0


if __name__ == "__main__":
    recipes.run_script(main)
