"""Train the towers of locate on the code system and on the sentences of a corpus.

    python experiments/train_retriever.py --dataset codiesp --data-dir DIR --index INDEX.xml
        NEOPLASM.xml EINDEX.xml --abbreviations SENSES.tsv --output OUT

Learns from the train split alone, a tenth of which is held out to choose the best epoch. On several
GPUs `accelerate launch experiments/train_retriever.py ...`, in several processes without one
`torchrun --nproc_per_node 2 experiments/train_retriever.py ...`. Stopped at any time, the same
command goes on after the last whole epoch, and ends as if it had never stopped.

Writes OUT/best, a sentence-transformers model that `towers.query` and `towers.code` of the settings
can name; log.jsonl and plot.svg, the loss and the held-out recall by epoch; config.json;
checkpoints.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clh.evaluation import recipes
from clh.evaluation.run_folder import RunFolder, git_commit

if TYPE_CHECKING:
    import argparse

    from clh.corpora import Example
    from clh.icd.tabular import CodeSystem
    from clh.training.retriever import TowerRecipe
    from clh.training.tower_data import TowerData


def main() -> int:
    """Train, and keep the best."""
    parser = recipes.training_parser(__doc__, "experiments/recipes/train_retriever.yaml")
    parser.add_argument("--index", type=Path, nargs="*", default=[], help="XML of the Index")
    parser.add_argument("--abbreviations", type=Path, help="lines: short form, phrase, share")
    arguments = recipes.parse_arguments(parser)

    import torch
    from accelerate import PartialState

    from clh import corpora
    from clh.config import Settings
    from clh.document.reader import Reader
    from clh.icd.tabular import load_tabular
    from clh.models import weights
    from clh.training import retriever, trainer
    from clh.training.export import export_onnx
    from clh.training.pairs import sentence_pairs
    from clh.training.tower_data import CodeRelations
    from clh.training.towers import save_half

    recipe = recipes.read_recipe(arguments.recipe, retriever.TowerRecipe, arguments.set)
    processes = PartialState(cpu=not torch.accelerator.is_available())
    system = load_tabular()
    base = weights.resolve(recipe.base, Settings.load().cache_dir)
    examples = list(corpora.read(arguments.dataset, arguments.data_dir, "train"))
    train, held_out = corpora.hold_out(examples[: arguments.limit], recipe.held_out, recipe.seed)
    data = read_data(train, system, arguments, recipe)
    config = describe_run(
        arguments.dataset, recipe, base, train, held_out, data, processes.num_processes, system
    )
    with processes.main_process_first():
        folder = RunFolder(arguments.output, config, ()).path

    tower = retriever.build_tower(base, recipe)
    relations = CodeRelations(system, list(data.titles))
    trained, bank = retriever.build_trainer(tower, data, relations, recipe, folder)
    documents = sentence_pairs(held_out, system, Reader())
    trainer.train(
        trained,
        folder,
        lambda: bank.recall(documents, trained.state.global_step),
        lambda to: save_half(tower, to),
        best=retriever.BEST,
    )
    if trained.is_world_process_zero():
        export_onnx(folder / "best")
        plot(trainer.read_log(folder), folder / "plot.svg")
    return 0


def read_data(
    examples: Sequence["Example"],
    system: "CodeSystem",
    arguments: "argparse.Namespace",
    recipe: "TowerRecipe",
) -> "TowerData":
    """The sentences of a corpus, and the terms of the Alphabetic Index with their abbreviations."""
    from clh.document.reader import Reader
    from clh.icd.index import read_index
    from clh.training.pairs import index_pairs, read_abbreviations, sentence_pairs
    from clh.training.tower_data import TowerData

    index = [term for file in arguments.index for term in read_index(file)]
    abbreviations: dict[str, str] = {}
    if arguments.abbreviations is not None:
        abbreviations = read_abbreviations(arguments.abbreviations, recipe.abbreviation_share)
    terms = index_pairs(index, system, abbreviations)
    documents = sentence_pairs(examples, system, Reader())
    return TowerData(documents, terms, index, system, recipe.sizes)


def describe_run(
    dataset: str,
    recipe: "TowerRecipe",
    base: Path,
    train: Sequence["Example"],
    held_out: Sequence["Example"],
    data: "TowerData",
    processes: int,
    system: "CodeSystem",
) -> dict[str, Any]:
    """What the towers depend on, for config.json."""
    from clh.models import weights

    return {
        "recipe": recipe.model_dump(mode="json"),
        "dataset": dataset,
        "documents": len(train),
        "held_out": len(held_out),
        **{name: len(pool) for name, (pool, _) in data.pools.items()},
        "codes": len(data.titles),
        "base": weights.model_id(recipe.base, base),
        "processes": processes,
        "icd_release": system.release,
        "git": git_commit(),
    }


def plot(log: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Loss and held-out recall by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in log]
    left.plot(epochs[1:], [row["loss"] for row in log[1:]], marker=".")
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    for name in (name for name in log[0] if name.startswith("recall")):
        right.plot(epochs, [row[name] for row in log], label=name, marker=".")
    right.set(xlabel="epoch", ylabel="held-out documents", ylim=(0, 1))
    right.legend()
    figure.savefig(file)


if __name__ == "__main__":
    recipes.run_script(main)
