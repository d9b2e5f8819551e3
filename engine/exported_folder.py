"""The folder that export.py writes: a static graph (engine/static_model.py) and inference.yml.

It is all that a server or a device needs, and it appears whole or not at all. Nothing here imports
paddle.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Optional

from engine import runtime, settings
from engine.checkpoint import sync
from engine.chosen_weights import Weights
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.data import Preparation

VERSION = '0.1.0'  # of this project
FORMAT = 1  # of inference.yml, for its readers
GRAPH, INPUT, DESCRIPTION = 'inference', 'image', 'inference.yml'
HEAD = '# What goes in: (pixels - mean) / std, of pixels from 0 to 255.\n'


def describe(
    model: str,
    view: Preparation,
    classes: list[str],
    weights: Weights,
    *,
    sha256: str,
    accuracy: Optional[dict[str, Any]],
) -> str:
    """inference.yml: what the graph wants, what it says, and where it is from."""
    source: dict[str, Any] = {'path': str(weights.file), 'kind': weights.kind, 'sha256': sha256}
    if accuracy is not None:
        source['accuracy'] = accuracy
    picture = {
        'name': INPUT,
        'type': 'float32',
        'shape': [-1, 3, view.size, view.size],
        'layout': 'NCHW',
        'colours': 'RGB',
        'resize_short': view.resize,
        'interpolation': 'bilinear, antialiased',
        'crop': view.size,
        'mean': view.mean.tolist(),
        'std': view.std.tolist(),
    }
    content = {
        'format': FORMAT,
        'model': model,
        'input': picture,
        'output': {'type': 'float32', 'shape': [-1, len(classes)], 'meaning': 'logits'},
        'classes': classes,
        'weights': source,
        'versions': {'exporter': VERSION, **runtime.versions()},
    }
    return HEAD + settings.dump(content)


def require_new(folder: Path) -> None:
    """UserError if anything is there already: an exported folder is never overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f'{folder} is a file; choose another folder with --output DIR')
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f'{folder} is not empty; choose another folder with --output DIR')


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A folder to write into, which in the end becomes `target`, or vanishes."""
    target = target.resolve()
    temporary = target.with_name(f'.{target.name}.writing')
    created = [folder for folder in temporary.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(target.parent)
    except OSError as error:
        raise UserError(f'cannot write {target}: {error.strerror}') from None
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # what a kill has left
        temporary.mkdir()
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        require_new(target)
        os.replace(temporary, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()
        raise
    finally:
        os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor of the folder, which no other export has until it is closed; waits for it."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor
