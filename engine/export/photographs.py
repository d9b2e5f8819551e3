"""Real pictures for an export to prove itself on, which need no data set."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from engine.data.pictures import EvalView

if TYPE_CHECKING:
    from engine.data import Preparation

# Rows and columns of a photograph: the whole, its left and right, and something from near.
PARTS = [
    np.s_[:, :],
    np.s_[:, :427],
    np.s_[:, 213:],
    np.s_[100:330, 200:430],
]


def photographs(view: Preparation) -> np.ndarray:
    """uint8 [8, 3, size, size]: what evaluation would see of parts of two photographs.

    They come in scikit-learn's wheel.
    """
    see, seen = EvalView(size=view.size, resize=view.resize), []
    for photograph in load_sample_images().images:
        for part in PARTS:
            file = io.BytesIO()
            Image.fromarray(photograph[part]).save(file, 'BMP')
            seen.append(see(file.getvalue()))
    return np.asarray(np.concatenate(seen).transpose(0, 3, 1, 2))
