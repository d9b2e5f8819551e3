"""Arrays by their names: those of a model, and the file that we write of them (.pdparams)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Mapping, Optional

import numpy as np

from engine import safe_pickle
from engine.errors import UserError

if TYPE_CHECKING:
    from paddle import nn

Arrays = dict[str, np.ndarray]

PADDLE_NAMES = 'StructuredToParameterName@@'  # an entry that paddle.save adds to a state dict


def write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .pdparams or .pdopt, which paddle.load reads, too."""
    pickle.dump(dict(arrays), file, protocol=4)


def parse_arrays(data: bytes, path: Path) -> Arrays:
    """The arrays of a file that `write_arrays` wrote, from its content; names stay as they are."""
    content = require_dict(safe_pickle.loads(data, str(path)), path)
    content.pop(PADDLE_NAMES, None)
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise UserError(f'{path} is not a state dict: {name!r} is not the name of an array')
    return content


def require_dict(content: Any, path: Path) -> dict[Any, Any]:
    """The content of a file; UserError if it is no dict."""
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a state dict')
    return content


def state_arrays(model: nn.Layer) -> Arrays:
    """A copy of the model's weights and running statistics."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def float32_arrays(tensors: Mapping[str, Any]) -> Arrays:
    """A copy of a state dict's tensors."""
    return {name: tensor.astype('float32').numpy().copy() for name, tensor in tensors.items()}


def first_not_finite(arrays: Mapping[str, np.ndarray]) -> Optional[str]:
    """The name of an array that holds an infinity or a NaN, or None."""
    return next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)


def float32_of_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The numbers of bfloat16, which NumPy lacks: the upper halves of float32, exactly."""
    wide: np.ndarray = np.left_shift(bits, 16, dtype='<u4')
    return wide.view('<f4')
