"""Arrays -> a model of the same names and shapes; an error says what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Optional, Union

import numpy as np

from engine.errors import UserError
from engine.weights.converted import Converted, some, summary
from engine.weights.names.head import is_of_head
from engine.weights.names.networks import looks_like
from engine.weights.reading import read_weights

if TYPE_CHECKING:
    from paddle import nn

_DROP = 'model.pretrained_head: drop'


@dataclass(frozen=True)
class Report:
    """What became of a file's entries.

    `mapped` and `initial` are names of the model: loaded, and kept as initialised. `dropped` has
    'name (reason)' of what else the file has, `folded` counts convolution biases, `notes` are
    further lines for the user.
    """

    mapped: list[str]
    dropped: list[str]
    initial: list[str]
    source: str = ''
    folded: int = 0
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for the user: whose names, totals, and a few names of what was left out."""
        source = [self.source] if self.source else []
        left = f'left at their initial values: {some(self.initial)}'
        totals = summary(len(self.mapped), self.folded, self.dropped)
        return [*source, *totals, *([left] if self.initial else []), *self.notes]


def load_weights(model: nn.Layer, path: Union[str, Path], *, head: str = 'keep') -> Report:
    """Read a weight file of any supported project, and load it into a model.

    With head='drop' the last layer of the model stays as it is. Raises UserError that names the
    keys and shapes that don't fit; the model is then unchanged.
    """
    return fit_weights(model, read_weights(path), str(path), head=head)


def fit_weights(
    model: nn.Layer,
    weights: Union[Converted, Mapping[str, np.ndarray]],
    where: str,
    *,
    head: str = 'keep',
) -> Report:
    """As `load_weights`, for the result of `read_weights`, or for arrays, read from `where`."""
    if head not in ('keep', 'drop'):
        raise ValueError(f"head must be 'keep' or 'drop', not {head!r}")
    given = weights if isinstance(weights, Converted) else Converted(dict(weights), '')
    own = model.state_dict()
    initial = {name: own[name] for name in own if head == 'drop' and is_of_head(name)}
    expected = {name: tensor for name, tensor in own.items() if name not in initial}
    left_out = [name for name in given.arrays if head == 'drop' and is_of_head(name)]
    arrays = {name: array for name, array in given.arrays.items() if name not in left_out}
    if problem := _problem(arrays, expected):
        raise UserError(f'{where} does not fit the model: {problem}')
    cast = {name: _cast(arrays[name], tensor) for name, tensor in expected.items()}
    model.set_state_dict({**cast, **initial})
    dropped = [*given.dropped, *(f'{name} (of the head)' for name in left_out)]
    return Report([*expected], dropped, [*initial], given.source, given.folded, given.notes)


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).rpartition('.')[2]


def _cast(array: np.ndarray, tensor: Any) -> Any:
    """The array in the tensor's type, which NumPy may not have."""
    if _dtype(tensor) != 'bfloat16':
        return np.ascontiguousarray(array, _dtype(tensor))
    import paddle

    return paddle.to_tensor(np.asarray(array, np.float32)).astype('bfloat16')


def _problem(arrays: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> Optional[str]:
    """What doesn't fit, in one line that helps; None if all does."""
    other = {
        name: difference
        for name, tensor in expected.items()
        if name in arrays and (difference := _difference(arrays[name], tensor))
    }
    missing = [name for name in expected if name not in arrays]
    unknown = [name for name in arrays if name not in expected]
    problems = [f'{name} is {difference} in the model' for name, difference in [*other.items()][:3]]
    problems += [f'missing there: {some(missing)}'] if missing else []
    problems += [f'unknown here: {some(unknown)}'] if unknown else []
    if not problems:
        return None
    if all(map(is_of_head, (*other, *missing, *unknown))):
        return _problem_of_head(problems, missing, unknown)
    theirs, ours = (
        looks_like({name: tuple(value.shape) for name, value in values.items()})
        for values in (arrays, expected)
    )
    if theirs is not None and theirs != ours:
        problems.append(f'the weights look like {theirs}' + (f', not {ours}' if ours else ''))
    return '; '.join(problems)


def _problem_of_head(problems: list[str], missing: list[str], unknown: list[str]) -> str:
    """What to do if only the last layer does not fit."""
    advice = f'to train from the rest, set {_DROP}'
    if missing and not unknown:
        return f'its last layer is {problems[-1]}; {advice}; it cannot be measured without one'
    if missing:
        return f'it ends in several layers ({some(unknown)}) where the network has one; {advice}'
    return '; '.join(problems) + (
        f'; these are other classes: to train for them, set {_DROP}; '
        'to measure those of the file, model.num_classes'
    )


def _difference(array: np.ndarray, tensor: Any) -> Optional[str]:
    if list(array.shape) != list(tensor.shape):
        return f'{list(array.shape)} there and {list(tensor.shape)}'
    return None if array.dtype.kind == 'f' else f'{array.dtype} there and {_dtype(tensor)}'
