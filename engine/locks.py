"""Locks between processes: of Unix, of Windows, and none where the disk has none."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path
from typing import Iterator

LOCKED_BYTE = 1 << 30  # of a file on Windows, where other processes cannot read a locked byte


class Busy(Exception):
    """Another process has the lock."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within the block no other process has this file or folder locked. Waits for the lock.

    Creates a missing file. OSError if the file cannot be opened.
    """
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if not is_folder:
            raise
        warn_of_no_lock(path, error)  # Windows opens no folder
        yield
        return
    try:
        while True:
            try:
                lock(descriptor)
                break
            except Busy:
                time.sleep(0.1)
            except OSError as error:
                warn_of_no_lock(path, error)
                break
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> None:
    """Lock an open file until it is closed. Busy if another process has it, OSError if none can."""
    try:
        import fcntl
    except ImportError:
        _lock_on_windows(descriptor)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy from None


def _lock_on_windows(descriptor: int) -> None:
    try:
        import msvcrt
    except ImportError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EDEADLK):
            raise
        raise Busy from None
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)


def warn_of_no_lock(path: Path, error: OSError) -> None:
    text = f'cannot lock {path} ({error.strerror}): start nothing else that writes there'
    print(text, file=sys.stderr)
