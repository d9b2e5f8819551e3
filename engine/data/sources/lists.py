"""Lists of labels: lines of a picture's name and its class, which a flat folder needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Sequence

from predictor.labels import read_list

# Caffe's and PaddleClas's `name label`, and Kaggle's table.
LABEL_LISTS = ('val.txt', 'val_list.txt', 'val_labels.txt', 'LOC_val_solution.csv')


def read_labels(path: Path, classes: Sequence[str]) -> dict[str, int]:
    """File name, without its folders -> label. UserError that names the line."""
    return read_list(path, classes, key=file_name)


def file_name(name: str) -> str:
    """Without its folders, also as Windows writes them."""
    return re.split(r'[/\\]', name)[-1]


def is_list(name: str) -> bool:
    """Of which pictures are for training or testing: train_list.txt, val.csv and the like."""
    return re.fullmatch(r'(?i)(train|test|val)\w*\.(txt|csv|lst)', name) is not None
