"""The state dict inside of a training checkpoint, and the arrays in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

import numpy as np

from engine.errors import UserError
from engine.weights.arrays import PADDLE_NAMES, Arrays, float32_of_bfloat16, require_dict
from engine.weights.converted import some
from engine.weights.formats.pytorch_pickle import Tensor

# Where checkpoints keep their state dicts, best first; averaged weights are those to evaluate.
AVERAGED = (
    *('state_dict_ema', 'model_ema', 'ema_state_dict', 'model_ema_state_dict', 'ema_model', 'ema'),
    *('averaged_model', 'swa_model', 'swa_state_dict'),
)
PLAIN = (
    *('state_dict', 'model', 'model_state_dict', 'model_state', 'net', 'network', 'module'),
    *('state', 'weights', 'params'),
)
_COUNTERS = ('num_batches_tracked', 'n_averaged')
_MAX_DEPTH = 3


def find(content: Any, path: Path) -> tuple[Mapping[Any, Any], list[str]]:
    """The state dict, and text that says where it was."""
    place: list[str] = []
    for _ in range(_MAX_DEPTH):
        inner = {
            key: value
            for key, value in require_dict(content, path).items()
            if isinstance(key, str) and key.isprintable() and key != 'optimizer'
            if isinstance(value, dict) and _holds_arrays(value)
        }
        key = next((key for key in (*AVERAGED, *PLAIN) if key in inner), None)
        if key is None:
            if not inner or any(map(_is_array, content.values())):
                break
            if len(inner) > 1:
                raise UserError(f'{path} holds several state dicts: {some([*inner])}')
            (key,) = inner
        place.append(f'from {key!r}')
        if key in AVERAGED:
            other = next((name for name in PLAIN if name in inner), None)
            place[-1] += ' (averaged weights' + (f', rather than {other!r})' if other else ')')
        content = inner[key]
    return content, place


def _holds_arrays(content: Mapping[Any, Any], depth: int = 1) -> bool:
    """Whether it is a state dict, or contains one; the state of an optimizer is not one."""
    named = [value for key, value in content.items() if isinstance(key, str)]
    if any(map(_is_array, named)):
        return True
    inner = [value for value in named if isinstance(value, dict)]
    return depth < _MAX_DEPTH and any(_holds_arrays(value, depth + 1) for value in inner)


def _is_array(value: Any) -> bool:
    """In a nested dict, paddle.save makes of a tensor (its own name, its numbers)."""
    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[1], np.ndarray)
    return isinstance(value, (np.ndarray, Tensor))


def arrays_of(state: Mapping[Any, Any], path: Path) -> tuple[Arrays, list[str]]:
    """NumPy arrays of all entries that are arrays, and 'name (reason)' of those that are not."""
    arrays, dropped = {}, []
    for name, value in state.items():
        if not isinstance(name, str) or not name.isprintable():
            shown = repr(name[:100]) if isinstance(name, str) else f'a {type(name).__name__}'
            raise UserError(f'{path} is not a state dict: {shown} is not the name of an array')
        problem = value.problem if isinstance(value, Tensor) else None
        if name == PADDLE_NAMES:
            continue
        if name.rpartition('.')[2] in _COUNTERS:
            dropped.append(f'{name} (counters)')
        elif problem or not _is_array(value):
            dropped.append(f'{name} ({problem or "not arrays"})')
        elif isinstance(value, Tensor):
            arrays[name] = value.array()
        else:
            array = value[1] if isinstance(value, tuple) else value
            # Paddle saves bfloat16 as uint16, a type that weights do not have otherwise.
            arrays[name] = float32_of_bfloat16(array) if array.dtype == np.uint16 else array
    if not arrays:
        raise UserError(f'{path} is not a state dict: it is empty')
    return arrays, dropped
