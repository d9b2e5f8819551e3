"""Reads pickles of arrays and containers without running their code.

CIFAR's python batches, Paddle's .pdparams and PyTorch's files are pickles. A pickle can name any
function and call it. Here names are looked up in a fixed table of functions of this repository, and
all other names are refused. NumPy's own functions that rebuild arrays are not called, since they
trust the sizes and types in the file.
"""

from __future__ import annotations

import _compat_pickle
import collections
import io
import math
import pickle
import re
from dataclasses import dataclass
from typing import Any, BinaryIO, Callable, ClassVar, Mapping, Optional, Union

import numpy as np

from engine.errors import UserError

Known = Mapping[tuple[str, str], Callable[..., Any]]

_TYPE = re.compile(r'[<>=|]?([?]|[biufcSUO]\d{1,9})')


@dataclass(frozen=True)
class Global:
    """A name in a pickle, and the function that replaces it."""

    name: str
    rebuild: Callable[..., Any]


class Placeholder:
    """Stands for an object that is not needed here; ignores its content."""

    def __init__(self, what: str) -> None:
        self.what = what

    def ignore(self, *_: Any) -> None:
        """Replaces every method by which a pickle fills an object."""

    append = extend = update = __setitem__ = ignore


def placeholder(what: str) -> Callable[..., Placeholder]:
    """Replaces a class whose objects are not needed."""
    return lambda *_: Placeholder(what)


class _Type:
    """A NumPy dtype of plain numbers, text or objects; one with fields or a subarray is refused."""

    def __init__(self, text: Union[str, bytes], *_: Any) -> None:
        self.text = text.decode('ascii') if isinstance(text, bytes) else text
        if not isinstance(self.text, str) or not _TYPE.fullmatch(self.text):
            raise pickle.UnpicklingError('an array of an unusual type')

    def set_byte_order(self, state: Any) -> None:
        order = state[1].decode('ascii') if isinstance(state[1], bytes) else state[1]
        if order not in ('<', '>', '|', '=') or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError('an array of an unusual type')
        self.text = order + self.text.lstrip('<>=|')

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.text)


def _empty_array(kind: Any, *_: Any) -> np.ndarray:
    """numpy's _reconstruct: an array whose content follows."""
    if not isinstance(kind, Global) or kind.name != 'numpy.ndarray':
        raise pickle.UnpicklingError('an array of an unusual class')
    return np.ndarray.__new__(np.ndarray, (0,), 'b')


def _fill_array(array: np.ndarray, state: Any) -> None:
    shape, kind, fortran, content = state[-4:]
    dtype = _checked(kind).dtype
    count = _element_count(shape)
    size = len(content) if dtype.hasobject else len(content) // (dtype.itemsize or 1)
    if not isinstance(content, list if dtype.hasobject else bytes) or size != count:
        raise pickle.UnpicklingError('an array whose content is not of its shape')
    array.__setstate__((1, shape, dtype, bool(fortran), content))  # type: ignore[arg-type]


def _array_of_buffer(buffer: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """numpy's _frombuffer, which protocol 5 uses."""
    _element_count(shape)
    if not isinstance(buffer, (bytes, bytearray)) or order not in ('C', 'F'):
        raise pickle.UnpicklingError('an array of an unusual buffer')
    return np.frombuffer(buffer, _checked(kind).dtype).reshape(shape, order=order)


def _scalar(kind: Any, content: Any = None) -> Any:
    dtype = _checked(kind).dtype
    if dtype.hasobject:
        return Placeholder('a NumPy object')
    if not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise pickle.UnpicklingError('a number whose content is not of its type')
    return np.frombuffer(content, dtype)[0]


def _checked(kind: Any) -> _Type:
    if not isinstance(kind, _Type):
        raise pickle.UnpicklingError('an array without a type')
    return kind


def _element_count(shape: Any) -> int:
    if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape):
        raise pickle.UnpicklingError('an array of an impossible shape')
    return math.prod(shape)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as protocols below 3 have them."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError('bytes in an unusual encoding')
    return text.encode('latin1')


