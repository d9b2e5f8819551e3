"""Small exported folders, as export.py writes them, made once a process and deleted at its end.

The networks are not trained, but their running statistics are those of noise: without that, nearly
all features are 0, and whatever goes in, the logits are the same.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import shutil
import tempfile
from pathlib import Path

import numpy as np
import paddle
import yaml

from engine import models
from engine.config import Config, load_config
from engine.data import preparation
from engine.export import onnx_model, static_model
from engine.export.exported_folder import graph_input, write_description
from engine.files import sha256_of
from engine.run.chosen_weights import Weights
from engine.weights import Converted, load_weights, write_arrays

RECIPE = Path(__file__).resolve().parent.parent / 'configs' / 'resnext50_32x4d_imagenet.yaml'
HAS_ONNX = all(importlib.util.find_spec(name) for name in ('paddle2onnx', 'onnxruntime'))
# What YAML, CSV, a table's columns and a list of labels can each get wrong.
CLASSES = ['1e3', 'Kätzchen', 'a, "b"', 'great white shark', 'no', 'null', '家猫']
SIZE, RESIZE = 8, 10


def config(
    name: str = 'wide_resnet10_1', size: int = SIZE, resize: int = RESIZE, *more: str
) -> Config:
    """Of a network for pictures in folders."""
    settings = (f'data.image_size={size}', f'eval.resize={resize}', f'model.name={name}')
    return load_config(RECIPE, [*settings, *more])


@functools.cache
def arrays(name: str, size: int = SIZE) -> dict[str, np.ndarray]:
    """Weights and statistics, of a network that has seen some noise."""
    paddle.seed(0)
    model, rng = models.build(name, num_classes=len(CLASSES)), np.random.default_rng(0)
    model.train()
    for _ in range(6):
        model(paddle.to_tensor(rng.normal(size=(8, 3, size, size)).astype(np.float32)))
    values = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    shape = values['fc.weight'].shape
    values['fc.weight'] = rng.normal(scale=0.2, size=shape).astype(np.float32)
    return values


@functools.cache
def folder(name: str = 'wide_resnet10_1', size: int = SIZE, *, uint8: bool = False) -> Path:
    """With model.onnx where that can be made. Not to be changed: see `copy`.

    All that export.py does but its verification, which has tests of its own, and takes time.
    """
    root = Path(tempfile.mkdtemp(prefix='exported_'))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    file, output = weight_file(root, name, size), root / 'inference'
    weights = Weights(
        Converted(arrays(name, size), ''), file, 'for a test', CLASSES, file, sha256_of(file)
    )
    image = graph_input(preparation(config(name, size, size + 2)), uint8=uint8)
    model = models.build(name, num_classes=len(CLASSES))
    load_weights(model, file)
    output.mkdir()
    static_model.save(model, output, image)
    if HAS_ONNX:
        onnx_model.write(static_model.graph_file(output), name=name)
    write_description(output, name, image, CLASSES, weights)
    return output


def weight_file(root: Path, name: str, size: int = SIZE) -> Path:
    file = root / f'{name}.pdparams'
    with file.open('wb') as stream:
        write_arrays(stream, arrays(name, size))
    return file


def copy(target: Path, **changes: object) -> Path:
    """A folder of one's own; `changes` to inference.yml are made, None removing a key."""
    shutil.copytree(folder(), target)
    file = target / 'inference.yml'
    content = {**yaml.safe_load(file.read_text(encoding='utf-8')), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding='utf-8')
    return target


def listed(folder: Path, *names: str) -> dict[str, dict[str, object]]:
    """What inference.yml says of these files."""
    return {
        name: {
            'bytes': (folder / name).stat().st_size,
            'sha256': hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
        for name in names
    }
