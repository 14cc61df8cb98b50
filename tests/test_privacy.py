"""What lies on the disk after coding: no word of the notes, and no hash that gives one away."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.analyze.llm import Quoted, Reply
from clh.audit import Audit
from clh.config import Settings
from clh.icd.tabular import CodeSystem, load_tabular
from clh.retrieval.lexical import searchable
from clh.schema import Note
from tests.conftest import MakePipeline
from tests.fakes import QueuedModel, toy_system

ROOT = Path(__file__).parents[1]
CANARY = "Xylophonic"
NOTE = Note(
    id=f"MRN-4711-{CANARY}",
    text=f"""Mr. {CANARY} has a cough, chest pain, and type 2 diabetes without complications.
He denies pain in the left knee. Personal history of malignant neoplasm of breast.

Assessment:
Essential (primary) hypertension. Chronic systolic (congestive) heart failure.
""",
)


def dictionary(system: CodeSystem) -> set[str]:
    """What somebody would try who wants to read a hash back: the code book's texts and words."""
    texts = {text for _, text in searchable(system)}
    words = {word for text in texts for word in re.findall(r"[A-Za-z0-9']+", text)}
    return texts | words


def spellings(text: str) -> Iterator[str]:
    yield from (text, text.lower(), text.upper(), text.capitalize())
    yield from (f"{whose} history of {text.lower()}" for whose in ("Personal", "Family"))


def readable_by_hash(content: bytes, texts: Iterable[str]) -> set[str]:
    """The texts whose hash, or its start, the content holds, in hexadecimal or as bytes."""
    hexadecimal = {content[i : i + 16] for i in range(len(content) - 15)}
    raw = {content[i : i + 8] for i in range(len(content) - 7)}
    return {
        spelling
        for text in texts
        for spelling in spellings(text)
        for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256)
        if (hashed := digest(spelling.encode())).digest()[:8] in raw
        or hashed.hexdigest()[:16].encode() in hexadecimal
    }


def strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            yield from (text for part in value.items() for text in strings(list(part)))
        case list():
            yield from (text for part in value for text in strings(part))


def assert_tells_nothing(home: Path, audit: Audit, system: CodeSystem, notes: list[Note]) -> None:
    """No file under `home`, nor what the audit unpacks of them, tells what the notes said."""
    runs = [audit.show(run["run_id"]) for run in audit.latest(len(notes) + 1)]
    assert len(runs) == len(notes)
    assert all(step["output"] for run in runs for step in run["steps"])
    files = [file for file in home.rglob("*") if file.is_file()]
    unpacked = json.dumps(runs).encode()
    content = b"\0".join([unpacked, *(file.read_bytes() for file in files)])

    texts = dictionary(system) | {CANARY, CANARY.lower()}
    texts |= {text for note in notes for text in (note.id, note.text, *note.text.split("."))}
    assert CANARY.lower().encode() not in content.lower()
    assert readable_by_hash(content, texts) == set()

    titles = {text.lower() for _, text in searchable(system) if " " in text}
    titles |= {line.strip().lower() for note in notes for line in note.text.splitlines() if line}
    kept = {text.lower() for run in runs for text in strings(run)}
    assert {title for title in titles if any(title in text for text in kept)} == set()


def test_the_search_finds_what_it_should() -> None:
    hashed = hashlib.sha256(b"Cough").hexdigest()
    assert readable_by_hash(f"x{hashed}x".encode(), ["cough"]) == {"Cough"}
    assert readable_by_hash(hashlib.md5(b"cough").digest(), ["Cough"]) == {"cough"}
    assert readable_by_hash(b"cough" * 9, ["cough"]) == set()


async def test_coding_leaves_no_word_behind(make_toy: MakePipeline) -> None:
    toy = make_toy()
    assert (await toy.code(NOTE)).note.codes
    assert (await toy.code(NOTE.model_copy(update={"id": "2"}))).note.codes
    assert isinstance(toy.audit, Audit)
    notes = [NOTE, NOTE.model_copy(update={"id": "2"})]
    assert_tells_nothing(toy.audit.path.parent, toy.audit, toy_system(), notes)


async def test_coding_by_a_language_model_leaves_no_word_behind(make_toy: MakePipeline) -> None:
    terms = [
        Quoted(quote=quote, lead_term=f"{quote}, acute", status="affirmed")
        for quote in ("cough", "chest pain", "a quote that nobody wrote")
    ]
    model = QueuedModel([Reply(terms=terms), f'{{"terms": ["{CANARY}"', "no"], [[0.9, 0.1]] * 999)
    llm = {"source": "llm"}
    toy = make_toy(model, analyze={**llm, "llm": {"window_words": 20}}, verify=llm, assign=llm)
    coded = (await toy.code(NOTE)).note
    assert coded.codes
    assert isinstance(toy.audit, Audit)
    assert_tells_nothing(toy.audit.path.parent, toy.audit, toy_system(), [NOTE])


@pytest.mark.integration
@pytest.mark.usefixtures("real_pipeline")  # so that the index is there
def test_clh_code_leaves_no_word_in_the_home_folder(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "notes"
    home.mkdir()
    elsewhere.mkdir()
    sample = (ROOT / "data/sample/visit.txt").read_text(encoding="utf-8")
    note = Note(id=NOTE.id, text=f"{sample}\nSigned: {CANARY}\n")
    file = elsewhere / f"{note.id}.txt"
    file.write_text(note.text, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", "from clh.cli import main; main()", "code", file],
        check=False,
        cwd=ROOT,
        env={**kept, "HOME": str(home), "CLH_CACHE_DIR": str(Settings.load().cache_dir)},
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 0
    [database] = home.rglob("audit.sqlite")
    assert_tells_nothing(home, Audit(database, store_text=False), load_tabular(), [note])
