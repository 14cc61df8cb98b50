"""What all scripts share: their flags, their recipes of hyperparameters, and how they end.

A recipe is a YAML file beside the script. `--set learning_rate=1e-4`, or `--learning_rate 1e-4` for
short, takes the place of one of its values; dots reach into tables, as in `--set lora.rank=8`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from clh.errors import ClhError, InputError

RecipeT = TypeVar("RecipeT", bound=BaseModel)

_ROOT = Path(__file__).parents[2]
_FAILED, _BAD_INPUT = 1, 2  # exit codes


class Recipe(BaseModel):
    """Base of recipes: frozen, and no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def recipe_parser(doc: str | None, recipe: str) -> argparse.ArgumentParser:
    """The flags of all scripts that have a recipe.

    `doc` is the script's docstring, `recipe` its recipe, relative to the repository.
    """
    # No abbreviations: an unknown flag is a value of the recipe, and `--see 1` would be `--seed 1`.
    parser = argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe", type=Path, default=_ROOT / recipe, help=f"hyperparameters; default: {recipe}"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value in place of the recipe's, such as learning_rate=1e-4 or lora.rank=8; "
        "--learning_rate 1e-4 is short for it",
    )
    return parser


def evaluation_parser(doc: str | None, recipe: str) -> argparse.ArgumentParser:
    """The flags of scripts that score a split of a corpus, with those of `recipe_parser`."""
    parser = recipe_parser(doc, recipe)
    parser.add_argument(
        "--dataset", required=True, help="codiesp, jsonl, ...: data/README.md names them all"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="the corpus in the publisher's layout, or what `make prepare-data` made of it",
    )
    parser.add_argument("--split", required=True, help="train, dev or test")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--policy", choices=("encounter", "mention"), help="what counts; the dataset's own if none"
    )
    parser.add_argument(
        "--unit",
        choices=("encounter", "document"),
        default="encounter",
        help="all notes of an encounter together, or each with the codes it has evidence for",
    )
    parser.add_argument(
        "--profile",
        help="settings to start from, such as cpu or vllm; those fitted on the dataset if none",
    )
    parser.add_argument(
        "--track", help="also log to a tracker that is installed: wandb (offline), mlflow, ..."
    )
    parser.add_argument("--limit", type=int, help="notes to use, a seeded sample; all if none")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the resampling")
    return parser


def training_parser(doc: str | None, recipe: str) -> argparse.ArgumentParser:
    """The flags of scripts that train on a corpus, with those of `recipe_parser`."""
    parser = recipe_parser(doc, recipe)
    parser.add_argument("--dataset", default="codiesp", help="default: codiesp")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--output", type=Path, required=True, help="folder of what is trained")
    parser.add_argument("--limit", type=int, help="documents to use, for a quick look; all if none")
    return parser


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags of the command line; one that `parser` does not know is a value of the recipe.

    Whether the recipe has a value of that name is for `read_recipe` to find out.
    """
    arguments, unknown = parser.parse_known_args()
    while unknown:
        name, equals, value = unknown.pop(0).partition("=")
        if not name.startswith("--"):
            parser.error(f"unrecognized argument: {name}")
        if not equals and not unknown:
            parser.error(f"{name} needs a value")
        arguments.set.append(f"{name.removeprefix('--')}={value if equals else unknown.pop(0)}")
    return arguments


def read_recipe(file: Path, shape: type[RecipeT], overrides: Sequence[str] = ()) -> RecipeT:
    """A recipe's values, with those of `overrides` (`NAME=VALUE`) in their place.

    Raises:
        InputError: the file cannot be read, or a value, which it names, does not fit the shape.

    """
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if isinstance(values, dict):
        for override in overrides:
            _override(values, override)
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "recipe"
        raise InputError(f"{file}, {name}: {first['msg']}") from error


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: an expected error is one line, not a traceback."""
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


def _override(values: dict[Any, Any], override: str) -> None:
    """Put one value, `NAME=VALUE` with VALUE in YAML, into a recipe's tables."""
    import yaml

    path, equals, text = override.partition("=")
    *tables, name = path.split(".")
    if not equals or not all((*tables, name)):
        raise InputError(f"--set {override}: give NAME=VALUE, such as learning_rate=1e-4")
    for table in tables:
        values = values.setdefault(_key(values, table), {})
        if not isinstance(values, dict):
            raise InputError(f"--set {override}: {table} is not a table of the recipe")
    try:
        values[_key(values, name)] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: {text!r} is not a value in YAML") from error


def _key(values: dict[Any, Any], name: str) -> Any:
    """The key that is written so: YAML reads the 64 of `prefixes: {64: 1}` as a number."""
    return next((key for key in values if str(key) == name), name)
