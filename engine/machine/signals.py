"""SIGTERM, SIGINT and SIGHUP become a wish that the loops look at between steps."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any, Optional

from engine.errors import Stopped
from engine.machine.processes import LAUNCHED, any_rank

HANGUP = getattr(signal, 'SIGHUP', None)  # the terminal has gone; Windows has none
ASKING = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Within the block, the first signal is remembered and the second acts at once.

    A launcher sends three in a row, to have its processes end in peace: there, none acts at once.
    A SIGHUP comes with others, as when a terminal is closed: it never acts at once, nor does the
    one after it; and where it was ignored before, as by nohup, it still is.
    """

    def __init__(self) -> None:
        self.asked: Optional[str] = None
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise Stopped if a signal has come, in any process (all of which must call this)."""
        if any_rank(self.asked is not None):
            raise Stopped(self.asked or 'another process was stopped')

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in ASKING}
        if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
            self._before[HANGUP] = signal.signal(HANGUP, self._note)
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if not isinstance(error, Stopped):  # or more of them may be still to come
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        last = not LAUNCHED and number != HANGUP  # the next one acts at once
        if self.asked is None:
            self.asked = signal.Signals(number).name
            again = ' (once more ends at once)' if last else ''
            text = f'{self.asked}: ends after this step, and saves; wait for "saved in"{again}'
            with contextlib.suppress(OSError):  # a terminal that is gone
                # Not print: a handler may interrupt a print that holds the stream's lock.
                os.write(2, f'\n{text}\n'.encode())
        if last:
            for other in ASKING:
                signal.signal(other, self._before[other])
