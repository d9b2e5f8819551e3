"""The pickles inside of PyTorch's files: tensors, which are views of storages, without PyTorch.

Type, offset, size and strides of a view are checked before a byte is read. A storage is read when
its array is requested, so that optimizer states cost nothing.
"""

from __future__ import annotations

import pickle
from typing import Any, BinaryIO, Callable, Optional

import numpy as np

from engine.safe_pickle import Global, Known, Placeholder, Unpickler, placeholder
from engine.weights.arrays import float32_of_bfloat16
from engine.weights.formats.pickled_classes import OTHER_CLASSES

_STORAGES = {
    'Double': 'float64',
    'Float': 'float32',
    'Half': 'float16',
    'BFloat16': 'bfloat16',
    'Long': 'int64',
    'Int': 'int32',
    'Short': 'int16',
    'Char': 'int8',
    'Byte': 'uint8',
    'Bool': 'bool',
    'Untyped': 'uint8',
}
_NUMBERS = (*_STORAGES.values(), 'uint16', 'uint32', 'uint64')
_MAX_DIMENSIONS = 32


def itemsize(kind: str) -> int:
    return 2 if kind == 'bfloat16' else np.dtype(kind).itemsize


class Storage:
    """The bytes that tensors view, read when first needed."""

    def __init__(self, key: str, kind: str, count: int, read: Callable[[str, int], bytes]) -> None:
        self.key, self.kind, self.size = key, kind, count * itemsize(kind)
        self._read = read
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, kind: str) -> np.ndarray:
        """All of it as numbers of that kind, bfloat16 as float32; the same array every time."""
        if kind not in self._arrays:
            data = self._read(self.key, self.size)
            whole = len(data) - len(data) % itemsize(kind)
            halves = kind == 'bfloat16'
            numbers = np.frombuffer(data[:whole], '<u2' if halves else np.dtype(kind))
            self._arrays[kind] = float32_of_bfloat16(numbers) if halves else numbers
        return self._arrays[kind]


