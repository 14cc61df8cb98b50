"""Recipes and their overrides, the flags of scripts, and their exit codes."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clh.errors import ClhError, InputError
from clh.evaluation import recipes

RECIPES = Path(__file__).parents[2] / "experiments" / "recipes"


class TrainingRecipe(recipes.Recipe):
    rate: float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe: "),
        ("- a\n- b\n", "recipe: "),
        ("rate: [", "cannot be read: "),
        ("\xff", "cannot be read: "),
        ("rate: fast", "rate: "),
        ("rate: 1\nspeed: 2", "speed: "),
        ("{}", "rate: Field required"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=rf"recipe\.yaml,? {message}") as error:
        recipes.read_recipe(file, TrainingRecipe)
    assert "\n" not in str(error.value)


def test_a_recipe_is_read(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("rate: 1.5  # fast\n")
    assert recipes.read_recipe(file, TrainingRecipe).rate == 1.5
    with pytest.raises(InputError, match=r"none\.yaml cannot be read"):
        recipes.read_recipe(tmp_path / "none.yaml", TrainingRecipe)


def fail(error: Exception) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "message"),
    [
        (lambda: 0, 0, ""),
        (lambda: 1, 1, ""),
        (fail(InputError("no such split")), 2, "no such split\n"),
        (fail(ClhError("weights are damaged")), 1, "weights are damaged\n"),
        (
            fail(ModuleNotFoundError(name="sklearn")),
            2,
            "sklearn is not installed: `pip install 'clh[experiments]'`\n",
        ),
    ],
)
def test_a_script_ends_with_one_line(
    capsys: pytest.CaptureFixture[str], main: Callable[[], int], code: int, message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        recipes.run_script(main)
    assert (ended.value.code, capsys.readouterr().err) == (code, message)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "rate: 1.5\nsizes: {64: 1, 768: 1}\nlora: {rank: 16, modules: [q]}\n"
        "head: {width: 8}\nsettings: {}\n"
    )
    return file


class Lora(recipes.Recipe):
    rank: int
    modules: tuple[str, ...]


class NestedRecipe(recipes.Recipe):
    rate: float
    sizes: dict[int, float]
    lora: Lora | None
    head: dict[str, int] | None
    settings: dict[str, Any]


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["rate=1e-4"], {"rate": 1e-4}),
        (["rate=1", "rate=2"], {"rate": 2.0}),  # the last counts
        (["sizes.64=2.5"], {"sizes": {64: 2.5, 768: 1}}),
        (["lora.rank=8"], {"lora": {"rank": 8, "modules": ("q",)}}),
        (["lora.modules=[q, v]"], {"lora": {"rank": 16, "modules": ("q", "v")}}),
        (["lora=null"], {"lora": None}),
        (["settings.locate.candidates=5"], {"settings": {"locate": {"candidates": 5}}}),
    ],
)
def test_a_flag_takes_the_place_of_a_value(
    recipe: Path, overrides: list[str], changed: dict[str, Any]
) -> None:
    before = recipes.read_recipe(recipe, NestedRecipe).model_dump()
    after = recipes.read_recipe(recipe, NestedRecipe, overrides).model_dump()
    assert after == before | changed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rate", "--set rate: give NAME=VALUE, such as learning_rate=1e-4"),
        ("=1", "--set =1: give NAME=VALUE"),
        ("lora..rank=1", r"--set lora\.\.rank=1: give NAME=VALUE"),
        ("rate.slow=1", "--set rate.slow=1: rate is not a table of the recipe"),
        ("rate=[", r"--set rate=\[: '\[' is not a value in YAML"),
        ("rate=fast", r"recipe\.yaml, rate: Input should be a valid number"),
        ("speed=1", r"recipe\.yaml, speed: Extra inputs are not permitted"),
        ("lora.speed=1", r"recipe\.yaml, lora\.speed: Extra inputs are not permitted"),
    ],
)
def test_a_flag_that_fits_no_value_is_one_line(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        recipes.read_recipe(recipe, NestedRecipe, [override])
    assert "\n" not in str(error.value)


def parsed(*flags: str) -> argparse.Namespace:
    parser = recipes.training_parser("A script.", "experiments/recipes/train_retriever.yaml")
    parser.add_argument("--index", nargs="*", default=[])
    with pytest.MonkeyPatch.context() as patch:
        given = ["script", "--data-dir", "data", "--output", "out", *flags]
        patch.setattr("sys.argv", given)
        return recipes.parse_arguments(parser)


def test_a_flag_that_the_script_does_not_know_is_a_value_of_the_recipe() -> None:
    arguments = parsed(
        *("--learning_rate", "1e-4", "--index", "a.xml", "b.xml", "--set", "seed=1"),
        *("--lora.rank=8", "--offset", "-1"),
    )
    assert arguments.index == ["a.xml", "b.xml"]
    assert sorted(arguments.set) == ["learning_rate=1e-4", "lora.rank=8", "offset=-1", "seed=1"]
    assert parsed().set == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rate"], "--learning_rate needs a value"),
        (["stray"], "unrecognized argument: stray"),
    ],
)
def test_flags_that_are_neither(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
