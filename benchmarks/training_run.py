"""train.py as users start it, watched from outside."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator

from benchmarks.processes import failure, memory_bytes, start
from engine.run.reading import read_records


class TrainingRun(contextlib.ExitStack):
    """`train.py -c configs/<config> -o overrides`, in a run folder that goes away with it."""

    def __init__(self, config: str, *overrides: str, **environment: str) -> None:
        super().__init__()
        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self._folder, self._errors = folder / 'run', folder / 'stderr'
        command = [sys.executable, 'train.py', '-c', f'configs/{config}']
        command += ['-o', f'output.dir={self._folder}', *overrides]
        self._process = start(self, command, self._errors, environment)

    def lines(self) -> Iterator[str]:
        """Its output, line by line."""
        assert self._process.stdout is not None
        return iter(self._process.stdout)

    def resident_bytes(self) -> int:
        """Resident memory at this moment."""
        return memory_bytes('VmRSS', self._process.pid)

    def finish(self) -> int:
        """Wait until it is done; the largest resident memory that it ever had, in bytes."""
        for _ in self.lines():
            pass
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            raise failure('train.py failed', self._errors)
        return usage.ru_maxrss * 1024

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_records(self._folder)
