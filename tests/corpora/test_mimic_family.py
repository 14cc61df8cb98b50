"""MIMIC and the corpora built on it, in their publishers' layouts, with notes of ours."""

import gzip
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather

from clh.corpora import CORPORA, Example, mimic, mimic_iv, read
from clh.corpora.phenotypes import split_of
from clh.errors import InputError
from tests.corpora import fixtures
from tests.corpora.fixtures import FIXTURES

NOTES = "mimic-iii/NOTEEVENTS.csv.gz"
NOT_READ = ("s50000003.txt", "s50000004.txt", "s50000007.txt")  # studies of no stay that has codes
CHART = "mdace/data/Inpatient/ICD-10/1.0/100003-ICD-10.json"

# dataset -> split -> example -> its notes, its codes.
EXPECTED = {
    "mdace-inpatient-icd9": {
        "train": {"100001": ("12 31 13", "250.00 486")},
        "dev": {"100003": ("21", "493.90")},
        "test": {"100004": ("22", "427.31 434.91")},
    },
    "mdace-profee-icd10": {
        "train": {"100001": ("12 31 13", "E11.9 J18.9")},
        "dev": {"100003": ("21", "J45.909")},
        "test": {"100004": ("22", "I48.91 I63.9")},
    },
    "mimic-iii-full": {
        "train": {
            "100001": ("12 13 11", "486 250.00 E819.9 E849 584.9 38.93 96.04"),
            "100002": ("23", "278.00 311"),
            "100005": ("25", "780.39"),
        },
        "dev": {"100003": ("21", "493.90 311")},
        "test": {"100004": ("22", "434.91 427.31 00.66")},
    },
    "mimic-iii-50": {
        "train": {
            "100001": ("12 13 11", "486 250.00 584.9 38.93 96.04"),
            "100002": ("23", "311"),
        },
        "dev": {"100003": ("21", "311")},
        "test": {"100004": ("22", "427.31")},
    },
    "mimic-iii-clean": {
        "train": {f"{200000 + place}": (f"{40 + place}", "401.9") for place in range(8)},
        "dev": {"200008": ("48", "401.9"), "200009": ("49", "401.9")},
        "test": {"200010": ("50", "401.9"), "200011": ("51", "401.9")},
    },
    "mimic-iv-icd9": {
        "train": {"20000001": ("10000001-DS-1 10000001-AD-2", "401.9 E901.0")},
        "dev": {"20000002": ("10000002-DS-1", "038.9")},
        "test": {"20000003": ("10000003-DS-1", "810.00")},
    },
    "mimic-iv-icd10": {
        "train": {"20000001": ("10000001-DS-1 10000001-AD-2", "I10 I50.22 T68.XXXA I50.20")},
        "dev": {"20000002": ("10000002-DS-1", "A41.9")},
        "test": {"20000003": ("10000003-DS-1", "S42.001A")},
    },
    "mimic-cxr": {
        "train": {"20000001": ("50000001 50000002", "I10 I50.22 T68.XXXA I50.20")},
        "dev": {"20000002": ("50000005", "A41.9")},
        "test": {"20000003": ("50000006", "S42.001A")},
    },
    "snomed-ct": {
        "train": {"10000001-DS-1": ("10000001-DS-1", "386689009")},
        "test": {"10000002-DS-1": ("10000002-DS-1", "91302008 84114007")},
    },
    "phenotypes": {
        "train": {"23": ("23", "DEPRESSION OBESITY")},
        "dev": {"21": ("21", "")},
        "test": {"22": ("22", "ADVANCED.HEART.DISEASE CHRONIC.NEUROLOGICAL.DYSTROPHIES")},
    },
}


def read_all(dataset: str, folder: Path) -> dict[str, list[Example]]:
    return {split: list(read(dataset, folder, split)) for split in CORPORA[dataset].splits}


def evidence(example: Example) -> list[tuple[str, str, str]]:
    return [(one.note_id, span.text, one.code) for one in example.evidence for span in one.spans]


