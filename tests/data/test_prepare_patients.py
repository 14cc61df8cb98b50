"""MIMIC-IV's tables as four CSV files: what goes in, what is left out, who is in which split."""

import csv
import math
import os
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from clh.errors import InputError
from clh.training.patients.tables import Tables, read_tables

SCRIPT = Path(__file__).parents[2] / "data" / "prepare_patients.py"
FILES = ("icd", "patients", "labels", "splits")

HOSP = {
    "patients": "subject_id,gender,anchor_age,anchor_year\n"
    + "".join(f"{number},{'FM'[number % 2]},{40 + number},2150\n" for number in range(10)),
    # Each patient comes twice, the second time three years later; patient 9 in ICD-9 only.
    "admissions": "subject_id,hadm_id,admittime\n"
    + "".join(
        f"{number},{number}{stay},{2150 + 3 * stay}-01-02 03:04:05\n"
        for number in range(10)
        for stay in (0, 1)
    ),
    "diagnoses_icd": "subject_id,hadm_id,seq_num,icd_code,icd_version\n"
    + "".join(
        f"{number},{number}{stay},1,I10,10\n{number},{number}{stay},2,S0262XA,10\n"
        for number in range(9)
        for stay in (0, 1)
    )
    + "9,90,1,4019,9\n",
    "d_labitems": 'itemid,label,fluid,category\n1,Glucose,Blood,Chemistry\n2,"Calcium, Total",,\n'
    "3,Rare,,\n",
    "labevents": "subject_id,hadm_id,itemid,charttime,valuenum\n"
    "0,00,1,2150-01-03 00:00:00,7\n"
    "0,00,1,2150-01-02 09:00:00,5.5\n"
    "0,00,1,2150-01-02 08:00:00,\n"
    "0,,1,2150-01-01 00:00:00,99\n"
    + "".join(f"{n},{n}1,{item},2153-01-03 00:00:00,{n}\n" for n in range(9) for item in (1, 2))
    + "0,01,3,2153-01-03 00:00:00,1\n",
}

Prepare = Callable[..., Tables]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Runs the script and reads what it wrote."""
    spec = spec_from_file_location("prepare_patients", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(tables: Path, *flags: object) -> Tables:
        given = ["prepare_patients", "--tables", tables, "--to", tmp_path / "to", *flags]
        monkeypatch.setattr(sys, "argv", [str(one) for one in given])
        assert module.main() == 0
        return read_tables(*(tmp_path / "to" / f"{name}.csv" for name in FILES))

    return run


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "hosp").mkdir()
    for name, text in HOSP.items():
        (tmp_path / "hosp" / f"{name}.csv").write_text(text)
    return tmp_path


def test_an_admission_has_its_first_values_and_its_codes(tables: Path, prepare: Prepare) -> None:
    read = prepare(tables, "--labs", 2)
    assert read.features == ("age", "lab_Calcium, Total 2", "lab_Glucose 1", "sex")
    stays = {one.id: one for some in read.encounters.values() for one in some}
    assert sorted(stays) == [f"{number}{stay}" for number in range(9) for stay in (0, 1)]
    age, calcium, glucose, sex = stays["00"].values
    assert (age, glucose, sex) == (40, 5.5, 0)
    assert math.isnan(calcium)
    assert stays["31"].values == (46, 3, 3, 1)
    assert stays["31"].codes == {"I10", "S02.62XA"}


def test_a_code_that_the_release_dropped_goes_by_what_is_above(
    tables: Path, prepare: Prepare
) -> None:
    texts = prepare(tables).texts
    assert texts["I10"] == "Essential (primary) hypertension"
    assert texts["S02.62XA"] == "Fracture of subcondylar process of mandible"


def test_no_patient_is_in_two_splits(tables: Path, prepare: Prepare) -> None:
    read = prepare(tables)
    splits = [{one.id[0] for one in some} for some in read.encounters.values()]
    assert [len(split) for split in splits] == [5, 2, 2]
    assert len(set().union(*splits)) == 9


def test_tables_without_icd_10(tables: Path, prepare: Prepare) -> None:
    (tables / "hosp" / "diagnoses_icd.csv").write_text(
        "subject_id,hadm_id,seq_num,icd_code,icd_version\n9,90,1,4019,9\n"
    )
    with pytest.raises(InputError, match="has diagnoses in ICD-10"):
        prepare(tables)


@pytest.mark.skipif("CLH_TEST_DATA" not in os.environ, reason="CLH_TEST_DATA names no folder")
def test_the_real_demo(prepare: Prepare) -> None:
    demo = Path(os.environ["CLH_TEST_DATA"]) / "mimic-iv-demo"
    if not demo.is_dir():
        pytest.skip("CLH_TEST_DATA holds no demo of MIMIC-IV")
    events = sorted((demo / "hosp").glob("labevents*"))[0]
    read = prepare(demo, "--labevents", events)
    with (demo / "hosp" / "admissions.csv").open(newline="") as stream:
        patient_of = {row["hadm_id"]: row["subject_id"] for row in csv.DictReader(stream)}
    splits = [{patient_of[one.id] for one in some} for some in read.encounters.values()]
    assert (len(read.texts), sum(map(len, read.encounters.values()))) == (734, 123)
    assert sum(map(len, splits)) == len(set().union(*splits)) == 44
