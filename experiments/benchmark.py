"""All agents on a split of a corpus: codes, scores and a report.

    python experiments/benchmark.py --dataset codiesp --data-dir DIR --split dev --output OUT

Writes OUT/metrics.json, predictions.jsonl (a coded note a line, with its gold codes), report.html
and config.json; steps.jsonl beside them holds what each agent said of each note. Run again, it
goes on where it was stopped. Codes are looked for in the whole release, never only among the gold
ones.
"""

from clh.evaluation import recipes


def main() -> int:
    """Run, score, report."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/benchmark.yaml")
    arguments = recipes.parse_arguments(parser)

    from agents.evaluation import experiment, oracle
    from clh.schema import AGENTS

    return experiment.run(arguments, AGENTS, oracle.run_pipeline)


if __name__ == "__main__":
    recipes.run_script(main)