def rewrite(file: Path, old: str, new: str) -> None:
    if file.suffix == ".gz":
        text = gzip.decompress(file.read_bytes()).decode()
        assert old in text
        file.write_bytes(gzip.compress(text.replace(old, new).encode()))
    else:
        text = file.read_text("utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def unpack(folder: Path) -> None:
    for file in files(folder):
        if file.suffix == ".gz":
            file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
            file.unlink()


@pytest.mark.parametrize("dataset", EXPECTED)
def test_each_split_has_its_notes_and_codes(dataset: str, tmp_path: Path) -> None:
    FIXTURES[dataset](tmp_path)

    found = {
        split: {
            example.id: (" ".join(note.id for note in example.notes), " ".join(example.codes))
            for example in examples
        }
        for split, examples in read_all(dataset, tmp_path).items()
    }

    assert found == EXPECTED[dataset]


@pytest.mark.parametrize("dataset", FIXTURES)
def test_examples_say_their_split_and_come_in_one_only(dataset: str, tmp_path: Path) -> None:
    FIXTURES[dataset](tmp_path)

    examples = read_all(dataset, tmp_path)

    assert all(example.split == split for split, of in examples.items() for example in of)
    ids = [example.id for of in examples.values() for example in of]
    assert len(ids) == len(set(ids)) >= len(examples)


@pytest.mark.parametrize("dataset", FIXTURES)
def test_unpacked_tables_are_read_alike(dataset: str, tmp_path: Path) -> None:
    FIXTURES[dataset](tmp_path)
    packed = read_all(dataset, tmp_path)

    unpack(tmp_path)

    assert read_all(dataset, tmp_path) == packed


def test_notes_are_kept_to_the_letter_and_in_order(tmp_path: Path) -> None:
    for dataset in ("mimic-iii-full", "mimic-iv-icd10", "mimic-cxr"):
        FIXTURES[dataset](tmp_path)

    texts = {
        dataset: [note.text for note in next(read(dataset, tmp_path, "train")).notes]
        for dataset in ("mimic-iii-full", "mimic-iv-icd10", "mimic-cxr")
    }

    assert texts == {
        "mimic-iii-full": [fixtures.SUMMARY, fixtures.ADDENDUM, fixtures.LATE_ADDENDUM],
        "mimic-iv-icd10": [fixtures.HYPOTHERMIA, fixtures.ADDENDUM],
        "mimic-cxr": [fixtures.FIRST_REPORT, fixtures.SECOND_REPORT],
    }


@pytest.mark.parametrize(
    ("dataset", "split", "marked"),
    [
        (
            "mdace-inpatient-icd10",
            "train",
            [("12", "type 2 diabetes", "E11.9"), ("31", "pneumonia", "J18.9")],
        ),
        (
            "mdace-profee-icd9",
            "test",
            [
                ("22", "atrial fibrillation", "427.31"),
                ("22", "ischemic stroke", "434.91"),
                ("22", "atrial", "427.31"),
            ],
        ),
        (
            "snomed-ct",
            "test",
            [
                ("10000002-DS-1", "Sepsis", "91302008"),
                ("10000002-DS-1", "heart failure", "84114007"),
            ],
        ),
        (
            "meddec",
            "train",
            [
                ("12", "chest pain, with\ntype 2 diabetes", "Category 3: Defining problem"),
                ("12", "Hypertension", "Category 3: Defining problem"),
            ],
        ),
    ],
)
def test_evidence_is_what_the_publisher_marked(
    dataset: str, split: str, marked: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    FIXTURES[dataset](tmp_path)

    example = next(read(dataset, tmp_path, split))

    assert evidence(example) == marked
    assert example.codes == tuple(dict.fromkeys(code for *_, code in marked))


def test_text_injected_into_a_chart_must_be_the_notes(tmp_path: Path) -> None:
    FIXTURES["mdace-inpatient-icd10"](tmp_path)
    injected = '"code": "J45.909", "covered_text": '

    rewrite(tmp_path / CHART, '"code": "J45.909"', f'{injected}"asthma"')
    assert next(read("mdace-inpatient-icd10", tmp_path, "dev")).codes == ("J45.909",)

    rewrite(tmp_path / CHART, f'{injected}"asthma"', f'{injected}"asthma "')
    with pytest.raises(InputError, match=r"100003-ICD-10\.json: 15:21 of note 21 is not"):
        list(read("mdace-inpatient-icd10", tmp_path, "dev"))


@pytest.mark.parametrize("dataset", FIXTURES)
def test_each_missing_file_is_named(dataset: str, tmp_path: Path) -> None:
    FIXTURES[dataset](tmp_path)

    for file in files(tmp_path):
        if file.name in NOT_READ:
            continue
        kept = file.read_bytes()
        file.unlink()
        name = str(file).removesuffix(".gz")
        with pytest.raises(
            InputError, match="is missing: get it with `make download-data`"
        ) as info:
            read_all(dataset, tmp_path)
        assert name in str(info.value)
        public = file.relative_to(tmp_path).parts[0] in (
            "mdace",
            "caml-splits",
            "reproducibility-splits",
        )
        assert ("PhysioNet" in str(info.value)) != public
        file.write_bytes(kept)


@pytest.mark.parametrize(
    ("dataset", "file", "project"),
    [
        ("mimic-iii-full", NOTES, "mimiciii"),
        ("mimic-iv-icd9", "mimic-iv-note/note/discharge.csv.gz", "mimic-iv-note"),
        ("mimic-cxr", "mimic-cxr/cxr-study-list.csv.gz", "mimic-cxr"),
        ("mimic-cxr", "mimic-cxr/mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-jpg"),
    ],
)
def test_a_missing_file_is_said_to_need_an_agreement(
    dataset: str, file: str, project: str, tmp_path: Path
) -> None:
    FIXTURES[dataset](tmp_path)
    (tmp_path / file).unlink()

    with pytest.raises(InputError, match=rf"the agreement of .*/content/{project}$"):
        read_all(dataset, tmp_path)


@pytest.mark.parametrize("dataset", FIXTURES)
def test_each_table_without_a_column_is_named(dataset: str, tmp_path: Path) -> None:
    FIXTURES[dataset](tmp_path)
    unpack(tmp_path)

    for file in files(tmp_path):
        if file.suffix == ".csv" and {"splits", "caml-splits"}.isdisjoint(file.parts):
            kept = file.read_text("utf-8")
            header, _, body = kept.partition("\n")
            file.write_text(f"{header.swapcase()}\n{body}", encoding="utf-8")
            with pytest.raises(InputError, match=rf"{file.name} has no column \w+"):
                read_all(dataset, tmp_path)
            file.write_text(kept, encoding="utf-8")


@pytest.mark.parametrize("dataset", FIXTURES)
def test_each_file_that_is_cut_short_or_garbled_is_named(dataset: str, tmp_path: Path) -> None:
    FIXTURES[dataset](tmp_path)

    for file in files(tmp_path):
        if file.suffix in (".gz", ".json", ".feather"):
            kept = file.read_bytes()
            half = kept[: len(kept) // 2]
            for damaged in (half, half + b"\xff" * len(half)):
                file.write_bytes(damaged)
                with pytest.raises(
                    InputError, match=rf"{file.name} cannot be read .* get it again"
                ):
                    read_all(dataset, tmp_path)
            file.write_bytes(kept)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"discharge\.csv has no column hadm_id"),
        (
            b'hadm_id,note_id,note_type,charttime,text\n1,2,DS,,"cut sh',
            "cannot be read .unexpected",
        ),
        (b"hadm_id,note_id,note_type,charttime,text\n1,2,DS,,\xff\n", "cannot be read .*utf-8"),
        (b"hadm_id,note_id,note_type,charttime,text\n1,2\n", "line 2: the row has 2 columns, .* 5"),
    ],
)
def test_a_damaged_table_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    FIXTURES["mimic-iv-icd10"](tmp_path)
    unpack(tmp_path)
    (tmp_path / "mimic-iv-note/note/discharge.csv").write_bytes(content)

    with pytest.raises(InputError, match=problem):
        list(read("mimic-iv-icd10", tmp_path, "train"))


