"""A network for evaluation on a CPU: exported to a temporary folder, run by Paddle Inference.

With oneDNN it takes about half the time of Paddle's kernels for dygraph.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from engine.export import static_model
from engine.export.verification import Comparison
from predictor.errors import in_a_line
from predictor.exported_folder import Input
from predictor.paddle_engine import quiet

CHECKED = 2  # images; each costs a pass through Paddle's own kernels


def compiled(model: nn.Layer, image: Input) -> tuple[nn.Layer, str]:
    """The network as a layer for evaluation, and what computes it.

    It is the model itself, with the reason, where oneDNN is not available, fails, or gives other
    logits for two random images than Paddle's own kernels.
    """
    own = "Paddle's own kernels"
    if not static_model.has_onednn():
        return model, f'{own} (this Paddle has no oneDNN)'
    shape = CHECKED, *image.shape
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = static_model.in_memory(model)(images)
    try:
        with quiet(1, 2):
            fast = _Compiled(model, image)
            found = fast.logits(images)
    except Exception as error:  # of any kind, from C++
        return model, f'{own} (oneDNN fails: {in_a_line(error)})'
    comparison = Comparison([found], [expected])
    if np.isfinite(expected).all() and not comparison.is_close():
        return model, f'{own} (through oneDNN, {comparison})'
    return fast, 'Paddle Inference with oneDNN'


class _Compiled(nn.Layer):  # type: ignore[misc]
    """float32 [N, 3, size, size] -> logits [N, C]"""

    def __init__(self, model: nn.Layer, image: Input) -> None:
        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            static_model.save(model, Path(folder), image)
            self.logits = static_model.by_inference(Path(folder), onednn=True)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return paddle.to_tensor(self.logits(images.numpy()))
