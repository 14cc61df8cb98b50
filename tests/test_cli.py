"""The command line as a user meets it: what it prints where, and with which exit code."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest

import clh
from agents.analyze.llm import Quoted, Reply
from agents.pipeline import Pipeline
from clh import cli
from clh.config import Settings
from clh.console import Show
from clh.icd.tabular import load_tabular
from clh.models.language import LanguageModel
from clh.retrieval.index import index_folder
from tests.conftest import toy_pipeline
from tests.fakes import QueuedModel

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample" / "visit.txt"
NOTE = "HPI: high blood pressure, cough. No heart failure.\n"


class Done(NamedTuple):
    """What a finished command left."""

    code: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line on stderr, of a command that printed nothing else."""
        assert self.out == ""
        return self.only_line()

    def only_line(self) -> str:
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1
        assert "Traceback" not in self.err
        assert lines[0].startswith("clh: ")
        return lines[0]


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `clh` in this process, with a data directory of its own."""
    monkeypatch.setenv("CLH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, stdin: bytes | None = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["clh", *map(str, arguments)])
        # Python has None for a standard input that is closed.
        piped = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
        monkeypatch.setattr(sys, "stdin", piped)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return Done(int(stopped.value.code or 0), *capsys.readouterr())

    return run


Fake = Callable[..., None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Has commands run on fakes, with the settings that they were given."""

    def fake(model: LanguageModel | None = None) -> None:
        def load(settings: Settings, show: Show) -> Pipeline:
            given = {"policy": settings.policy, "rules": {"setting": settings.rules.setting}}
            return toy_pipeline(settings.data_dir, model, **given)

        monkeypatch.setattr(cli, "_load", load)

    return fake


@pytest.fixture
def note(tmp_path: Path) -> Path:
    file = tmp_path / "note.txt"
    file.write_text(NOTE)
    return file


def code_of(json_text: str) -> list[str]:
    return [one["code"] for one in json.loads(json_text)["codes"]]


