"""What the tests of exports share: networks without training, their export, and readers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import paddle
import yaml
from conftest import REPOSITORY
from paddle import inference, nn

from engine import data, models
from engine.config import load_config
from engine.export import onnx_model
from engine.export.exported_folder import graph_input
from engine.export.forms import Forms
from engine.run import chosen_weights
from engine.weights import load_weights, write_arrays
from export import export
from predictor.exported_folder import Input

QUICKSTART = REPOSITORY / 'configs' / 'quickstart.yaml'
HAS_CONVERTER = importlib.util.find_spec('paddle2onnx') is not None  # not everywhere
FAMILIES = [
    ('wide_resnet10_1', 8),
    ('resnext11_2x4d', 8),
    ('resnext50_2x4d', 32),
]


def description(folder: Path) -> dict:
    return yaml.safe_load((folder / 'inference.yml').read_text(encoding='utf-8'))


def by_jit(folder: Path, images: np.ndarray) -> np.ndarray:
    """Left in whatever mode it is loaded in."""
    return paddle.jit.load(str(folder / 'inference'))(paddle.to_tensor(images)).numpy()


def by_inference(folder: Path, images: np.ndarray) -> np.ndarray:
    """With Paddle's own defaults, as a server may have it."""
    (graph,) = (path for path in folder.iterdir() if path.suffix in ('.json', '.pdmodel'))
    config = inference.Config(str(graph), str(folder / 'inference.pdiparams'))
    config.disable_glog_info()
    predictor = inference.create_predictor(config)
    (name,) = predictor.get_input_names()
    assert name == 'image'
    predictor.get_input_handle(name).copy_from_cpu(images)
    predictor.run()
    return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


def by_onnx(folder: Path, images: np.ndarray) -> np.ndarray:
    return onnx_model.load(folder / 'model.onnx')(images)


def noise(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, size, size)).astype(np.float32)


def a_file(path: Path, name: str, *, classes: int = 7, first: float = 0.1) -> nn.Layer:
    """Writes weights that no training has seen, and statistics of noise; the network."""
    model, rng = models.build(name, num_classes=classes), np.random.default_rng(0)
    size = 32 if name.startswith('resnext50') else 8
    for count in range(8, 14):  # without statistics of its features, all it says is its bias
        model(paddle.to_tensor(noise(count, size)))
    arrays = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    shape = arrays['fc.weight'].shape
    arrays['fc.weight'] = rng.normal(scale=0.2, size=shape).astype(np.float32)
    arrays['fc.bias'][0] = first
    with path.open('wb') as file:
        write_arrays(file, arrays)
    if np.isfinite(first):
        load_weights(model, path)
    model.eval()
    return model


def export_file(path: Path, name: str, size: int, output: Path, **forms) -> None:
    """What the command does, in this process."""
    settings = ('data.name=synthetic', f'data.image_size={size}', f'model.name={name}')
    config = load_config(QUICKSTART, [*settings, 'data.crop_padding=0'])
    weights = chosen_weights.read_chosen(path)
    export(config, weights, output, Forms(**forms))


def image_of(size: int) -> Input:
    """What a graph for images of this size takes."""
    mean, std = np.array([123.0, 116.0, 104.0]), np.array([58.0, 57.0, 56.0])
    return graph_input(data.Preparation(size, size, mean, std))


def raw(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)
