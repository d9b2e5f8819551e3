"""Pretrained weights: files of this project and of other frameworks, loaded into our models.

    report = load_weights(model, 'resnext50_32x4d-1110c45c.pth')     # torchvision's
    print(*report.lines(), sep='\\n')
    $ python3 -m engine.weights convert resnext50_32x4d-1110c45c.pth resnext50.pdparams

A file goes through three steps: formats/ reads it by its content, names/ finds the network inside
and renames its arrays to ours, and fitting.py puts them into a model. Code in a file never runs
(engine/safe_pickle.py). Our own files are `.pdparams` (Paddle's pickle, a flat map of state-dict
names to arrays) and `.safetensors`.
"""

from __future__ import annotations

from engine.weights.arrays import (
    Arrays,
    first_not_finite,
    float32_arrays,
    parse_arrays,
    state_arrays,
    write_arrays,
)
from engine.weights.converted import Converted
from engine.weights.fitting import Report, fit_weights, load_weights
from engine.weights.official import OFFICIAL, resolve
from engine.weights.reading import read_weights

__all__ = [
    'OFFICIAL',
    'Arrays',
    'Converted',
    'Report',
    'first_not_finite',
    'fit_weights',
    'float32_arrays',
    'load_weights',
    'parse_arrays',
    'read_weights',
    'resolve',
    'state_arrays',
    'write_arrays',
]
