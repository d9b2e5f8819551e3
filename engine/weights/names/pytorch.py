"""PyTorch's names (torchvision, timm, mmpretrain, xternalz/WideResNet-pytorch) -> ours."""

from __future__ import annotations

from typing import Iterable

import numpy as np

_ENTRIES = {'running_mean': '_mean', 'running_var': '_variance'}


def are_theirs(names: Iterable[str]) -> bool:
    return any(name.endswith(('.running_mean', '.running_var')) for name in names)


def our_name(name: str) -> str:
    module, dot, entry = name.rpartition('.')
    return module + dot + _ENTRIES.get(entry, entry)


def our_array(name: str, array: np.ndarray) -> np.ndarray:
    """The weight of a linear layer is [out, in] there, and [in, out] here."""
    return array.T if array.ndim == 2 and name.rpartition('.')[2] == 'weight' else array