def assert_coded(json_text: str, note: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The one JSON object that the text is, found valid."""
    coded: dict[str, Any] = json.loads(json_text)
    jsonschema.validate(coded, schema)
    for one in coded["codes"]:
        for span in one["evidence"]:
            assert note[span["start"] : span["end"]] == span["text"]
    return coded


# --- code ----------------------------------------------------------------------------------------


def test_json_is_one_object_as_the_schema_says(run: Run, fake: Fake, note: Path) -> None:
    fake()
    schema = json.loads(run("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    done = run("code", note, "--format", "json")
    assert (done.code, done.err) == (0, "")
    coded = assert_coded(done.out, NOTE, schema)
    assert code_of(done.out) == ["I10", "R05.9"]
    assert coded["note_id"] == "note"
    assert coded["models"].keys() == coded["timings"].keys()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(coded | {"policy": "some"}, schema)


def test_a_table_shows_codes_with_their_words(run: Run, fake: Fake, note: Path) -> None:
    fake()
    done = run("code", note)
    assert (done.code, done.err) == (0, "")
    for shown in ("I10", "Essential (primary) hypertension", "high blood pressure", "R05.9"):
        assert shown in done.out
    [left_out] = [line.split() for line in done.out.splitlines() if "I50.9" in line]
    assert left_out[:2] == ["left", "out"]
    assert "encounter" in done.out


def test_a_note_without_findings_says_so(run: Run, fake: Fake) -> None:
    fake()
    done = run("code", "-", stdin=b"The weather is fine.")
    assert done.code == 0
    assert "No code is supported by this note." in done.out


def test_the_policy_may_be_given(run: Run, fake: Fake, note: Path) -> None:
    fake()
    out = run("code", note, "--policy", "mention", "--format", "json").out
    assert set(code_of(out)) == {"I10", "I50.9", "R05.9"}


@pytest.mark.parametrize("arguments", [["-"], []])
def test_a_note_may_be_piped_in(run: Run, fake: Fake, arguments: list[str]) -> None:
    fake()
    done = run("code", *arguments, "--format", "json", stdin="Caf\u00e9: HTN \U0001f600".encode())
    assert (done.code, done.err) == (0, "")
    assert code_of(done.out) == ["I10"]
    assert json.loads(done.out)["note_id"] == "stdin"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_of_any_kind_is_read(run: Run, fake: Fake, note: Path, encoding: str) -> None:
    fake()
    text = "Caf\u00e9 \u2014 hypertension\r\n"
    note.write_text(text, encoding=encoding, newline="")
    done = run("code", note, "--format", "json")
    assert (done.code, code_of(done.out)) == (0, ["I10"])
    assert_coded(done.out, text, json.loads(run("schema").out))
    assert bool(done.err) is not encoding.startswith("utf-8")


def test_latin_1_is_coded_and_said_to_be_no_utf_8(run: Run, fake: Fake, note: Path) -> None:
    fake()
    note.write_bytes("Caf\u00e9: hypertension".encode("latin-1"))
    done = run("code", note, "--format", "json")
    assert (done.code, code_of(done.out)) == (0, ["I10"])
    assert "not UTF-8" in done.only_line()
    assert_coded(done.out, "Caf\u00e9: hypertension", json.loads(run("schema").out))


def test_square_brackets_in_a_note_are_text(
    run: Run, fake: Fake, note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLH_ANALYZE__SOURCE", "llm")
    quotes = [Quoted(quote=q, lead_term="Cough", status="affirmed") for q in ("[b]dry[/b]", "[/x]")]
    fake(QueuedModel([Reply(terms=quotes)]))
    note.write_text("Cough: [b]dry[/b] cough [/x].")
    done = run("code", note)
    assert done.code == 0
    assert "Cough: [b]dry[/b] cough [/x]." in done.out
    assert "[b]dry[/b], [/x]" in done.out


def test_a_table_shows_the_lines_with_findings_and_only_those(
    run: Run, fake: Fake, note: Path
) -> None:
    fake()
    lines = ["All is well."] * 40 + ["He has hypertension \x1b[31m", "He went home."]
    note.write_text("\r\n".join(lines), newline="")
    out = run("code", note).out
    assert "He has hypertension" in out
    assert "well" not in out
    assert "home" not in out
    assert "\x1b" not in out  # a note gives no orders to a terminal either


def test_an_agent_that_fails_gives_1_and_a_partial_answer(
    run: Run, fake: Fake, note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(QueuedModel())
    monkeypatch.setenv("CLH_VERIFY__SOURCE", "llm")
    done = run("code", note, "--format", "json")
    assert done.code == 1
    coded = assert_coded(done.out, NOTE, json.loads(run("schema").out))
    assert [error["agent"] for error in coded["errors"]] == ["verify"]
    assert list(coded["timings"]) == ["analyze", "locate", "verify"]
    assert done.only_line().startswith("clh: verify failed: ")


def test_an_agent_that_fails_is_told_in_the_table_as_well(
    run: Run, fake: Fake, note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(QueuedModel())
    monkeypatch.setenv("CLH_ANALYZE__SOURCE", "llm")
    done = run("code", note)
    assert done.code == 1
    assert "No code is supported" not in done.out
    assert "not all of the note was coded" in done.out
    assert done.only_line().startswith("clh: analyze failed: ")


def test_csv_has_a_row_for_each_code(run: Run, fake: Fake, note: Path) -> None:
    fake()
    done = run("code", note, "--format", "csv")
    assert (done.code, done.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [(row["note_id"], row["code"]) for row in rows] == [("note", "I10"), ("note", "R05.9")]
    assert rows[0]["evidence"] == NOTE[int(rows[0]["start"]) : int(rows[0]["end"])]


def test_the_setting_of_the_encounter_may_be_given(
    run: Run, note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def load(settings: Settings, show: Show) -> Pipeline:
        seen.append(settings.rules.setting)
        return toy_pipeline(settings.data_dir)

    monkeypatch.setattr(cli, "_load", load)
    for arguments in ([], ["--setting", "inpatient"]):
        assert run("code", note, *arguments).code == 0
    assert seen == ["outpatient", "inpatient"]


def test_the_date_of_service_must_be_one_of_the_release(run: Run, fake: Fake, note: Path) -> None:
    fake()
    assert run("code", note, "--date", "2026-04-01").code == 0
    assert run("code", note, "--date", "2026-09-30").code == 0
    for day in ("2026-03-31", "2026-10-01"):
        done = run("code", note, "--date", day)
        assert done.code == 2
        assert f"no codes for {day}: ICD-10-CM 2026-04-01" in done.complaint()


@pytest.mark.parametrize(
    ("profile", "address", "says"),
    [
        ("cpu", "http://llm.example.org/v1", ""),
        ("vllm", "http://127.0.0.1:8000/v1", ""),
        ("vllm", "http://localhost:8000/v1", ""),
        ("vllm", "http://[::1]:8000/v1", ""),
        (
            "vllm",
            "https://me:secret@llm.example.org:8000/v1",
            "clh: the note is sent to llm.example.org\n",
        ),
    ],
)
def test_where_the_note_goes_is_told_if_it_leaves_the_machine(
    run: Run, note: Path, monkeypatch: pytest.MonkeyPatch, profile: str, address: str, says: str
) -> None:
    monkeypatch.setenv("CLH_LLM__BASE_URL", address)

    def load(settings: Settings, show: Show) -> Pipeline:
        return toy_pipeline(settings.data_dir)

    monkeypatch.setattr(cli, "_load", load)
    assert run("code", note, "--profile", profile).err == says


def test_a_file_name_gives_the_terminal_no_orders(run: Run, fake: Fake, tmp_path: Path) -> None:
    fake()
    file = tmp_path / "\x1b[31mred\x07.txt"
    missing = run("code", file)
    assert missing.code == 2
    assert "\x1b" not in missing.complaint()
    file.write_text(NOTE)
    for form in ("table", "json", "csv", "fhir"):
        done = run("code", file, "--format", form)
        assert done.code == 0
        assert "\x1b" not in done.out


# --- what a user gets wrong ----------------------------------------------------------------------


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A folder of notes that are none."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \r\n\t\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + os.urandom(500))
    (tmp_path / "large.txt").write_text("cough " * 200_000)
    (tmp_path / "fine.txt").write_text(NOTE)
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["code", "nothing.txt"], "nothing.txt: no such file"),
        (["code", "folder"], "folder is a folder"),
        (["code", "empty.txt"], "empty.txt is blank"),
        (["code", "blank.txt"], "blank.txt is blank"),
        (["code", "binary.txt"], "binary.txt is not text"),
        (["code", "picture.png"], "picture.png is not text"),
        (["code", "large.txt"], "large.txt has more than the 1,000,000 bytes"),
        (["code", "n" * 300], "name too long"),
        (["code", "-"], "standard input is blank"),
        (
            ["code", "fine.txt", "--profile", "gp"],
            "no profile 'gp': choose one of codiesp, cpu, vllm",
        ),
        (["code", "fine.txt", "--policy", "all"], "'all' is not one of 'encounter', 'mention'"),
        (["code", "fine.txt", "--format", "xml"], "'xml' is not one of 'table', 'json'"),
        (["code", "fine.txt", "--fast"], "No such option: --fast"),
        (["code", "fine.txt", "more.txt"], "unexpected extra argument"),
        (["cod", "fine.txt"], "No such command 'cod'"),
        (["search", "  "], "blank"),
        (["search", "cough", "-n", "0"], "greater than or equal to 1"),
        (["search", "cough", "-n", "x"], "valid integer"),
        (["search"], "Missing argument"),
        (["lookup", "E11.99"], "'E11.99' is not in ICD-10-CM 2026-04-01; nearest: E11.9"),
        (["lookup", "\U0001f600"], "is not in ICD-10-CM"),
        (["audit", "show", "abc"], "no run begins with 'abc'"),
        (["audit", "list", "-n", "9" * 20], "less than or equal to"),
        (["audit", "prune"], "--older-than DAYS, or --keep N"),
        (["audit", "prune", "--keep", "-1"], "greater than or equal to 0"),
        (["audit", "prune", "--older-than", "9" * 20], "less than or equal to"),
        (["search", "cough", "-n", "9" * 20], "less than or equal to"),
        (["check", "I10", "--age", "9" * 20], "less than or equal to"),
        (["check", "a" * 300], "too long for a code"),
        (["check"], "there is no code to check"),
        (["check", "no.txt"], "no.txt: no such file"),
        (["check", "./I10"], "I10: no such file"),
        (["check", "--file", "I10"], "I10: no such file"),
        (["check", "n/" * 3000], "name too long"),
        (["check", "\udcff\udcfe"], "is not UTF-8 text"),
        (["check", "I10", "\udcff"], "is not UTF-8 text"),
        (["search", "\udcff"], "is not UTF-8 text"),
        (["lookup", "\udcff"], "is not UTF-8 text"),
        (["audit", "show", "\udcff"], "is not UTF-8 text"),
        (["code", "\udcff"], "\ufffd: no such file"),
        (["code", "fine.txt", "--date", "2026-13-01"], "'2026-13-01' does not match"),
        (["--fast\x1b[31m"], "No such option"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_2(
    run: Run, bad: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(bad)
    done = run(*arguments)
    assert done.code == 2
    assert says.lower() in done.complaint().lower()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("CLH_ASSIGN__THRESHOLD", "2", "assign.threshold"),
        ("CLH_POLICY", "all", "policy"),
        ("CLH_NOTE_BYTES", "many", "note_bytes"),
        ("CLH_NOTE_BYTES", "10", "more than the 10 bytes of note_bytes"),
        ("CLH_DATA_DIR", "/dev/null/here", "set data_dir"),
        ("CLH_INDEX_FILES", '["no.xml"]', "no.xml"),
    ],
)
def test_settings_that_cannot_be_are_one_line_and_2(
    run: Run, note: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    done = run(*(["audit", "list"] if "DATA_DIR" in name else ["code", note]))
    assert done.code == 2
    assert says in done.complaint()


def test_a_standard_input_that_is_closed(run: Run) -> None:
    done = run("code", stdin=None)
    assert done.code == 2
    assert "standard input is closed" in done.complaint()


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of which a file was changed."""
    monkeypatch.setenv("CLH_CACHE_DIR", str(tmp_path / "cache"))
    settings, system = Settings.load(), load_tabular()
    folder = index_folder(settings, system)
    folder.mkdir(parents=True)
    (folder / "texts.json").write_text("[]")
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  texts.json\n")
    return folder


@pytest.mark.parametrize("arguments", [["code", SAMPLE], ["search", "cough"]])
def test_a_damaged_index_is_one_line_and_2(
    run: Run, damaged: Path, arguments: list[object]
) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert f"{damaged} is damaged: delete that folder" in done.complaint()


@pytest.mark.integration
def test_a_server_profile_without_what_servers_need(
    run: Run, note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "langchain_openai", None)  # as if it were not installed
    done = run("code", note, "--profile", "vllm")
    assert done.code == 2
    assert "clh[server]" in done.complaint()


# --- the other commands --------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["E11.9", "e119", " e11.9 ", "E11.9-", "E119"])
def test_lookup_takes_any_spelling(run: Run, spelling: str) -> None:
    done = run("lookup", spelling)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("E11.9 Type 2 diabetes mellitus without complications (billable)")
    assert "E08-E13: Diabetes mellitus" in done.out


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("E11", ["not billable", "E11.6 ", "gestational diabetes (O24.4-) (at E11)"]),
        ("S52.501", ["7th character A initial encounter", "S52.501A "]),
        ("J44", ["Includes asthma with chronic obstructive pulmonary disease (at J44)"]),
        ("J45.909", ["= Asthma NOS", "Excludes2 chronic obstructive asthma (J44.89)"]),
        ("A60", ["A60 Anogenital herpesviral [herpes simplex] infections"]),
        ("A52.78", ["= Syphilis [stage unspecified] of muscle"]),
        ("A07", ["A07.1 Giardiasis [lambliasis]"]),
    ],
)
def test_lookup_shows_what_the_book_says(run: Run, code: str, shown: list[str]) -> None:
    out = run("lookup", code).out
    assert [text for text in shown if text not in out] == []