def test_a_pointer_in_the_place_of_splits_is_named(tmp_path: Path) -> None:
    FIXTURES["mimic-iii-clean"](tmp_path)
    file = tmp_path / "reproducibility-splits/mimiciii_clean_splits.feather"

    table = feather.read_table(file)
    feather.write_feather(table.rename_columns(["hadm_id", "split"]), file)
    with pytest.raises(InputError, match=r"mimiciii_clean_splits\.feather has no column _id"):
        list(read("mimic-iii-clean", tmp_path, "dev"))

    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"mimiciii_clean_splits\.feather cannot be read"):
        list(read("mimic-iii-clean", tmp_path, "dev"))


@pytest.mark.parametrize(
    ("dataset", "file", "old", "new", "problem"),
    [
        (
            "mdace-inpatient-icd10",
            CHART,
            '"end": 21',
            '"end": 2100',
            r"100003-ICD-10\.json: 15:2100 is no part of note 21, of 33 characters",
        ),
        (
            "mdace-inpatient-icd10",
            CHART,
            '"begin": 15, ',
            "",
            r"100003-ICD-10\.json: notes\.0\.annotations\.0\.begin: Field required",
        ),
        (
            "mdace-inpatient-icd10",
            CHART,
            '"note_id": 21',
            '"note_id": 9999999',
            r"NOTEEVENTS\.csv\.gz has no note with ROW_ID 9999999",
        ),
        (
            "mdace-inpatient-icd10",
            CHART,
            '"notes": [',
            '"notes": [{"note_id": 21, "annotations": []}, ',
            r"100003-ICD-10\.json, 100003: .*two notes of 100003 have one id",
        ),
        (
            "meddec",
            "meddec/data/3_100003_21.json",
            '"start_offset": "23"',
            '"start_offset": "31"',
            r"3_100003_21\.json: 31:31 is no part of note 21",
        ),
        (
            "meddec",
            "meddec/data/3_100003_21.json",
            '"start_offset": "23"',
            '"start_offset": "here"',
            r"3_100003_21\.json: annotations\.0\.start_offset: .*valid integer",
        ),
        (
            "meddec",
            NOTES,
            fixtures.ASTHMA,
            "",
            r"NOTEEVENTS\.csv\.gz has no note with ROW_ID 21",
        ),
        (
            "mimic-cxr",
            "mimic-cxr/files/p10/p10000001/s50000001.txt",
            fixtures.FIRST_REPORT,
            "",
            r"s50000001\.txt, note 50000001: text: String should have at least 1 character",
        ),
        (
            "snomed-ct",
            "snomed-ct/mimic-iv_notes_test_set.csv",
            fixtures.SEPSIS,
            "",
            r"test_set\.csv, note 10000002-DS-1: text: String should have at least 1 character",
        ),
        (
            "snomed-ct",
            "snomed-ct/test_annotations.csv",
            ",25,38,",
            ",25,3800,",
            r"test_annotations\.csv: 25:3800 is no part of note 10000002-DS-1",
        ),
        (
            "snomed-ct",
            "snomed-ct/test_annotations.csv",
            ",25,38,",
            ",25,38.0,",
            r"test_annotations\.csv: 25:38\.0 of note 10000002-DS-1 are not offsets",
        ),
        (
            "snomed-ct",
            "snomed-ct/test_annotations.csv",
            "10000002-DS-1",
            "10000009-DS-9",
            "marks note 10000009-DS-9, which is not in .*mimic-iv_notes_test_set",
        ),
    ],
)
def test_annotations_that_fit_no_note_are_named_and_no_note_is_quoted(
    dataset: str, file: str, old: str, new: str, problem: str, tmp_path: Path
) -> None:
    FIXTURES[dataset](tmp_path)
    rewrite(tmp_path / file, old, new)

    with pytest.raises(InputError, match=problem) as info:
        read_all(dataset, tmp_path)

    assert "\n" not in str(info.value)
    assert not any(word in str(info.value) for word in ("asthma", "fever", "heart"))


