"""scikit-learn's handwritten digits: real images inside its wheel, for the quick start.

1,797 digits (UCI), 8x8 grey, here 32x32 RGB; a fifth for testing.
"""

from __future__ import annotations

import numpy as np

from engine.config import Data
from engine.data.dataset import DataSet, Images, Request

MEAN = (77.74918302872914,) * 3  # of the training images
STD = (82.49670237602061,) * 3
SIZE = 32


def load(data: Data, request: Request) -> DataSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = digits.images.astype(np.float64) * (255.0 / 16.0)
    grow = _bilinear(8, SIZE)
    grey = np.rint(grow @ small @ grow.T).astype(np.uint8)
    pixels = np.repeat(grey[:, None], 3, axis=1)
    labels = digits.target.astype(np.int64)
    # The set is ordered by writer, so the split is drawn at random, from a fixed seed.
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = (
        Images(pixels[rows], labels[rows]) for rows in np.split(order, [len(order) // 5])
    )
    classes = [str(digit) for digit in range(10)]
    prepared = request.preparation
    return DataSet(train, test, classes, prepared.mean, prepared.std, "scikit-learn's digits")


def _bilinear(small: int, large: int) -> np.ndarray:
    """Matrix [large, small] that resizes one axis, pixel centres aligned."""
    at = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    left = np.minimum(at.astype(int), small - 2)
    matrix = np.zeros((large, small))
    matrix[np.arange(large), left] = 1 - (at - left)
    matrix[np.arange(large), left + 1] = at - left
    return matrix
