"""A network as a static graph: paddle.jit.save writes it, two readers of Paddle run it on the CPU.

inference.json, inference.pdiparams       what Paddle 3 writes
inference.pdmodel, inference.pdiparams    Paddle 2.6, and 3 with FLAGS_enable_pir_api=0 before it is
                                          imported; with an inference.pdiparams.info
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import paddle
from paddle import inference, nn

from engine.export.exported_folder import FORMATS, GRAPH
from engine.machine import cpu
from predictor.exported_folder import Input

Logits = Callable[[np.ndarray], np.ndarray]  # what goes in -> float32 [N, C]


def save(model: nn.Layer, folder: Path, image: Input) -> None:
    """Write the model in test mode, for any batch size: `image` to logits."""
    network = _Normalised(model, image) if image.type == 'uint8' else model
    network.eval()
    spec = paddle.static.InputSpec([None, *image.shape], image.type, image.name)
    paddle.jit.save(network, str(folder / GRAPH), input_spec=[spec])


class _Normalised(nn.Layer):  # type: ignore[misc]
    """The network for raw pixels, in the layout that decoders give: [N, size, size, 3]."""

    def __init__(self, network: nn.Layer, image: Input) -> None:
        super().__init__()
        self.network = network
        self.register_buffer('mean', paddle.to_tensor(image.mean, 'float32'))
        self.register_buffer('std', paddle.to_tensor(image.std, 'float32'))

    def forward(self, pixels: paddle.Tensor) -> paddle.Tensor:
        images = (pixels.astype('float32') - self.mean) / self.std
        return self.network(images.transpose([0, 3, 1, 2]))


def graph_file(folder: Path) -> Path:
    files = [folder / f'{GRAPH}.{suffix}' for suffix in FORMATS]
    return next(file for file in files if file.exists())


def in_memory(layer: nn.Layer) -> Logits:
    layer.eval()

    def run(images: np.ndarray) -> np.ndarray:
        with paddle.no_grad():
            return np.asarray(layer(paddle.to_tensor(images)).numpy())

    return run


def by_jit(folder: Path) -> Logits:
    return in_memory(paddle.jit.load(str(folder / GRAPH)))


def by_inference(folder: Path, *, onednn: bool = False) -> Logits:
    config = inference.Config(str(graph_file(folder)), str(folder / f'{GRAPH}.pdiparams'))
    config.disable_glog_info()
    (config.enable_mkldnn if onednn else config.disable_mkldnn)()
    config.set_cpu_math_library_num_threads(cpu.cores_per_process())
    predictor = inference.create_predictor(config)
    source: Any = predictor.get_input_handle(predictor.get_input_names()[0])
    logits: Any = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images: np.ndarray) -> np.ndarray:
        source.reshape(images.shape)
        source.copy_from_cpu(images)
        predictor.run()
        return np.asarray(logits.copy_to_cpu())

    return run


def has_onednn() -> bool:
    """Whether this Paddle was built with it; on Arm, for instance, it is not."""
    config = inference.Config()
    config.enable_mkldnn()
    return bool(config.mkldnn_enabled())