@pytest.mark.integration
def test_search_finds_codes_by_meaning(run: Run) -> None:
    found = json.loads(run("search", "heart attack", "--json", "-n", "5").out)
    assert 0 < len(found) <= 5
    assert "I21.9" in [candidate["code"] for candidate in found]
    assert all(candidate["title"] == load_tabular()[candidate["code"]].title for candidate in found)
    table = run("search", "HTN", "-n", "3")
    assert (table.code, table.err) == (0, "")
    assert "I10" in table.out


@pytest.mark.integration
def test_search_shows_square_brackets(run: Run) -> None:
    assert "Giardiasis [lambliasis]" in run("search", "giardiasis lambliasis").out


CLAIM = ["N18.6", "i120", "E11.9", "E11.65", "T07A", "ZZ9"]


@pytest.mark.parametrize("way", ["arguments", "file", "input"])
def test_check_says_what_is_wrong_with_codes_and_why(run: Run, tmp_path: Path, way: str) -> None:
    (tmp_path / "claim.txt").write_text("\n".join(CLAIM))
    done = {
        "arguments": lambda: run("check", *CLAIM),
        "file": lambda: run("check", tmp_path / "claim.txt"),
        "input": lambda: run("check", "-", stdin=", ".join(CLAIM).encode()),
    }[way]()
    assert (done.code, done.err) == (0, "")
    shown = done.out.splitlines()
    place = shown.index("error code_first: I12.0 comes before N18.6")
    assert shown[place + 1].strip() == (
        "N18, code_first: hypertensive chronic kidney disease (I12.-, I13.-)"
    )
    assert "warning less_specific: E11.65 says more than E11.9" in shown
    assert "error unknown: ZZ9 is not in ICD-10-CM 2026-04-01" in shown
    assert "  instead: T07.XXXA" in shown


