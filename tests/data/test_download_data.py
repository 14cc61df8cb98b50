"""`make download-data` as a user runs it, from a publisher on this machine."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.data.publisher import PASSWORD, USER, Publisher, publishing

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "data" / "download_data.py"
BODY = bytes(range(256)) * 1000
PAGE = "https://physionet.org/content/stays/1.0/"
LOGIN = {"PHYSIONET_USER": USER, "PHYSIONET_PASS": PASSWORD}


class Done(NamedTuple):
    """What a finished run left."""

    code: int
    out: str
    err: str


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing() as publisher:
        yield publisher


class Downloads(NamedTuple):
    """A user's folder of raw data, and where the data comes from."""

    raw: Path
    sources: Path

    def offer(self, name: str, **table: Any) -> None:
        """Add a source to sources.toml."""
        table = {"title": f"The {name}", "licence": "CC0", **table}
        with self.sources.open("a", encoding="utf-8") as stream:
            stream.write(f"[[{name}]]\n")
            stream.writelines(f"{key} = {toml(value)}\n" for key, value in table.items())

    def run(self, *arguments: str, retries: int = 1, **variables: str) -> Done:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PHYSIONET_")
        }
        settings = ["--to", self.raw, "--sources", self.sources, "--retries", str(retries)]
        done = subprocess.run(
            [sys.executable, SCRIPT, *arguments, *settings],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def files(self) -> set[str]:
        """All files there are, but for the digests."""
        files = {str(file.relative_to(self.raw)) for file in self.raw.rglob("*") if file.is_file()}
        return {file for file in files if not file.endswith("/SHA256SUMS.txt")}


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    return Downloads(tmp_path / "raw", tmp_path / "sources.toml")


def toml(value: object) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
        )
    return json.dumps(value)


def zipped(**members: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return stream.getvalue()


def sums(**bodies: bytes) -> bytes:
    """A list as PhysioNet has it for each project."""
    return "".join(
        f"{hashlib.sha256(body).hexdigest()} {name}\n" for name, body in bodies.items()
    ).encode()


def credentialed(publisher: Publisher, downloads: Downloads, name: str = "stays") -> None:
    """A project of two files and their digests that only signers may have."""
    files = {"hosp/codes.csv.gz": BODY, "hosp/labs.csv.gz": BODY[:99]}
    publisher.publish(f"/private/{name}/SHA256SUMS.txt", sums(**files))
    for file, body in files.items():
        publisher.publish(f"/private/{name}/{file}", body)
    url = f"{publisher.address}/private/{name}/{{file}}"
    downloads.offer(name, url=url, agreement=PAGE, checksums="SHA256SUMS.txt")


def test_an_archive_is_laid_out_without_its_outer_folder(
    publisher: Publisher, downloads: Downloads
) -> None:
    members = {"v4/train/a.tsv": "a\n", "v4/dev/b.tsv": "b\n", "__MACOSX/v4/._a": "no"}
    archive = zipped(**members, **{"v4/test/": ""})
    publisher.publish("/cases.zip?download=1", archive)
    downloads.offer(
        "cases",
        url=f"{publisher.address}/{{file}}?download=1",
        files=["cases.zip"],
        digests={"cases.zip": f"md5:{hashlib.md5(archive).hexdigest()}"},
        unpack={"cases.zip": "v4/"},
    )

    done = downloads.run("cases")

    assert done.code == 0
    assert done.err == ""
    assert "The cases (CC0)" in done.out
    assert downloads.files() == {"cases/cases.zip", "cases/train/a.tsv", "cases/dev/b.tsv"}
    assert (downloads.raw / "cases/train/a.tsv").read_text() == "a\n"


def test_what_is_there_is_not_asked_for_again(publisher: Publisher, downloads: Downloads) -> None:
    publisher.publish("/My%20tables.zip", zipped(a="text"))
    downloads.offer(
        "tables",
        url=f"{publisher.address}/{{file}}",
        files=["My tables.zip"],
        unpack={"My tables.zip": ""},
    )
    downloads.run("tables")
    (downloads.raw / "tables/a").unlink()

    again = downloads.run("tables")

    assert again.code == 0
    assert publisher.paths() == ["/My%20tables.zip"]
    assert "My tables.zip: is here" in again.out
    assert (downloads.raw / "tables/a").read_text() == "text"


def test_a_file_that_was_changed_here_is_fetched_again(
    publisher: Publisher, downloads: Downloads
) -> None:
    publisher.publish("/a", BODY)
    downloads.offer("one", url=f"{publisher.address}/{{file}}", files=["a"])
    downloads.run("one")
    (downloads.raw / "one/a").write_bytes(b"changed")

    assert downloads.run("one").code == 0
    assert (downloads.raw / "one/a").read_bytes() == BODY


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    publisher: Publisher, downloads: Downloads
) -> None:
    publisher.publish("/a", BODY, troubles=[1, 70_000, 100_000])
    downloads.offer("one", url=f"{publisher.address}/{{file}}", files=["a"])

    assert downloads.run("one", retries=0).code == 0
    assert publisher.ranges() == [None, "bytes=1-", "bytes=70001-", "bytes=170001-"]
    assert (downloads.raw / "one/a").read_bytes() == BODY
    assert downloads.files() == {"one/a"}


