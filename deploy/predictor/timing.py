"""How long an engine takes, measured in a process of its own.

Engines read their thread settings once a process, and their threads disturb each other: they spin
for up to 0.2 s after a call. So each engine has its process, and one process measures at a time.
Requests and answers are lines of JSON.

    python3 -m predictor.timing OPTIONS    such a process; the options are Predictor's, as JSON
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from predictor.errors import in_a_line

HERE = Path(__file__).resolve().parent.parent  # where `predictor` is imported from
STATUS = Path('/proc/self/status')
IDLE_S = 0.3  # until the threads of the last engine no longer spin


class Failed(Exception):
    """The engine did not start, or crashed; the text is one line."""


@dataclass(frozen=True)
class Sample:
    """Some calls, one after the other."""

    call_s: list[float]
    memory: Optional[int]  # the process's maximum so far, in bytes; None on a card


class Process(contextlib.ExitStack):
    """An engine in a process that lives as long as the `with` block. Failed if it cannot start."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.callback(self._errors.close)
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'predictor.timing', json.dumps(options)],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends this one
        )
        self.callback(self._process.communicate)
        self.callback(self._process.kill)
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def measure(self, batch: int, seconds: float) -> Sample:
        """Calls for that long, at least one."""
        time.sleep(IDLE_S)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({'batch': batch, 'seconds': seconds}) + '\n')
            self._process.stdin.flush()
        return Sample(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {'error': self._crash()}
        if 'error' in answer:
            raise Failed(answer['error'])
        return answer

    def _crash(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors='replace').strip().splitlines() or ['']
        what = f'exit code {code}' if code >= 0 else signal.Signals(-code).name
        return f'crashed ({what}): {lines[-1].strip()}'.rstrip(': ')


def main() -> None:
    """The process: answers `{}` when the engine is ready, then every request until stdin ends."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        engine = Engine(**json.loads(sys.argv[1]))
        answer({})
        for line in sys.stdin:
            answer(asdict(engine.measure(**json.loads(line))))
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
        self._last_s: dict[int, float] = {}  # batch -> the last call

    def measure(self, batch: int, seconds: float) -> Sample:
        images = self._images[:batch]
        calls: list[float] = []
        if self._last_s.get(batch, 0.0) < seconds / 10:  # a longer call needs no warming up
            self._predictor.logits(images)
        end = time.perf_counter() + seconds
        while not calls or time.perf_counter() < end:
            start = time.perf_counter()
            self._predictor.logits(images)
            calls.append(time.perf_counter() - start)
        self._last_s[batch] = calls[-1]
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
