"""The lock of a run folder: one process at a time writes there."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Optional

from engine import locks
from engine.errors import UserError


class RunLock:
    """A file that names the process which has it locked."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / '.lock'
        self._descriptor: Optional[int] = None  # from `take` to `release`
        self._signature = b''

    def require_free(self) -> None:
        """UserError if another process is training there; checked before anything slow."""
        if self._file.is_file():
            with contextlib.suppress(OSError):  # `take` will report it
                descriptor = os.open(self._file, os.O_RDWR)
                try:
                    self._lock(descriptor)
                finally:
                    os.close(descriptor)

    def take(self) -> None:
        """UserError if another process has it. A disk without locks gets a warning."""
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(self._descriptor)
        except OSError as error:
            locks.warn_of_no_lock(self._file, error)

    def sign(self) -> None:
        """Write this process's number and host into the file that is taken."""
        assert self._descriptor is not None
        # As bytes: Windows has other line ends.
        self._signature = f'{os.getpid()} {socket.gethostname()}'.encode()
        os.truncate(self._descriptor, 0)
        os.write(self._descriptor, self._signature)

    def release(self) -> None:
        """If this process has it: that of a notebook continues after a training."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def is_ours(self) -> bool:
        """Whether the file is still the one that this process has signed."""
        with contextlib.suppress(OSError):
            return self._file.read_bytes() == self._signature
        return False

    def _lock(self, descriptor: int) -> None:
        """UserError if another process has it; OSError if the disk has no locks."""
        try:
            locks.lock(descriptor)
        except locks.Busy:
            holder = self._describe_holder()
            raise UserError(f'another process is training in {self._folder}{holder}') from None

    def _describe_holder(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            number, host = self._file.read_text(encoding='utf-8').split()
            if host != socket.gethostname():
                return f': process {int(number)} on {host}'
            return f': process {int(number)}; kill {number} makes it save and end'
        return ''
