"""SIGTERM, SIGINT and SIGHUP as a request that the training loop checks between steps."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any, Optional

from engine.errors import Stopped
from engine.machine.processes import LAUNCHED, any_rank

HANGUP = getattr(signal, 'SIGHUP', None)  # the terminal is closed; not on Windows
STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Within the block, the first signal is a request, and the second ends the process at once.

    A launcher sends three in a row so that its processes end cleanly: there, none ends it at once.
    A closed terminal sends SIGHUP with others: neither it nor the next one ends the process at
    once. SIGHUP stays ignored if it was before, as under nohup.
    """

    def __init__(self) -> None:
        self.received: Optional[str] = None  # the first signal's name
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise Stopped if any process has received a signal. All must call this."""
        if any_rank(self.received is not None):
            raise Stopped(self.received or 'another process was stopped')

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in STOPPING}
        if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
            self._before[HANGUP] = signal.signal(HANGUP, self._note)
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if not isinstance(error, Stopped):  # then more signals may follow
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        last = not LAUNCHED and number != HANGUP  # the next one ends it at once
        if self.received is None:
            self.received = signal.Signals(number).name
            again = ' (once more ends at once)' if last else ''
            text = f'{self.received}: ends after this step, and saves; wait for "saved in"{again}'
            with contextlib.suppress(OSError):  # a closed terminal
                # Not print: a handler may interrupt a print that holds the stream's lock.
                os.write(2, f'\n{text}\n'.encode())
        if last:
            for other in STOPPING:
                signal.signal(other, self._before[other])
