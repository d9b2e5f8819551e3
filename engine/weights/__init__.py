"""Weight files <-> models.

Ours are `.pdparams` (Paddle's pickle, a flat map of state-dict names to arrays) and `.safetensors`.
Other projects' are read, too: what a file is is found from its content (here), whose it is from its
keys (foreign.py). Nothing in a file is ever run (engine/safe_pickle.py).

    report = load_weights(model, 'resnext50_32x4d-1110c45c.pth')     # torchvision's
    print(*report.lines(), sep='\\n')
    $ python3 -m engine.weights convert resnext50_32x4d-1110c45c.pth resnext50.pdparams
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Mapping, Optional, Union

import numpy as np

from engine import safe_pickle
from engine.errors import UserError
from engine.files import sha256_of_open
from engine.weights.fold import fold_biases
from engine.weights.formats import mindspore as mindspore_file
from engine.weights.formats import pytorch as torch_file
from engine.weights.formats import safetensors as safetensors_file
from engine.weights.formats import shards
from engine.weights.formats.pickled_classes import OTHER_CLASSES
from engine.weights.names import (
    PADDLE_NAMES,
    Arrays,
    Converted,
    account,
    convert,
    is_of_head,
    looks_like,
    some,
)
from engine.weights.official import OFFICIAL, resolve

if TYPE_CHECKING:
    from paddle import nn

__all__ = [
    'Arrays',
    'Converted',
    'OFFICIAL',
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

_NO_WEIGHTS = {  # how files begin that are mistaken for weights
    b'\x1f\x8b': 'is a gzip archive: unpack it',
    b'\x89HDF': 'is an HDF5 file (of Keras?), which is not read',
    b'version https://git-lfs': 'is only a pointer of Git LFS: fetch the file with git lfs pull',
    b'<!DOCTYPE': 'is a web page: the download has not delivered the weights',
    b'<!doctype': 'is a web page: the download has not delivered the weights',
    b'<html': 'is a web page: the download has not delivered the weights',
    **dict.fromkeys(  # of AES-GCM, and of AES-CBC and SM4-CBC
        (b'\xd8^:\x7f', b'\xd9^:\x7f'), 'is encrypted by MindSpore: save it without enc_key'
    ),
}
_NO_WEIGHT_FILES = {  # and their suffixes
    **dict.fromkeys(('.json', '.yml', '.yaml'), 'describes a model'),
    **dict.fromkeys(('.onnx', '.pdmodel', '.mindir', '.air', '.om'), 'is an exported model'),
    '.pdiparams': "is an exported model's parameters without their names",
    '.pdopt': "is an optimizer's state",
    '.pdstates': 'says how far a training is',
    '.t7': 'is a file of Torch 7 (Lua), which is not read',
}


@dataclass(frozen=True)
class Report:
    """What became of a file's entries.

    `mapped` and `initial` are names of the model: loaded, and kept as initialised. `dropped` has
    'name (reason)' of what the file has beyond them, `folded` counts convolution biases, `notes`
    say what else is to be known.
    """

    mapped: list[str]
    dropped: list[str]
    initial: list[str]
    source: str = ''
    folded: int = 0
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The account, for people: whose names, totals, and a few names of what was left out."""
        counts = account(len(self.mapped), self.folded, self.dropped, self.initial)
        return [*([self.source] if self.source else []), *counts, *self.notes]


