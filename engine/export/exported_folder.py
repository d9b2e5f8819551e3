"""The folder that export.py writes: its graph, inference.yml, and how it appears as a whole.

It has all that a server or a device needs. deploy/predictor/exported_folder.py reads it. Nothing
here imports paddle.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Optional

from engine.config import yaml_text
from engine.errors import UserError
from engine.files import beside, is_writable, sha256_of, sync_folder, sync_tree
from engine.locks import locked
from engine.machine import devices
from engine.run.chosen_weights import Weights, recorded_accuracy
from predictor.exported_folder import DESCRIPTION, FORMAT, Input
from predictor.version import VERSION

if TYPE_CHECKING:
    from engine.data import Preparation

GRAPH = 'inference'
ONNX, INT8 = 'model.onnx', 'model.int8.onnx'
FORMATS = ('json', 'pdmodel')  # of the graph: Paddle 3's, Paddle 2's
INPUT, OUTPUT = 'image', 'logits'
HEADS = {
    'float32': '# What goes in: (pixels - mean) / std, of pixels from 0 to 255.\n',
    'uint8': '# What goes in: raw pixels from 0 to 255. The network applies mean and std itself.\n',
}
WHAT_COMES_OUT = (
    f"# What comes out is called {OUTPUT} in {ONNX}. Paddle's graph has one output, too, under a\n"
    '# name that Paddle chose: take the first.\n'
)


def graph_input(view: Preparation, *, uint8: bool = False) -> Input:
    """What the graph takes: normalised float32 images, or with `uint8` their raw pixels."""
    kind = 'uint8' if uint8 else 'float32'
    return Input(INPUT, kind, view.size, view.resize, view.mean, view.std)


def class_names(num_classes: Optional[int], weights: Weights) -> list[str]:
    """As recorded with the weights; outputs without a name are numbered."""
    from engine.data.class_names import numbered

    names, bias = weights.classes or [], weights.content.arrays.get('fc.bias')
    # Without a last layer 1 is as good as any: such weights are refused later.
    count = num_classes or len(names) or (0 if bias is None else bias.size) or 1
    if count < len(names):
        raise UserError(
            f'model.num_classes is {count}, but {weights.path} was trained on {len(names)} classes'
        )
    return numbered(names, count)


def write_description(
    folder: Path, model: str, image: Input, classes: list[str], weights: Weights
) -> None:
    """Write inference.yml: the input, the output, the weights, and the files of the folder."""
    source = {
        'path': str(weights.file),
        'kind': weights.kind,
        'sha256': weights.sha256,
        'accuracy': recorded_accuracy(weights),
    }
    content = {
        'format': FORMAT,
        'model': model,
        'input': {
            'name': image.name,
            'type': image.type,
            'shape': [-1, *image.shape],
            'layout': 'NHWC' if image.type == 'uint8' else 'NCHW',
            'colours': 'RGB',
            'resize_short': image.resize,
            'interpolation': 'bilinear, antialiased',
            'crop': image.size,
            'mean': image.mean.tolist(),
            'std': image.std.tolist(),
        },
        'output': {
            'name': OUTPUT,
            'type': 'float32',
            'shape': [-1, len(classes)],
            'meaning': 'logits',
        },
        'classes': classes,
        'weights': {key: value for key, value in source.items() if value is not None},
        'files': {
            file.name: {'bytes': file.stat().st_size, 'sha256': sha256_of(file)}
            for file in sorted(folder.iterdir())
        },
        'versions': {'exporter': VERSION, **devices.versions()},
    }
    text = HEADS[image.type] + WHAT_COMES_OUT + yaml_text.dump(content)
    (folder / DESCRIPTION).write_text(text, encoding='utf-8')


def require_new(folder: Path) -> None:
    """UserError if it cannot be written, or is not empty: an export overwrites nothing."""
    if folder.is_dir() and any(folder.iterdir()):
        problem = 'is not empty'
    elif folder.exists() and not folder.is_dir():
        problem = 'is a file'
    elif not is_writable(folder):
        problem = 'cannot be written'
    else:
        return
    raise UserError(f'{folder} {problem}; choose another folder (--output, --triton)')


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which in the end becomes the target, or is removed after an error."""
    target = target.resolve()
    aside = beside(target, 'writing')
    with parents_of(target), locked(target.parent):  # or two exports would write the same folder
        shutil.rmtree(aside, ignore_errors=True)  # left by an export that was killed
        aside.mkdir()
        try:
            yield aside
            move_into_place(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def parents_of(target: Path) -> Iterator[None]:
    """Create the folders above the target; after an error remove those that are new."""
    new = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def move_into_place(folder: Path, target: Path) -> None:
    """Rename a folder once its content is on the disk. UserError if the target is not empty."""
    sync_tree(folder)
    require_new(target)
    with contextlib.suppress(FileNotFoundError):
        target.rmdir()  # an empty one, which Windows would not replace
    os.replace(folder, target)
    sync_folder(target.parent)
