"""Folders that are built once: by one process of many, checked on every use, mended on request."""

import errno
import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from clh.cache import build_once
from clh.errors import ModelError


def slow_build(folder: Path) -> None:
    """Leaves a mark for each run, and takes long enough for two processes to meet."""
    (folder / "weights").write_bytes(b"weights")
    with (folder.parent / "runs").open("a") as runs:
        runs.write("x")
    time.sleep(0.5)


def quick_build(folder: Path) -> None:
    (folder / "weights").write_bytes(b"weights")


def build_in_process(folder: Path) -> None:
    build_once(folder, slow_build)


def test_processes_that_start_at_once_build_once(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=build_in_process, args=(folder,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "runs").read_text() == "x"
    assert (folder / "weights").read_bytes() == b"weights"


def test_a_build_that_fails_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def die(partial: Path) -> None:
        (partial / "weights").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match=r"No space left on device.*free disk space"):
        build_once(folder, die)
    assert not folder.exists()

    build_once(folder, quick_build)
    assert (folder / "weights").read_bytes() == b"weights"


def test_a_file_that_cannot_be_read_is_not_told_as_a_full_disk(tmp_path: Path) -> None:
    def build(partial: Path) -> None:
        (tmp_path / "model.gguf").read_bytes()

    with pytest.raises(ModelError, match=r"model cannot be built: .*model\.gguf") as caught:
        build_once(tmp_path / "model", build)
    assert "disk" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_use_is_rebuilt_under_its_readers(tmp_path: Path) -> None:
    folder = build_once(tmp_path / "model", quick_build)
    done = threading.Event()
    failures: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                build_once(folder, quick_build)
            except ModelError as error:
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in range(50):
        build_once(folder, quick_build, rebuild=True)
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "half").write_bytes(b"half")

    folder = build_once(tmp_path / "model", quick_build)

    assert not (folder / "half").exists()


@pytest.mark.parametrize("damage", ["change", "truncate", "remove", "forget"])
def test_a_damaged_folder_is_not_used(tmp_path: Path, damage: str) -> None:
    folder = build_once(tmp_path / "model", quick_build)
    match damage:
        case "change":
            (folder / "weights").write_bytes(b"weighty")
        case "truncate":
            (folder / "weights").write_bytes(b"weig")
        case "remove":
            (folder / "weights").unlink()
        case "forget":
            (folder / "SHA256SUMS").unlink()

    with pytest.raises(ModelError, match="is damaged: delete that folder"):
        build_once(folder, quick_build)

    build_once(folder, quick_build, rebuild=True)
    assert (build_once(folder, quick_build) / "weights").read_bytes() == b"weights"


def test_a_rebuild_that_fails_keeps_what_there_was(tmp_path: Path) -> None:
    folder = build_once(tmp_path / "model", quick_build)

    def die(partial: Path) -> None:
        raise ModelError("no such tower")

    with pytest.raises(ModelError, match="no such tower"):
        build_once(folder, die, rebuild=True)
    assert (build_once(folder, die) / "weights").read_bytes() == b"weights"


def test_a_place_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="set CLH_CACHE_DIR"):
        build_once(tmp_path / "file" / "model", quick_build)


def test_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_once(tmp_path / "model", quick_build)

    def read_only(_: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("clh.cache._lock", read_only)
    assert build_once(folder, quick_build) == folder
    with pytest.raises(ModelError, match=r"Read-only file system.*set CLH_CACHE_DIR"):
        build_once(tmp_path / "other", quick_build)
    (folder / "weights").write_bytes(b"weighty")
    with pytest.raises(ModelError, match="is damaged"):
        build_once(folder, quick_build)