@pytest.mark.parametrize(
    ("now", "ranges"),
    [
        ({}, ["bytes=1000-"]),
        ({"body": BODY[::-1], "version": '"2"'}, ["bytes=1000-"]),
        ({"ranges": False}, ["bytes=1000-"]),
        ({"version": 'W/"1"'}, ["bytes=1000-"]),
        ({"body": BODY[:1000]}, ["bytes=1000-"]),
        ({"body": BODY[:10]}, ["bytes=1000-", None]),
    ],
    ids=["same", "another", "no ranges", "weak", "all there", "shorter"],
)
def test_another_run_goes_on_with_the_same_version_only(
    publisher: Publisher, downloads: Downloads, now: dict[str, Any], ranges: list[str | None]
) -> None:
    publisher.publish("/a", BODY, troubles=[1000, HTTPStatus.SERVICE_UNAVAILABLE])
    downloads.offer("one", url=f"{publisher.address}/{{file}}", files=["a"])
    first = downloads.run("one", retries=0)
    left = downloads.files()

    publisher.asked.clear()
    publisher.publish("/a", **({"body": BODY} | now))
    second = downloads.run("one")

    assert first.code == 1
    assert first.err.count("\n") == 1
    assert "goes on from here" in first.err
    assert "one/a" not in left
    assert second.code == 0
    assert publisher.ranges() == ranges
    assert (downloads.raw / "one/a").read_bytes() == publisher.files["/a"].body
    assert downloads.files() == {"one/a"}


def test_a_date_tells_versions_apart_too(publisher: Publisher, downloads: Downloads) -> None:
    version = {"version": 'W/"1"', "modified": "Wed, 01 Apr 2026 00:00:00 GMT"}
    publisher.publish("/a", BODY, troubles=[1000], **version)
    downloads.offer("one", url=f"{publisher.address}/{{file}}", files=["a"])

    assert downloads.run("one").code == 0
    assert publisher.ranges() == [None, "bytes=1000-"]
    assert (downloads.raw / "one/a").read_bytes() == BODY


def test_a_part_of_no_known_version_is_not_built_upon(
    publisher: Publisher, downloads: Downloads
) -> None:
    troubles = [1000, HTTPStatus.SERVICE_UNAVAILABLE]
    publisher.publish("/a", BODY, version='W/"1"', troubles=troubles)
    downloads.offer("one", url=f"{publisher.address}/{{file}}", files=["a"])
    downloads.run("one", retries=0)

    assert downloads.run("one").code == 0
    assert publisher.ranges() == [None, None, None]
    assert (downloads.raw / "one/a").read_bytes() == BODY