class Tensor:
    """A view of a storage that lies inside of it."""

    def __init__(
        self, storage: Any, offset: Any, shape: Any, strides: Any, kind: Any = None
    ) -> None:
        if not isinstance(storage, Storage):
            raise pickle.UnpicklingError('a tensor without a storage')
        self.storage, self.shape = storage, _whole_numbers(shape)
        self.kind = storage.kind if kind is None else kind
        (self.offset,), self.strides = _whole_numbers((offset,)), _whole_numbers(strides)
        if len(self.strides) != len(self.shape) or len(self.shape) > _MAX_DIMENSIONS:
            raise pickle.UnpicklingError('a tensor with strides that are not of its shape')
        if isinstance(self.kind, str):
            self._check(storage.size // itemsize(self.kind))
        if 0 in self.shape:
            np.zeros(self.shape, bool)  # a shape that NumPy refuses is refused now

    def _check(self, available: int) -> None:
        """Error if it reaches outside of the storage or, by strides of 0, is larger than it."""
        count, last = 1, self.offset
        for length, stride in zip(self.shape, self.strides):
            count *= length
            last += (length - 1) * stride
        if count and (last >= available or count > available):
            raise pickle.UnpicklingError(
                f'a tensor of shape {list(self.shape)} reaches beyond its storage of '
                f'{available:,} numbers'
            )

    @property
    def problem(self) -> Optional[str]:
        """Why it cannot become an array, or None."""
        return None if isinstance(self.kind, str) else f'its numbers are {self.kind.what}'

    def array(self) -> np.ndarray:
        """The numbers, in memory that other arrays may share: read-only."""
        numbers = self.storage.array(self.kind)
        if 0 in self.shape:
            return np.zeros(self.shape, numbers.dtype)
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.ndarray(
            self.shape, numbers.dtype, numbers.data, self.offset * numbers.itemsize, strides
        )


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)):
        raise pickle.UnpicklingError('a tensor without a shape')
    if any(type(value) is not int or value < 0 for value in values):
        raise pickle.UnpicklingError('a tensor with an impossible offset, shape or stride')
    return tuple(values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    """`more`: whether it needs a gradient, its hooks, and since PyTorch 1.13 its flags."""
    if any(more[2:]):  # flags of negated and conjugated views, whose numbers are not those stored
        raise pickle.UnpicklingError('a tensor that is a negated view')
    return Tensor(storage, offset, shape, strides)


def _tensor_of_bytes(storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Tensor:
    """A tensor of a newer type, which has no storage class: the storage is bytes."""
    kind = more[2]
    if any(more[3:]) or not (kind in _NUMBERS or isinstance(kind, Placeholder)):
        raise pickle.UnpicklingError('a tensor of an unusual kind')
    return Tensor(storage, offset, shape, strides, kind)


def _of_type(rebuild: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    """A tensor with attributes."""
    if not isinstance(rebuild, Global):
        raise pickle.UnpicklingError('it calls what is not a name')
    return rebuild.rebuild(*arguments)


def _first(data: Any, *_: Any) -> Any:
    return data


def _constant(name: str) -> Callable[..., Any]:
    """A data type: as the pickle refers to it without calling it, `find_class` returns this."""
    kind = name.split('.')[1]
    return lambda: kind if kind in _NUMBERS else Placeholder(name)


_TYPES = (
    *('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8'),
    *('uint16', 'uint32', 'uint64', 'bool', 'complex32', 'complex64', 'complex128'),
    *('float8_e4m3fn', 'float8_e5m2', 'float8_e4m3fnuz', 'float8_e5m2fnuz', 'float8_e8m0fnu'),
    *('qint8', 'quint8', 'qint32', 'strided', 'channels_last', 'contiguous_format'),
)
_CONSTANTS: Known = {('torch', name): _constant(f'torch.{name}') for name in _TYPES}
_KNOWN: Known = {
    **OTHER_CLASSES,
    **_CONSTANTS,
    **{
        (module, f'{name}Storage'): placeholder(f'torch.{name}Storage')
        for module in ('torch', 'torch.cuda', 'torch.storage')
        for name in _STORAGES
    },
    ('torch._utils', '_rebuild_tensor'): _tensor,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_tensor_v3'): _tensor_of_bytes,
    ('torch._utils', '_rebuild_parameter'): _first,
    ('torch._utils', '_rebuild_parameter_with_state'): _first,
    ('torch._tensor', '_rebuild_from_type_v2'): _of_type,
    ('torch', 'Tensor'): placeholder('torch.Tensor'),
    ('torch', 'Size'): lambda sizes=(): tuple(sizes),
    ('torch', 'device'): placeholder('torch.device'),
    ('torch', 'Generator'): placeholder('torch.Generator'),
    ('torch.serialization', '_get_layout'): placeholder('torch.layout'),
    ('torch.nn.parameter', 'Parameter'): _first,
    ('torch.nn.parameter', 'Buffer'): _first,
}


class TorchUnpickler(Unpickler):
    def __init__(self, file: BinaryIO, read: Callable[[str, int], bytes]) -> None:
        super().__init__(file, _KNOWN, encoding='utf-8')
        self.storages: dict[str, Storage] = {}
        self._read = read

    def find_class(self, module: str, name: str) -> Any:
        constant = _CONSTANTS.get((module, name))
        return constant() if constant else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """('storage', class, key, device, count), before 1.6 with a view of another storage."""
        what, kind, key, _, count, *rest = pid
        name = kind.name.rpartition('.')[2] if isinstance(kind, Global) else ''
        key = str(key)
        sound = what == 'storage' and key.isprintable() and len(key) < 100
        if not sound or name[: -len('Storage')] not in _STORAGES:
            raise pickle.UnpicklingError('a storage of an unusual kind')
        if rest and rest[0] is not None:
            raise pickle.UnpicklingError('a view of a storage, as PyTorch before 0.4 wrote it')
        _whole_numbers((count,))
        storage = Storage(key, _STORAGES[name[: -len('Storage')]], count, self._read)
        known = self.storages.setdefault(storage.key, storage)
        if (known.kind, known.size) != (storage.kind, storage.size):
            raise pickle.UnpicklingError(f'two different storages with the key {key}')
        return known
