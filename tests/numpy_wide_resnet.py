"""The wide residual network in evaluation mode, in plain NumPy and float64.

Written from the paper (arXiv 1605.07146, Table 1, Figure 1(d), section 2.4) and from the names that
xternalz/WideResNet-pytorch gives its layers; it shares no line with wide_resnet.py, so that the two
can only agree by both being right. A state dict is a map of names to arrays, as Paddle stores them:
`_mean` and `_variance` of a batch norm, `fc.weight` as [in, out].
"""

from __future__ import annotations

import math
from typing import Mapping, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

EPSILON = 1e-5  # of every batch norm


def random_state(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """A random value for every weight and statistic, such that logits are of order 1.

    With the statistics of a fresh model (mean 0, variance 1, scale 1, shift 0) a batch norm is the
    identity, and a misplaced one would not be noticed.
    """
    rng = np.random.default_rng(seed)
    values = {}
    for name, shape in shapes.items():
        if name.endswith('_variance'):
            value = rng.uniform(0.5, 2.0, shape)
        elif name.endswith('_mean'):
            value = rng.normal(0, 0.5, shape)
        elif len(shape) == 1 and name.endswith('weight'):
            value = rng.uniform(-1.2, 1.2, shape)  # a batch norm's scale may be negative
        elif len(shape) == 1:
            value = rng.normal(0, 0.3, shape)
        else:
            fan_in = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
            value = rng.normal(0, math.sqrt(1.5 / fan_in), shape)
        values[name] = value.astype(np.float32)
    return values


def images(count: int, height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.normal(size=(count, channels, height, width)).astype(np.float32)


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Cross-correlation [N, C, H, W] * [O, C, k, k], padded so that stride 1 keeps the size."""
    side = kernel.shape[-1]
    margin = (side - 1) // 2
    framed = np.zeros(x.shape[:2] + tuple(n + 2 * margin for n in x.shape[2:]))
    framed[:, :, margin : margin + x.shape[2], margin : margin + x.shape[3]] = x
    patches = sliding_window_view(framed, (side, side), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum('ncyxij,ocij->noyx', patches, kernel, optimize=True)


def standardise(x: np.ndarray, state: dict, name: str) -> np.ndarray:
    """Batch norm with the recorded statistics."""

    def column(entry: str) -> np.ndarray:
        return state[f'{name}.{entry}'].astype(np.float64)[:, None, None]

    scale = column('weight') / np.sqrt(column('_variance') + EPSILON)
    return (x - column('_mean')) * scale + column('bias')


def rectify(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.0)


def block(x: np.ndarray, state: dict, name: str, stride: int) -> np.ndarray:
    """B(3, 3) with pre-activation; dropout is the identity in evaluation."""

    def entry(conv: str) -> np.ndarray:
        return state[f'{name}{conv}.weight'].astype(np.float64)

    activated = rectify(standardise(x, state, f'{name}bn1'))
    hidden = convolve(activated, entry('conv1'), stride)
    hidden = rectify(standardise(hidden, state, f'{name}bn2'))
    residual = convolve(hidden, entry('conv2'), 1)
    if f'{name}convShortcut.weight' in state:
        return residual + convolve(activated, entry('convShortcut'), stride)
    return residual + x


def logits(images: np.ndarray, state: dict, *, depth: int) -> np.ndarray:
    """float [N, 3, H, W] -> [N, classes]."""
    per_group = (depth - 4) // 6
    x = convolve(images.astype(np.float64), state['conv1.weight'].astype(np.float64), 1)
    for group, first_stride in ((1, 1), (2, 2), (3, 2)):
        for i in range(per_group):
            x = block(x, state, f'block{group}.layer.{i}.', first_stride if i == 0 else 1)
    pooled = rectify(standardise(x, state, 'bn1')).mean(axis=(2, 3))
    return pooled @ state['fc.weight'].astype(np.float64) + state['fc.bias']
