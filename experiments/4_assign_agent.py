"""The assign agent alone: what it makes of verdicts.

    python experiments/4_assign_agent.py --dataset codiesp --data-dir DIR --split dev --output OUT

--input is a certain verdict for every gold code (gold), which shows what assign itself drops or
changes, or what the agents before it give (predicted), which is the whole benchmark. Files as
benchmark.py's; run again, it goes on.
"""

from functools import partial

from clh.evaluation import recipes


def main() -> int:
    """Run, score, report."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/4_assign_agent.yaml")
    parser.add_argument(
        "--input",
        choices=("gold", "predicted"),
        default="predicted",
        help="of the agents before; default: predicted",
    )
    arguments = recipes.parse_arguments(parser)

    from agents.evaluation import experiment, oracle
    from clh.schema import AGENTS

    alone = partial(oracle.run_agent, "assign", arguments.input)
    reported = AGENTS if arguments.input == "predicted" else ("assign",)
    return experiment.run(arguments, reported, alone, input=arguments.input)


if __name__ == "__main__":
    recipes.run_script(main)
