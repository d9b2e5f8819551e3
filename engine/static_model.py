"""A network as a static graph: written by paddle.jit.save, and compared with what was written.

inference.json, inference.pdiparams       Paddle 3
inference.pdmodel, inference.pdiparams    Paddle 2.6, with an inference.pdiparams.info
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import paddle
from paddle import nn

from engine import runtime
from engine.errors import UserError
from engine.exported_folder import GRAPH, INPUT

GRAPH_FILES = (f'{GRAPH}.json', f'{GRAPH}.pdmodel')
TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is smaller
BATCHES = (1, 3)

Logits = Callable[[np.ndarray], np.ndarray]


def save(model: nn.Layer, folder: Path, *, size: int) -> None:
    """Write the model in test mode: float32 [batch, 3, size, size], for any batch, to logits."""
    model.eval()
    shape = paddle.static.InputSpec([None, 3, size, size], 'float32', INPUT)
    paddle.jit.save(model, str(folder / GRAPH), input_spec=[shape])


def verify(model: nn.Layer, folder: Path, pixels: np.ndarray) -> tuple[float, float]:
    """The largest difference between the model's logits and the files', and the largest logit.

    The files are read in both ways that there are, paddle.jit.load and paddle.inference, and run on
    the CPU, as the model is: another device's kernels may round more than an export may change.
    UserError above TOLERANCE.
    """
    model.eval()
    device = paddle.get_device()
    try:
        paddle.set_device('cpu')
        model.to('cpu')
        expected = [_logits(model)(pixels[:count]) for count in BATCHES]
        readers = [_loaded(folder, load) for load in (_from_jit, _from_inference)]
        found = [[read(pixels[:count]) for count in BATCHES] for read in readers]
    finally:
        paddle.set_device(device)
        model.to(device)
    if not all(np.isfinite(logits).all() for logits in expected):
        raise UserError("the network's logits are not finite; nothing was exported")
    scale = max(float(np.abs(logits).max()) for logits in expected)
    difference = max(_distance(logits, expected) for logits in found)
    if not difference <= TOLERANCE * max(1.0, scale):
        raise UserError(
            f'what was exported is another network: its logits differ by {difference:.2g} (the '
            f'largest is {scale:.3g}); nothing was exported'
        )
    return difference, scale


def _distance(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    largest = [np.abs(one - other).max() for one, other in zip(found, expected)]
    return float(np.nan_to_num(largest, nan=np.inf).max())


def _logits(layer: nn.Layer) -> Logits:
    def run(pixels: np.ndarray) -> np.ndarray:
        with paddle.no_grad():
            return np.asarray(layer(paddle.to_tensor(pixels)).numpy())

    return run


def _loaded(folder: Path, load: Callable[[Path], Logits]) -> Logits:
    """UserError where it cannot be read: writing, Paddle doesn't notice that a disk is full."""
    try:
        return load(folder)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise UserError(
            f'the exported model cannot be read back ({reason}); nothing was exported. Is the disk '
            'full?'
        ) from None


def _from_jit(folder: Path) -> Logits:
    layer = paddle.jit.load(str(folder / GRAPH))
    layer.eval()
    return _logits(layer)


def _from_inference(folder: Path) -> Logits:
    """Without oneDNN, which is another implementation, with bugs of its own."""
    from paddle import inference

    graph = next(folder / name for name in GRAPH_FILES if (folder / name).exists())
    config = inference.Config(str(graph), str(folder / f'{GRAPH}.pdiparams'))
    config.disable_glog_info()
    config.disable_mkldnn()
    config.set_cpu_math_library_num_threads(runtime.cores_per_process())
    predictor = inference.create_predictor(config)

    def run(pixels: np.ndarray) -> np.ndarray:
        image: Any = predictor.get_input_handle(INPUT)
        image.reshape(pixels.shape)
        image.copy_from_cpu(pixels)
        predictor.run()
        (name,) = predictor.get_output_names()
        return np.asarray(predictor.get_output_handle(name).copy_to_cpu())

    return run