_CORES = ('numpy.core', 'numpy._core')  # before and since NumPy 2
ARRAYS: Known = {
    ('numpy', 'ndarray'): placeholder('numpy.ndarray'),
    ('numpy', 'dtype'): _Type,
    **{(f'{core}.multiarray', '_reconstruct'): _empty_array for core in _CORES},
    **{(f'{core}.multiarray', 'scalar'): _scalar for core in _CORES},
    **{(f'{core}.numeric', '_frombuffer'): _array_of_buffer for core in _CORES},
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('_codecs', 'encode'): _encode,
}


class Unpickler(pickle._Unpickler):
    """Python's unpickler, with all instructions replaced that call functions or fill objects.

    The one in C allows only `find_class` to be replaced. This one reads the bytes of arrays, nearly
    all of a file, as fast.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]

    def __init__(self, file: BinaryIO, known: Known, *, encoding: str = 'ASCII') -> None:
        super().__init__(file, fix_imports=False, encoding=encoding)
        self._known = known
        self._unfilled: list[np.ndarray] = []

    def find_class(self, module: str, name: str) -> Global:
        old = (_compat_pickle.IMPORT_MAPPING.get(module, module), name)  # names of Python 2
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), old)
        if (module, name) not in self._known:
            raise UserError(f'holds {module}.{name}, which is neither an array nor a container')
        return Global(f'{module}.{name}', self._known[module, name])

    def get_extension(self, code: int) -> None:
        raise UserError(f'holds extension {code}, which is neither an array nor a container')

    def _instantiate(self, kind: Any, arguments: Any) -> None:
        if not isinstance(kind, Global):
            raise pickle.UnpicklingError('it calls something other than a name')
        made = kind.rebuild(*arguments)
        if kind.rebuild is _empty_array:
            self._unfilled.append(made)
        self.append(made)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self._instantiate(self.stack.pop(), arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keywords: only placeholders have them
        self.load_reduce()

    def load_build(self) -> None:
        state, filled = self.stack.pop(), self.stack[-1]
        if isinstance(filled, np.ndarray):
            # Once only: refilling an array would free memory that others may use.
            unfilled = [array for array in self._unfilled if array is not filled]
            if len(unfilled) == len(self._unfilled):
                raise pickle.UnpicklingError('it fills an array twice')
            self._unfilled = unfilled
            _fill_array(filled, state)
        elif isinstance(filled, _Type):
            filled.set_byte_order(state)
        elif not isinstance(filled, (Placeholder, collections.OrderedDict)):
            raise pickle.UnpicklingError(f'it fills a {type(filled).__name__}')

    dispatch[pickle.REDUCE[0]] = load_reduce  # type: ignore[assignment]
    dispatch[pickle.NEWOBJ[0]] = load_reduce  # type: ignore[assignment]
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex  # type: ignore[assignment]
    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]


def loads(data: Union[bytes, memoryview], where: str, *, encoding: str = 'ASCII') -> Any:
    """Unpickle `data`; UserError with `where` if it is damaged or names any function or class."""
    return guarded(Unpickler(io.BytesIO(data), ARRAYS, encoding=encoding), where)


def guarded(unpickler: Unpickler, where: str, *, advice: Optional[str] = None) -> Any:
    """The unpickler's content. UserError with `where` for any failure."""
    try:
        return unpickler.load()
    except UserError as refused:
        end = f' ({advice})' if advice else ''
        raise UserError(
            f'{where} {_one_line(refused)}; it was not loaded, because such a file can run code'
            f'{end}'
        ) from None
    except Exception as error:  # a damaged pickle can raise anything at all
        problem = f'{type(error).__name__}: {_one_line(error)}'
        raise UserError(f'{where} is damaged or not a pickle ({problem})') from None


def _one_line(error: Exception) -> str:
    """The text of an error, parts of which may come from the file."""
    text = ''.join(letter if letter.isprintable() else ' ' for letter in str(error)[:300])
    return ' '.join(text.split())
