"""The analyze agent alone: whether it finds something where the annotators did.

    python experiments/1_analyse_agent.py --dataset codiesp --data-dir DIR --split dev --output OUT

Reports the share of gold codes whose evidence a term touches. Works on every corpus that says
where its codes are, whatever they are codes of. Files as benchmark.py's; run again, it goes on.
"""

from functools import partial

from clh.evaluation import recipes


def main() -> int:
    """Run, score, report."""
    parser = recipes.evaluation_parser(__doc__, "experiments/recipes/1_analyse_agent.yaml")
    arguments = recipes.parse_arguments(parser)

    from agents.evaluation import experiment, oracle

    alone = partial(oracle.run_agent, "analyze", "predicted")
    return experiment.run(arguments, ("analyze",), alone)


if __name__ == "__main__":
    recipes.run_script(main)
