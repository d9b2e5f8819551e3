"""The page that benchmarks/check_device.py writes, and the processes that run its checks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Sequence

from benchmarks.device import environment
from benchmarks.processes import REPOSITORY, clean_environment

LIMIT_S, LEAST_S = 150, 5.0  # of one process
GRACE_S = 45  # a launcher waits 30 seconds for its processes before it kills them
PASS, FAIL, SKIPPED = 'pass', 'fail', 'skipped'
KEPT = ('PADDLE_XCCL_BACKEND',)


class Failure(Exception):
    """Why a check fails."""


class Skipped(Exception):
    """Why a check cannot be made here."""


@dataclass
class Page:
    """The machine, and the results so far."""

    file: Path
    scratch: Path
    quick: bool
    end: float  # by time.monotonic()
    about: dict[str, Any]
    found: list[tuple[str, str, str]] = field(default_factory=list)  # check, outcome, text
    rows: list[tuple[str, str, str]] = field(default_factory=list)  # of speed

    @property
    def kind(self) -> str:
        return str(self.about['kind'])

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def note(self, check: str, outcome: str, text: str) -> None:
        self.found.append((check, outcome, text))
        print(f'{check}: {outcome}  {text}', flush=True)
        self.write()

    def write(self) -> None:
        machine = ', '.join(f'{name} {value}' for name, value in self.about.items())
        counts = [f'{sum(o == kind for _, o, _ in self.found)} {kind}' for kind in (PASS, FAIL)]
        parts = [f'# {self.about["name"]}: {", ".join(counts)}', machine]
        parts.append(_table(('check', 'outcome', ''), self.found))
        if self.rows:
            parts.append(_table(('training', 'images/s', 'PyTorch'), self.rows))
        self.file.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    cells = [[' '.join(cell.replace('|', '/').split()) for cell in line] for line in lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in cells)


# ------------------------------------------------------------------ processes


def ask(
    page: Page,
    check: str,
    *,
    processes: int = 1,
    variables: Optional[dict[str, str]] = None,
    **arguments: Any,
) -> Any:
    """The answer of a check of device_checks.py, or of several processes the list of theirs.

    Raises Failure where there is none.
    """
    with tempfile.TemporaryDirectory(dir=page.scratch) as folder:
        answer = Path(folder) / 'answer'
        command = ['-m', 'benchmarks.device_checks', check, json.dumps(arguments), str(answer)]
        if processes > 1:
            script = str(REPOSITORY / 'benchmarks' / 'device_checks.py')
            command = [*launch(page.kind, processes, folder), script, *command[2:]]
        run(page, command, variables, logs=Path(folder))
        answers = [Path(f'{answer}.{rank}') for rank in range(processes)]
        if not all(path.exists() for path in answers):
            raise Failure('ended without an answer')
        found = [json.loads(path.read_text()) for path in answers]
    return found if processes > 1 else found[0]


def launch(kind: str, processes: int, folder: str) -> list[str]:
    numbers = ','.join(map(str, range(processes)))
    cards = {'gpu': ['--gpus', numbers], 'npu': ['--npus', numbers]}
    which = cards.get(kind, ['--nproc_per_node', str(processes)])
    return ['-m', 'paddle.distributed.launch', *which, '--log_dir', folder]


def run(
    page: Page,
    arguments: list[str],
    variables: Optional[dict[str, str]] = None,
    *,
    logs: Optional[Path] = None,
) -> str:
    """The output of Python with these arguments. Raises Failure with the reason."""
    limit = max(LEAST_S, min(LIMIT_S, page.seconds_left))
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=page.scratch,
        env={
            **clean_environment(),
            **environment(),
            **kept,
            'PYTHONPATH': str(REPOSITORY),
            **(variables or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors='replace',
    )
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise Failure(f'took more than {limit:.0f} s') from None
    finally:
        if process.poll() is None:
            _end(process)
    if process.returncode:
        files = logs.glob('workerlog.*') if logs else ()
        outputs = [errors, *(log.read_text(errors='replace') for log in files)]
        raise Failure(f'exit code {process.returncode}: {reason(outputs)}')
    return output


def _end(process: subprocess.Popen[str]) -> None:
    """Terminate it. A launcher must end its own processes, which would stay on the cards."""
    process.terminate()
    try:
        process.communicate(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def reason(outputs: list[str]) -> str:
    """The last line that names an error, or the last."""
    lines = [line.strip() for text in outputs for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r'Error\b|error:|\.py: ', line)]
    return (errors or lines or ['no output'])[-1][:300]
