"""SIGTERM and SIGINT become a wish that the loops look at between steps."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Optional

import numpy as np

from engine.errors import Stopped
from engine.runtime import sum_over_ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Within the block, the first signal is remembered and the second acts at once."""

    def __init__(self) -> None:
        self.asked: Optional[str] = None
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise Stopped if a signal has come, in any process (all of which must call this)."""
        if sum_over_ranks(np.array([self.asked is not None])).any():
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
        self._restore()

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.asked = signal.Signals(number).name
        # Not print: a handler may interrupt a print that holds the stream's lock.
        os.write(2, f'\n{self.asked}: saving after this step; once more ends at once\n'.encode())
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
