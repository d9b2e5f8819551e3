"""Weight files <-> models.

A weight file is a flat map of state-dict names to arrays: `.pdparams` (Paddle's pickle, read
without running code) or `.safetensors`.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Mapping, Optional, Union

import numpy as np

from engine import safe_pickle
from engine.errors import UserError

if TYPE_CHECKING:
    from paddle import nn

Arrays = dict[str, np.ndarray]

_PADDLE_NAMES = 'StructuredToParameterName@@'  # what paddle.save adds to a state dict


@dataclass(frozen=True)
class Report:
    """What became of a file's entries: names that were loaded, left out, or kept as initialised.

    All are loaded, as long as only files of the model itself are read.
    """

    mapped: list[str]
    dropped: list[str]
    initial: list[str]


def write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .pdparams or .pdopt that paddle.load reads, too."""
    pickle.dump(dict(arrays), file, protocol=4)


def read_arrays(path: Union[str, Path]) -> Arrays:
    """The arrays of a weight file. UserError if it is missing, damaged, or would run code."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f'cannot read the weights {path}: {error.strerror}') from None
    arrays = parse_arrays(data, path)
    if not arrays:
        raise UserError(f'{path} is not a state dict: it is empty')
    return arrays


def parse_arrays(data: bytes, path: Path) -> Arrays:
    """As `read_arrays`, of bytes that came from `path`."""
    if path.suffix == '.safetensors':
        content = _parse_safetensors(data, path)
    else:
        content = safe_pickle.loads(data, str(path))
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a state dict')
    content.pop(_PADDLE_NAMES, None)
    foreign = [
        repr(name)
        for name, value in content.items()
        if not isinstance(name, str) or not isinstance(value, np.ndarray)
    ]
    if foreign:
        raise UserError(f'{path} is not a state dict: {foreign[0]} is no name of an array')
    return content


def load_weights(model: nn.Layer, path: Union[str, Path]) -> Report:
    """Load a weight file into a model whose names and shapes it matches.

    Raises UserError that names the keys and shapes that don't fit; the model is then unchanged.
    """
    return fit_weights(model, read_arrays(path), str(path))


def fit_weights(model: nn.Layer, arrays: Mapping[str, np.ndarray], where: str) -> Report:
    """As `load_weights`, from arrays that came from `where`."""
    own = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    common = [name for name in own if name in arrays]
    other = [
        f'{name} is {theirs} there and {ours} in the model'
        for name in common
        for theirs, ours in _differences(arrays[name], own[name])
    ]
    missing = [name for name in own if name not in arrays]
    unknown = [name for name in arrays if name not in own]
    problems = [*other[:3], *_some('missing there', missing), *_some('unknown here', unknown)]
    if problems:
        raise UserError(f'{where} does not fit the model: {"; ".join(problems)}')
    # A file in half or double precision is cast to what the model has.
    model.set_state_dict({name: arrays[name].astype(own[name].dtype) for name in own})
    return Report(mapped=list(own), dropped=[], initial=[])


def state_arrays(model: nn.Layer) -> Arrays:
    """A copy of the model's weights and running statistics."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def first_not_finite(arrays: Mapping[str, np.ndarray]) -> Optional[str]:
    """The name of an array that holds an infinity or a NaN, None where there is none."""
    return next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)


def _differences(theirs: np.ndarray, ours: np.ndarray) -> list[tuple[str, str]]:
    if theirs.shape != ours.shape:
        return [(str(list(theirs.shape)), str(list(ours.shape)))]
    return [] if theirs.dtype.kind == ours.dtype.kind else [(str(theirs.dtype), str(ours.dtype))]


def _some(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return [f'{what}: {", ".join(names[:3])}{more}']


def _parse_safetensors(data: bytes, path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(data))
    except (SafetensorError, KeyError, TypeError) as error:  # KeyError: bfloat16, which NumPy lacks
        raise UserError(f'{path} is damaged or not a safetensors file ({error})') from None