@pytest.mark.parametrize(
    ("revision", "plain", "dotted"),
    [
        (9, "4019", "401.9"),
        (9, "25000", "250.00"),
        (9, "486", "486"),
        (9, "E8199", "E819.9"),
        (9, "E849", "E849"),
        (9, "V5861", "V58.61"),
        (10, "I10", "I10"),
        (10, "I5020", "I50.20"),
        (10, "E119 ", "E11.9"),
        (10, "S42001A", "S42.001A"),
    ],
)
def test_diagnoses_are_spelled_as_in_the_book(revision: int, plain: str, dotted: str) -> None:
    assert mimic.diagnosis(plain, revision) == dotted


def test_procedures_are_spelled_as_in_the_book() -> None:
    assert [mimic.procedure(code) for code in ("3893", "0066", "311", "99")] == [
        "38.93",
        "00.66",
        "31.1",
        "99",
    ]


@given(code=st.from_regex(r"[A-Z0-9]{1,7}", fullmatch=True), revision=st.sampled_from([9, 10]))
def test_dots_come_off_again_and_only_once_in(code: str, revision: int) -> None:
    for dotted in (mimic.diagnosis(code, revision), mimic.procedure(code)):
        assert dotted.replace(".", "") == code
        assert not dotted.endswith(".")
    assert mimic.diagnosis(mimic.diagnosis(code, revision), revision) == mimic.diagnosis(
        code, revision
    )


