"""oneDNN, which Paddle's wheel carries, called through its C interface with ctypes.

Tensors are given as addresses. Operands that oneDNN needs in another layout, mainly weights, are
converted into buffers that all primitives share; a lock protects them. Scratch memory is such a
buffer, too, because the library's own belongs to the thread that created a primitive.

C interface: https://uxlfoundation.github.io/oneDNN (dnnl.h and dnnl_types.h of version 3).
"""

from __future__ import annotations

import ctypes
import functools
import threading
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, Optional, Sequence

import numpy as np

LIBRARY = 'libdnnl.so.3'
MAX_DIMS = 12
ALIGNMENT = 64  # bytes, of buffers

# Values of dnnl_types.h.
CPU, DEFAULT_STREAM, LAYOUT_ANY = 1, 1, 1
BFLOAT16, FLOAT32 = 2, 3
DTYPES = {'bfloat16': BFLOAT16, 'float32': FLOAT32}
AVX2, AVX512_BF16 = 0x4, 0x80  # bits of the CPU's instruction set
SRC, DST, WEIGHTS, MEAN, VARIANCE, SCALE, SHIFT, WORKSPACE = 1, 17, 33, 49, 50, 51, 52, 64
SCRATCHPAD, SCRATCHPAD_IS_OURS = 80, 1
DIFF = 128  # of SRC, DST and WEIGHTS: added to them
DIFF_SCALE, DIFF_SHIFT = 255, 256
QUERY = {SRC: 129, SRC + DIFF: 130, WEIGHTS: 131, WEIGHTS + DIFF: 132, DST: 133, DST + DIFF: 134}
QUERY_IMPLEMENTATION, QUERY_WORKSPACE, QUERY_SCRATCHPAD = 8, 135, 136

Shape = tuple[int, ...]


class Unavailable(RuntimeError):
    """Why oneDNN cannot be called here."""


class _Argument(ctypes.Structure):
    _fields_ = [('argument', c_int), ('memory', c_void_p)]


class OneDNN:
    """The library that Paddle has loaded, an engine and a stream. Raises Unavailable."""

    def __init__(self) -> None:
        import paddle

        path = Path(paddle.__file__).parent / 'libs' / LIBRARY
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError:
            raise Unavailable(f'this Paddle has no {LIBRARY}') from None
        self._library.dnnl_version.restype = ctypes.POINTER(c_int * 3)  # the first of its fields
        major, minor, patch = self._library.dnnl_version().contents
        self.version = f'{major}.{minor}.{patch}'
        if major != 3:
            raise Unavailable(f'version 3 of its interface is needed, not {self.version}')
        if not self._library.dnnl_get_effective_cpu_isa() & AVX2:  # Paddle's own is then faster
            raise Unavailable('this CPU has no AVX2')
        self._library.dnnl_primitive_desc_query_md.restype = c_void_p
        self._library.dnnl_memory_desc_get_size.restype = c_size_t
        self.engine = self.make('engine_create', CPU, c_size_t(0))
        self.stream = self.make('stream_create', self.engine, DEFAULT_STREAM)
        self.attributes = self.make('primitive_attr_create')
        self.call('primitive_attr_set_scratchpad_mode', self.attributes, SCRATCHPAD_IS_OURS)

    def call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, f'dnnl_{function}')(*arguments)
        if status:
            raise RuntimeError(f'dnnl_{function} returned {status}')

    def make(self, function: str, *arguments: Any) -> c_void_p:
        """The object that the function creates; it lives as long as the process."""
        made = c_void_p()
        self.call(function, byref(made), *arguments)
        return made

    @property
    def has_bfloat16(self) -> bool:
        """Whether this CPU multiplies bfloat16 (AVX512-BF16, AMX)."""
        return bool(self._library.dnnl_get_effective_cpu_isa() & AVX512_BF16)

    def layout(self, shape: Shape, order: Optional[str] = None, dtype: int = FLOAT32) -> c_void_p:
        """Axes from the outermost to the innermost, such as 'acdb'; None lets oneDNN choose."""
        described = len(shape), dims(shape), dtype
        if order is None:
            return self.make('memory_desc_create_with_tag', *described, LAYOUT_ANY)
        strides, step = [0] * len(shape), 1
        for letter in reversed(order):
            axis = ord(letter) - ord('a')
            strides[axis], step = step, step * shape[axis]
        return self.make('memory_desc_create_with_strides', *described, dims(strides))

    def conversion(self, source: c_void_p, target: c_void_p) -> c_void_p:
        """The description of a copy from one layout to another."""
        places = source, self.engine, target, self.engine
        return self.make('reorder_primitive_desc_create', *places, self.attributes)

    def chosen_layout(self, description: c_void_p, query: int) -> c_void_p:
        return c_void_p(self._library.dnnl_primitive_desc_query_md(description, query, 0))

    def implementation(self, description: c_void_p) -> str:
        name = c_char_p()
        self.call('primitive_desc_query', description, QUERY_IMPLEMENTATION, 0, byref(name))
        return (name.value or b'').decode()

    def has_next_implementation(self, description: c_void_p) -> bool:
        """Step to the next implementation; False if there is none."""
        return not self._library.dnnl_primitive_desc_next_impl(description)

    def size(self, layout: c_void_p) -> int:
        return int(self._library.dnnl_memory_desc_get_size(layout))

    def same(self, one: c_void_p, other: c_void_p) -> bool:
        return bool(self._library.dnnl_memory_desc_equal(one, other))


