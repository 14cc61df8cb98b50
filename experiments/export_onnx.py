"""Write the ONNX graph by which CLH runs a tower or a reranker.

    python experiments/export_onnx.py --model MODEL --output OUT [--float32]

MODEL is the folder or hub id of a SentenceTransformer or a CrossEncoder. OUT becomes a copy of it
with model.onnx inside, which `towers.query`, `towers.code` or `verify.reranking.model` of the
settings can name; without --output the graph is written into MODEL itself. The graph computes in
int8, or in float32 if asked to: half as fast, and for models that lose too much in int8.
"""

import argparse
import shutil
from pathlib import Path

from clh.errors import InputError
from clh.evaluation import recipes


def main() -> int:
    """Copy and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="as towers.query in clh.toml")
    parser.add_argument("--output", type=Path, help="folder of the copy")
    parser.add_argument("--float32", action="store_true", help="compute in float32, not in int8")
    arguments = parser.parse_args()

    from clh.models import weights
    from clh.training.export import export_onnx

    folder = weights.source(arguments.model)
    if arguments.output is not None:
        try:
            folder = shutil.copytree(folder, arguments.output)
        except OSError as error:
            raise InputError(f"cannot copy {folder} to {arguments.output}: {error}") from error
    print(export_onnx(folder, quantize=not arguments.float32))
    return 0


if __name__ == "__main__":
    recipes.run_script(main)
