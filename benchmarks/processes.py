"""Measured code runs in processes of its own: the libraries read their thread settings on import.

A Worker is started once, then asked again and again, so that rival variants can take turns (A B C
A B C ...) and a slow minute of the machine hits them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence, Union

REPOSITORY = Path(__file__).resolve().parent.parent
# Idle OpenMP threads spin for 0.2 s (KMP_BLOCKTIME) and would slow down whoever comes next.
REST_S = 0.3
THREAD_SETTINGS = ('OMP_', 'KMP_', 'MKL_', 'OPENBLAS_', 'PADDLE_', 'FLAGS_')

Answer = dict[str, Any]


class Worker(contextlib.ExitStack):
    """A module of benchmarks in a process of its own, or in several that train one model together.

    Every answer is a list with one item a process. Raises RuntimeError, with the end of what it
    wrote to stderr, when the process has died.
    """

    def __init__(self, module: str, settings: Mapping[str, Any], *, processes: int = 1) -> None:
        super().__init__()
        self._module = module
        self._errors = Path(self.enter_context(tempfile.TemporaryDirectory())) / 'stderr'
        command = [sys.executable, '-m', f'benchmarks.{module}', json.dumps(settings)]
        self._processes = [start(self, command, self._errors, rank) for rank in _ranks(processes)]

    def ask(self, question: str, **arguments: Any) -> list[Answer]:
        """Let all the processes do it at once, on a machine at rest."""
        time.sleep(REST_S)
        line = json.dumps([question, arguments]) + '\n'
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()
        return [self._answer(process) for process in self._processes]

    def _answer(self, process: subprocess.Popen[str]) -> Answer:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{'):  # else a library's chatter
                answer = json.loads(line)
                assert isinstance(answer, dict)
                return answer
        raise failure(f'benchmarks.{self._module} died', self._errors)


def serve(answers: Mapping[str, Callable[..., Answer]]) -> None:
    """A worker's main loop: answer each question by a line of JSON, until stdin ends."""
    for line in sys.stdin:
        question, arguments = json.loads(line)
        print(json.dumps(answers[question](**arguments)), flush=True)


def seconds(action: Callable[[], Any], times: int = 1) -> float:
    """Wall time of `times` calls."""
    start = time.perf_counter()
    for _ in range(times):
        action()
    return time.perf_counter() - start


def steps(step: Callable[[], Any], for_s: float, at_least: int) -> list[float]:
    """Seconds of each step: steps for a time, but `at_least` of them."""
    taken: list[float] = []
    end = time.perf_counter() + for_s
    while len(taken) < at_least or time.perf_counter() < end:
        taken.append(seconds(step))
    return taken


def start(
    stack: contextlib.ExitStack,
    command: Sequence[str],
    errors: Path,
    environment: Mapping[str, str],
) -> subprocess.Popen[str]:
    """A process that ends with the stack at the latest, with pipes to its stdin and stdout."""
    with errors.open('ab') as file:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**clean_environment(), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    stack.callback(process.communicate)  # after the kill: closes the pipes and waits
    stack.callback(process.kill)
    return process


def memory_bytes(entry: str, process: Union[int, str] = 'self') -> int:
    """VmRSS, the memory of a process that is resident now, or VmHWM, the most that ever was."""
    lines = Path(f'/proc/{process}/status').read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f'{entry}:')]
    return int(line.split()[1]) * 1024


def failure(what: str, errors: Path) -> RuntimeError:
    """The exception for a process that failed, with the end of its stderr."""
    lines = errors.read_text(errors='replace').splitlines()[-12:]
    return RuntimeError('\n'.join([what, *lines]))


def clean_environment() -> dict[str, str]:
    """The environment less every setting of threads and processes: each variant makes its own."""
    return {k: v for k, v in os.environ.items() if not k.startswith(THREAD_SETTINGS)}


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Within, this process and those that it starts have only `count` cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _ranks(processes: int) -> list[dict[str, str]]:
    """The environment that paddle.distributed.launch would give each process."""
    if processes == 1:
        return [{}]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(processes)]
        for free in sockets:
            free.bind(('127.0.0.1', 0))
        endpoints = [f'127.0.0.1:{free.getsockname()[1]}' for free in sockets]
    return [
        {
            'PADDLE_TRAINER_ID': str(rank),
            'PADDLE_TRAINERS_NUM': str(processes),
            'PADDLE_TRAINER_ENDPOINTS': ','.join(endpoints),
            'PADDLE_CURRENT_ENDPOINT': endpoint,
            'PADDLE_DISTRI_BACKEND': 'gloo',
        }
        for rank, endpoint in enumerate(endpoints)
    ]
