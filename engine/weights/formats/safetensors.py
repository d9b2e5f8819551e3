"""safetensors files, by the safetensors package, with the bfloat16 that its NumPy side lacks."""

from __future__ import annotations

import struct
from typing import BinaryIO, Mapping

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from engine.weights.arrays import float32_of_bfloat16

_TYPES = {
    'F64': '<f8',
    'F32': '<f4',
    'F16': '<f2',
    'BF16': '<u2',
    'I64': '<i8',
    'I32': '<i4',
    'I16': '<i2',
    'I8': '<i1',
    'U64': '<u8',
    'U32': '<u4',
    'U16': '<u2',
    'U8': '<u1',
    'BOOL': '|b1',
}


def looks_like_one(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` is a safetensors file."""
    return len(head) > 8 and head[8:9] == b'{' and struct.unpack('<Q', head[:8])[0] <= size


def read(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays, bfloat16 as float32. ValueError if the file is damaged."""
    try:
        entries = deserialize(file.read())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    arrays = {}
    for name, entry in entries:
        kind = entry['dtype']
        if kind not in _TYPES:
            raise ValueError(f'{name} is of the type {kind}, which is not read')
        array = np.frombuffer(entry['data'], _TYPES[kind]).reshape(entry['shape'])
        arrays[name] = float32_of_bfloat16(array) if kind == 'BF16' else array
    return arrays


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file. ValueError, before anything is written, for a type that the format lacks."""
    for name, array in arrays.items():
        if array.dtype.newbyteorder('<').str not in _TYPES.values():
            raise ValueError(f'{name} is of the type {array.dtype}')
    # The package writes the memory of an array as it is.
    plain = {k: np.ascontiguousarray(v, v.dtype.newbyteorder('<')) for k, v in arrays.items()}
    file.write(save(plain))
