import copy
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.corpora.example import Evidence, Example
from clh.evaluation import metrics, report, stages
from clh.evaluation.stages import CodedExample, Outcome, Steps
from clh.schema import AssignedCode, Note, Span
from tests.fakes import toy_system

SYSTEM = toy_system()
THRESHOLD = 0.4
CONFIG = {"settings": {"policy": "mention", "assign": {"threshold": THRESHOLD}}, "seed": 0}
VOID = {"meta", "br"}

Evidences = Mapping[str, Sequence[tuple[int, int]]]  # code -> start and end of each span


class Reading(HTMLParser):
    """What a reader gets of a page; fails where tags are not nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.notes: list[list[tuple[str, frozenset[str]]]] = []  # text, and the marks around it
        self._depth = 0  # of the note's element, while in it
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if ("class", "note") in attrs:
            self.notes.append([])
            self._depth = len(self.open)
        if tag == "h2":
            self.headings.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if len(self.open) < self._depth:
            self._depth = 0

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.notes[-1].append((data, frozenset(self.open[self._depth :])))
        if "h2" in self.open:
            self.headings[-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row[0].startswith(first))


def outcome(
    id: str,
    gold: Sequence[str] = (),
    predicted: Sequence[str] = (),
    *,
    text: str = "Cough & chest pain",
    gold_evidence: Evidences | None = None,
    predicted_evidence: Evidences | None = None,
    verified: Mapping[str, float] | None = None,
) -> Outcome:
    note = Note(id=id, text=text)

    def spans(evidences: Evidences | None, code: str) -> tuple[Span, ...]:
        return tuple(note.span(start, end) for start, end in (evidences or {}).get(code, ()))

    scores = dict.fromkeys(predicted, 0.8) if verified is None else dict(verified)
    return Outcome(
        Example(
            id=id,
            notes=(note,),
            codes=tuple(gold),
            evidence=tuple(
                Evidence(code=code, note_id=id, spans=spans(gold_evidence, code))
                for code in gold_evidence or {}
            ),
            split="test",
        ),
        Steps(note_id=id, run_id="r", note_sha256="s", git="", retrieved=scores, verified=scores),
        CodedExample(
            note_id=id,
            run_id="r",
            icd_release="toy",
            policy="mention",
            models={"analyze": "rules"},
            timings={"analyze": 1.0},
            gold=tuple(gold),
            codes=tuple(
                AssignedCode(
                    code=code,
                    description="",
                    confidence=0.8,
                    sequence=place,
                    evidence=spans(predicted_evidence, code) or (note.span(0, 1),),
                    rationale="",
                )
                for place, code in enumerate(predicted, start=1)
            ),
        ),
    )


def result_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What metrics.json would hold of a whole run."""
    notes = stages.score_notes(one.coded for one in outcomes)
    misses = Counter(one.why for one in stages.find_false_negatives(outcomes, SYSTEM, THRESHOLD))
    extras = Counter(one.what for one in stages.find_false_positives(outcomes, SYSTEM))
    result = {
        "dataset": "invented",
        "split": "test",
        "n_notes": len(outcomes),
        "code_space": 98186,
        "threshold": 0.3,
        "stages": {
            "locate": {"recall@50": 0.75, "map": 0.7, "no_prior": {"recall@50": 0.625}},
            "verify": {"candidates": 12345, "roc_auc": None, "map": 0.65},
            "assign": {**metrics.set_scores(notes), "map": 0.6},
        },
        "ci95": {"micro_f1": (0.25, 0.5), "map": (0.1, 0.9)},
        "funnel": stages.count_funnel(outcomes, SYSTEM, THRESHOLD),
        "misses": {why: misses[why] for why in stages.MISSES},
        "extras": {what: extras[what] for what in stages.EXTRAS},
        "chapters": [group._asdict() for group in metrics.by_chapter(notes, SYSTEM)],
        "bands": [group._asdict() for group in metrics.by_band(notes, {"I10": 12})],
        "speed": {"notes_per_hour": 1234.5, "p50_seconds": 1.0, "p95_seconds": 2.0},
        "failed_notes": 0,
        "git": "0123abc",
        "config_hash": "89abcdef",
    }
    return json.loads(json.dumps(result))


def page(outcomes: Sequence[Outcome], worked: int = 10, **changed: Any) -> str:
    return report.page(result_of(outcomes) | changed, CONFIG, outcomes, SYSTEM, worked)


MIXED = [
    outcome("good", ["I10", "R05.9"], ["I10", "R05.9"]),
    outcome("fair", ["I10", "E11.65", "R51"], ["I10", "E11.9"]),
    outcome("poor", ["I10", "I50.9"], ["R07.9"], verified={"R07.9": 0.8, "I10": 0.2}),
    outcome("none", ["J18.9"]),
]


