"""The standard streams of a command: no error of theirs may end it."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def survive_closed_output() -> None:
    """Let this process continue when the terminal or the pipe of its output is closed."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook
            setattr(sys, name, _SurvivingStream(stream))


class _SurvivingStream:
    """A stream that becomes os.devnull at the first error, also for libraries."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def _discard(self) -> None:
        with open(os.devnull, 'wb') as devnull:
            os.dup2(devnull.fileno(), self._stream.fileno())


def can_redraw(stream: Any) -> bool:
    """Whether a progress bar can overwrite itself: in a terminal.

    A notebook's `!` gives commands a terminal, too, but keeps every state of the bar as text.
    """
    return stream.isatty() and 'JPY_PARENT_PID' not in os.environ
