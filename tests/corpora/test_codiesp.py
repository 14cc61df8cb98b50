"""CodiEsp in the publisher's layout, with texts of ours."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from clh.corpora import codiesp
from clh.errors import InputError
from tests.corpora.fixtures import ENGLISH, SPANISH, codiesp_train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    codiesp_train(tmp_path)
    return tmp_path


def append(file: Path, line: str) -> None:
    file.write_text(file.read_text("utf-8") + line + "\n", encoding="utf-8")


def evidence(example: codiesp.Example) -> list[tuple[str, list[str]]]:
    return [(one.code, [span.text for span in one.spans]) for one in example.evidence]


def test_all_documents_come_by_id(folder: Path) -> None:
    examples = list(codiesp.read(folder, "train"))

    assert [example.id for example in examples] == ["S1-1", "S2-1", "S3-1"]
    assert [example.codes for example in examples] == [
        ("E11.9", "R50.9"),
        ("J45.909", "W19"),
        (),
    ]
    assert examples[0].note.text == ENGLISH["S1-1"]
    assert {example.split for example in examples} == {"train"}


def test_english_evidence_is_the_translated_sentences(folder: Path) -> None:
    first, second, third = codiesp.read(folder, "train")

    assert evidence(first) == [
        ("R50.9", ["He denies fever."]),
        ("E11.9", ["A man with type 2 diabetes mellitus."]),
    ]
    assert evidence(second) == [
        ("W19", ["She has a fall."]),
        ("J45.909", ["A woman with asthma.", "Normal chest X-ray; dyspnea with asthma."]),
    ]
    assert evidence(third) == []


def test_two_mentions_in_a_sentence_are_one_evidence_in_english(folder: Path) -> None:
    append(folder / "train" / "trainX.tsv", "S1-1\tDIAGNOSTICO\te11.9\tdiabetes\t10 18")

    first, *_ = codiesp.read(folder, "train")
    original, *_ = codiesp.read(folder, "train", language="es")

    assert len(first.evidence) == 2
    assert len(original.evidence) == 3


def test_spanish_evidence_is_what_was_marked(folder: Path) -> None:
    _, second, _ = codiesp.read(folder, "train", language="es")

    assert second.note.text == SPANISH["S2-1"]
    assert evidence(second) == [("W19", ["caída"]), ("J45.909", ["disnea", "asma"])]


@pytest.mark.parametrize(
    ("published", "code"),
    [
        ("t81.4xx", "T81.4"),  # the 7th character is missing, so its placeholders say nothing
        ("s19.9x", "S19.9"),
        ("t36.0x", "T36.0X"),  # here X belongs to the code
        ("t36.0x1a", "T36.0X1A"),
    ],
)
def test_codes_come_as_the_book_prints_them(folder: Path, published: str, code: str) -> None:
    append(folder / "train" / "trainD.tsv", f"S3-1\t{published}")

    *_, third = codiesp.read(folder, "train")

    assert third.codes == (code,)


@pytest.mark.parametrize(("language", "where"), [("es", "Radiografía"), ("en", "X-ray")])
def test_procedures_are_codes_as_published(
    folder: Path, language: codiesp.Language, where: str
) -> None:
    _, second, _ = codiesp.read(folder, "train", language=language, kind="procedure")

    assert second.codes == ("BW03ZZZ", "BW0")
    assert [one.code for one in second.evidence] == ["BW03ZZZ", "BW0"]
    assert all(where in span.text for one in second.evidence for span in one.spans)


def test_an_empty_piece_of_a_mention_is_left_out(folder: Path) -> None:
    append(folder / "train" / "trainX.tsv", "S1-1\tDIAGNOSTICO\te11.9\tVarón\t7 7;0 5")

    first, *_ = codiesp.read(folder, "train", language="es")

    assert ("E11.9", ["Varón"]) in evidence(first)


def test_marks_without_a_gold_code_are_left_out(folder: Path) -> None:
    append(folder / "train" / "trainX.tsv", "S1-1\tDIAGNOSTICO\ti10\tVarón\t0 5")

    first, *_ = codiesp.read(folder, "train")

    assert "I10" not in first.codes
    assert "I10" not in [one.code for one in first.evidence]


def test_another_translation_is_read_without_evidence(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "A man with type 2 diabetes mellitus who denies fever."
    (folder / "train" / "text_files_en" / "S1-1.txt").write_text(text)

    with caplog.at_level(logging.WARNING):
        first, second, _ = codiesp.read(folder, "train")

    assert first.note.text == text
    assert first.codes == ("E11.9", "R50.9")
    assert first.evidence == ()
    assert second.evidence != ()
    assert [record.args for record in caplog.records] == [("S1-1",)]


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def replace(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(data)


def add(name: str, line: str) -> Callable[[Path], None]:
    return lambda root: append(root / name, line)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("trainD.tsv"), "trainD.tsv: no such file"),
        (remove("trainX.tsv"), "trainX.tsv: no such file"),
        (remove("text_files_en/S1-1.txt"), "trainD.tsv, line 1: there is no text of S1-1"),
        (remove("text_files/S1-1.txt"), "trainX.tsv, line 1: there is no Spanish text of S1-1"),
        (replace("text_files_en/S3-1.txt", b" \n"), "S3-1.txt is blank"),
        (replace("text_files_en/S3-1.txt", "Revisión".encode("cp1252")), "S3-1.txt is not UTF-8"),
        (add("trainD.tsv", "S1-1 i10"), "trainD.tsv, line 5 has 1 columns instead of 2"),
        (add("trainD.tsv", "S1-1\te11.99x"), "trainD.tsv, line 5: 'e11.99x' is not in ICD-10-CM"),
        (add("trainX.tsv", "S1-1\tDIAGNOSTICO\ti10"), "trainX.tsv, line 7 has 3 columns"),
        (add("trainX.tsv", "S1-1\tX\ti10\tVarón\t0 5"), "line 7: 'X' is not DIAGNOSTICO or"),
        (add("trainX.tsv", "S1-1\tDIAGNOSTICO\te11.9\tx\t5 999"), "line 7: '5 999' are no offsets"),
        (add("trainX.tsv", "S1-1\tDIAGNOSTICO\te11.9\tx\t9 5"), "line 7: '9 5' are no offsets"),
        (add("trainX.tsv", "S1-1\tDIAGNOSTICO\te11.9\tx\t5"), "line 7: '5' are no offsets"),
        (add("trainX.tsv", "S1-1\tDIAGNOSTICO\te11.9\tx\t5 5"), "line 7: '5 5' are no offsets"),
        (add("trainX.tsv", "S1-1\tDIAGNOSTICO\te11.9\tx\tfive"), "line 7: 'five' are no offsets"),
    ],
)
def test_what_is_wrong_is_named(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder / "train")
    with pytest.raises(InputError) as caught:
        list(codiesp.read(folder, "train"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_something_else(folder: Path) -> None:
    with pytest.raises(InputError, match="no dev: give the folder that holds train, dev and test"):
        list(codiesp.read(folder, "dev"))
    (folder / "dev").mkdir()
    with pytest.raises(InputError, match="no texts"):
        list(codiesp.read(folder, "dev"))


@pytest.mark.skipif("CLH_TEST_DATA" not in os.environ, reason="CLH_TEST_DATA names no folder")
@pytest.mark.parametrize(
    ("split", "documents", "codes", "mentions"),
    [("train", 500, 5639, 7209), ("dev", 250, 2677, 3431)],
)
def test_the_corpus_itself(split: str, documents: int, codes: int, mentions: int) -> None:
    folder = Path(os.environ["CLH_TEST_DATA"]) / "codiesp"
    english = list(codiesp.read(folder, split))
    spanish = list(codiesp.read(folder, split, language="es"))

    assert len(english) == documents
    assert sum(len(example.codes) for example in english) == codes
    assert sum(len(example.evidence) for example in spanish) == mentions
    # Every gold code has its sentence.
    assert all({one.code for one in case.evidence} == set(case.codes) for case in english)
