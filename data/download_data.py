"""Download datasets, going on where an earlier run stopped.

    python data/download_data.py [DATASET ...] [--to data/raw] [--list]

Without names: all, the free ones first. data/sources.toml says where each comes from. What needs
an agreement is on PhysioNet: sign it there and set PHYSIONET_USER and PHYSIONET_PASS, which are
sent to PhysioNet and nowhere else. A folder's SHA256SUMS.txt has the digests of its files.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
import time
import tomllib
import zipfile
import zlib
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress

_SUMS = "SHA256SUMS.txt"
_OF_RANGES = (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
_BUSY = (429, 500, 502, 503, 504)  # what a server says that may be asked again


@dataclass(frozen=True)
class Source:
    """A table of sources.toml, where its keys are explained."""

    title: str
    url: str
    licence: str
    agreement: str = ""
    files: list[str] = field(default_factory=list)
    checksums: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    unpack: dict[str, str] = field(default_factory=dict)

    def at(self, file: str) -> str:
        """The address of a file."""
        return self.url.format(file=quote(file))


class DownloadError(Exception):
    """A dataset that cannot be had now; its text is one line that says what to do."""


class LoginError(DownloadError):
    """No dataset with an agreement can be had."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def main() -> None:
    """Download what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", nargs="*", metavar="DATASET")
    parser.add_argument("--to", type=Path, default=Path("data/raw"), help="default: data/raw")
    parser.add_argument("--list", action="store_true", help="say what there is, and download none")
    parser.add_argument(
        "--sources",
        type=Path,
        default=Path(__file__).with_name("sources.toml"),
        help="default: data/sources.toml",
    )
    parser.add_argument("--retries", type=int, default=5, help="of what brings nothing; default: 5")
    arguments = parser.parse_args()

    with arguments.sources.open("rb") as stream:
        datasets = {
            name: [Source(**table) for table in tables]
            for name, tables in tomllib.load(stream).items()
        }
    free_first = sorted(datasets, key=lambda name: any(one.agreement for one in datasets[name]))
    names = list(dict.fromkeys(arguments.datasets)) or free_first
    if unknown := [name for name in names if name not in datasets]:
        parser.error(f"there is no dataset {unknown[0]!r}: choose among {', '.join(free_first)}")
    if arguments.list:
        for name in names:
            print(name)
            for source in datasets[name]:
                sign = f", to be signed: {source.agreement}" if source.agreement else ""
                print(f"  {source.title}\n  {source.licence}{sign}")
        return

    status = 0
    with _client() as client:
        for name in names:
            try:
                for source in datasets[name]:
                    print(f"{name}: {source.title} ({source.licence})")
                    _download(source, arguments.to / name, client, arguments.retries)
            except LoginError as error:
                print(error, file=sys.stderr)
                sys.exit(error.status)
            except (DownloadError, OSError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                status = 1
            except KeyboardInterrupt:
                print("stopped: the same command goes on from here", file=sys.stderr)
                sys.exit(130)
    sys.exit(status)


def _client() -> "httpx.Client":
    import httpx

    from clh import __version__

    # PhysioNet asks programs for a name of their own: it lets those in that it knows.
    headers = {
        "User-Agent": f"clh/{__version__} (+https://github.com/clh-project/clh)",
        "Accept-Encoding": "identity",  # digests and ranges are those of the file itself
    }
    return httpx.Client(headers=headers, follow_redirects=True, timeout=60)


def _download(source: Source, folder: Path, client: "httpx.Client", retries: int) -> None:
    """Bring the folder to hold all files of the source, whole and unpacked."""
    sums = _read_sums(folder / _SUMS)
    if source.checksums and (not sums or any(file not in sums for file in source.files)):
        part = folder / f"{_SUMS}.part"
        _fetch(source, source.checksums, part, client, retries)
        listed = _read_sums(part)
        _forget(part)
        if not listed or set(source.files) - listed.keys():
            raise DownloadError(f"{source.at(source.checksums)} lacks digests of what is wanted")
        sums |= {file: listed[file] for file in source.files or listed}
        _write_sums(sums, folder / _SUMS)
    for file in source.files or list(sums):
        target = _inside(folder, file)
        if target.exists() and sums.get(file) == _digest(target, "sha256"):
            print(f"  {file}: is here")
        else:
            part = target.with_name(f"{target.name}.part")
            _fetch(source, file, part, client, retries)
            published = f"sha256:{sums[file]}" if source.checksums else source.digests.get(file)
            if published:
                algorithm, _, digest = published.partition(":")
                if _digest(part, algorithm) != digest:
                    _forget(part)
                    raise DownloadError(
                        f"{source.at(file)} came with a wrong checksum and is deleted: try again"
                    )
            sums[file] = _digest(part, "sha256")
            _write_sums(sums, folder / _SUMS)
            part.replace(target)
            _forget(part)
            print(f"  {file}: downloaded")
        if file in source.unpack:
            _unpack(target, source.unpack[file], folder)


def _fetch(source: Source, file: str, part: Path, client: "httpx.Client", retries: int) -> None:
    """Download to `part`, keeping what it has; DownloadError when that is not to be had."""
    import httpx

    url, login = source.at(file), _login(source)
    failures = 0
    while True:
        size = _size(part)
        try:
            return _stream(url, part, client, login)
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            if code not in _BUSY:
                raise _refusal(source, url, code) from None
            problem = f"the server answers {code}"
        except httpx.RequestError as error:
            problem = str(error) or type(error).__name__
        if _size(part) > size:
            failures = 0
            continue
        failures += 1
        if failures > retries:
            raise DownloadError(f"{url}: {problem}; the same command goes on from here")
        time.sleep(min(2 ** (failures - 1), 60))


def _stream(url: str, part: Path, client: "httpx.Client", login: tuple[str, str] | None) -> None:
    """Append what `part` lacks of the file, or all of it when the server has another one now."""
    import httpx

    headers, size = {}, 0
    if part.exists() and _tag(part).exists():
        size = _size(part)
        headers = {"Range": f"bytes={size}-", "If-Range": _tag(part).read_text("utf-8")}
    with client.stream("GET", url, headers=headers, auth=login) as response:
        code, content = response.status_code, response.headers.get("Content-Range", "")
        if code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and content == f"bytes */{size}":
            return
        goes_on = code == HTTPStatus.PARTIAL_CONTENT and content.startswith(f"bytes {size}-")
        if code in _OF_RANGES and not goes_on:
            _forget(part)
            raise httpx.RemoteProtocolError("the server has no such part of the file")
        response.raise_for_status()
        if not goes_on:
            size = 0
            _start(part, response.headers)
        length = response.headers.get("Content-Length")
        with part.open("ab") as stream, _bar() as bar:
            total = size + int(length) if length else None
            task = bar.add_task(part.name, total=total, completed=size)
            for chunk in response.iter_raw():
                stream.write(chunk)
                bar.advance(task, len(chunk))


def _start(part: Path, headers: "httpx.Headers") -> None:
    """An empty part, with the version it is of where the server says so."""
    part.parent.mkdir(parents=True, exist_ok=True)
    _forget(part)
    etag = headers.get("ETag", "W/")
    # A weak ETag says that two files are alike, not that they are the same bytes.
    version = headers.get("Last-Modified") if etag.startswith("W/") else etag
    part.touch()
    if version:
        _tag(part).write_text(version, "utf-8")


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _login(source: Source) -> tuple[str, str] | None:
    """The user and password that the source's own server is sent; httpx tells them no other."""
    if not source.agreement:
        return None
    user, password = os.environ.get("PHYSIONET_USER"), os.environ.get("PHYSIONET_PASS")
    if not user or not password:
        raise LoginError(
            f"{source.title}: sign its agreement, {source.agreement}, "
            "and set PHYSIONET_USER and PHYSIONET_PASS",
            status=2,
        )
    return user, password


