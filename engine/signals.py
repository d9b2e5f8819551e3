"""SIGTERM and SIGINT become a wish that the loops look at between steps."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Optional

from engine.errors import Stopped
from engine.job import LAUNCHED, any_rank

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Within the block, the first signal is remembered and the second acts at once.

    A launcher sends three in a row, to have its processes end in peace: there, none acts at once.
    """

    def __init__(self) -> None:
        self.asked: Optional[str] = None
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise Stopped if a signal has come, in any process (all of which must call this)."""
        if any_rank(self.asked is not None):
            raise Stopped(self.asked or 'another process was stopped')

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if not (LAUNCHED and isinstance(error, Stopped)):  # more of them may be still to come
            self._restore()

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        if self.asked is not None:
            return
        self.asked = signal.Signals(number).name
        # Not print: a handler may interrupt a print that holds the stream's lock.
        if LAUNCHED:
            os.write(2, f'\n{self.asked}: saving after this step\n'.encode())
            return
        os.write(2, f'\n{self.asked}: saving after this step; once more ends at once\n'.encode())
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
