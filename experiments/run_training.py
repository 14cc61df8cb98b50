"""Fine-tune a language model on the agents' work: supervised, on the completions that are right.

    python experiments/run_training.py --dataset codiesp --data-dir DIR --output OUT

Learns from the train split alone, a tenth of whose documents is held out to choose the best epoch,
as for the towers; no sentence of these, nor of the splits in --unseen, is trained on. Stopped at
any time, the same command goes on after the last checkpoint. A model that reasons takes three runs:
this, this again with `--think true` on the first one's OUT/best, and run_dpo.py with it on the
second's.

Writes OUT/best, an adapter that `llm.model` of the settings can name; log.jsonl, the scores by
epoch; train.jsonl and held_out.jsonl, the examples; config.json; checkpoints.
"""

from clh.evaluation import recipes
from clh.training import trainer


def main() -> int:
    """Train, and keep the best."""
    parser = trainer.training_parser(__doc__, "experiments/recipes/run_training.yaml")
    arguments = recipes.parse_arguments(parser)

    from agents.training.sft import fine_tune

    fine_tune(arguments)
    return 0


if __name__ == "__main__":
    recipes.run_script(main)
