"""What several test files share: running a command as a user would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Callable

import pytest

# A shell's background job ignores SIGINT, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
