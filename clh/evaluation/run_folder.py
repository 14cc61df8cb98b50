"""The folder of an experiment: it grows by a line a note, and a killed run goes on in it."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clh.errors import InputError
from clh.files import atomic_write

_CONFIG = "config.json"
_MAY_DIFFER = ("git", "versions")  # a run goes on after a commit, and says so


def git_commit() -> str:
    """The commit that the code is at, `+` appended when files differ from it; "" outside git."""
    if not (Path(__file__).parents[2] / ".git").exists():
        return ""  # an installed package may lie within another project's repository
    try:
        return _git("rev-parse", "HEAD") + (
            "+" if _git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def fingerprint(values: object) -> str:
    """Eight hexadecimal digits that name plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


class RunFolder:
    """The results of one run, which grow by a line a note in each of its files.

    A run that was killed goes on after the last note that all files hold.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], files: tuple[str, ...]) -> None:
        """Open or make the folder.

        A run of other settings, data or models is refused; one of another commit goes on with a
        line on standard error. Raises InputError if the folder holds another run, or cannot be
        written.
        """
        self.path = path
        self._files = [path / name for name in files]
        plain = json.loads(json.dumps(config))
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / _CONFIG).exists():
                self._check_same_run(plain)
            else:
                atomic_write(path / _CONFIG, json.dumps(plain, indent=2) + "\n")
            for file in self._files:
                file.touch()
            self._drop_what_is_not_in_all()
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error}): choose another --output"
            ) from error

    def append(self, *lines: str) -> None:
        """Add a note's line to each file, the last of which makes it count as done."""
        for file, line in zip(self._files, lines, strict=True):
            with file.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(line + "\n")
                stream.flush()
                os.fsync(stream.fileno())

    def lines(self, name: str) -> list[str]:
        """The lines of a file, one for each note that is done."""
        # Neither splitlines nor text mode, for which more than \n may end a line of a note's text.
        return (self.path / name).read_bytes().decode("utf-8").split("\n")[:-1]

    def _check_same_run(self, config: Mapping[str, Any]) -> None:
        try:
            before = json.loads((self.path / _CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{self.path / _CONFIG} is damaged: delete the folder") from error
        differ = sorted(name for name in {*before, *config} if before.get(name) != config.get(name))
        changed = [name for name in differ if name in _MAY_DIFFER]
        if len(changed) < len(differ):
            differ = [name for name in differ if name not in _MAY_DIFFER]
            raise InputError(
                f"{self.path} holds another run ({', '.join(differ)} differ): "
                "choose another --output, or delete it"
            )
        if changed:
            print(f"{self.path}: going on, though {', '.join(changed)} changed", file=sys.stderr)

    def _drop_what_is_not_in_all(self) -> None:
        """Cut each file after the last line that all have: a kill leaves one a line short."""
        contents = [file.read_bytes() for file in self._files]
        done = min((content.count(b"\n") for content in contents), default=0)
        for file, content in zip(self._files, contents, strict=True):
            kept = b"".join(line + b"\n" for line in content.split(b"\n")[:done])
            if kept != content:
                file.write_bytes(kept)
