"""Make a sentence-transformers model ready for CLH, which runs it in ONNX Runtime.

    python experiments/export_onnx.py --model MODEL [--output OUT]

MODEL is an embedder or a reranker: a folder, a hub id, or a model that a package carries. Writes
model.onnx into it or, with --output, into a copy of it, which the settings can then name. Linear
layers compute in int8 unless --float32 is given: twice as fast, and almost as exact.
"""

import argparse
import shutil
from pathlib import Path

from clh.errors import InputError
from clh.evaluation import recipes


def main() -> int:
    """Copy, and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="as towers.query in clh.toml")
    parser.add_argument("--output", type=Path, help="folder of the copy; none by default")
    parser.add_argument("--float32", action="store_true", help="compute in float32, not in int8")
    arguments = parser.parse_args()
    if arguments.output is not None and arguments.output.exists():
        raise InputError(f"{arguments.output} exists: choose another --output, or delete it")

    from clh.config import Settings
    from clh.models import weights
    from clh.training.export import export_onnx

    folder = weights.resolve(arguments.model, Settings.load().cache_dir)
    if arguments.output is not None:
        folder = shutil.copytree(folder, arguments.output)
    print(export_onnx(folder, quantize=not arguments.float32))
    return 0


if __name__ == "__main__":
    recipes.run_script(main)
