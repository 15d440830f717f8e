"""Whole-file writes and sha256.

A file or a folder is written under a temporary name in the same place, flushed to disk and renamed. So a reader finds
the old content or the new one, also after kill -9, a power cut or a full disk. A folder that is replaced is removed
first: a kill in between leaves neither.
"""

import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"  # prefix of temporary names; a killed process leaves them behind
_UMASK = os.umask(0o077)  # reading it means setting it
os.umask(_UMASK)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a new file or flat folder; the end of the block renames it to `path`.

    After an exception `path` is unchanged and the temporary is removed.

    Raises:
        OSError: a folder or file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        if temporary.is_dir():
            for file in temporary.iterdir():
                _share(file)
                _flush(file)
            if path.is_dir():
                remove_folder(path)
        else:
            _share(temporary)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write several files: all under temporary names first, then renamed in the given order.

    Raises:
        OSError: a folder or file cannot be written; a full disk changes nothing.
    """
    with ExitStack() as stack:
        for path, content in reversed(list(contents.items())):  # a stack closes in reverse: the first is renamed first
            temporary = stack.enter_context(whole(path))
            temporary.write_bytes(content)
            _flush(temporary)


def write_json(path: Path, values: Any, indent: int | None = 2) -> None:
    """Write values as JSON with a final newline."""
    write_whole({path: (json.dumps(values, indent=indent) + "\n").encode()})


def remove_folder(path: Path) -> None:
    """Remove a folder; it is renamed first, so that a kill leaves no part of it under its name."""
    doomed = _temporary(path)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sha256(path: Path) -> str:
    """The sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(TEMPORARY + uuid.uuid4().hex)


def _share(file: Path) -> None:
    """Give a file the permissions of any new file; safetensors writes files that only their owner can read."""
    file.chmod(0o666 & ~_UMASK)


def _flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk."""
    if path.is_dir() and sys.platform == "win32":
        return  # which opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
