"""Releases: the one in force on a day, and its lines, parsed once and kept."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clh.errors import InputError
from clh.icd import releases
from clh.icd.releases import Release, find_release, read_lines
from clh.icd.tabular import CodeSystem, load_tabular

TABULAR = """<?xml version="1.0"?>
<ICD10CM.tabular>
  <chapter><name>19</name><desc>Injuries (S00-T88)</desc>
    <excludes1><note>birth trauma (P10-P15)</note></excludes1>
    <section id="T07"><desc>Unspecified multiple injuries (T07)</desc>
      <diag><name>T07</name><desc>Multiple injuries</desc>
        <sevenChrDef>
          <extension char="A">initial encounter</extension>
          <extension char="Q">no code of this release</extension>
        </sevenChrDef>
      </diag>
      <diag><name>T14</name><desc>Injury</desc>
        <inclusionTerm><note>Injury
          NOS</note></inclusionTerm>
        <diag><name>T14.9</name><desc>Injury, unspecified</desc></diag>
      </diag>
    </section>
  </chapter>
</ICD10CM.tabular>
"""


@pytest.fixture
def release(tmp_path: Path) -> Release:
    tabular, codes = tmp_path / "tabular.xml", tmp_path / "codes.txt"
    tabular.write_text(TABULAR)
    codes.write_text("T07\nT07XXXA\nT14\nT149\n")
    return Release("2030-10-01", tabular, codes)


def test_a_day_has_the_release_that_is_in_force() -> None:
    assert find_release().name == "2026-04-01"
    assert find_release("2026-04-01") == find_release("2026-08-15") == find_release()
    with pytest.raises(InputError, match="no release of ICD-10-CM for 2019-01-01: the first is"):
        find_release("2019-01-01")


def test_lines_make_the_code_system(release: Release, tmp_path: Path) -> None:
    system = CodeSystem.from_lines(release.name, read_lines(release, tmp_path / "cache"))
    assert system.release == "2030-10-01"
    assert list(system) == ["T07", "T07.XXXA", "T14", "T14.9"]
    assert system["T07"].seventh_characters["A"] == "initial encounter"
    assert system["T07.XXXA"].title == "Multiple injuries, initial encounter"
    assert system["T14"].children == ("T14.9",)
    assert system["T14"].inclusion_terms == ("Injury NOS",)
    assert system["T14.9"].block.title == "Unspecified multiple injuries"
    assert system["T14.9"].chapter.excludes1 == ("birth trauma (P10-P15)",)


def test_a_release_is_parsed_once(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = read_lines(release, tmp_path / "cache")
    monkeypatch.setattr(releases, "_parse", lambda *_: pytest.fail("parsed again"))
    assert read_lines(release, tmp_path / "cache") == lines


def test_other_files_are_parsed_anew(release: Release, tmp_path: Path) -> None:
    read_lines(release, tmp_path / "cache")
    release.codes.write_text("T07\nT14\n")
    header = json.loads(read_lines(release, tmp_path / "cache")[0])
    assert header["codes"] == ["T07", "T14"]


def test_a_damaged_copy_is_made_anew(release: Release, tmp_path: Path) -> None:
    lines = read_lines(release, tmp_path / "cache")
    [copy] = (tmp_path / "cache").glob("*/tabular.jsonl")
    for damage in (copy.read_bytes().replace(b"Injury", b"Inqury"), b""):
        copy.write_bytes(damage)
        assert read_lines(release, tmp_path / "cache") == lines
        assert copy.read_bytes() == b"\n".join(lines)
    copy.unlink()
    assert read_lines(release, tmp_path / "cache") == lines


def test_where_nothing_can_be_kept_a_release_is_parsed(
    release: Release, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = read_lines(release, tmp_path / "cache")
    (tmp_path / "file").write_text("not a folder")
    assert read_lines(release, tmp_path / "file") == lines
    assert read_lines(release, tmp_path / "file" / "below") == lines
    assert capfd.readouterr() == ("", "")


def test_files_that_cannot_be_read_are_told_in_one_line(release: Release, tmp_path: Path) -> None:
    missing = replace(release, tabular=tmp_path / "missing.xml")
    release.tabular.write_text(TABULAR[:200])
    for broken, complaint in ((missing, "missing.xml"), (release, "is not XML")):
        with pytest.raises(InputError, match=complaint) as caught:
            read_lines(broken, tmp_path / "cache")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", [["lookup", "I11.0"], ["check", "I50.9", "I11.0"]])
def test_commands_about_codes_start_fast(command: list[str]) -> None:
    load_tabular()  # from here on it is kept
    script = "import sys; from clh.cli import main; sys.argv = ['clh', *sys.argv[1:]]; main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", script, *command], check=False, capture_output=True
    )
    assert b"I11.0" in done.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1.5  # usually 0.4
