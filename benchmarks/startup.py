"""How long one waits.

Claim: train.py --help answers in under half a second, and the quick start shows its first training
step, data included, within ten seconds of the command.
Falsified by: python3 -m benchmarks startup
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

from benchmarks.processes import REPOSITORY, clean_environment
from benchmarks.report import Claim, Result, table
from benchmarks.training_run import TrainingRun


def run(quick: bool) -> Result:
    help_s = median(time_help() for _ in range(1 if quick else 5))
    first_s = median(time_first_step() for _ in range(1 if quick else 3))
    rows = [
        ['the end of train.py --help', f'{help_s:.2f}'],
        ['the first step of the quick start', f'{first_s:.2f}'],
    ]
    return Result(
        figures={'help_s': round(help_s, 3), 'first_step_s': round(first_s, 2)},
        claims=[
            Claim('train.py --help', help_s, 0.5, 's', at_most=True),
            Claim('quick start: first step', first_s, 10, 's', at_most=True),
        ],
        tables=[table(['from the command to', 'seconds'], rows)],
    )


def time_help() -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, 'train.py', '--help'],
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def time_first_step() -> float:
    """Until the line about the first step; the run is stopped then."""
    start = time.perf_counter()
    with TrainingRun('quickstart.yaml', 'train.max_steps=1') as training:
        for line in training.lines():
            if line.startswith('iter:0 '):
                return time.perf_counter() - start
        training.finish()
    raise RuntimeError('train.py ended without a line about its first step')
