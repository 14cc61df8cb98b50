"""The folder of a run: a kill leaves it whole, and it takes one run only."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clh.errors import InputError
from clh.evaluation.run_folder import RunFolder, fingerprint

FILES = ("steps.jsonl", "predictions.jsonl")
LINES = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=5)


def opened(path: Path, **config: object) -> RunFolder:
    return RunFolder(path, config, FILES)


@given(lines=st.lists(st.tuples(LINES, LINES), max_size=6), data=st.data())
def test_a_run_killed_anywhere_goes_on_after_the_last_whole_note(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("run") / "out"
    folder = opened(path)
    for pair in lines:
        folder.append(*pair)
    for name in FILES:  # each file as far as it was written when the process died
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    whole = min((path / name).read_bytes().count(b"\n") for name in FILES)

    again = opened(path)
    assert [again.lines(name) for name in FILES] == [
        [pair[column] for pair in lines[:whole]] for column in range(2)
    ]
    for pair in lines[whole:]:
        again.append(*pair)
    assert [*zip(*map(again.lines, FILES), strict=True)] == lines


def test_a_folder_takes_one_run_only(tmp_path: Path) -> None:
    opened(tmp_path, seed=0, limit=3).append("a", "b")
    assert opened(tmp_path, seed=0, limit=3).lines(FILES[0]) == ["a"]
    with pytest.raises(InputError, match=r"holds another run \(limit, seed differ\)"):
        opened(tmp_path, seed=1, limit=4)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        opened(tmp_path, seed=0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file cannot be written"):
        opened(tmp_path / "file")


def test_the_fingerprint_is_of_values_not_of_their_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_the_config_is_there_to_read(tmp_path: Path) -> None:
    opened(tmp_path, seed=0, recipe={"bootstrap": 10})
    assert json.loads((tmp_path / "config.json").read_text())["recipe"] == {"bootstrap": 10}
