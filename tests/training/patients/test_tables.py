"""Four CSV files of patients: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from clh.errors import InputError
from clh.training.patients.tables import read_tables

NAN = float("nan")
FILES = {
    "icd": "code,title,synonyms,level\nI10,Essential hypertension,High blood pressure,leaf\n"
    "E11.9,Type 2 diabetes mellitus,,leaf\n",
    "patients": "encounter_id,note_text,age,sex,lab_glucose,lab_a1c,ward\n"
    'a,"Blood pressure is high.\nNo ""sugar"".",61,F,5.5,,7\n'
    "b,,,M,14,9.1,\n"
    "c,Well.,,,,,3\n",
    "labels": "encounter_id,code\na,I10\nb,E11.9\nb,I10\nb,I10\n",
    "splits": "encounter_id,split\na,train\nb,val\nc,test\n",
}


def write(folder: Path, **changed: str) -> list[Path]:
    files = []
    for name, text in (FILES | changed).items():
        files.append(folder / f"{name}.csv")
        files[-1].write_text(text, encoding="utf-8")
    return files


def test_the_files_are_read_as_they_stand(tmp_path: Path) -> None:
    tables = read_tables(*write(tmp_path, splits="\ufeff" + FILES["splits"]))
    assert tables.texts == {
        "I10": "Essential hypertension; High blood pressure",
        "E11.9": "Type 2 diabetes mellitus",
    }
    assert tables.features == ("age", "lab_a1c", "lab_glucose", "sex")
    (a,), (b,), (c,) = (tables.encounters[split] for split in ("train", "val", "test"))
    assert (a.id, a.text) == ("a", 'Blood pressure is high.\nNo "sugar".')
    np.testing.assert_equal(a.values, (61, NAN, 5.5, 0))
    np.testing.assert_equal(b.values, (NAN, 9.1, 14, 1))
    np.testing.assert_equal(c.values, (NAN, NAN, NAN, NAN))
    assert [one.codes for one in (a, b, c)] == [{"I10"}, {"I10", "E11.9"}, frozenset()]


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("icd", "I10,Again,,", "icd.csv, line 4: I10 comes twice: leave one out"),
        ("icd", "I11,,,", "icd.csv, line 4, title: Field required"),
        ("patients", "a,,50,F,5,,", "patients.csv, line 6: a comes twice: leave one out"),
        ("patients", "d,,50,F,5", "patients.csv, line 6: 5 cells, and 7 columns in the first"),
        ("patients", "d,,50,F,high,,", "line 6, lab_glucose: Input should be a valid number"),
        ("patients", "d,,50,F,inf,,", "line 6, lab_glucose: Input should be a finite number"),
        ("patients", "d,,50,female,5,,", "line 6, sex: Input should be 'F' or 'M'"),
        ("patients", "d,,50,F,5,,", r"line 6: d is not in .*splits.csv: add it there"),
        ("patients", ",,50,F,5,,", "patients.csv, line 6, encounter_id: Field required"),
        ("patients", '"d', "patients.csv cannot be read .*: save it as CSV"),
        ("labels", "a,I99", r"labels.csv, line 6: I99 is not in .*icd.csv: add it there"),
        ("labels", "d,I10", r"labels.csv, line 6: d is not in .*patients.csv: add it there"),
        ("splits", "d,train", r"splits.csv, line 5: d is not in .*patients.csv: add it there"),
        ("splits", "a,val", "splits.csv, line 5: a comes twice: leave one out"),
        ("splits", "a,dev", "splits.csv, line 5, split: Input should be 'train', 'val' or 'test'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, line: str, message: str) -> None:
    files = write(tmp_path, **{name: FILES[name] + line + "\n"})
    with pytest.raises(InputError, match=message) as caught:
        read_tables(*files)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {
                "patients": FILES["patients"] + "d,,,,,,\n",
                "splits": FILES["splits"] + "d,train\n",
            },
            "patients.csv, line 6: d has neither a note nor a value: leave it out",
        ),
        ({"labels": "encounter_id,code\na,I10\n"}, "no encounter of val has codes"),
        ({"labels": "patient,code\na,I10\n"}, "labels.csv, line 2, encounter_id: Field required"),
    ],
)
def test_files_that_do_not_belong_together(
    tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_tables(*write(tmp_path, **changed))


@pytest.mark.parametrize("damage", ["missing", "Latin-1"])
def test_a_file_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    files = write(tmp_path)
    files[0].unlink()
    if damage == "Latin-1":
        files[0].write_bytes("code,title\nH81.0,Menière\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"icd.csv cannot be read .*: save it as CSV in UTF-8"):
        read_tables(*files)
