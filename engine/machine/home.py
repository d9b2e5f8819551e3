"""Libraries write into the home; here they are made to write elsewhere."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

from engine.files import can_be_written
from predictor import machine

HOMES = ('HOME', 'USERPROFILE')  # of Unix, and of Windows


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Within, the home is a temporary folder.

    For imports that write there, for which there is no setting: Paddle's makes ~/.cache/paddle,
    VisualDL's ~/.visualdl, and fails where there is no home that can be written to.
    """
    kept = {name: os.environ[name] for name in HOMES if name in os.environ}
    with tempfile.TemporaryDirectory(prefix='home-') as folder:
        os.environ.update(dict.fromkeys(HOMES, folder))
        try:
            yield
        finally:
            for name in HOMES:
                del os.environ[name]
            os.environ.update(kept)


def keep_to_static_out() -> None:
    """paddle.jit writes Python files into ~/.cache; give it a temporary folder, for this process.

    Call it when paddle has been imported. Paddle has no setting for it.
    """
    from paddle.jit.dy2static import utils

    utils.get_temp_dir = _folder


def keep_matplotlib_out() -> None:
    """Matplotlib's list of fonts goes into our own cache, or, where there is none, vanishes.

    Call it before Matplotlib is imported. What the user has set stays.
    """
    if 'MPLCONFIGDIR' in os.environ:
        return
    folder = machine.CACHE / 'matplotlib'
    if not can_be_written(folder):
        folder = Path(_vanishing('matplotlib-'))
    os.environ['MPLCONFIGDIR'] = str(folder)


@functools.cache
def _folder() -> str:
    return _vanishing('to_static-')


def _vanishing(prefix: str) -> str:
    """A temporary folder that lasts as long as this process."""
    folder = tempfile.mkdtemp(prefix=prefix)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
