"""Writing so that a crash, a full disk or a power cut leaves either the old file or the new one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from harness.errors import InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` by way of a temporary file and a rename; nothing else is left on failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among all processes, and threads, that ask for the lock file ``path``; waits for whoever has it.

    For the moment between reading a file and writing it anew. The lock file stays, empty: were it deleted, two could
    hold it at once. It ends with its process. Raises ``OSError`` where the file cannot be made.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append(file: FileIO, data: bytes) -> None:
    """Append ``data`` to an unbuffered file. A full disk may leave a part of it: a torn last line."""
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        error.filename = str(file.name)
        raise


def destination(path: Path) -> Path:
    """``path``, ready to be written as a file: its folder is there. Raises ``InputError`` where it cannot be one."""
    if path.is_dir():
        raise InputError(f"expected a file to write, got the folder {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"cannot write {path}: {path.parent} is a file") from error
    return path


def is_file_name(name: object) -> bool:
    """Whether ``name``, which some data say, is of one file of a folder: it cannot lead out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(c in name for c in "/\\\0")