def write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .pdparams or .pdopt that paddle.load reads, too."""
    pickle.dump(dict(arrays), file, protocol=4)


def read_weights(path: Union[str, Path]) -> Converted:
    """A weight file of any project: its arrays under our names, and what was done to them.

    `path` may be a name in OFFICIAL. UserError if the file is missing, damaged, of no network, or
    would run code.
    """
    path = resolve(path)
    if path.is_dir():
        folder, found = path, shards.file_in(path)
        if found is None:
            raise UserError(f'{folder} is a folder; name the weight file in it (best.pdparams)')
        path = found
    content: Any = None
    size, torch, sums = 0, False, []
    try:
        with contextlib.ExitStack() as opened:  # some arrays are read when converted
            for part in shards.files_of(path):
                file = opened.enter_context(part.open('rb'))
                found_in_it, torch = _read_content(file, part)
                size += file.seek(0, 2)
                content = _merged(content, found_in_it, part)
                sums.append(sha256_of_open(file))  # of what is read, whatever is there later
            converted = convert(content, path, torch=torch)
            joined = hashlib.sha256('\n'.join(sums).encode()).hexdigest()
            converted.sha256 = sums[0] if len(sums) == 1 else joined
    except OSError as error:
        raise UserError(f'cannot read the weights {path}: {error.strerror}') from None
    claimed = sum(array.nbytes for array in converted.arrays.values())
    if claimed > 4 * size:  # more than bfloat16 becoming float32, and a weight shared by two layers
        raise UserError(f'{path} is damaged: {claimed:,} bytes of arrays in a file of {size:,}')
    try:
        converted.folded = fold_biases(converted.arrays)
    except ValueError as error:
        raise UserError(f'{path} has a bias that cannot be folded: {error}') from None
    return converted


def _merged(content: Any, more: Any, path: Path) -> Any:
    """The entries of several files together; each file must hold a dict."""
    if content is None:
        return more
    if not isinstance(more, dict) or not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(more).__name__}, not a state dict')
    return {**content, **more}


def _read_content(file: BinaryIO, path: Path) -> tuple[Any, bool]:
    """What is in the file, and whether it is in one of PyTorch's formats."""
    head, size = file.read(512), file.seek(0, 2)
    file.seek(0)
    for beginning, what in _NO_WEIGHTS.items():
        if head.startswith(beginning):
            raise UserError(f'{path} is damaged or no weight file: it {what}')
    if head[257:262] == b'ustar':
        raise UserError(f'{path} is a tar archive: unpack it, and name the weight file inside')
    if head.startswith((b'PK\x03\x04', b'PK\x05\x06')):
        return torch_file.read_zip(file, path), True
    if torch_file.MAGIC in head[:32]:
        return torch_file.read_legacy(file, path), True
    if path.suffix == '.safetensors' or safetensors_file.looks_like_one(head, size):
        return _read_safetensors(file, path), False
    if mindspore_file.looks_like_one(head):
        return _read_mindspore(file, path), False
    if path.suffix in _NO_WEIGHT_FILES:
        raise UserError(f'{path} is no weight file: it {_NO_WEIGHT_FILES[path.suffix]}')
    return safe_pickle.guarded(safe_pickle.Unpickler(file, OTHER_CLASSES), str(path)), False


def parse_arrays(data: bytes, path: Path) -> Arrays:
    """The arrays of a file of our own, of which these are the bytes: names stay as they are."""
    if path.suffix == '.safetensors':
        content: Any = _read_safetensors(io.BytesIO(data), path)
    else:
        content = safe_pickle.loads(data, str(path))
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}, not a state dict')
    content.pop(PADDLE_NAMES, None)
    foreign = [
        repr(name)
        for name, value in content.items()
        if not isinstance(name, str) or not isinstance(value, np.ndarray)
    ]
    if foreign:
        raise UserError(f'{path} is not a state dict: {foreign[0]} is no name of an array')
    return content


def load_weights(model: nn.Layer, path: Union[str, Path], *, head: str = 'keep') -> Report:
    """Convert a weight file of any project, and load it into a model of its names and shapes.

    With head='drop' the last layer stays as it is in the model, whatever the file has. Raises
    UserError that names the keys and shapes that don't fit; the model is then unchanged.
    """
    return fit_weights(model, read_weights(path), str(path), head=head)