def test_check_proposes_a_set_that_breaks_fewer(run: Run) -> None:
    shown = run("check", *CLAIM, "--fix").out.splitlines()
    proposal = [line for line in shown if line[:2] in ("+ ", "- ", "  ") and " " not in line[2:]]
    assert [line[2:] for line in proposal if line[0] != "-"] == [
        "I12.0",
        "N18.6",
        "E11.65",
        "T07.XXXA",
        "ZZ9",
    ]
    assert "- E11.9" in proposal
    assert "E11.9 dropped: E11.65 says more than E11.9" in shown
    mended = run("check", "I12.0", "N18.6", "E11.65", "--fix").out
    assert "Nothing can be mended" in mended


def test_check_as_json(run: Run) -> None:
    read = json.loads(run("check", *CLAIM, "--fix", "--format", "json").out)
    assert read["codes"][:2] == ["N18.6", "I12.0"]
    first = read["findings"][0]
    assert {"rule", "severity", "codes", "message", "citation", "suggestions"} <= first.keys()
    assert read["proposal"]["codes"] == ["I12.0", "N18.6", "E11.65", "T07.XXXA", "ZZ9"]
    clean = json.loads(run("check", "J18.9", "--format", "json").out)
    assert (clean["findings"], clean["proposal"]) == ([], None)


