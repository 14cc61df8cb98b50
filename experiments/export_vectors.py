"""Embed the texts of the code book, so that the first index of a tower takes seconds.

    python experiments/export_vectors.py --tower MODEL

Writes texts/vectors.safetensors into MODEL's folder, in int8: 22 MB for 56,000 texts. Run it again
whenever the tower or its graph has changed: vectors of other weights are never used.
"""

import argparse

from clh.evaluation import recipes


def main() -> int:
    """Embed, round, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tower", required=True, help="as towers.code in clh.toml")
    arguments = parser.parse_args()

    from tqdm import tqdm

    from clh.config import Settings
    from clh.icd.tabular import load_tabular
    from clh.models import weights
    from clh.models.embedder import load_embedder
    from clh.retrieval.lexical import searchable
    from clh.retrieval.text_vectors import FILE, TextVectors

    settings = Settings.load()
    texts = sorted({text for _, text in searchable(load_tabular())})
    embedder = load_embedder(arguments.tower, settings)
    with tqdm(total=len(texts), unit=" texts") as bar:
        vectors = embedder.encode(texts, bar.update)
    folder = weights.resolve(arguments.tower, settings.cache_dir)
    TextVectors.of(texts, vectors).save(folder, embedder.id)
    print(folder / FILE)
    return 0


if __name__ == "__main__":
    recipes.run_script(main)
