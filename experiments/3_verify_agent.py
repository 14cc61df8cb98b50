"""The verify agent alone: whether it tells the note's codes from the other candidates.

    python experiments/3_verify_agent.py --dataset codiesp --data-dir DIR --split dev --output OUT

--input is what a perfect locate would give for the annotators' evidence (gold), or what analyze and
locate give (predicted). Reports ROC-AUC, average precision and calibration over all candidates of
all notes, and the ranking they make. Files as benchmark.py's; run again, it goes on.
"""

from functools import partial

from clh.evaluation import recipes


def main() -> int:
    """Run, score, report."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/3_verify_agent.yaml")
    parser.add_argument(
        "--input",
        choices=("gold", "predicted"),
        default="predicted",
        help="of the agents before; default: predicted",
    )
    arguments = recipes.parse_arguments(parser)

    from agents.evaluation import experiment, oracle

    alone = partial(oracle.run_agent, "verify", arguments.input)
    before = ("analyze", "locate") if arguments.input == "predicted" else ()
    return experiment.run(arguments, (*before, "verify"), alone, input=arguments.input)


if __name__ == "__main__":
    recipes.run_script(main)
