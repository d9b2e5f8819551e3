"""scikit-learn's handwritten digits: real images inside its wheel, for the quick start."""

from __future__ import annotations

import numpy as np


def load_digits_32() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(training pixels, labels, test pixels, labels): uint8 [N, 3, 32, 32], int64 [N].

    1,797 digits (UCI), 8x8 grey, here 32x32 RGB; a fifth for testing. The set is ordered by writer
    in runs, so the split is drawn at random, from a fixed seed.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = digits.images.astype(np.float64) * (255.0 / 16.0)
    grow = _bilinear(8, 32)
    grey = np.rint(grow @ small @ grow.T).astype(np.uint8)
    pixels = np.repeat(grey[:, None], 3, axis=1)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return pixels[train], labels[train], pixels[test], labels[test]


def _bilinear(small: int, large: int) -> np.ndarray:
    """Matrix [large, small] that resizes one axis, pixel centres aligned."""
    at = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    left = np.minimum(at.astype(int), small - 2)
    matrix = np.zeros((large, small))
    matrix[np.arange(large), left] = 1 - (at - left)
    matrix[np.arange(large), left + 1] = at - left
    return matrix