@pytest.mark.parametrize("how", ["digests", "checksums"])
def test_a_wrong_checksum_leaves_nothing(
    publisher: Publisher, downloads: Downloads, how: str
) -> None:
    publisher.publish("/a", BODY[::-1])
    publisher.publish("/SHA256SUMS.txt", sums(a=BODY))
    right = {
        "digests": {"a": f"sha256:{hashlib.sha256(BODY).hexdigest()}"},
        "checksums": "SHA256SUMS.txt",
    }
    table = {"files": ["a"], how: right[how]}
    downloads.offer("one", url=f"{publisher.address}/{{file}}", **table)

    wrong = downloads.run("one")

    assert wrong.code == 1
    assert "/a came with a wrong checksum" in wrong.err
    assert downloads.files() == set()
    publisher.publish("/a", BODY)
    assert downloads.run("one").code == 0
    assert (downloads.raw / "one/a").read_bytes() == BODY


@pytest.mark.parametrize(
    ("listed", "files"),
    [(b"<html>\n<p>Log in, please.\n</html>", []), (b"", ["a"]), (sums(b=BODY), ["a"])],
    ids=["a page", "nothing", "others"],
)
def test_a_list_without_the_digests_is_no_list(
    publisher: Publisher, downloads: Downloads, listed: bytes, files: list[str]
) -> None:
    publisher.publish("/list", listed)
    publisher.publish("/a", BODY)
    table = {"url": f"{publisher.address}/{{file}}", "checksums": "list", "files": files}
    downloads.offer("one", **table)

    wrong = downloads.run("one")

    assert wrong.code == 1
    assert "/list lacks digests of what is wanted" in wrong.err
    assert downloads.files() == set()
    publisher.publish("/list", sums(a=BODY))
    assert downloads.run("one").code == 0
    assert downloads.files() == {"one/a"}


def test_a_busy_server_is_asked_again(publisher: Publisher, downloads: Downloads) -> None:
    publisher.publish("/a", BODY, troubles=[HTTPStatus.TOO_MANY_REQUESTS])
    downloads.offer("one", url=f"{publisher.address}/{{file}}", files=["a"])

    assert downloads.run("one").code == 0
    assert (downloads.raw / "one/a").read_bytes() == BODY


def test_a_server_that_is_away_is_named(downloads: Downloads) -> None:
    with publishing() as gone:
        pass
    downloads.offer("one", url=f"{gone.address}/{{file}}", files=["a"])

    done = downloads.run("one", retries=0)

    assert done.code == 1
    assert f"{gone.address}/a: " in done.err
    assert downloads.files() == set()


def test_a_file_that_has_moved_does_not_keep_the_others(
    publisher: Publisher, downloads: Downloads
) -> None:
    publisher.publish("/b", BODY)
    downloads.offer("one", url=f"{publisher.address}/{{file}}", files=["a"])
    downloads.offer("two", url=f"{publisher.address}/{{file}}", files=["b"])

    done = downloads.run("one", "two")

    assert done.code == 1
    assert "answers 404: correct data/sources.toml" in done.err
    assert downloads.files() == {"two/b"}


def test_sources_of_one_dataset_share_its_folder(
    publisher: Publisher, downloads: Downloads
) -> None:
    for project in ("reports", "images"):
        publisher.publish(f"/{project}/{project}.csv", BODY)
        publisher.publish(
            f"/{project}/SHA256SUMS.txt", sums(**{f"{project}.csv": BODY, "unwanted.dcm": b""})
        )
        downloads.offer(
            "chests",
            url=f"{publisher.address}/{project}/{{file}}",
            files=[f"{project}.csv"],
            checksums="SHA256SUMS.txt",
        )

    assert downloads.run("chests").code == 0
    assert downloads.files() == {"chests/reports.csv", "chests/images.csv"}
    lists = (downloads.raw / "chests/SHA256SUMS.txt").read_text()
    digest = hashlib.sha256(BODY).hexdigest()
    assert lists == f"{digest}  images.csv\n{digest}  reports.csv\n"
    asked = len(publisher.asked)
    assert downloads.run("chests").code == 0
    assert len(publisher.asked) == asked


