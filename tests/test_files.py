"""Files and folders are replaced whole, or what was there before stays."""

import os
import stat
from pathlib import Path

import pytest

from clh.files import atomic_write, write_folder


def test_a_file_is_written_with_its_mode(tmp_path: Path) -> None:
    atomic_write(tmp_path / "key", b"\x00secret", mode=0o600)
    assert (tmp_path / "key").read_bytes() == b"\x00secret"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    atomic_write(tmp_path / "text", "Ménière\n")
    assert (tmp_path / "text").read_bytes() == "Ménière\n".encode()


def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "metrics.json"
    atomic_write(file, "before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(file, "after")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def write_one(folder: Path) -> None:
    (folder / "weights").write_text("one")


def write_two(folder: Path) -> None:
    (folder / "weights").write_text("two")


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "best"
    write_folder(folder, lambda to: (to / "old").touch())
    write_folder(folder, write_two)
    assert [file.name for file in folder.iterdir()] == ["weights"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("killed_at", [0, 1])
def test_a_process_killed_while_a_folder_is_replaced_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    folder = tmp_path / "best"
    write_folder(folder, write_one)
    rename, renames = Path.rename, iter(range(9))

    def killed(self: Path, target: Path) -> Path:
        if next(renames) == killed_at:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write_folder(folder, write_two)

    left = [file.read_text() for file in tmp_path.rglob("weights")]
    assert sorted(left) == ["one", "two"]

    def die(to: Path) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_folder(folder, die)
    assert (folder / "weights").read_text() == "one"
    write_folder(folder, write_two)
    assert (folder / "weights").read_text() == "two"
