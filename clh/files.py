"""Files and folders that are written whole or not at all, whatever happens to the process."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def atomic_write(file: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Replace a file: readers find what was there before, or all of `content`, never a part.

    Text is written as UTF-8. `mode` is the permissions of the file, less the umask.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb", opener=lambda path, flags: os.open(path, flags, mode)) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace a folder by what `write` puts into an empty one.

    The old folder is moved aside and deleted once the new one has its place. If the process is
    killed between these two moves, the old folder is at FOLDER.old, from where the next call
    takes it back.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    for left_over in (partial, old):  # by a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