def test_check_knows_the_patient(run: Run) -> None:
    assert "O26.891 is for a female patient" in run("check", "O26.891", "--sex", "male").out
    assert "No rule" in run("check", "O26.891", "--sex", "female").out


def test_check_without_codes_is_bad_input(run: Run) -> None:
    done = run("check", "-", stdin=b" \n")
    assert done.code == 2
    assert "standard input is blank" in done.complaint()


@pytest.mark.parametrize("form", ["table", "json"])
def test_check_ends_with_2_only_if_no_code_exists(run: Run, form: str) -> None:
    done = run("check", "XYZ", "ZZ9", "--format", form)
    assert done.code == 2
    assert "XYZ is not in ICD-10-CM 2026-04-01" in done.out
    assert "none of these is a code of ICD-10-CM 2026-04-01" in done.only_line()
    assert run("check", "XYZ", "I10", "--format", form).code == 0


def test_check_never_takes_a_code_for_a_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("I10", "list.txt", "list.csv", "list"):
        (tmp_path / name).write_text("E11.9")

    def checked(*arguments: str) -> list[str]:
        codes: list[str] = json.loads(run("check", *arguments, "--format", "json").out)["codes"]
        return codes

    assert checked("I10") == ["I10"]
    assert checked("./I10") == ["E11.9"]
    assert checked("--file", "I10") == ["E11.9"]
    assert checked("list.txt", "J18.9") == ["E11.9", "J18.9"]
    assert checked("list.csv") == ["E11.9"]
    assert checked("J18.9", "--file", "list") == ["J18.9", "E11.9"]


