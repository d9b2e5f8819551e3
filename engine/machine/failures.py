"""Errors of Paddle, of a device's libraries and of the system -> a line that a user can act on.

All other errors are bugs of ours and keep their traceback.
"""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import Iterator, Optional

from engine.errors import Stopped, UserError
from predictor.paddle_import import plugin_problem

_ADVICE = {
    'train.py': (
        'a step needs less with a smaller data.batch_size (train.accumulate makes up for it) or '
        'train.amp=O1, an evaluation with a smaller eval.batch_size'
    ),
    'eval.py': 'a smaller eval.batch_size needs less',
}

# Messages of CANN: the card, or the network between cards, is not ready yet.
_BUSY = re.compile(r'EJ0001|EI0006|HCCP process')
_MEMORY = re.compile(r'[Oo]ut of memory error|Fail to alloc|[Uu]nable to allocate')
_LIBRARY = re.compile(r'dynamic library \((\S+)\) that Paddle depends on')
_NO_CODE = re.compile(r'no kernel image is available|invalid device function')


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Within, such an error becomes a UserError or Stopped."""
    try:
        yield
    except Exception as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        raise meaning from None


def _meaning(error: Exception) -> Optional[Exception]:
    text = str(error)
    if isinstance(error, MemoryError) or 'ResourceExhausted' in text:
        return UserError(f'out of memory: {_out_of_memory(text)}')
    if 'No usable temporary directory' in text:  # a read-only container
        return UserError('no folder for temporary files is writable; set TMPDIR to one')
    if problem := plugin_problem(text):
        return UserError(problem)
    if found := _LIBRARY.search(text):
        return UserError(
            f'{found[1]} is not installed, or not found; docs/gpu.md says what paddlepaddle-gpu '
            'needs; -o device=cpu works without it'
        )
    if _NO_CODE.search(text):
        return UserError(
            'this paddle has no code for this gpu; docs/gpu.md says which one has; -o device=cpu '
            'works without it'
        )
    if _BUSY.search(text):
        return Stopped(f'the npu is not ready, start again in 15 seconds: {_line(text, _BUSY)}')
    return None


def _out_of_memory(text: str) -> str:
    problem = _line(text, _MEMORY) or 'no memory is left'
    return '; '.join(filter(None, [problem, _ADVICE.get(Path(sys.argv[0]).name)]))


def _line(text: str, pattern: re.Pattern[str]) -> str:
    """The first matching line of a long message, often with a stack in C++."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [line for line in lines if pattern.search(line)] or lines
    return found[0].rpartition('Error: ')[2][:200].rstrip('.') if found else ''
