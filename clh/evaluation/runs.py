"""What all experiments share: their flags, and a folder in which a killed run goes on."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from clh.errors import ClhError, InputError
from clh.files import atomic_write

RecipeT = TypeVar("RecipeT", bound=BaseModel)

_FAILED, _BAD_INPUT = 1, 2
_CONFIG = "config.json"


class Recipe(BaseModel):
    """Base of recipes: frozen, and no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def parser(doc: str, recipe: str) -> argparse.ArgumentParser:
    """The flags of all experiments; `doc` is the script's docstring, `recipe` its settings file."""
    flags = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "--dataset", required=True, help="codiesp, jsonl, ...: data/README.md names them all"
    )
    flags.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="the corpus in the publisher's layout, or what `make prepare-data` made of it",
    )
    flags.add_argument("--split", required=True, help="train, dev or test")
    flags.add_argument("--output", type=Path, required=True, help="folder of the results")
    flags.add_argument(
        "--policy", choices=("encounter", "mention"), help="what counts; the dataset's own if none"
    )
    flags.add_argument(
        "--unit",
        choices=("encounter", "document"),
        default="encounter",
        help="all notes of an encounter together, or each with the codes it has evidence for",
    )
    flags.add_argument(
        "--profile",
        help="settings to start from, such as cpu or vllm; those fitted on the dataset if none",
    )
    flags.add_argument(
        "--track", help="also log to a tracker that is installed: wandb (offline), mlflow, ..."
    )
    flags.add_argument("--limit", type=int, help="notes to use, a seeded sample; all if none")
    flags.add_argument("--seed", type=int, default=0, help="of the sample and the resampling")
    flags.add_argument(
        "--recipe",
        type=Path,
        default=Path(__file__).parents[2] / recipe,
        help=f"further settings; default: {recipe}",
    )
    return flags


def learner(doc: str | None, recipe: str) -> argparse.ArgumentParser:
    """The flags of all scripts that learn from a corpus; `doc` and `recipe` as for `parser`."""
    flags = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--dataset", default="codiesp", help="default: codiesp")
    flags.add_argument("--data-dir", type=Path, required=True, help="folder of the dataset")
    flags.add_argument("--output", type=Path, required=True, help="folder of what is learned")
    flags.add_argument("--limit", type=int, help="documents to use, for a quick look; all if none")
    flags.add_argument(
        "--recipe",
        type=Path,
        default=Path(__file__).parents[2] / recipe,
        help=f"hyperparameters; default: {recipe}",
    )
    return flags


def command(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: what it raises on purpose is one line, not a traceback."""
    try:
        code = main()
    except ModuleNotFoundError as error:
        print(
            f"{error.name} is not installed: `pip install 'clh[experiments]'`",
            file=sys.stderr,
        )
        code = _BAD_INPUT
    except ClhError as error:
        print(error, file=sys.stderr)
        code = _BAD_INPUT if isinstance(error, InputError) else _FAILED
    sys.exit(code)


def read_recipe(file: Path, shape: type[RecipeT]) -> RecipeT:
    """A recipe's values; InputError, which names the value, when they do not fit the shape."""
    import yaml

    try:
        return shape.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "recipe"
        raise InputError(f"{file}, {name}: {first['msg']}") from error


def git_commit() -> str:
    """The commit that the code is at, `+` appended when files differ from it; "" outside git."""
    if not (Path(__file__).parents[2] / ".git").exists():
        return ""  # an installed package may lie within another project's repository
    try:
        return _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def fingerprint(values: object) -> str:
    """Eight hexadecimal digits that name plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    atomic_write(file, text)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


class Folder:
    """The results of one run, which grow by a line a note in each of its files.

    A run that was killed goes on after the last note that all files hold.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], files: tuple[str, ...]) -> None:
        """Open or make the folder; InputError if it holds another run, or cannot be written."""
        self.path = path
        self._files = [path / name for name in files]
        plain = json.loads(json.dumps(config))
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / _CONFIG).exists():
                self._same_run(plain)
            else:
                write(path / _CONFIG, json.dumps(plain, indent=2) + "\n")
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

    def _same_run(self, config: Mapping[str, Any]) -> None:
        try:
            before = json.loads((self.path / _CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{self.path / _CONFIG} is damaged: delete the folder") from error
        differ = sorted(name for name in {*before, *config} if before.get(name) != config.get(name))
        if differ:
            raise InputError(
                f"{self.path} holds another run ({', '.join(differ)} differ): "
                "choose another --output, or delete it"
            )

    def _drop_what_is_not_in_all(self) -> None:
        """Cut each file after the last line that all have: a kill leaves one a line short."""
        contents = [file.read_bytes() for file in self._files]
        done = min((content.count(b"\n") for content in contents), default=0)
        for file, content in zip(self._files, contents, strict=True):
            kept = b"".join(line + b"\n" for line in content.split(b"\n")[:done])
            if kept != content:
                file.write_bytes(kept)