def test_check_tells_how_it_read_a_code(run: Run) -> None:
    done = run("check", "e119", "I10", "zz9")
    assert "e119 is read as E11.9" in done.out.splitlines()
    assert "I10 is read" not in done.out
    read = json.loads(run("check", "e119", "I10", "zz9", "--format", "json").out)
    assert read["normalized"] == {"e119": "E11.9"}


@pytest.mark.parametrize("arguments", [["lookup", "I10"], ["check", "I10"]], ids=" ".join)
def test_what_needs_no_audit_works_without_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("CLH_DATA_DIR", "/dev/null/here")
    assert run(*arguments).code == 0


@pytest.mark.integration
@pytest.mark.usefixtures("real_pipeline")
def test_search_needs_neither_audit_nor_language_model(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLH_DATA_DIR", "/dev/null/here")
    monkeypatch.setenv("CLH_ANALYZE__SOURCE", "llm")
    monkeypatch.setenv("CLH_LLM__MODEL", "none-such")
    done = run("search", "heart attack")
    assert (done.code, done.err) == (0, "")
    assert "I21.9" in done.out


def test_groups_are_shown_where_a_grouper_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "poa_exempt.txt").write_text("1 Z79.4 insulin\n")
    monkeypatch.setenv("CLH_RULES__GROUPERS", json.dumps({"poa-exempt": str(tmp_path)}))
    assert "Z79.4: poa-exempt, exempt from POA" in run("check", "E11.9", "Z79.4").out
    monkeypatch.setenv("CLH_RULES__GROUPERS", json.dumps({"drg": str(tmp_path)}))
    assert "there is no grouper 'drg'" in run("check", "E11.9").complaint()


def test_fhir_is_a_bundle_of_the_codes(run: Run, fake: Fake, note: Path) -> None:
    fake()
    plain = json.loads(run("code", note, "--format", "json").out)
    bundle = json.loads(run("code", note, "--format", "fhir").out)
    conditions = [entry["resource"] for entry in bundle["entry"][:-1]]
    codes = [one["code"]["coding"][0]["code"] for one in conditions]
    assert codes == [one["code"] for one in plain["codes"]]
    assert bundle["entry"][-1]["resource"]["resourceType"] == "Claim"


def test_runs_are_listed_and_shown(run: Run, fake: Fake, note: Path) -> None:
    fake()
    ids = [
        json.loads(run("code", "-", "--format", "json", stdin=text).out)["run_id"]
        for text in (b"Cough.", b"HTN.")
    ]
    listed = run("audit", "list")
    assert listed.code == 0
    rows = [line for line in listed.out.splitlines() if re.search(r"[0-9a-f]{8}", line)]
    assert [row.split()[0] for row in rows] == [run_id[:8] for run_id in reversed(ids)]
    assert "I10" in rows[0]
    assert len(run("audit", "list", "-n", "1").out.splitlines()) < len(listed.out.splitlines())

    shown = json.loads(run("audit", "show", ids[0][:8]).out)
    assert shown["run_id"] == ids[0]
    assert [step["agent"] for step in shown["steps"]] == ["analyze", "locate", "verify", "assign"]
    assert shown["coded_note"]["codes"][0]["code"] == "R05.9"


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--keep", "1"], 1),
        (["--keep", "0"], 0),
        (["--older-than", "1"], 2),
        (["--older-than", "1", "--keep", "1"], 1),
    ],
)
def test_old_runs_are_deleted(
    run: Run, fake: Fake, note: Path, arguments: list[str], left: int
) -> None:
    fake()
    for _ in range(2):
        run("code", note)
    done = run("audit", "prune", *arguments)
    assert (done.code, done.out) == (0, f"{2 - left} runs were deleted\n")
    rows = [line for line in run("audit", "list").out.splitlines() if "I10" in line]
    assert len(rows) == left


