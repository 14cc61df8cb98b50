"""What the towers learn from: sentences with the codes marked in them, and the Index."""

from pathlib import Path

import pytest

from clh.corpora import Evidence, Example
from clh.document.reader import Reader
from clh.errors import InputError
from clh.icd.index import IndexTerm
from clh.schema import Note, Span
from clh.training.pairs import add_abbreviated, index_pairs, read_abbreviations, sentence_pairs
from tests.fakes import toy_system

TEXT = "Cough and HTN. Sprain of the right knee. He went home."


def example(*marks: tuple[str, str]) -> Example:
    """An example whose evidence is given as code and quote."""
    spans = [
        (code, Span(start=TEXT.index(quote), end=TEXT.index(quote) + len(quote), text=quote))
        for code, quote in marks
    ]
    return Example(
        id="a",
        notes=(Note(id="n", text=TEXT),),
        codes=tuple(dict.fromkeys(code for code, _ in marks)),
        evidence=tuple(Evidence(code=code, note_id="n", spans=(span,)) for code, span in spans),
        split="train",
    )


def test_a_sentence_means_the_codes_marked_in_it() -> None:
    marked = example(("R05", "Cough"), ("I10", "HTN"), ("S83.411A", "right knee"), ("Q99", "home"))
    [pairs] = sentence_pairs([marked], toy_system(), Reader())
    # Categories and 7th characters as locate reports them; a code that the release lacks is none.
    assert [set(pair.codes) for pair in pairs] == [{"R05.9", "I10"}, {"S83.411"}, set()]
    assert pairs[0].texts == ("Cough and hypertension.",)


def test_codes_without_evidence_are_refused() -> None:
    plain = example(("R05", "Cough")).model_copy(update={"evidence": ()})
    with pytest.raises(InputError, match="a has codes without evidence"):
        sentence_pairs([plain], toy_system(), Reader())


def test_the_index_is_read_as_it_is_said() -> None:
    terms = [
        IndexTerm(("Failure, failed", "heart"), ("acute", "congestive"), code="I50.9"),
        IndexTerm(("Decompensation, cardiac",), see="Failure, heart"),
        IndexTerm(("Weakness", "heart"), code="I50.9", see_also="Cough"),
        IndexTerm(("Cough",), code="R05.-"),
        IndexTerm(("Nowhere",), see="Somewhere"),
    ]
    pairs = index_pairs(terms, toy_system(), {"heart": "hrt"})
    assert [(pair.texts[0], set(pair.codes)) for pair in pairs] == [
        ("Failure, failed, heart", {"I50.9"}),
        ("Decompensation, cardiac", {"I50.9"}),
        ("Weakness, heart", {"I50.9", "R05.9"}),
        ("Cough", {"R05.9"}),
    ]
    assert {"heart Failure", "congestive heart Failure", "congestive hrt Failure"} <= set(
        pairs[0].texts
    )


def test_the_longest_phrase_is_abbreviated() -> None:
    short = {"heart failure": "HF", "congestive heart failure": "CHF", "heart": "hrt"}
    assert add_abbreviated(["Acute congestive heart failure of the heart"], short) == [
        "Acute congestive heart failure of the heart",
        "Acute CHF of the hrt",
    ]
    assert add_abbreviated(["Cough"], short) == ["Cough"]
    assert add_abbreviated(["Cough"], {}) == ["Cough"]


def test_rare_senses_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "senses.tsv"
    file.write_text("htn\thypertension\t1\nl\tleft\t0.159\nl\tliter\t0.727\n")
    assert read_abbreviations(file, 0.5) == {"hypertension": "htn", "liter": "l"}


@pytest.mark.parametrize("line", ["htn\thypertension", "htn\thypertension\tall", "a\tb\t1\tc"])
def test_other_lines_are_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "senses.tsv"
    file.write_text(f"sob\tshortness of breath\t1\n{line}\n")
    with pytest.raises(InputError, match=r"senses\.tsv, line 2: give short form"):
        read_abbreviations(file, 0.5)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_abbreviations(tmp_path / "none.tsv", 0.5)
