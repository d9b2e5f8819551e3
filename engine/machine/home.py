"""Keeps libraries from writing into the home folder."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

from engine.files import is_writable
from predictor import machine

HOMES = ('HOME', 'USERPROFILE')  # of Unix, and of Windows


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Within, the home is a temporary folder.

    For imports that write there and have no setting: Paddle makes ~/.cache/paddle, VisualDL
    ~/.visualdl, which fails if the home is not writable.
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
    """Let paddle.jit write its Python files into a temporary folder instead of ~/.cache.

    Call it after paddle has been imported. Paddle has no setting for it.
    """
    from paddle.jit.dy2static import utils

    utils.get_temp_dir = _folder


def keep_matplotlib_out() -> None:
    """Let Matplotlib keep its list of fonts in our own cache, or else in a temporary folder.

    Call it before Matplotlib is imported. The user's own setting stays.
    """
    if 'MPLCONFIGDIR' in os.environ:
        return
    folder = machine.CACHE / 'matplotlib'
    if not is_writable(folder):
        folder = Path(_temporary('matplotlib-'))
    os.environ['MPLCONFIGDIR'] = str(folder)


@functools.cache
def _folder() -> str:
    return _temporary('to_static-')


def _temporary(prefix: str) -> str:
    """A temporary folder that lasts as long as this process."""
    folder = tempfile.mkdtemp(prefix=prefix)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
