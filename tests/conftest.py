"""What several test files share: running a command as a user would."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Callable
from unittest import mock

import pytest

# A shell's background job ignores SIGINT, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Under nohup, SIGHUP likewise. Caught here, it is what it is by default in the processes started.
if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

REPOSITORY = Path(__file__).resolve().parent.parent

# A run of a few seconds: 5 batches an epoch of 8x8 images, with all that draws random numbers.
TINY = (
    'data.name=synthetic',
    'data.num_images=80',
    'data.image_size=8',
    'data.batch_size=16',
    'data.crop_padding=1',
    'model.name=wide_resnet10_1',
    'model.dropout=0.3',
    'schedule.name=cosine',
    'train.epochs=3',
    'train.ema=0.9',
    'train.log_every=1',
)


def execute(
    folder: Path, script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `train.py ...` in that folder; returns the completed process."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same, in an empty folder."""
    return partial(execute, tmp_path)


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same in the tests' own process, for what no signal and no kill is sent to.

    Importing paddle and the libraries for plots takes longer than what such a command does.
    """
    from engine import cli

    def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(REPOSITORY / script), *arguments]
        with monkeypatch.context() as patch, mock.patch.dict(os.environ, environment):
            patch.chdir(tmp_path)
            patch.setattr(sys, 'argv', command)
            for name in ('stdout', 'stderr'):  # a command may replace them: put back afterwards
                patch.setattr(sys, name, getattr(sys, name))
            capfd.readouterr()
            code = 0
            try:
                cli.run(importlib.import_module(Path(script).stem).main)
            except SystemExit as end:
                code = int(end.code or 0)
            return subprocess.CompletedProcess(command, code, *capfd.readouterr())

    return run
