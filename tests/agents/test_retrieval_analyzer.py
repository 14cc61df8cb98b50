"""Analyze by retrieval reads long notes in pieces, stops when told to, embeds what may matter."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given

from agents.analyze import retrieval
from agents.analyze.retrieval import RetrievalAnalyzer
from agents.node import Trace
from clh.models.embedder import Vectors
from clh.schema import Note, Term
from tests.agents.test_analyze import NOTES
from tests.conftest import MakePipeline
from tests.fakes import ToyTower


class CountingTower(ToyTower):
    """Remembers the texts of each call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Vectors:
        self.calls.append([*texts])
        return super().encode(texts, progress)

    @property
    def texts(self) -> list[str]:
        return [*itertools.chain.from_iterable(self.calls)]


MakeAnalyzer = Callable[[], tuple[RetrievalAnalyzer, CountingTower]]


@pytest.fixture(scope="session")
def analyzer(make_toy: MakePipeline) -> MakeAnalyzer:
    """An analyzer over the toy code system, and its tower."""
    toy = make_toy()

    def make() -> tuple[RetrievalAnalyzer, CountingTower]:
        tower = CountingTower()
        made = RetrievalAnalyzer(toy.settings.analyze.retrieval, toy.reader, tower, toy.index, None)
        return made, tower

    return make


def found(analyzer: RetrievalAnalyzer, text: str) -> list[tuple[str, str, str]]:
    terms = analyzer.extract(Note(id="n", text=text))
    return [(term.quote.text, term.lead_term, term.status) for term in terms]


def test_text_copied_from_a_pdf_is_read_as_it_was_meant(analyzer: MakeAnalyzer) -> None:
    made, _ = analyzer()
    text = "No hyper-\ntension.\nKnee pain, heart\u00a0failure, hyper\u00adtension, cough\u200b."
    assert found(made, text) == [
        ("hyper-\ntension", "hypertension", "negated"),
        ("Knee pain", "knee pain", "affirmed"),
        ("heart\u00a0failure", "heart failure", "affirmed"),
        ("hyper\u00adtension", "hypertension", "affirmed"),
        ("cough\u200b", "cough", "affirmed"),
    ]


@pytest.mark.parametrize("window", [1, 7])
@given(text=NOTES)
def test_terms_do_not_depend_on_how_much_is_read_at_once(
    analyzer: MakeAnalyzer, window: int, text: str
) -> None:
    note = Note(id="n", text=text)

    def terms(tokens: int) -> list[Term]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retrieval, "_WINDOW", tokens)
            return analyzer()[0].extract(note)

    assert terms(window) == terms(10_000)


def test_a_long_note_is_embedded_in_pieces_and_no_text_twice(analyzer: MakeAnalyzer) -> None:
    made, tower = analyzer()
    days = "".join(f"Day {day}: cough and knee pain in ward {day}. " for day in range(2_000))
    terms = made.extract(Note(id="n", text=days))
    assert [term.lead_term for term in terms] == ["cough", "knee pain"] * 2_000
    assert max(map(len, tower.calls)) < 2_000
    assert len(tower.texts) == len(set(tower.texts))


def test_what_shares_too_few_words_with_any_title_is_not_embedded(analyzer: MakeAnalyzer) -> None:
    made, tower = analyzer()
    assert found(made, "The weather was pleasant, cough or not.") == [
        ("cough", "cough", "affirmed")
    ]
    assert tower.texts == ["cough"]
    assert found(made, "Severe throbbing frontal headache with cough")[0][0] == "cough"
    assert "severe throbbing frontal headache with cough" not in tower.texts


def test_progress_reaches_the_end_of_the_note(analyzer: MakeAnalyzer) -> None:
    made, _ = analyzer()
    text = "He has a cough and pain in the left knee. " * 500
    seen: list[tuple[int, int]] = []
    made.extract(Note(id="n", text=text), lambda done, total: seen.append((done, total)))
    assert len(seen) > 3
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (len(text.rstrip()), len(text))


def test_progress_can_stop_the_work(analyzer: MakeAnalyzer) -> None:
    made, tower = analyzer()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    text = "".join(f"Cough {day} times. " for day in range(5_000))
    with pytest.raises(KeyboardInterrupt):
        made.extract(Note(id="n", text=text), stop)
    assert len(tower.calls) == 1


@pytest.mark.parametrize(
    "text",
    [
        "He has cough and knee pain without fever " * 3_000,
        "x" * 1_000_000 + " cough",
        "cough: " * 40_000,
    ],
    ids=["one sentence", "one word", "colons"],
)
def test_no_text_takes_long_or_is_copied_often(analyzer: MakeAnalyzer, text: str) -> None:
    made, _ = analyzer()
    started = time.process_time()
    terms = made.extract(Note(id="n", text=text))
    assert time.process_time() - started < 30  # it takes 1 s
    assert terms
    assert max(len(term.sentence.text) for term in terms) < 40_000


async def test_a_cancelled_note_is_not_read_on(analyzer: MakeAnalyzer) -> None:
    made, tower = analyzer()
    note = Note(id="n", text="".join(f"Cough {day} times. " for day in range(20_000)))
    reading = asyncio.create_task(made.analyze(note, Trace()))
    while not tower.calls:
        await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    calls = len(tower.calls)
    await asyncio.sleep(1)
    assert len(tower.calls) <= calls + 1