def _refusal(source: Source, url: str, code: int) -> DownloadError:
    if source.agreement and code == HTTPStatus.UNAUTHORIZED:
        return LoginError(
            "PhysioNet knows no account with this PHYSIONET_USER and PHYSIONET_PASS", status=1
        )
    if source.agreement and code == HTTPStatus.FORBIDDEN:
        return DownloadError(
            f"the account has not signed the agreement of {source.title}: {source.agreement} "
            "(if it has: see data/README.md, wget)"
        )
    return DownloadError(f"the server answers {code}: correct data/sources.toml, {url}")


def _unpack(file: Path, inner: str, folder: Path) -> None:
    """Lay out the archive's folder `inner` in `folder`; what is there already stays."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [
                member
                for member in archive.infolist()
                if member.filename.startswith(inner) and not member.is_dir()
            ]
            if not members:
                raise DownloadError(f"{file} has no {inner}: correct data/sources.toml")
            targets = {
                member: _inside(folder, member.filename.removeprefix(inner)) for member in members
            }
            lacking = {
                member: target
                for member, target in targets.items()
                if not target.exists() or _size(target) != member.file_size
            }
            if lacking:
                print(f"  {file.name}: {len(lacking):,} files are unpacked")
            for member, target in lacking.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f"{target.name}.part")
                with archive.open(member) as packed, part.open("wb") as stream:
                    shutil.copyfileobj(packed, stream)
                part.replace(target)
    except (zipfile.BadZipFile, zlib.error):
        file.unlink()
        raise DownloadError(f"{file} was no whole zip file, and is deleted: try again") from None


def _inside(folder: Path, name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DownloadError(f"{name!r} would be written outside {folder}: nothing of it is used")
    return folder / name


def _read_sums(file: Path) -> dict[str, str]:
    """Digests by file, from what `sha256sum` writes."""
    text = file.read_text("utf-8", "replace") if file.exists() else ""
    lines = re.findall(r"^([0-9a-f]{64}) [ *]?(?:\./)?(.+)$", text, re.MULTILINE)
    return {name: digest for digest, name in lines}


def _write_sums(sums: dict[str, str], file: Path) -> None:
    part = file.with_name(f"{file.name}.new")
    lines = (f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    part.write_text("".join(lines), "utf-8")
    part.replace(file)


def _digest(file: Path, algorithm: str) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _tag(part: Path) -> Path:
    """Which version of a file a part is of: its ETag, or when it was last modified."""
    return part.with_name(f"{part.name}.version")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
