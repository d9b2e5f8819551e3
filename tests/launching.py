"""Starts a job of several processes as a user does, watches it, and ends all of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Iterator, Optional

PATIENCE_S = 240.0  # machines are busy
MARK = 'TEST_JOB'  # in the environment of the launcher, and so of all that it starts


class Job:
    """`python3 -m paddle.distributed.launch ... COMMAND` in the background, in a folder.

    The launcher gives each process a session of its own, so that a process group finds none of
    them: a mark in the environment does, even after the launcher's own end.
    """

    def __init__(
        self,
        folder: Path,
        *command: str,
        processes: int = 2,
        options: tuple[str, ...] = (),
        cores: Optional[set[int]] = None,
        **environment: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._mark = folder, uuid.uuid4().hex
        logs = sum(1 for _ in folder.glob('workers*'))  # of the jobs before this one
        self.logs = folder / f'workers{logs or ""}'
        self.logs.mkdir()
        launcher = [sys.executable, '-m', 'paddle.distributed.launch']
        launcher += ['--nproc_per_node', str(processes), '--log_dir', self.logs.name, *options]
        with (self.logs / 'console').open('wb') as console:
            self.launcher = subprocess.Popen(
                [*launcher, *command],
                cwd=folder,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
                env={**os.environ, 'PYTHONUNBUFFERED': '1', **environment, MARK: self._mark},
            )

    @property
    def console(self) -> str:
        """What the launcher has printed."""
        return (self.logs / 'console').read_text(errors='replace')

    def log(self, place: int) -> str:
        """What the process at this place of its machine has printed."""
        file = self.logs / f'workerlog.{place}'
        return file.read_text(errors='replace') if file.exists() else ''

    def everything(self) -> str:
        files = sorted(self.logs.glob('workerlog.*'))
        texts = (f'--- {file.name}\n{file.read_text(errors="replace")}' for file in files)
        return '\n'.join([self.console, *texts])

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """The launcher's exit code."""
        try:
            return self.launcher.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'not over after {timeout} s:\n{self.everything()}') from None

    def wait_for_line(self, pattern: str, place: int = 0) -> str:
        """The first line of that process's log to match."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            ended = self.launcher.poll() is not None
            for line in self.log(place).splitlines():
                if re.search(pattern, line):
                    return line
            if ended or time.monotonic() > deadline:
                raise AssertionError(f'no line with {pattern!r}:\n{self.everything()}')
            time.sleep(0.05)

    def alive(self) -> dict[int, str]:
        """The job's processes, the launcher among them, with their environments."""
        found = {}
        for folder in Path('/proc').iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
                    environment = (folder / 'environ').read_bytes().decode(errors='replace')
                    if f'{MARK}={self._mark}' in environment.split('\0'):
                        found[int(folder.name)] = environment
        return found

    def workers(self) -> dict[int, int]:
        """Rank -> process id, of those that live."""
        ranks = {}
        for process, environment in self.alive().items():
            match = re.search(r'(?:^|\0)PADDLE_TRAINER_ID=(\d+)', environment)
            if match:
                ranks[int(match[1])] = process
        return ranks

    def wait_until_all_have_ended(self, timeout: float = 30.0) -> None:
        deadline = time.monotonic() + timeout
        while self.alive():
            assert time.monotonic() < deadline, f'{len(self.alive())} live:\n{self.everything()}'
            time.sleep(0.1)

    def end(self) -> None:
        """Kill whoever is left."""
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline:
            left = self.alive()
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.1)
        self.launcher.wait(30)


class Launcher:
    """Starts jobs, and ends them when its block ends."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def start(self, folder: Path, *command: str, **options: object) -> Job:
        self._jobs.append(Job(folder, *command, **options))
        return self._jobs[-1]

    def run(self, folder: Path, *command: str, processes: int = 2, **options: object) -> Job:
        """Start, and expect a good end."""
        job = self.start(folder, *command, processes=processes, **options)
        assert job.wait() == 0, job.everything()
        job.wait_until_all_have_ended()
        return job

    def end(self) -> None:
        for job in self._jobs:
            job.end()


@contextlib.contextmanager
def launcher() -> Iterator[Launcher]:
    starts = Launcher()
    try:
        yield starts
    finally:
        starts.end()


def node(rank: int, port: int, *, nodes: int = 2) -> tuple[str, ...]:
    """The launcher's options on one of several machines, which are addresses of this one."""
    network = ('--nnodes', str(nodes), '--master', f'127.0.0.1:{port}')
    return (*network, '--rank', str(rank), '--host', f'127.0.0.{rank + 1}')


def free_port() -> int:
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(('', 0))
        return int(listener.getsockname()[1])


def only_line(text: str, pattern: Optional[str] = None) -> str:
    """The one line of a log that is neither Paddle's own nor about the machine."""
    noise = r'^[IW]\d{4} |^CPU: |^device: |^$'
    lines = [line for line in text.splitlines() if not re.search(noise, line)]
    if pattern is not None:
        lines = [line for line in lines if re.search(pattern, line)]
    assert len(lines) == 1, text
    return lines[0]
