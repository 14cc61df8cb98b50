"""Fine-tune a language model on the agents' work as run_training.py does, with unsloth on a GPU.

    python experiments/run_unsloth.py --dataset codiesp --data-dir DIR --output OUT

Takes the recipe of run_training.py, and writes the same files. Without a GPU or without unsloth a
line tells so, and TRL and PEFT train as they do there. unsloth has to be installed in an
environment of its own, as it needs older releases of transformers and TRL.
"""

from clh.evaluation import recipes
from clh.training import trainer


def main() -> int:
    """Train, and keep the best."""
    parser = trainer.training_parser(__doc__, "experiments/recipes/run_training.yaml")
    arguments = recipes.parse_arguments(parser)

    from clh.training import language

    unsloth = language.find_unsloth()  # before TRL, which it changes

    from agents.training.sft import fine_tune

    fine_tune(arguments, unsloth)
    return 0


if __name__ == "__main__":
    recipes.run_script(main)
