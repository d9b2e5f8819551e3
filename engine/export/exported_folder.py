"""The folder that export.py writes: a static graph (static_model.py) and inference.yml.

It is all that a server or a device needs, and it appears whole or not at all. Nothing here imports
paddle.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Optional

from engine.config import reading
from engine.errors import UserError
from engine.files import locked, sha256_of, sync_folder, sync_tree
from engine.machine import devices
from engine.run.chosen_weights import Weights

if TYPE_CHECKING:
    from engine.data import Preparation

VERSION = '0.1.0'  # of this project
FORMAT = 1  # of inference.yml, for its readers
GRAPH, DESCRIPTION = 'inference', 'inference.yml'
ONNX, INT8 = 'model.onnx', 'model.int8.onnx'
FORMATS = ('json', 'pdmodel')  # of the graph: of Paddle 3, and of 2
INPUT, OUTPUT = 'image', 'logits'
NORMALISED_GO_IN = '# What goes in: (pixels - mean) / std, of pixels from 0 to 255.\n'
RAW_GO_IN = '# What goes in: raw pixels from 0 to 255. The network applies mean and std itself.\n'
WHAT_COMES_OUT = (
    f"# What comes out is called {OUTPUT} in {ONNX}. Paddle's graph has one output, too, under a\n"
    '# name that Paddle chose: take the first.\n'
)


def describe(
    model: str,
    view: Preparation,
    classes: list[str],
    weights: Weights,
    *,
    uint8: bool,
    accuracy: Optional[dict[str, Any]],
    folder: Path,
) -> str:
    """inference.yml: the input, the output, the source of the weights, and the files."""
    source: dict[str, Any] = {
        'path': str(weights.file),
        'kind': weights.kind,
        'sha256': weights.sha256,
    }
    if accuracy is not None:
        source['accuracy'] = accuracy
    picture = {
        'name': INPUT,
        'type': 'uint8' if uint8 else 'float32',
        'shape': input_shape(-1, view.size, uint8=uint8),
        'layout': 'NHWC' if uint8 else 'NCHW',
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
        'output': {
            'name': OUTPUT,
            'type': 'float32',
            'shape': [-1, len(classes)],
            'meaning': 'logits',
        },
        'classes': classes,
        'weights': source,
        'files': {
            file.name: {'bytes': file.stat().st_size, 'sha256': sha256_of(file)}
            for file in sorted(folder.iterdir())
        },
        'versions': {'exporter': VERSION, **devices.versions()},
    }
    return (RAW_GO_IN if uint8 else NORMALISED_GO_IN) + WHAT_COMES_OUT + reading.dump(content)


def input_shape(batch: Any, size: int, *, uint8: bool) -> list[Any]:
    """NHWC for raw pixels, as decoders give them; NCHW for what the networks take."""
    return [batch, size, size, 3] if uint8 else [batch, 3, size, size]


def require_new(folder: Path) -> None:
    """UserError if anything is there already: an exported folder is never overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f'{folder} is a file; choose another folder (--output, --triton)')
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f'{folder} is not empty; choose another folder (--output, --triton)')


@contextlib.contextmanager
def written_aside(*targets: Path) -> Iterator[list[Path]]:
    """A folder to write into for each target; in the end they become the targets, or vanish."""
    targets = tuple(target.resolve() for target in targets)
    asides: list[Path] = []
    above = {folder for target in targets for folder in target.parents}
    created = [folder for folder in above if not folder.exists()]
    with contextlib.ExitStack() as locks:
        try:
            _lock_parents(targets, locks)
            asides += [_aside(target, first=targets[0]) for target in targets]
            for aside in asides:
                shutil.rmtree(aside, ignore_errors=True)  # what a kill has left
                aside.mkdir()
            yield asides
            for aside in asides:
                sync_tree(aside)
            for target in targets:
                require_new(target)
            for aside, target in zip(asides, targets):
                with contextlib.suppress(FileNotFoundError):
                    target.rmdir()  # an empty one, which Windows would not replace
                os.replace(aside, target)
                sync_folder(target.parent)
        except BaseException:
            for aside in asides:
                shutil.rmtree(aside, ignore_errors=True)
            for folder in sorted(created, reverse=True):  # the inner ones first
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def _aside(target: Path, *, first: Path) -> Path:
    """Next to the first target, if that is on the same disk: in a model repository, Triton would
    take it for one of the models."""
    if target == first:
        return target.with_name(f'.{target.name}.writing')
    near = target.parent.stat().st_dev == first.parent.stat().st_dev
    return (first if near else target).with_name(f'.{first.name}.{target.name}.writing')


def _lock_parents(targets: tuple[Path, ...], locks: contextlib.ExitStack) -> None:
    """Wait until no other export writes there, and keep it so until `locks` is closed."""
    # Each folder once, or we would wait for ourselves; all exports in the same order, or two might
    # wait for each other.
    for parent in sorted({target.parent for target in targets}):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(locked(parent))
        except OSError as error:
            raise UserError(f'cannot write into {parent}: {error.strerror}') from None