def fit_weights(
    model: nn.Layer,
    weights: Union[Converted, Mapping[str, np.ndarray]],
    where: str,
    *,
    head: str = 'keep',
) -> Report:
    """As `load_weights`, from what `read_weights` gave, or from arrays, that came from `where`."""
    if head not in ('keep', 'drop'):
        raise ValueError(f"head must be 'keep' or 'drop', not {head!r}")
    given = weights if isinstance(weights, Converted) else Converted(dict(weights), '')
    own = {name: _Slot(tensor) for name, tensor in model.state_dict().items()}
    initial = [name for name in own if head == 'drop' and is_of_head(name)]
    wanted = {name: slot for name, slot in own.items() if name not in initial}
    left_out = [name for name in given.arrays if head == 'drop' and is_of_head(name)]
    arrays = {name: array for name, array in given.arrays.items() if name not in left_out}
    if problem := _problem(arrays, wanted):
        raise UserError(f'{where} does not fit the model: {problem}')
    # A file in half or double precision is cast to what the model has.
    cast = {name: slot.cast(arrays[name]) for name, slot in wanted.items()}
    model.set_state_dict({**cast, **{name: own[name].tensor for name in initial}})
    dropped = [*given.dropped, *(f'{name} (of the head)' for name in left_out)]
    return Report([*wanted], dropped, initial, given.source, given.folded, given.notes)


class _Slot:
    """Where an array goes."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.shape = tensor, tuple(tensor.shape)
        self.dtype = str(tensor.dtype).rpartition('.')[2]

    def cast(self, array: np.ndarray) -> Any:
        """The array in the type of this slot, which NumPy may not have."""
        if self.dtype != 'bfloat16':
            return np.ascontiguousarray(array, self.dtype)
        import paddle

        return paddle.to_tensor(np.asarray(array, np.float32)).astype(self.dtype)


def _problem(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, _Slot]) -> Optional[str]:
    """What doesn't fit, in one line that helps; None where all does."""
    other = [
        (name, difference)
        for name, slot in wanted.items()
        if name in arrays and (difference := _difference(arrays[name], slot))
    ]
    missing = [name for name in wanted if name not in arrays]
    unknown = [name for name in arrays if name not in wanted]
    problems = [f'{name} is {difference} in the model' for name, difference in other[:3]]
    problems += [f'missing there: {some(missing)}'] if missing else []
    problems += [f'unknown here: {some(unknown)}'] if unknown else []
    if not problems:
        return None
    theirs = looks_like({name: array.shape for name, array in arrays.items()})
    ours = looks_like({name: slot.shape for name, slot in wanted.items()})
    if all(is_of_head(name) for name in (*(name for name, _ in other), *missing, *unknown)):
        return _problem_of_head(problems, missing, unknown)
    if theirs is not None and theirs != ours:
        problems.append(f'the weights look like {theirs}' + (f', not {ours}' if ours else ''))
    return '; '.join(problems)


def _problem_of_head(problems: list[str], missing: list[str], unknown: list[str]) -> str:
    """What is to be done where all fits but the last layer."""
    drop = 'to train from the rest, set model.pretrained_head: drop'
    if missing and not unknown:
        return f'its last layer is {problems[-1]}; {drop}; it cannot be measured without one'
    if missing:
        return f'it ends in several layers ({some(unknown)}) where the network has one; {drop}'
    problems.append(
        'these are other classes: to train for them, set model.pretrained_head: drop; '
        'to measure those of the file, model.num_classes'
    )
    return '; '.join(problems)


def _difference(array: np.ndarray, slot: _Slot) -> Optional[str]:
    if array.shape != slot.shape:
        return f'{list(array.shape)} there and {list(slot.shape)}'
    return None if array.dtype.kind == 'f' else f'{array.dtype} there and {slot.dtype}'


def state_arrays(model: nn.Layer) -> Arrays:
    """A copy of the model's weights and running statistics."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def float32_arrays(tensors: Mapping[str, Any]) -> Arrays:
    """A copy of a state dict's tensors."""
    return {name: tensor.astype('float32').numpy().copy() for name, tensor in tensors.items()}


def first_not_finite(arrays: Mapping[str, np.ndarray]) -> Optional[str]:
    """The name of an array that holds an infinity or a NaN, None where there is none."""
    return next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)


def _read_mindspore(file: BinaryIO, path: Path) -> dict[str, Any]:
    try:
        return mindspore_file.read(file)
    except ValueError as error:
        raise UserError(f'{path} is damaged or not a MindSpore checkpoint ({error})') from None


def _read_safetensors(file: BinaryIO, path: Path) -> Arrays:
    try:
        return safetensors_file.read(file)
    except ValueError as error:
        raise UserError(f'{path} is damaged or not a safetensors file ({error})') from None
