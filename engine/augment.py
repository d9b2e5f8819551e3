"""Augmentation of a whole batch at once, on uint8 arrays in memory.

Gather, crop and flip stay in uint8, where a pixel is one byte; normalising makes the float32 batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Pixels = np.ndarray


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image, in this order: pad and crop, flip, (normalise,) cutout."""

    crop_padding: int = 0
    padding_mode: str = 'zero'  # or 'reflect'
    flip: bool = False
    cutout: int = 0


def pad(images: Pixels, padding: int, mode: str) -> Pixels:
    """uint8 [N, C, H, W] -> [N, C, H + 2 padding, W + 2 padding]; done once, before training."""
    if not padding:
        return images
    widths = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return np.pad(images, widths, mode='constant' if mode == 'zero' else 'reflect')


def crop_and_flip(
    padded: Pixels, rows: np.ndarray, *, padding: int, flip: bool, rng: np.random.Generator
) -> Pixels:
    """The images `rows` of `padded`, each cropped at its own place, half of them mirrored.

    Returns uint8 [len(rows), C, H, W] in memory of its own.
    """
    count = len(rows)
    if padding:
        height, width = (side - 2 * padding for side in padded.shape[2:])
        windows = sliding_window_view(padded, (height, width), axis=(2, 3))
        top, left = rng.integers(0, 2 * padding + 1, size=(2, count))
        out = windows[rows, :, top, left]
    else:
        out = padded[rows]
    if flip:
        mirrored = rng.random(count) < 0.5
        out[mirrored] = out[mirrored, :, :, ::-1]
    return out


def normalise(images: Pixels, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """uint8 -> float32 (x - mean) / std, with mean and std in 0-255, one value a channel."""
    out = images.astype(np.float32)
    out *= (1.0 / std).astype(np.float32).reshape(-1, 1, 1)
    out += (-mean / std).astype(np.float32).reshape(-1, 1, 1)
    return out


def cutout(batch: np.ndarray, size: int, rng: np.random.Generator) -> None:
    """Set one square of each image to 0, the mean (DeVries & Taylor 2017, arXiv:1708.04552).

    As there, its centre is anywhere in the image, so that it may lie partly outside.
    """
    height, width = batch.shape[2:]
    centres = zip(rng.integers(0, height, len(batch)), rng.integers(0, width, len(batch)))
    for image, (y, x) in zip(batch, centres):
        top, left = max(y - size // 2, 0), max(x - size // 2, 0)
        image[:, top : y - size // 2 + size, left : x - size // 2 + size] = 0.0