def test_page_has_all_sections_and_stands_alone() -> None:
    html = page(MIXED)
    reading = Reading(html)
    assert reading.headings == [
        "Scores of each stage",
        "Where gold codes are lost",
        "Probabilities",
        "Parts of the code book",
        "Frequent and rare codes",
        "Errors",
        "Worked notes",
        "Configuration",
    ]
    assert html.startswith("<!doctype html>")
    assert not re.search(r"<script|<link|@import|\ssrc=|url\((?!#)|href=\"(?!#)", html)
    assert "all 98,186 codes and categories of release toy" in html


def test_charts_have_a_name_and_share_no_ids() -> None:
    html = page(MIXED)
    assert len(re.findall(r'<svg role="img" aria-label="[^"]+"', html)) == 2
    ids = Reading(html).ids
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#(\w+)', html)
    assert used
    assert set(used) <= set(ids)


def test_charts_take_the_colours_of_the_page() -> None:
    svgs = "".join(re.findall(r"<svg.*?</svg>", page(MIXED), re.DOTALL))
    assert "var(--accent)" in svgs
    assert not re.search(r"(?:fill|stroke): #", svgs)


def test_page_is_the_same_again() -> None:
    assert page(MIXED) == page(MIXED)


def test_funnel_says_what_each_stage_lost() -> None:
    reading = Reading(page(MIXED))
    # R51 is not billable; E11.65, I50.9 and J18.9 were not located; one I10 was rejected.
    assert reading.row("gold") == ["gold", "8", "1.000", "0"]
    assert reading.row("billable") == ["billable", "7", "0.875", "1"]
    assert reading.row("locate") == ["locate", "4", "0.500", "3"]
    assert reading.row("verify") == ["verify", "3", "0.375", "1"]
    assert reading.row("assign") == ["assign", "3", "0.375", "0"]


def test_worst_codes_come_with_their_counts_and_main_reason() -> None:
    reading = Reading(
        page(
            [
                outcome("1", ["I10"], verified={"I10": 0.1}),
                outcome("2", ["I10"], verified={"I10": 0.2}),
                outcome("3", ["I10", "J18.9"]),
                outcome("4", ["I10", "E11.65"], ["I10", "E11.9"]),
                outcome("5", ["E11.9"], ["E11.9"]),
            ]
        )
    )
    first = reading.rows.index(["code", "title", "gold", "missed", "mostly"]) + 1
    hypertension = "Essential (primary) hypertension"
    assert reading.rows[first] == ["I10", hypertension, "4", "3", "rejected by verify"]
    assert reading.rows[first + 1][0] == "E11.65"
    first = reading.rows.index(["code", "title", "predicted", "wrong", "mostly"]) + 1
    assert reading.rows[first][0] == "E11.9"
    assert reading.rows[first][2:] == ["2", "1", "parent instead of child"]


def test_every_error_class_is_explained() -> None:
    html = page(MIXED)
    for name in (*stages.MISSES, *stages.EXTRAS):
        assert re.search(rf"<dt>{name}</dt><dd><b>\d+</b> \w[^<]+\.</dd>", html)


def test_worked_note_sets_gold_beside_predicted() -> None:
    one = outcome(
        "n",
        ["R05.9", "I10", "R51"],
        ["R05.9", "R07.0"],
        text="Cough, sore\n throat <b>",
        gold_evidence={"R05.9": [(0, 5)]},
        predicted_evidence={"R05.9": [(0, 5), (0, 5)], "R07.0": [(7, 19)]},
    )
    reading = Reading(page([one]))
    rows = reading.rows[reading.rows.index(["code", "gold", "predicted", "outcome"]) + 1 :]
    assert rows == [
        ["R05.9 Cough, unspecified", "Cough", "0.800 Cough", "✓"],
        [
            "I10 Essential (primary) hypertension",
            "no evidence marked",
            "-",
            "missed: not retrieved by locate",
        ],
        [
            "R51 not in this release",
            "no evidence marked",
            "-",
            "missed: not billable in this release",
        ],
        ["R07.0 Pain in throat", "-", "0.800 sore throat", "extra"],
    ]
    assert "F1 0.400, 1 of 3 gold codes\nfound, 1 others" in page([one])


