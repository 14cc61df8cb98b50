"""Train the towers of locate on the code system and on the sentences of a corpus.

    python experiments/train_retriever.py --dataset codiesp --data-dir DIR --index INDEX.xml
        NEOPLASM.xml EINDEX.xml --abbreviations SENSES.tsv --output OUT

Learns from the train split alone, a tenth of which is held out to choose the best epoch. On several
GPUs `accelerate launch experiments/train_retriever.py ...`, in several processes without one
`torchrun --nproc_per_node 2 experiments/train_retriever.py ...`. Stopped at any time, the same
command goes on after the last whole epoch, and ends as if it had never stopped.

Writes OUT/best, which `towers.query` and `towers.code` of the settings can name; log.jsonl and
plot.svg, the loss and the held-out recall by epoch; config.json; checkpoint, to go on from.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clh.evaluation import recipes, runs

BEST = "recall@50"  # of the held-out documents, by which the best epoch is kept


def main() -> int:
    """Train, and keep the best."""
    parser = recipes.training_parser(__doc__, "experiments/recipes/train_retriever.yaml")
    parser.add_argument("--index", type=Path, nargs="*", default=[], help="XML of the Index")
    parser.add_argument("--abbreviations", type=Path, help="lines: short form, phrase, share")
    arguments = recipes.parse_arguments(parser)

    import torch
    from accelerate import Accelerator
    from tqdm import tqdm

    from clh import corpora
    from clh.config import Settings
    from clh.document.reader import Reader
    from clh.icd.index import read_index
    from clh.icd.tabular import load_tabular
    from clh.models import weights
    from clh.training.pairs import index_pairs, read_abbreviations, sentence_pairs
    from clh.training.retriever import Data, Recipe, Training
    from clh.training.towers import TextEncoder

    recipe = recipes.read_recipe(arguments.recipe, Recipe, arguments.set)
    fast = weights.fast_dtype(weights.pick_device()) == torch.bfloat16
    accelerator = Accelerator(
        mixed_precision="bf16" if fast else "no", cpu=not torch.accelerator.is_available()
    )
    system = load_tabular()
    base = weights.resolve(recipe.base, Settings.load().cache_dir)
    examples = list(corpora.read(arguments.dataset, arguments.data_dir, "train"))
    chosen = corpora.hold_out(examples[: arguments.limit], recipe.held_out, recipe.seed)
    documents, held_out = (sentence_pairs(some, system, Reader()) for some in chosen)
    index = [term for file in arguments.index for term in read_index(file)]
    short = {}
    if arguments.abbreviations is not None:
        short = read_abbreviations(arguments.abbreviations, recipe.abbreviation_share)
    data = Data(documents, held_out, index_pairs(index, system, short), index, system, recipe)
    config = {
        "recipe": recipe.model_dump(mode="json"),
        "dataset": arguments.dataset,
        "documents": len(documents),
        "held_out": len(held_out),
        **{name: len(pool) for name, (pool, _) in data.pools.items()},
        "codes": len(data.titles),
        "base": weights.model_id(recipe.base, base),
        "processes": accelerator.num_processes,
        "icd_release": system.release,
        "git": runs.git_commit(),
    }
    with accelerator.main_process_first():
        folder = runs.Folder(arguments.output, config, ()).path

    checkpoint, resumed = folder / "checkpoint", (folder / "checkpoint").exists()
    encoder = TextEncoder.load(checkpoint if resumed else base)
    encoder.set_dropout(recipe.dropout)
    encoder.encoder.set_attn_implementation(recipe.attention)
    if encoder.head is None:
        torch.manual_seed(recipe.seed)
        encoder.widen(recipe.dimensions)
    training = Training(encoder, data, system, recipe, accelerator)
    log = training.restore(checkpoint) if resumed else [{"epoch": 0, **training.recall()}]
    bar = tqdm(
        total=recipe.epochs * recipe.steps,
        initial=(len(log) - 1) * recipe.steps,
        unit="step",
        disable=not accelerator.is_main_process,
    )
    for epoch in range(len(log), recipe.epochs + 1):
        log.append(training.epoch(epoch, bar.update))
        if accelerator.is_main_process:
            bar.write(json.dumps({name: round(value, 4) for name, value in log[-1].items()}))
            if log[-1][BEST] == max(one[BEST] for one in log[1:]):
                training.export(folder / "best")
            runs.write(folder / "log.jsonl", "".join(json.dumps(one) + "\n" for one in log))
            plot(log, folder / "plot.svg")
            training.save(checkpoint, log)
        accelerator.wait_for_everyone()
    bar.close()
    return 0


def plot(log: Sequence[Mapping[str, float]], file: Path) -> None:
    """Loss and held-out recall by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([one["epoch"] for one in log[1:]], [one["loss"] for one in log[1:]], marker=".")
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    for name in (name for name in log[0] if name.startswith("recall")):
        right.plot(
            [one["epoch"] for one in log], [one[name] for one in log], label=name, marker="."
        )
    right.set(xlabel="epoch", ylabel="held-out documents", ylim=(0, 1))
    right.legend()
    figure.savefig(file)


if __name__ == "__main__":
    recipes.run_script(main)
