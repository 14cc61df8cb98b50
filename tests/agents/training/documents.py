"""A small marked document, and the examples that are built from it."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

from agents.pipeline import Pipeline
from agents.training.examples import AnalyzeExample, VerifyExample, build_examples
from clh.corpora import Evidence, Example
from clh.schema import Note
from clh.training.language import SftRecipe

SENTENCES = [
    "He has had a cough for three weeks now.",
    "There is no pain in his right knee.",
    "His mother had heart failure at a young age.",
    "He walked to the clinic with his dog today.",
]
CODES = {0: ["R05.9"], 1: ["M25.561"], 2: ["I50.9"]}


def document(
    id: str = "a",
    sentences: list[str] = SENTENCES,
    codes: dict[int, list[str]] = CODES,
    quotes: dict[int, str] | None = None,
) -> Example:
    """A document of a sentence a line, marked as a whole unless `quotes` says with which words."""
    note = Note(id=id, text="\n".join(sentences))
    marks = []
    for line, those in codes.items():
        quote = (quotes or {}).get(line, sentences[line])
        start = note.text.index(quote)
        marks += [
            Evidence(code=code, note_id=id, spans=(note.span(start, start + len(quote)),))
            for code in those
        ]
    return Example(
        id=id,
        notes=(note,),
        codes=tuple(dict.fromkeys(code for those in codes.values() for code in those)),
        evidence=tuple(marks),
        split="train",
    )


def built(
    document: Example, pipeline: Pipeline, **changed: Any
) -> tuple[list[AnalyzeExample], list[VerifyExample]]:
    """All examples of a document, by their task."""
    given = {"negatives": 100, **changed}
    examples = build_examples(document, pipeline, rng=random.Random(0), **given)
    return (
        [example for example in examples if isinstance(example, AnalyzeExample)],
        [example for example in examples if isinstance(example, VerifyExample)],
    )


def terms_of(window: AnalyzeExample) -> list[dict[str, str]]:
    """The terms of a window's completion."""
    terms: list[dict[str, str]] = json.loads(window.completion)["terms"]
    return terms


def recipe(**changed: Any) -> SftRecipe:
    """The recipe of run_training.py with some values changed."""
    file = Path(__file__).parents[3] / "experiments" / "recipes" / "run_training.yaml"
    return SftRecipe.model_validate(yaml.safe_load(file.read_text()) | changed)