def dims(numbers: Sequence[int]) -> Any:
    return (c_int64 * MAX_DIMS)(*numbers)


@functools.cache
def library() -> OneDNN:
    return OneDNN()


_LOCK = threading.Lock()
_buffers: dict[int, np.ndarray] = {}


def _buffer(argument: int, size: int) -> int:
    """The address of memory for an argument in oneDNN's own layout, until the next call."""
    needed = size + ALIGNMENT
    if argument not in _buffers or _buffers[argument].nbytes < needed:
        _buffers[argument] = np.empty(needed, np.uint8)
    return int(-(-_buffers[argument].ctypes.data // ALIGNMENT) * ALIGNMENT)


class _Memory:
    def __init__(self, layout: c_void_p) -> None:
        self.handle = library().make('memory_create', layout, library().engine, None)

    def move(self, address: int) -> None:
        library().call('memory_set_data_handle', self.handle, c_void_p(address))


class _Run:
    """A primitive with its memories."""

    def __init__(self, description: c_void_p, memories: dict[int, _Memory]) -> None:
        self._primitive = library().make('primitive_create', description)
        layout = library().chosen_layout(description, QUERY_SCRATCHPAD)
        self._scratch_size = library().size(layout)
        if self._scratch_size:
            self._scratch = _Memory(layout)
            memories = {**memories, SCRATCHPAD: self._scratch}
        self._count = len(memories)
        pairs = [_Argument(argument, memory.handle) for argument, memory in memories.items()]
        self._arguments = (_Argument * self._count)(*pairs)

    def __call__(self) -> None:
        if self._scratch_size:
            self._scratch.move(_buffer(SCRATCHPAD, self._scratch_size))
        stream = library().stream
        library().call('primitive_execute', self._primitive, stream, self._count, self._arguments)


class _Operand:
    """One argument of a primitive: a tensor, converted if oneDNN needs another layout."""

    def __init__(self, argument: int, ours: c_void_p, needed: c_void_p, *, output: bool) -> None:
        self.argument, self.memory = argument, _Memory(needed)
        self._convert: Optional[_Run] = None
        if library().same(ours, needed):
            return
        self._size, self._ours = library().size(needed), _Memory(ours)
        ends = [(ours, self._ours), (needed, self.memory)]
        (source, start), (target, end) = reversed(ends) if output else ends
        self._convert = _Run(library().conversion(source, target), {SRC: start, DST: end})

    def move(self, address: int) -> None:
        if self._convert is None:
            self.memory.move(address)
        else:
            self._ours.move(address)
            self.memory.move(_buffer(self.argument, self._size))

    def convert(self) -> None:
        if self._convert is not None:
            self._convert()


class Primitive:
    """A computation on tensors at given addresses.

    `inputs` and `outputs` map the arguments to the layouts of our tensors.
    """

    def __init__(
        self, description: c_void_p, inputs: dict[int, c_void_p], outputs: dict[int, c_void_p]
    ) -> None:
        def operand(argument: int, layout: c_void_p, output: bool) -> _Operand:
            query = QUERY.get(argument)
            needed = library().chosen_layout(description, query) if query else layout
            return _Operand(argument, layout, needed, output=output)

        self._inputs = [operand(*item, output=False) for item in inputs.items()]
        self._outputs = [operand(*item, output=True) for item in outputs.items()]
        operands = (*self._inputs, *self._outputs)
        self._run = _Run(description, {one.argument: one.memory for one in operands})

    def __call__(self, *addresses: int) -> None:
        """Compute; the addresses are those of the inputs, then of the outputs."""
        operands = (*self._inputs, *self._outputs)
        assert len(addresses) == len(operands), 'one would keep the address of an earlier call'
        with _LOCK:
            for operand, address in zip(operands, addresses):
                operand.move(address)
            for operand in self._inputs:
                operand.convert()
            self._run()
            for operand in self._outputs:
                operand.convert()