def test_doctor_tells_a_user_and_a_script_what_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLH_CACHE_DIR", str(tmp_path / "cache"))
    done = run("doctor")
    assert done.code == 1
    [row] = [line for line in done.out.splitlines() if line.split()[:2] == ["no", "Index"]]
    assert "clh index build" in row
    assert not (tmp_path / "cache").exists()


@pytest.mark.integration
@pytest.mark.usefixtures("real_pipeline")
def test_doctor_is_content_where_all_is_there(run: Run) -> None:
    done = run("doctor")
    assert done.code == 0
    assert {line.split()[0] for line in done.out.splitlines()[3:] if line[:6].strip()} <= {
        "ok",
        "-",
    }


def test_the_help_of_the_profile_names_all_of_them(run: Run) -> None:
    shown = run("code", "--help").out
    profiles = (Path(clh.__file__).parent / "profiles").glob("*.toml")
    assert [file.stem for file in profiles if f"{file.stem} (" not in shown] == []


@pytest.mark.parametrize(
    ("words", "offered"), [("clh che", "check"), ("clh code --profile c", "codiesp\ncpu")]
)
def test_shells_complete_commands_and_profiles(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: str, offered: str
) -> None:
    monkeypatch.setattr("typer._click.utils._detect_program_name", lambda: "clh")
    monkeypatch.setenv("_CLH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert run().out == f"{offered}\n"


def test_the_version_and_the_help(run: Run) -> None:
    assert run("--version").out == f"clh {clh.__version__}\n"
    for arguments in (["--help"], ["code", "--help"], ["audit", "--help"], [], ["audit"]):
        done = run(*arguments)
        assert (done.code, done.err) == (0, "")
        assert "Usage: " in done.out


# --- processes of their own ----------------------------------------------------------------------


def in_a_process(arguments: Sequence[object], tmp_path: Path, **environment: str) -> Done:
    command = [sys.executable, "-m", "clh", *map(str, arguments)]
    cache = str(Settings.load().cache_dir)  # found by the home directory, which is another's here
    places = {"HOME": str(tmp_path), "CLH_CACHE_DIR": cache, "CLH_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env={**os.environ, **places, **environment},
        capture_output=True,
        timeout=200,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.integration
@pytest.mark.usefixtures("real_pipeline")  # so that the index is there
def test_a_note_from_the_shell_whatever_the_encoding_of_the_terminal(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("Crohn\u2019s disease and hypertension \U0001f600.", encoding="utf-8")
    done = in_a_process(["code", note, "--format", "json"], tmp_path, PYTHONIOENCODING="ascii")
    assert (done.code, done.err) == (0, "")
    assert set(code_of(done.out)) >= {"I10", "K50.90"}


@pytest.mark.integration
@pytest.mark.usefixtures("real_pipeline")
def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    server = {"CLH_LLM__BASE_URL": "http://127.0.0.1:9/v1", "CLH_LLM__RETRIES": "0"}
    arguments = ["code", SAMPLE, "--profile", "vllm", "--format", "json"]
    done = in_a_process(arguments, tmp_path, **server)
    assert done.code == 1
    coded = json.loads(done.out)
    assert [error["agent"] for error in coded["errors"]] == ["analyze"]
    assert coded["codes"] == []
    assert "cannot be reached: start vLLM there" in done.only_line()