def test_a_project_comes_whole_when_no_files_are_named(
    publisher: Publisher, downloads: Downloads
) -> None:
    credentialed(publisher, downloads)

    assert downloads.run("stays", **LOGIN).code == 0
    assert downloads.files() == {"stays/hosp/codes.csv.gz", "stays/hosp/labs.csv.gz"}
    asked = len(publisher.asked)
    assert downloads.run("stays").code == 0  # and needs no password either
    assert len(publisher.asked) == asked


def test_what_wget_brought_is_only_checked(publisher: Publisher, downloads: Downloads) -> None:
    credentialed(publisher, downloads)
    for path, file in publisher.files.items():
        target = downloads.raw / path.removeprefix("/private/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.body)

    done = downloads.run("stays")

    assert done.code == 0
    assert done.out.count(": is here") == 2
    assert publisher.asked == []


def test_without_names_what_is_free_comes_before_a_login_is_missed(
    publisher: Publisher, downloads: Downloads
) -> None:
    credentialed(publisher, downloads)
    publisher.publish("/a", BODY)
    downloads.offer("free", url=f"{publisher.address}/{{file}}", files=["a"])

    done = downloads.run(PHYSIONET_USER=USER)

    assert done.code == 2
    assert done.err.count("\n") == 1
    for what in ("PHYSIONET_USER", "PHYSIONET_PASS", "The stays", PAGE):
        assert what in done.err
    assert publisher.paths() == ["/a"]
    assert downloads.files() == {"free/a"}


def test_an_agreement_that_is_not_signed_is_named(
    publisher: Publisher, downloads: Downloads
) -> None:
    credentialed(publisher, downloads)
    credentialed(publisher, downloads, "notes")
    publisher.unsigned = {"/private/stays/SHA256SUMS.txt"}

    done = downloads.run("stays", "notes", **LOGIN)

    assert done.code == 1
    assert f"the account has not signed the agreement of The stays: {PAGE}" in done.err
    assert not (downloads.raw / "stays").exists()
    assert (downloads.raw / "notes/hosp/codes.csv.gz").exists()


def test_a_wrong_password_is_tried_once(publisher: Publisher, downloads: Downloads) -> None:
    credentialed(publisher, downloads)
    credentialed(publisher, downloads, "notes")

    done = downloads.run("stays", "notes", PHYSIONET_USER=USER, PHYSIONET_PASS="guess")

    assert done.code == 1
    assert "PHYSIONET_USER and PHYSIONET_PASS" in done.err
    assert "guess" not in done.out + done.err
    assert len(publisher.asked) == 1
    assert downloads.files() == set()


def test_no_other_server_learns_the_password(publisher: Publisher, downloads: Downloads) -> None:
    credentialed(publisher, downloads)
    publisher.publish("/a", BODY)
    downloads.offer("free", url=f"{publisher.address}/{{file}}", files=["a"])
    with publishing() as store:
        store.publish("/codes", BODY)
        publisher.moved = {"/private/stays/hosp/codes.csv.gz": f"{store.address}/codes"}

        assert downloads.run("stays", "free", **LOGIN).code == 0

    assert store.paths() == ["/codes"]
    for _, headers in store.asked:
        assert headers["Authorization"] is None
    for path, headers in publisher.asked:
        assert (headers["Authorization"] is not None) == path.startswith("/private/")
        assert headers["User-Agent"].startswith("clh/")  # PhysioNet wants to know who it is


@pytest.mark.parametrize("name", ["../../out.txt", "/tmp/clh-out.txt", "a/../../out.txt"])
def test_nothing_is_written_outside_the_folder(
    publisher: Publisher, downloads: Downloads, name: str
) -> None:
    publisher.publish("/a.zip", zipped(**{name: "out"}))
    downloads.offer(
        "zip", url=f"{publisher.address}/{{file}}", files=["a.zip"], unpack={"a.zip": ""}
    )
    publisher.publish("/list", sums(**{name: BODY}))
    downloads.offer("list", url=f"{publisher.address}/{{file}}", checksums="list")

    done = downloads.run("zip", "list")

    assert done.code == 1
    assert done.err.count(f"{name!r} would be written outside") == 2
    assert downloads.files() == {"zip/a.zip"}
    assert {file.name for file in downloads.raw.parent.iterdir()} == {"raw", "sources.toml"}
    assert not Path("/tmp/clh-out.txt").exists()


@pytest.mark.parametrize(
    "body",
    [b"<html>This page has moved</html>", zipped(a="a" * 99).replace(b"a" * 99, b"b" * 99)],
    ids=["a page", "damaged"],
)
def test_what_is_no_whole_archive_does_not_stay(
    publisher: Publisher, downloads: Downloads, body: bytes
) -> None:
    publisher.publish("/a.zip", body)
    downloads.offer(
        "one", url=f"{publisher.address}/{{file}}", files=["a.zip"], unpack={"a.zip": ""}
    )

    done = downloads.run("one")

    assert done.code == 1
    assert "a.zip was no whole zip file" in done.err
    assert "one/a" not in downloads.files()
    publisher.publish("/a.zip", zipped(a="text"))
    assert downloads.run("one").code == 0
    assert (downloads.raw / "one/a").read_text() == "text"


def test_an_archive_without_the_folder_is_refused(
    publisher: Publisher, downloads: Downloads
) -> None:
    publisher.publish("/a.zip", zipped(**{"v5/a": "text"}))
    downloads.offer(
        "one", url=f"{publisher.address}/{{file}}", files=["a.zip"], unpack={"a.zip": "v4/"}
    )

    done = downloads.run("one")

    assert done.code == 1
    assert "a.zip has no v4/" in done.err


def test_a_dataset_that_is_not_there_is_an_error_of_the_command(downloads: Downloads) -> None:
    downloads.offer("one", url="http://localhost/{file}", files=["a"])

    done = downloads.run("won")

    assert done.code == 2
    assert "there is no dataset 'won': choose among one" in done.err


def test_the_list_names_what_has_to_be_signed(downloads: Downloads) -> None:
    downloads.offer("stays", url="http://localhost/{file}", agreement=PAGE)
    downloads.offer("one", url="http://localhost/{file}", files=["a"])

    done = downloads.run("--list")

    assert done.code == 0
    assert done.out.index("one") < done.out.index("stays")
    assert PAGE in done.out
    assert downloads.files() == set()


def test_our_own_sources_are_complete() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--list"], capture_output=True, text=True, check=True
    )
    datasets = tomllib.loads((ROOT / "data" / "sources.toml").read_text("utf-8"))
    readme = (ROOT / "data" / "README.md").read_text("utf-8")

    for name, tables in datasets.items():
        assert f"\n{name}\n" in f"\n{done.stdout}"
        assert f"| `{name}` |" in readme
        for table in tables:
            address = urlsplit(table["url"])
            assert address.scheme == "https"
            assert "{file}" in table["url"]
            assert set(table.get("unpack", {})) <= set(table.get("files", []))
            if address.hostname == "physionet.org":
                assert table["checksums"] == "SHA256SUMS.txt"
            if "agreement" in table:
                assert urlsplit(table["agreement"]).hostname == address.hostname == "physionet.org"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_lists_both_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)

    for target in ("download-data", "prepare-data", "test"):
        assert f"make {target} " in done.stdout
