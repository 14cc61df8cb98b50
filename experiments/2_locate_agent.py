"""The locate agent alone: whether the note's codes are among the candidates.

    python experiments/2_locate_agent.py --dataset codiesp --data-dir DIR --split dev --output OUT

With --queries, they are every sentence of the note and no analyze (sentences), the annotators'
evidence (gold), or analyze's terms (predicted). Reports recall of the candidates, ranked by their
best similarity; the first 200 are the codes in predictions.jsonl. Files as benchmark.py's; run
again, it goes on.
"""

from functools import partial

from clh.evaluation import recipes


def main() -> int:
    """Run, score, report."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/2_locate_agent.yaml")
    parser.add_argument(
        "--queries",
        choices=("sentences", "gold", "predicted"),
        default="predicted",
        help="what is searched for; default: predicted",
    )
    arguments = recipes.parse_arguments(parser)

    from agents.evaluation import experiment, oracle

    alone = partial(oracle.run_agent, "locate", arguments.queries)
    reported = ("analyze", "locate") if arguments.queries == "predicted" else ("locate",)
    return experiment.run(arguments, reported, alone, queries=arguments.queries)


if __name__ == "__main__":
    recipes.run_script(main)