def test_subjects_are_parted_eighty_ten_ten() -> None:
    shares = Counter(split_of(str(subject)) for subject in range(10_000))

    assert shares["train"] == pytest.approx(8_000, abs=200)
    assert shares["dev"] == pytest.approx(1_000, abs=150)
    assert shares["test"] == pytest.approx(1_000, abs=150)


def test_a_long_note_is_read_whole(tmp_path: Path) -> None:
    FIXTURES["meddec"](tmp_path)
    rewrite(tmp_path / NOTES, "No fever.\n", "No fever.\n" + "x" * 200_000)

    assert len(next(read("meddec", tmp_path, "dev")).note.text) > 200_000


def test_what_physionet_leaves_beside_a_chart_is_ignored(tmp_path: Path) -> None:
    FIXTURES["mdace-inpatient-icd9"](tmp_path)
    chart = tmp_path / "mdace/data/Inpatient/ICD-9/1.0/999999-ICD-9.json"
    chart.write_text(json.dumps({"hadm_id": 999999}), encoding="utf-8")

    assert sum(map(len, read_all("mdace-inpatient-icd9", tmp_path).values())) == 3


@pytest.mark.skipif("CLH_TEST_DATA" not in os.environ, reason="CLH_TEST_DATA names no folder")
def test_diagnoses_of_the_public_demo(tmp_path: Path) -> None:
    from clh.icd.tabular import load_tabular

    source = Path(os.environ["CLH_TEST_DATA"]) / "mimic-iv-demo/hosp/diagnoses_icd.csv"
    if not source.exists():
        pytest.skip("CLH_TEST_DATA names no folder with mimic-iv-demo/ in it")
    target = tmp_path / "mimic-iv/hosp/diagnoses_icd.csv"
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)
    admissions = {row[0] for row in mimic.rows(target, "hadm_id")}

    codes = mimic_iv.diagnoses(tmp_path, admissions, revision=10)

    distinct = {code for found in codes.values() for code in found}
    assert (len(admissions), len(codes), len(distinct)) == (275, 123, 734)
    known = set(load_tabular())
    assert len(distinct & known) / len(distinct) > 0.97  # the others were retired since
