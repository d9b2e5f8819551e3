"""The folder that export.py writes: inference.yml, and the graph in one form or more.

inference.yml                           input, output, classes, every file's hash
inference.json    inference.pdiparams   the graph for Paddle 3, or
inference.pdmodel inference.pdiparams   for Paddle 2.6 and 3
model.onnx        model.int8.onnx       for ONNX Runtime and OpenVINO; optional
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import yaml

from predictor.errors import UserError

DESCRIPTION, PARAMETERS = 'inference.yml', 'inference.pdiparams'
GRAPHS = ('inference.json', 'inference.pdmodel')
ONNX = {'float32': 'model.onnx', 'int8': 'model.int8.onnx'}
FORMAT = 1
CHUNK = 1 << 20


@dataclass(frozen=True)
class Input:
    """The graph's input: normalised float32 [N, 3, size, size], or raw uint8 [N, size, size, 3]."""

    name: str
    type: str  # float32 or uint8
    size: int
    resize: int  # of a picture's short side, before its centre is cropped
    mean: np.ndarray  # of 0-255, a value a channel
    std: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the batch."""
        square = (self.size, self.size)
        return (*square, 3) if self.type == 'uint8' else (3, *square)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, size, size, 3] -> the graph's input, normalised unless the graph does that."""
        if self.type == 'uint8':
            return np.ascontiguousarray(pixels)
        scaled = pixels.transpose(0, 3, 1, 2).astype(np.float32, order='C')
        scaled *= (1.0 / self.std).astype(np.float32).reshape(-1, 1, 1)
        scaled += (-self.mean / self.std).astype(np.float32).reshape(-1, 1, 1)
        return scaled


@dataclass(frozen=True)
class Description:
    """An exported folder whose files are complete."""

    folder: Path
    model: str
    input: Input
    output: str
    classes: list[str]
    accuracy: Optional[dict[str, Any]]  # as measured by the training run
    files: dict[str, str]  # name -> SHA-256

    @property
    def graph(self) -> Path:
        """For Paddle."""
        return self.folder / next(name for name in GRAPHS if name in self.files)

    @property
    def parameters(self) -> Path:
        return self.folder / PARAMETERS

    def onnx(self, precision: str) -> Optional[Path]:
        """For ONNX Runtime and OpenVINO, if the folder has one of that precision."""
        name = ONNX.get(precision)
        return self.folder / name if name in self.files else None

    @property
    def identity(self) -> str:
        """The same for copies of the folder, different for other weights or another graph."""
        return hashlib.sha256(repr(sorted(self.files.items())).encode()).hexdigest()[:16]


def open_folder(folder: Union[str, Path]) -> Description:
    """Of a run, its inference/. UserError unless it is what export.py wrote, to the last byte."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder; name one that export.py has written')
    inner = folder / 'inference'  # where export.py writes by default
    if not (folder / DESCRIPTION).exists():
        if (inner / DESCRIPTION).exists():
            folder = inner
        elif (folder / 'checkpoints').is_dir():
            raise UserError(
                f'{folder} is a run that is not exported: '
                f'python3 export.py -w {shlex.quote(str(folder))}'
            )
    content = _read(folder / DESCRIPTION)
    try:
        description = _described(folder, content)
        stored = content['files'].items()
        expected = {str(name): (int(file['bytes']), str(file['sha256'])) for name, file in stored}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f'has no {error}' if isinstance(error, KeyError) else f'is damaged ({error})'
        raise UserError(f'{folder / DESCRIPTION} {reason}; export the model again') from None
    if not any(name in expected for name in GRAPHS) or PARAMETERS not in expected:
        raise UserError(f'{folder / DESCRIPTION} names no graph; export the model again')
    for name, (size, digest) in expected.items():
        _require_whole(folder / name, size, digest)
    return description


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(f'{file.parent} has no {file.name}; did export.py write it?') from None
    except OSError as error:
        raise UserError(f'{file}: {error.strerror}') from None
    except Exception as error:  # damaged YAML raises almost anything, not only YAMLError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f'{file} is damaged ({reason}); export the model again') from None
    if not isinstance(content, dict) or 'format' not in content:
        raise UserError(f'{file} is not what export.py writes')
    if content['format'] != FORMAT:
        raise UserError(
            f'{file} has format {content["format"]}, which this version does not know ({FORMAT})'
        )
    return content


def _described(folder: Path, content: dict[str, Any]) -> Description:
    given, classes = content['input'], content['classes']
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError('classes must be a list of texts')  # of `no`, YAML makes False
    image = Input(
        name=str(given['name']),
        type=str(given['type']),
        size=int(given['crop']),
        resize=int(given['resize_short']),
        mean=np.array(given['mean'], np.float64),
        std=np.array(given['std'], np.float64),
    )
    if image.type not in ('float32', 'uint8') or tuple(given['shape'][1:]) != image.shape:
        raise ValueError(f'input of type {image.type} and shape {given["shape"]}')
    if not 0 < image.size <= image.resize:
        raise ValueError(f'crop {image.size} of a short side of {image.resize}')
    colours = np.stack([image.mean, image.std])
    if colours.shape != (2, 3) or not np.isfinite(colours).all() or not (image.std > 0).all():
        raise ValueError('mean and std must be three numbers each')
    if content['output']['shape'] != [-1, len(classes)]:
        raise ValueError(f'{len(classes)} classes for outputs {content["output"]["shape"]}')
    return Description(
        folder=folder,
        model=str(content['model']),
        input=image,
        output=str(content['output']['name']),
        classes=classes,
        accuracy=content['weights'].get('accuracy'),
        files={str(name): str(entry['sha256']) for name, entry in content['files'].items()},
    )


def _require_whole(file: Path, size: int, digest: str) -> None:
    try:
        found = file.stat().st_size
        if found != size:
            raise UserError(f'{file} has {found:,} bytes instead of {size:,}; copy it again')
        hashed = hashlib.sha256()
        with file.open('rb') as stream:
            while chunk := stream.read(CHUNK):
                hashed.update(chunk)
    except OSError as error:
        raise UserError(f'{file}: {error.strerror}; copy the folder again') from None
    if hashed.hexdigest() != digest:
        raise UserError(f'{file} is damaged (its SHA-256 is another); copy it again')
