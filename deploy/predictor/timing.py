"""How long an engine's calls take, measured in a process of its own.

Engines read their thread settings once a process, their threads disturb each other, and a crash
ends the process. So a new process measures each engine, and only one runs at a time.

    python3 -m predictor.timing REQUEST    such a process; answers in lines of JSON
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional, Sequence

import numpy as np

from predictor.errors import in_a_line

HERE = Path(__file__).resolve().parent.parent  # where `predictor` is imported from
STATUS = Path('/proc/self/status')


@dataclass(frozen=True)
class Sample:
    """Some calls, one after the other."""

    call_s: list[float]
    memory: Optional[int]  # the process's maximum so far, in bytes; None on a card


def measure(
    options: dict[str, Any], batches: Sequence[int], seconds: float
) -> tuple[dict[int, Sample], Optional[str]]:
    """Samples by batch size, and the error that ended the measurement, as one line.

    options: Predictor's; seconds: of calls, for each batch size
    """
    request = {'options': options, 'batches': batches, 'seconds': seconds}
    done = subprocess.run(
        [sys.executable, '-m', 'predictor.timing', json.dumps(request)],
        cwd=HERE,
        capture_output=True,
        text=True,
        errors='replace',
        start_new_session=True,  # Ctrl-C reaches this process alone, which kills that one
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    error = answers.pop()['error'] if answers and 'error' in answers[-1] else None
    if done.returncode:
        error = _crash(done.returncode, done.stderr)
    samples = {batch: Sample(**answer) for batch, answer in zip(batches, answers[1:])}
    if error and answers:  # after the start
        error = f'batch {batches[len(samples)]}: {error}'
    return samples, error


def _crash(code: int, errors: str) -> str:
    what = f'exit code {code}' if code >= 0 else signal.Signals(-code).name
    last = errors.strip().rpartition('\n')[2].strip()
    return f'crashed ({what}): {last}'.rstrip(': ')


def main() -> None:
    """The process: prints `{}` when the engine is ready, then a line for each batch size."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    request = json.loads(sys.argv[1])
    try:
        engine = Engine(**request['options'])
        answer({})
        for batch in request['batches']:
            answer(asdict(engine.measure(batch, request['seconds'])))
    except Exception as error:  # C++ may raise anything
        answer({'error': in_a_line(error)})


class Engine:
    """Runs on random pixels. The options are Predictor's; `batch` is the largest measured."""

    def __init__(self, folder: str, *, batch: int, **options: Any) -> None:
        from predictor import Predictor

        self._predictor = Predictor(folder, batch=batch, **options)
        side = self._predictor.description.input.size
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (batch, side, side, 3), np.uint8)
        self._images = self._predictor.prepare(pixels)

    def measure(self, batch: int, seconds: float) -> Sample:
        """Calls for that long, at least one, after one to warm up."""
        images = self._images[:batch]
        self._predictor.logits(images)
        calls: list[float] = []
        end = time.perf_counter() + seconds
        while not calls or time.perf_counter() < end:
            start = time.perf_counter()
            self._predictor.logits(images)
            calls.append(time.perf_counter() - start)
        on_cpu = self._predictor.setting.kind == 'cpu'
        return Sample(calls, peak_memory() if on_cpu else None)


def peak_memory() -> Optional[int]:
    """Of this process so far, in bytes; None where the system does not report it."""
    with contextlib.suppress(OSError):  # getrusage includes the parent's memory before exec
        for line in STATUS.read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == '__main__':
    main()
