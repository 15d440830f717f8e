"""The lock of a run folder: at most one run trains in it, in one or several processes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from hyperzoo import files
from hyperzoo.errors import BusyError, RunError


@contextmanager
def locked(folder: Path, engine: Accelerator) -> Iterator[None]:
    """Lock a run folder; the system releases the lock when the process ends, also after kill -9.

    The first of several processes locks it. If it cannot, all raise its error, so that none waits for the others.
    """
    failed: RunError | None = None
    with ExitStack() as stack:
        if engine.is_main_process:
            try:
                _lock(folder, stack)
            except RunError as error:
                failed = error
        [failed] = broadcast_object_list([failed])
        if failed:
            raise failed
        yield


def _lock(folder: Path, stack: ExitStack) -> None:
    owner = folder / "run.pid"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(folder / "run.lock", timeout=0))
        stack.enter_context(_locked_directory(folder))
        files.write_whole({owner: str(os.getpid()).encode()})
    except (Timeout, BlockingIOError) as error:
        process = owner.read_text(errors="replace") if owner.exists() else "unknown"
        raise BusyError(f"process {process} is training in {folder}; use another --out") from error
    except OSError as error:
        raise RunError(f"cannot write to the run folder {folder}: {error}") from error


@contextmanager
def _locked_directory(folder: Path) -> Iterator[None]:
    """Lock the directory itself, for the case that somebody deletes run.lock.

    Raises:
        BlockingIOError: another process has locked it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # NFS locks files only, so run.lock decides alone
        pass
    try:
        yield
    finally:
        os.close(descriptor)
