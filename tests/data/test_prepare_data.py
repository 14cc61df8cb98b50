"""`make prepare-data` as a user runs it, on invented data in the publishers' layouts."""

import csv
import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from clh import corpora
from clh.corpora import CORPORA, mimic_iv
from tests.corpora.fixtures import FIXTURES

SCRIPT = Path(__file__).parents[2] / "data" / "prepare_data.py"
SPANISH = "Mujer con asma.\nNiega fiebre.\n"
ENGLISH = "A woman with asthma.\nShe denies fever.\n"
DATASETS = [name for name, corpus in CORPORA.items() if corpus.splits]


class Done(NamedTuple):
    """What a finished run left."""

    code: int
    out: str
    err: str

    def rows(self) -> dict[tuple[str, str], list[str]]:
        """The table's cells by dataset and split."""
        lines = [line.split() for line in self.out.splitlines() if " not prepared: " not in line]
        return {
            (cells[0], cells[1]): cells[2:] for cells in lines if cells and cells[0] in DATASETS
        }


def prepare(raw: Path, to: Path, *arguments: str) -> Done:
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments, "--raw", raw, "--to", to],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def codiesp(raw: Path) -> None:
    """Two cases a split, and what they are coded with."""
    for split in ("train", "dev", "test"):
        root = raw / "codiesp" / split
        for folder, text in (("text_files", SPANISH), ("text_files_en", ENGLISH)):
            (root / folder).mkdir(parents=True)
            for case in ("S1", "S2"):
                (root / folder / f"{case}.txt").write_text(text, encoding="utf-8")
        (root / f"{split}D.tsv").write_text("S1\tj45.909\nS1\tr50.9\nS2\tj45.909\n")
        (root / f"{split}P.tsv").write_text("S1\tbw03zzz\n")
        (root / f"{split}X.tsv").write_text("S1\tDIAGNOSTICO\tj45.909\tasma\t10 14\n")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    codiesp(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "processed"


class Everything(NamedTuple):
    """A run on all datasets there are."""

    raw: Path
    to: Path
    done: Done


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    folder = tmp_path_factory.mktemp("everything")
    raw, to = folder / "raw", folder / "processed"
    codiesp(raw)
    for write in FIXTURES.values():
        write(raw)
    return Everything(raw, to, prepare(raw, to))


def test_everything_that_is_there_is_prepared(everything: Everything) -> None:
    assert everything.done.code == 0
    assert everything.done.err == ""
    assert "not prepared" not in everything.done.out
    assert list(everything.done.rows()) == [
        (name, split) for name in DATASETS for split in CORPORA[name].splits
    ]


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_prepared_reads_as_what_was_published(everything: Everything, name: str) -> None:
    published = everything.raw / "codiesp" if name.startswith("codiesp") else everything.raw
    for split in CORPORA[name].splits:
        examples = list(corpora.read(name, everything.to, split))
        assert examples == list(corpora.read(name, published, split))
        assert everything.done.rows()[name, split][0] == str(len(examples))


def test_the_table_counts(raw: Path, to: Path) -> None:
    done = prepare(raw, to, "codiesp", "codiesp-procedures")

    # Two cases of seven words with three codes, two of them different, one of them with evidence.
    assert done.rows()["codiesp", "dev"] == ["2", "2", "7", "1.5", "2", "33", "%", "0"]
    # Codes of another system than the release's are not looked up in it.
    assert done.rows()["codiesp-procedures", "dev"] == ["2", "2", "7", "0.5", "1", "0", "%"]


def test_codes_that_the_release_lacks_are_counted(tmp_path: Path, to: Path) -> None:
    raw = tmp_path / "raw"
    FIXTURES["mimic-iv-icd10"](raw)
    before = prepare(raw, to, "mimic-iv-icd10").rows()["mimic-iv-icd10", "train"]
    file = raw / "mimic-iv/hosp/diagnoses_icd.csv.gz"
    with gzip.open(file, "rt", newline="") as stream:
        header, *rows = csv.reader(stream)
    with gzip.open(file, "wt", newline="") as stream:
        csv.writer(stream).writerows([header, *rows, [*rows[0][:2], "99", "J4590", "10"]])
        csv.writer(stream).writerow([*rows[0][:2], "98", "X9999", "10"])

    after = prepare(raw, to, "mimic-iv-icd10", "--force").rows()["mimic-iv-icd10", "train"]

    assert int(after[-1]) == int(before[-1]) + 1
    assert int(after[4]) == int(before[4]) + 2


def test_a_split_that_is_there_is_counted_and_not_written_again(raw: Path, to: Path) -> None:
    first = prepare(raw, to, "codiesp")
    (to / "codiesp/dev.parquet").unlink()
    written = {split: (to / f"codiesp/{split}.parquet").stat() for split in ("train", "test")}

    second = prepare(raw, to, "codiesp")

    assert second == first
    assert (to / "codiesp/dev.parquet").exists()
    for split, before in written.items():
        assert (to / f"codiesp/{split}.parquet").stat().st_mtime_ns == before.st_mtime_ns


def test_what_is_prepared_needs_its_raw_files_no_more(raw: Path, to: Path) -> None:
    first = prepare(raw, to, "codiesp")
    shutil.rmtree(raw)

    assert prepare(raw, to, "codiesp") == first
    assert prepare(raw, to, "codiesp", "--force").code == 2


def test_force_writes_what_is_there_again(raw: Path, to: Path) -> None:
    prepare(raw, to, "codiesp")
    (raw / "codiesp/dev/devD.tsv").write_text("S2\tj45.909\n")

    assert prepare(raw, to, "codiesp").rows()["codiesp", "dev"][3] == "1.5"
    assert prepare(raw, to, "codiesp", "--force").rows()["codiesp", "dev"][3] == "0.5"


def test_what_is_absent_is_listed(raw: Path, to: Path) -> None:
    (raw / "mimic-iii").mkdir()

    done = prepare(raw, to)

    assert done.code == 0
    assert done.err == ""
    assert f"mimic-iii-50 is not prepared: no splits ({raw / 'caml-splits'})\n" in done.out
    assert f"no decisions ({raw / 'meddec'})" in done.out
    assert "python data/download_data.py" in done.out
    assert {name for name, _ in done.rows()} == {
        name for name in DATASETS if name.startswith("codiesp")
    }


def test_what_is_asked_for_and_absent_is_an_error(raw: Path, to: Path) -> None:
    done = prepare(raw, to, "meddec", "codiesp")

    assert done.code == 2
    assert "meddec is not prepared: no decisions" in done.err
    assert "python data/download_data.py meddec mimic-iii\n" in done.err
    assert (to / "codiesp/train.parquet").exists()


def test_damage_is_told_in_a_line_and_does_not_keep_the_rest(raw: Path, to: Path) -> None:
    (raw / "codiesp/dev/devD.tsv").write_text("S1\tj45.909\nS1 r50.9\n")

    done = prepare(raw, to, "codiesp")

    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "devD.tsv, line 2" in done.err
    assert {file.name for file in (to / "codiesp").iterdir()} == {"train.parquet", "test.parquet"}
    assert [split for _, split in done.rows()] == ["train", "test"]


def test_a_split_without_encounters_is_not_written(tmp_path: Path, to: Path) -> None:
    raw = tmp_path / "raw"
    FIXTURES["mimic-iii-full"](raw)
    for file in (raw / "caml-splits").iterdir():
        file.write_text("199999\n")

    done = prepare(raw, to, "mimic-iii-full")

    assert done.code == 2
    assert done.err.count("there is no encounter in it") == 3
    assert not (to / "mimic-iii-full").exists()


def test_a_dataset_that_is_not_there_is_an_error_of_the_command(raw: Path, to: Path) -> None:
    done = prepare(raw, to, "jsonl")

    assert done.code == 2
    assert "there is no dataset 'jsonl'" in done.err


def real(name: str) -> Path:
    folder = Path(os.environ.get("CLH_TEST_DATA", "")) / name
    if "CLH_TEST_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"CLH_TEST_DATA names no folder with {name}/ in it")
    return folder


def test_the_real_codiesp(tmp_path: Path, to: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "codiesp").symlink_to(real("codiesp"))
    there = [split for split in ("train", "dev", "test") if (raw / "codiesp" / split).is_dir()]

    done = prepare(raw, to, "codiesp", "codiesp-es")

    cases = {"train": "500", "dev": "250", "test": "250"}
    assert done.code == (0 if "test" in there else 2)
    assert {place: cells[0] for place, cells in done.rows().items()} == {
        (name, split): cases[split] for name in ("codiesp", "codiesp-es") for split in there
    }
    assert {cells[-1] for cells in done.rows().values()} == {"0"}


def test_the_real_demo_has_codes_but_no_notes(tmp_path: Path, to: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "mimic-iv").symlink_to(real("mimic-iv-demo"))
    with (raw / "mimic-iv/hosp/admissions.csv").open(newline="") as stream:
        admissions = {row["hadm_id"] for row in csv.DictReader(stream)}

    codes = mimic_iv.diagnoses(raw, admissions, 10)
    done = prepare(raw, to, "mimic-iv-icd10")

    assert len(codes) == 123
    assert len({code for found in codes.values() for code in found}) == 734
    assert done.code == 2
    assert f"no notes ({raw / 'mimic-iv-note'})" in done.err
    assert not to.exists()