@st.composite
def marked_notes(draw: st.DrawFn) -> tuple[str, Evidences, Evidences]:
    text = draw(
        st.text(st.sampled_from("ab<>&;\"' \n\ré{%}") | st.characters(codec="utf-8"), min_size=1)
    )
    place = st.integers(0, len(text))
    span = st.tuples(place, place).map(sorted).filter(lambda ends: ends[0] < ends[1]).map(tuple)
    spans = st.lists(span, min_size=1, max_size=4)
    evidence = st.dictionaries(st.sampled_from(["I10", "R05.9", "E11.9"]), spans)
    return text, draw(evidence), draw(evidence)


@given(marked_notes())
def test_marked_note_is_the_note(marked: tuple[str, Evidences, Evidences]) -> None:
    text, gold, predicted = marked
    one = outcome(
        "n", [*gold], [*predicted], text=text, gold_evidence=gold, predicted_evidence=predicted
    )
    (pieces,) = Reading(page([one], stages={"assign": {"micro_f1": 0.0}})).notes
    assert "".join(piece for piece, _ in pieces) == text
    marks = [around for piece, around in pieces for _ in piece]
    for tag, evidences in (("u", gold), ("mark", predicted)):
        inside = {
            at for ends in evidences.values() for start, end in ends for at in range(start, end)
        }
        assert {at for at, around in enumerate(marks) if tag in around} == inside


def test_worked_notes_run_from_the_worst_to_the_best() -> None:
    codes = ["I10", "R05.9", "R07.9", "J18.9", "E11.9"]
    outcomes = [outcome(f"n{right}", codes, codes[:right]) for right in (3, 0, 5, 1, 4, 2)]
    for wanted, shown in ((3, ["n0", "n2", "n5"]), (1, ["n0"]), (10, [f"n{i}" for i in range(6)])):
        assert re.findall(r"<h3>(n\d)</h3>", page(outcomes, wanted)) == shown


@pytest.mark.parametrize(
    "outcomes",
    [
        pytest.param([outcome("n", ["I10"])], id="nothing predicted"),
        pytest.param([outcome("n", (), ["I10"])], id="no gold"),
        pytest.param([outcome("n")], id="neither"),
        pytest.param([outcome("n", ["I10"], ["I10"], verified={})], id="nothing verified"),
        pytest.param([outcome("n", ["I10"], verified={"I10": 0.1})], id="all below the threshold"),
    ],
)
def test_page_of_little(outcomes: list[Outcome]) -> None:
    unknown = dict.fromkeys(("micro_f1", "map", "roc_auc_macro", "evidence_recall"))
    result = result_of(outcomes)
    scores = {**result["stages"], "assign": result["stages"]["assign"] | unknown}
    reading = Reading(page(outcomes, bands=None, git="", stages=scores))
    assert "Frequent and rare codes" not in reading.headings
    assert ("Probabilities" in reading.headings) == bool(outcomes[0].steps.verified)
    assert reading.row("micro_f1") == ["micro_f1", "-", "0.250 to 0.500"]


@pytest.mark.parametrize(
    ("agent", "metric", "charts"),
    [("locate", "recall@50", []), ("verify", "map", ["Probabilities"])],
)
def test_page_of_one_agent_has_its_scores_alone(agent: str, metric: str, charts: list[str]) -> None:
    whole = result_of(MIXED)
    tables = ("funnel", "misses", "extras", "chapters", "bands")
    result = {name: value for name, value in whole.items() if name not in tables}
    result |= {"stages": {agent: {metric: 0.75}}, "ci95": {metric: [0.5, 0.875]}}
    reading = Reading(report.page(result, CONFIG, MIXED, SYSTEM, 10))
    assert reading.headings == ["Scores of each stage", *charts, "Configuration"]
    assert reading.row(metric) == [metric, "0.750", "0.500 to 0.875"]


def test_names_are_no_markup() -> None:
    hostile = "<img src=x>"
    config = copy.deepcopy(CONFIG) | {"recipe": hostile}
    result = result_of(MIXED) | {"dataset": hostile}
    assert "<img" not in report.page(result, config, [outcome(hostile, ["I10"])], SYSTEM, 1)


def test_show_prints_intervals_of_the_last_stage_in_100_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    report.show(result_of(MIXED) | {"dataset": "[bold]x"})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    words = [line.split() for line in lines]
    assert ["map", "0.650"] in words
    assert ["map", "0.600", "0.100", "to", "0.900"] in words
    assert ["verify", "candidates", "12,345"] in words
    assert ["roc_auc", "-"] in words
    assert ["locate,", "no_prior", "recall@50", "0.625"] in words
    assert ["speed", "notes_per_hour", "1,234.5"] in words
    assert lines[0] == "[bold]x test, 4 notes"
    assert "98,186 codes and categories" in lines[-1]
