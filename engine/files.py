"""Files on any disk: written whole or not at all, and locks between processes.

Network disks, shared folders of virtual machines and Windows lack some of what a Linux disk has. A
folder that cannot be synced and a lock that cannot be had are passed over; a file that cannot be
synced is an error, as its content may be lost.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import IO, Any, BinaryIO, Callable, Iterator

LONGEST_NAME = 255  # bytes, of nearly all file systems
CHUNK = 1 << 20
LOCKED_BYTE = 1 << 30  # of a file, on Windows, where nobody else may read what is locked


class Busy(Exception):
    """Another process has the lock."""


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace a file by what `write` writes, or leave it as it was."""
    temporary = beside(path, 'writing')
    try:
        with temporary.open('wb') as file:
            write(file)
            sync_file(file)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open('rb') as file:
        return sha256_of_open(file)


def sha256_of_open(file: BinaryIO) -> str:
    """The same of an open file, from its beginning."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def beside(path: Path, suffix: str) -> Path:
    """A hidden name next to `path`, `.NAME.SUFFIX`; a name that is too long is cut."""
    name = f'.{path.name}.{suffix}'
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f'.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.{suffix}'
    return path.with_name(name)


def sync_file(file: IO[bytes]) -> None:
    """Make what was written survive a power cut."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut, where the disk offers that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make a folder and all in it survive a power cut."""
    for path in folder.rglob('*'):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open('rb+') as file:
                sync_file(file)
    sync_folder(folder)


def can_be_written(folder: Path) -> bool:
    """Whether files can be made in a folder that is there, or can be made."""
    # Not Path.exists, which raises what os.path.exists takes for no: /root of another user.
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within the block no other process has this file or folder locked; waits for that.

    A file that is missing is created. OSError if it cannot be opened.
    """
    if path.is_dir():
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:  # Windows opens no folder
            warn_of_no_lock(path, error)
            yield
            return
    else:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
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
    """Lock an open file until it is closed. Busy if another process has; OSError if none can."""
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
    print(
        f'cannot lock {path} ({error.strerror}): start nothing else that writes there',
        file=sys.stderr,
    )
