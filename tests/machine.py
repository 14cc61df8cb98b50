"""A machine of its own for tests of the command line: home, temporary files, and what is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests import servers

ROOT = Path(__file__).parents[1]
IMPORT = "from clh.__main__ import main"
MAIN = f"{IMPORT}; main()"
DONE, AGENT_FAILED, BAD_INPUT, OUTPUT_CLOSED = 0, 1, 2, 141
DATA_LIMIT = 6_000_000  # KB; a command that runs away does not take the real machine along

Argument = str | bytes | Path


class Done(NamedTuple):
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def codes(self) -> list[str]:
        return [assigned["code"] for assigned in self.json["codes"]]

    @property
    def complaints(self) -> list[str]:
        """The lines of standard error."""
        return [line for line in self.err.splitlines() if line.strip()]


class Machine(NamedTuple):
    """Where commands run: a home folder, a folder for temporary files, a cache with an index."""

    home: Path
    temporary: Path
    cache: Path

    @classmethod
    def make(cls, folder: Path, cache: Path) -> "Machine":
        machine = cls(folder / "home", folder / "tmp", cache)
        machine.home.mkdir()
        machine.temporary.mkdir()
        return machine

    @property
    def data(self) -> Path:
        """Where the audit lies."""
        return self.home / ".local" / "share" / "clh"

    def set_up(self, settings: str | bytes) -> Path:
        """Write the user's settings file."""
        file = self.home / ".config" / "clh" / "clh.toml"
        file.parent.mkdir(parents=True)
        file.write_bytes(settings.encode() if isinstance(settings, str) else settings)
        return file

    def environment(self, **variables: str) -> dict[str, str]:
        """Nothing of the environment of whoever runs the tests but PATH."""
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "CLH_CACHE_DIR": str(self.cache),
            "COLUMNS": "200",
            **variables,
        }

    def clh(
        self,
        *arguments: Argument,
        shell: str = 'exec "$@"',
        stdin: bytes = b"",
        cwd: Path = ROOT,
        timeout: float = 60,
        **variables: str,
    ) -> Done:
        """Run a command within a line of bash, in which `"$@"` stands for it.

        Whatever the command is, it prints no traceback and leaves no file behind.
        """
        limited = f"ulimit -d {DATA_LIMIT}; {shell}"
        before = self.cached()
        ended = subprocess.run(
            ["bash", "-c", limited, "bash", sys.executable, "-c", MAIN, *arguments],
            check=False,
            cwd=cwd,
            env=self.environment(**variables),
            input=stdin,
            capture_output=True,
            timeout=timeout,
        )
        done = Done(ended.returncode, decoded(ended.stdout), decoded(ended.stderr))
        self.assert_clean(done)
        assert self.cached() == before
        return done

    def stop(
        self, arguments: Sequence[Argument], after: float, by: signal.Signals
    ) -> tuple[Done, float]:
        """Send a signal to a command so many seconds after its start; how long it then took."""
        child = subprocess.Popen(
            [sys.executable, "-c", f"{IMPORT}; print('up', flush=True); main()", *arguments],
            cwd=ROOT,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert child.stdout is not None
        # From here on, what a signal does is up to CLH and no more to the interpreter.
        assert child.stdout.readline() == b"up\n"
        time.sleep(after)
        child.send_signal(by)
        begun = time.monotonic()
        try:
            out, err = child.communicate(timeout=60)
        finally:
            child.kill()
        done = Done(child.returncode, decoded(out), decoded(err))
        self.assert_clean(done)
        return done, time.monotonic() - begun

    def assert_clean(self, done: Done) -> None:
        """Nothing that a user should never see, and no file but the audit's and the settings."""
        for words in ("Traceback", "Exception ignored", "Fatal Python error"):
            assert words not in done.err + done.out
        left = [
            file
            for folder in (self.home, self.temporary)
            for file in folder.rglob("*")
            if not file.is_dir()
            and not file.is_relative_to(self.data)
            and not file.is_relative_to(self.home / ".config")
        ]
        assert left == []

    def cached(self) -> set[str]:
        """The names in the cache; a lock is no file that was left."""
        return {file.name for file in self.cache.iterdir() if file.suffix != ".lock"}


def decoded(output: bytes) -> str:
    return output.decode("utf-8", "backslashreplace")


def assert_refused(done: Done, says: str = "") -> None:
    """Exit code 2, one line on standard error that says why, nothing on standard output."""
    assert (done.code, done.out) == (BAD_INPUT, "")
    [complaint] = done.complaints
    assert complaint.startswith("clh: ")
    assert says.lower() in complaint.lower()


def assert_verbatim(done: Done, text: str) -> None:
    """Every piece of evidence is in the note where it says."""
    for assigned in done.json["codes"]:
        for span in assigned["evidence"]:
            assert text[span["start"] : span["end"]] == span["text"]


CANARY = "Xylophonica"  # a name that is in no code book
NOTE = f"Assessment: Mrs. {CANARY} has asthma and hypertension.\n"


def ask(machine: Machine, server: servers.Server, *arguments: Argument, **variables: str) -> Done:
    """Code `NOTE` by the models behind a server; printed as JSON unless `arguments` differ."""
    return machine.clh(
        *("code", "-", "--profile", "vllm", *(arguments or ("--format", "json"))),
        stdin=NOTE.encode(),
        timeout=90,
        **{
            "CLH_LLM__BASE_URL": f"{server.url}/v1",
            "CLH_LLM__MODEL": servers.MODEL,
            "CLH_LLM__RETRIES": "0",
            **variables,
        },
    )
