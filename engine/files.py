"""Files that are written whole or not at all, and their checksums.

Network disks, shared folders of virtual machines and Windows lack some features of a Linux disk. A
folder that cannot be synced is ignored. A file that cannot be synced is an error, since its content
may be lost.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path
from typing import IO, Any, BinaryIO, Callable

LONGEST_NAME = 255  # bytes, on nearly all file systems
CHUNK = 1 << 20


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace a file by what `write` writes, or leave it unchanged.

    OSError if the path is a device, a pipe or a folder: the rename would replace /dev/null for all
    processes if a superuser names it.
    """
    require_regular(path)
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


def require_regular(path: Path) -> None:
    """FileExistsError unless a file can be renamed to this path: a regular file, or nothing yet."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(errno.EEXIST, 'Not a regular file', str(path))


def sha256_of(path: Path) -> str:
    with path.open('rb') as file:
        return checksum(file)


def md5_of(path: Path) -> str:
    with path.open('rb') as file:
        return checksum(file, 'md5')


def checksum(file: BinaryIO, algorithm: str = 'sha256') -> str:
    """Of an open file, from its beginning, in hexadecimal."""
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != 'md5')
    file.seek(0)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def beside(path: Path, suffix: str) -> Path:
    """A hidden name next to `path`, `.NAME.SUFFIX`. A name that is too long is replaced."""
    name = f'.{path.name}.{suffix}'
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f'.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.{suffix}'
    return path.with_name(name)


def sync_file(file: IO[bytes]) -> None:
    """Make the content survive a power cut."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut, if the disk can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make a folder and its content survive a power cut."""
    for path in folder.rglob('*'):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open('rb+') as file:
                sync_file(file)
    sync_folder(folder)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in this folder, which may have to be made first."""
    # Not Path.exists: it raises for /root of another user, where os.path.exists is False.
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    return os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK)
