"""The pipeline: many notes, the public Python API, and an audit that fails."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import clh
from agents import pipeline as pipeline_module
from agents.evaluation.oracle import NoAudit
from agents.pipeline import run_in_order
from clh.errors import AuditError, InputError
from clh.schema import CodedNote, Note
from tests.conftest import MakePipeline

ROOT = Path(__file__).parents[2]
NOTES = [
    Note(id=f"{place}", text=text)
    for place, text in enumerate(["Cough.", "Hypertension.", "Heart failure.", "Fine."] * 3)
]


@pytest.mark.parametrize("concurrency", [1, 3, 100])
async def test_many_notes_come_in_their_order(make_toy: MakePipeline, concurrency: int) -> None:
    toy = make_toy()
    coded = [each.note async for each in toy.code_many(NOTES, concurrency=concurrency)]
    assert [note.note_id for note in coded] == [note.id for note in NOTES]
    codes = [[code.code for code in note.codes] for note in coded]
    assert codes == [["R05.9"], ["I10"], ["I50.9"], []] * 3


async def test_progress_is_told_while_a_note_is_read(make_toy: MakePipeline) -> None:
    text = "Cough. Hypertension.\n" * 1_000
    told: list[Any] = []
    await make_toy().code(
        Note(id="long", text=text),
        on_step=told.append,
        on_progress=lambda done, total: told.append((done, total)),
    )
    read = told[1 : told.index("analyze")]
    assert len(read) > 1
    assert read == sorted(read)
    assert read[-1] == (len(text.rstrip()), len(text))


async def test_notes_that_are_done_are_left_out(make_toy: MakePipeline) -> None:
    done = {note.id for note in NOTES[:9]}
    coded = [each.note.note_id async for each in make_toy().code_many(NOTES, done, 2)]
    assert coded == ["9", "10", "11"]


async def test_items_are_taken_only_as_there_is_room(make_toy: MakePipeline) -> None:
    taken: list[int] = []
    under_way = most = 0

    def items() -> Any:
        for item in range(10):
            taken.append(item)
            yield item

    async def work(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return item

    results = []
    async for result in run_in_order(work, items(), 3):
        results.append(result)
        assert len(taken) <= len(results) + 3
    assert results == taken == [*range(10)]
    assert most <= 3


class FullDisk(NoAudit):
    """An audit whose database cannot be written from some call on."""

    def __init__(self, call: str) -> None:
        self._call = call

    def begin(self, *_: Any) -> None:
        self._write("begin")

    def step(self, *_: Any, **__: Any) -> None:
        self._write("step")

    def finish(self, *_: Any) -> None:
        self._write("finish")

    def _write(self, call: str) -> None:
        if call == self._call:
            raise AuditError("the audit database cannot be used (disk full): set data_dir")


@pytest.mark.parametrize("call", ["step", "finish"])
async def test_a_coded_note_survives_an_audit_that_cannot_be_written(
    make_toy: MakePipeline, call: str
) -> None:
    coded = (await replace(make_toy(), audit=FullDisk(call)).code(NOTES[0])).note
    assert [code.code for code in coded.codes] == ["R05.9"]
    assert {error.agent for error in coded.errors} == {"audit"}
    assert all("set data_dir" in error.message for error in coded.errors)


async def test_a_run_that_cannot_be_audited_is_refused_before_coding(
    make_toy: MakePipeline,
) -> None:
    with pytest.raises(AuditError, match="set data_dir"):
        await replace(make_toy(), audit=FullDisk("begin")).code(NOTES[0])


async def test_what_is_left_out_says_why(make_toy: MakePipeline) -> None:
    text = "He has a cough. No heart failure. Hypertension in his mother."
    coded = (await make_toy().code(Note(id="n", text=text))).note
    assert [code.code for code in coded.codes] == ["R05.9"]
    considered = {code.code: code for code in coded.considered}
    assert considered["I50.9"].reason == "negated"
    assert considered["I50.9"].message == "the note denies it"
    for code in coded.considered:
        for span in code.evidence:
            assert text[span.start : span.end] == span.text


async def test_alternatives_are_other_codes_of_the_same_words(make_toy: MakePipeline) -> None:
    coded = (await make_toy().code(Note(id="n", text="Heart failure."))).note
    [code] = coded.codes
    assert 0 < len(code.alternatives) <= 3
    assert code.code not in {other.code for other in code.alternatives}
    confidences = [other.confidence for other in code.alternatives]
    assert confidences == sorted(confidences, reverse=True)


# --- the public Python API -------------------------------------------------------------------


@pytest.fixture
def toy_default(make_toy: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy()
    monkeypatch.setattr(pipeline_module, "_load_once", lambda profile: toy)


@pytest.mark.usefixtures("toy_default")
def test_a_text_is_coded_in_one_call() -> None:
    coded = clh.code("Assessment: hypertension.", note_id="visit")
    assert isinstance(coded, CodedNote)
    assert [code.code for code in coded.codes] == ["I10"]
    assert (coded.note_id, coded.errors) == ("visit", ())


@pytest.mark.usefixtures("toy_default")
async def test_a_text_is_coded_where_an_event_loop_runs() -> None:
    assert [code.code for code in clh.code("Cough.").codes] == ["R05.9"]


def test_a_blank_text_is_refused() -> None:
    with pytest.raises(InputError, match="blank"):
        clh.code(" \n")


def test_the_pipeline_is_public() -> None:
    assert clh.Pipeline is pipeline_module.Pipeline
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clh.nothing  # noqa: B018


def test_importing_clh_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'torch', 'langgraph', 'pydantic'}"
    script = f"import sys, clh; print(sorted({heavy} & {{*sys.modules}}))"
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert output.stdout == "[]\n"
