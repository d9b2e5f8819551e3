"""A network as a static graph: written by paddle.jit.save, and compared with what was written.

inference.json, inference.pdiparams       what Paddle 3 writes
inference.pdmodel, inference.pdiparams    Paddle 2.6, and 3 with FLAGS_enable_pir_api=0 before it is
                                          imported; with an inference.pdiparams.info
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator

import numpy as np
import paddle
from paddle import nn

from engine.errors import UserError
from engine.export import onnx_model
from engine.export.exported_folder import FORMATS, GRAPH, INPUT, ONNX, input_shape
from engine.machine import cpu
from predictor.errors import in_a_line
from predictor.onnx_engines import import_onnxruntime
from predictor.paddle_engine import quiet

if TYPE_CHECKING:
    from engine.data import Preparation

TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is smaller
BATCHES = (1, 8)

Logits = Callable[[np.ndarray], np.ndarray]


def save(model: nn.Layer, folder: Path, view: Preparation, *, uint8: bool) -> None:
    """Write the model in test mode, for any batch: float32 [batch, 3, size, size] to logits.

    With `uint8` the pixels go in as they are, uint8 [batch, size, size, 3].
    """
    network = _Normalised(model, view) if uint8 else model
    network.eval()
    kind, shape = 'uint8' if uint8 else 'float32', input_shape(None, view.size, uint8=uint8)
    spec = paddle.static.InputSpec(shape, kind, INPUT)
    paddle.jit.save(network, str(folder / GRAPH), input_spec=[spec])


class _Normalised(nn.Layer):  # type: ignore[misc]
    """The network for raw pixels, in the layout that decoders give: [N, size, size, 3]."""

    def __init__(self, network: nn.Layer, view: Preparation) -> None:
        super().__init__()
        self.network = network
        self.register_buffer('mean', paddle.to_tensor(view.mean, 'float32'))
        self.register_buffer('std', paddle.to_tensor(view.std, 'float32'))

    def forward(self, pixels: paddle.Tensor) -> paddle.Tensor:
        images = (pixels.astype('float32') - self.mean) / self.std
        return self.network(images.transpose([0, 3, 1, 2]))


def graph_file(folder: Path) -> Path:
    files = [folder / f'{GRAPH}.{suffix}' for suffix in FORMATS]
    return next(file for file in files if file.exists())


def verify(model: nn.Layer, folder: Path, *, images: np.ndarray, fed: np.ndarray) -> list[str]:
    """A line for each way to read the files: how far its logits are from the model's.

    `fed` is to the files what `images` are to the model. All run on the CPU: another device's
    kernels may round more than an export may change. UserError above TOLERANCE, except with oneDNN:
    that is another implementation, with its own bugs, and readers can turn it off.
    """
    graph = graph_file(folder).name
    with _on_cpu(model):
        expected = _of_batches(_in_memory(model), images)
        if not all(np.isfinite(logits).all() for logits in expected):
            raise UserError("the network's logits are not finite; nothing was exported")
        lines = []
        for how, load in {'paddle.jit.load': _by_jit, 'paddle.inference': by_inference}.items():
            logits = _of_batches(_loaded(load, folder), fed)
            lines.append(_require_close(f'{graph} through {how}', logits, expected))
        lines.append(
            _try_onednn(f'{graph} through paddle.inference with oneDNN', folder, fed, expected)
        )
        if (folder / ONNX).exists():
            lines.append(_verify_onnx(folder, fed, expected))
    return lines


@dataclass(frozen=True)
class Comparison:
    """Of logits found with those expected, for each of BATCHES."""

    found: list[np.ndarray]
    expected: list[np.ndarray]

    @property
    def scale(self) -> float:
        return max(float(np.abs(logits).max()) for logits in self.expected)

    @property
    def difference(self) -> float:
        largest = [np.abs(one - other).max() for one, other in zip(self.found, self.expected)]
        return float(np.nan_to_num(largest, nan=np.inf).max())

    def is_close(self) -> bool:
        return self.difference <= TOLERANCE * max(1.0, self.scale)

    def __str__(self) -> str:
        same = self.found[-1].argmax(1) == self.expected[-1].argmax(1)
        count = f'all {same.size}' if same.all() else f'{same.sum()} of {same.size}'
        return (
            f'logits differ by at most {self.difference:.2g} (the largest is {self.scale:.3g}), '
            f'same first class on {count} photographs'
        )


def _require_close(form: str, found: list[np.ndarray], expected: list[np.ndarray]) -> str:
    comparison = Comparison(found, expected)
    if not comparison.is_close():
        raise UserError(
            f'{form} is another network: its logits differ by {comparison.difference:.2g} (the '
            f'largest is {comparison.scale:.3g}); nothing was exported'
        )
    return f'{form}: {comparison}'


def _try_onednn(form: str, folder: Path, fed: np.ndarray, expected: list[np.ndarray]) -> str:
    """A warning, not an error, where it fails or differs: the files are sound all the same."""
    off = 'config.disable_mkldnn() turns it off'
    if not has_onednn():
        return f'{form}: this Paddle has none'
    try:
        with quiet(1, 2):  # it prints what the CPU supports
            found = _of_batches(by_inference(folder, onednn=True), fed)
    except Exception as error:  # anything at all, from C++
        return f'warning: {form} fails ({in_a_line(error)}); {off}'
    comparison = Comparison(found, expected)
    if comparison.is_close():
        return f'{form}: {comparison}'
    return f'warning: {form}: {comparison}; {off}'


def _verify_onnx(folder: Path, fed: np.ndarray, expected: list[np.ndarray]) -> str:
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        return f'warning: {ONNX} was not run: onnxruntime is missing ({in_a_line(error)})'
    form = f'{ONNX} through onnxruntime {onnxruntime.__version__}'
    return _require_close(form, _of_batches(_loaded(onnx_model.load, folder / ONNX), fed), expected)


def _of_batches(run: Logits, images: np.ndarray) -> list[np.ndarray]:
    return [run(images[:count]) for count in BATCHES]


def _loaded(load: Callable[[Path], Logits], folder: Path) -> Logits:
    """UserError where it cannot be read: writing, Paddle doesn't notice that a disk is full."""
    try:
        return load(folder)
    except Exception as error:  # each reader has errors of its own
        raise UserError(
            f'the exported model cannot be read back ({in_a_line(error)}); nothing was exported. '
            'Is the disk full?'
        ) from None


