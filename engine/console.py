"""The streams of a command: what is written there must never end it."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def prepare() -> None:
    """Before anything is printed: open what was closed, replace what cannot be encoded.

    A file that a command opens would else get the number of a closed stream (`train.py >&-`), and
    with it whatever a library writes there. A class's name may be in letters that the terminal's
    encoding (GBK, Latin-1, ASCII) does not have.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, 'w', closefd=False)))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')


def outlive() -> None:
    """Have this process go on when the terminal or the pipe that it writes to has gone."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # in a notebook, nothing goes
            setattr(sys, name, _Outliving(stream))


class _Outliving:
    """A stream that leads nowhere from the first error on, for libraries, too."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._lead_nowhere()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._lead_nowhere()

    def _lead_nowhere(self) -> None:
        with open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


def can_redraw(stream: Any) -> bool:
    """Whether a progress bar may write over itself: in a terminal.

    A notebook's `!` gives its commands a terminal, too, but keeps every state of the bar as text.
    """
    return stream.isatty() and 'JPY_PARENT_PID' not in os.environ
