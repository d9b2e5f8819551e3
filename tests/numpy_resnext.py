"""ResNeXt in evaluation mode, in plain NumPy and float64, as a sum over paths.

Written from the paper (arXiv 1611.05431): the block is that of Figure 3(a), whose `cardinality`
paths are computed one by one and then summed, where resnext.py has the grouped convolution of
Figure 3(c); both are the same function. With one path it is the bottleneck of ResNet and WRN-50-2.
Names are torchvision's; a state dict maps them to arrays as Paddle stores them.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy_wide_resnet import convolve, rectify, standardise


def pool(x: np.ndarray) -> np.ndarray:
    """The largest of 3x3 values, every second row and column; the frame never wins."""
    framed = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return sliding_window_view(framed, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))


def block(x: np.ndarray, state: dict, name: str, *, stride: int, cardinality: int) -> np.ndarray:
    """Post-activated, with the stride on the 3x3 convolutions and the sum before the last ReLU."""

    def kernel(conv: str) -> np.ndarray:
        return state[f'{name}{conv}.weight'].astype(np.float64)

    reduce, transform, expand = kernel('conv1'), kernel('conv2'), kernel('conv3')
    width = len(reduce) // cardinality

    def path(number: int) -> np.ndarray:
        mine = slice(number * width, (number + 1) * width)

        def normalise(values: np.ndarray, norm: str) -> np.ndarray:
            entries = ('weight', 'bias', '_mean', '_variance')
            own = {f'{norm}.{entry}': state[f'{name}{norm}.{entry}'][mine] for entry in entries}
            return standardise(values, own, norm)

        hidden = rectify(normalise(convolve(x, reduce[mine], 1), 'bn1'))
        hidden = rectify(normalise(convolve(hidden, transform[mine], stride), 'bn2'))
        return convolve(hidden, expand[:, mine], 1)

    aggregated = sum(path(number) for number in range(cardinality))
    shortcut = x
    if f'{name}downsample.0.weight' in state:
        projected = convolve(x, kernel('downsample.0'), stride)
        shortcut = standardise(projected, state, f'{name}downsample.1')
    return rectify(shortcut + standardise(aggregated, state, f'{name}bn3'))


def logits(
    images: np.ndarray, state: dict, *, blocks: Sequence[int], cardinality: int
) -> np.ndarray:
    """float [N, 3, H, W] -> [N, classes]; `blocks` of each stage, four of them for photographs."""
    stem = state['conv1.weight'].astype(np.float64)
    if len(blocks) == 4:  # Table 1
        assert stem.shape[2:] == (7, 7)
        x = pool(rectify(standardise(convolve(images.astype(np.float64), stem, 2), state, 'bn1')))
    else:  # section 5.3
        assert stem.shape[2:] == (3, 3)
        x = rectify(standardise(convolve(images.astype(np.float64), stem, 1), state, 'bn1'))
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            stride = 2 if stage > 1 and i == 0 else 1
            x = block(x, state, f'layer{stage}.{i}.', stride=stride, cardinality=cardinality)
    return x.mean(axis=(2, 3)) @ state['fc.weight'].astype(np.float64) + state['fc.bias']
