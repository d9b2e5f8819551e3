"""What the tests of networks do with a Paddle model."""

from __future__ import annotations

import numpy as np
import paddle
from numpy_wide_resnet import random_state
from paddle import nn


def norm(name: str) -> set[str]:
    """The state-dict names of a batch norm."""
    return {f'{name}.{entry}' for entry in ('weight', 'bias', '_mean', '_variance')}


def randomise(model: nn.Layer, seed: int) -> dict[str, np.ndarray]:
    """Give every weight and statistic a random value of its own; returns them."""
    values = random_state({name: t.shape for name, t in model.state_dict().items()}, seed)
    model.set_state_dict(values)
    return values


def run(model: nn.Layer, batch: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        return model(paddle.to_tensor(batch)).numpy()