def _in_memory(layer: nn.Layer) -> Logits:
    layer.eval()

    def run(images: np.ndarray) -> np.ndarray:
        with paddle.no_grad():
            return np.asarray(layer(paddle.to_tensor(images)).numpy())

    return run


def _by_jit(folder: Path) -> Logits:
    return _in_memory(paddle.jit.load(str(folder / GRAPH)))


def by_inference(folder: Path, *, onednn: bool = False) -> Logits:
    from paddle import inference

    config = inference.Config(str(graph_file(folder)), str(folder / f'{GRAPH}.pdiparams'))
    config.disable_glog_info()
    if onednn:
        config.enable_mkldnn()
    else:
        config.disable_mkldnn()
    config.set_cpu_math_library_num_threads(cpu.cores_per_process())
    predictor = inference.create_predictor(config)

    def run(images: np.ndarray) -> np.ndarray:
        image: Any = predictor.get_input_handle(INPUT)
        image.reshape(images.shape)
        image.copy_from_cpu(images)
        predictor.run()
        (name,) = predictor.get_output_names()
        return np.asarray(predictor.get_output_handle(name).copy_to_cpu())

    return run


def has_onednn() -> bool:
    """Whether this Paddle was built with it; on Arm, for instance, it is not."""
    from paddle import inference

    config = inference.Config()
    config.enable_mkldnn()
    return bool(config.mkldnn_enabled())


@contextlib.contextmanager
def _on_cpu(model: nn.Layer) -> Iterator[None]:
    device = paddle.get_device()
    try:
        paddle.set_device('cpu')
        model.to('cpu')
        yield
    finally:
        paddle.set_device(device)
        model.to(device)
