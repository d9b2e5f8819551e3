"""MindSpore's checkpoints (.ckpt), read without MindSpore.

A checkpoint is a protobuf message of entries, 1: {1: tag, 2: {1: dims, 2: type, 3: content}}, and
may end with a checksum (save_checkpoint's crc_check). A tensor of more than 512 MiB is split:
several entries have its tag and a part of the content each. Wire format:
protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import math
import zlib
from typing import BinaryIO, Iterator, Union

import numpy as np

from engine.weights.arrays import float32_of_bfloat16

CRC = b'crc_num'  # before the ten bytes of the checksum

_TYPES = {
    **{f'Float{bits}': f'<f{bits // 8}' for bits in (16, 32, 64)},
    **{f'Int{bits}': f'<i{bits // 8}' for bits in (8, 16, 32, 64)},
    **{f'UInt{bits}': f'<u{bits // 8}' for bits in (8, 16, 32, 64)},
    **{f'Uint{bits}': f'<u{bits // 8}' for bits in (8, 16, 32, 64)},
    'BFloat16': '<u2',
    'Bool': '|b1',
}
_TAG, _TENSOR, _DIMS, _TYPE, _CONTENT = 1, 2, 1, 2, 3
_TOO_SHORT = 'it ends too early'

Field = Union[int, memoryview]


def looks_like_one(head: bytes) -> bool:
    """Whether the file begins as a checkpoint: with an entry whose first field is a tag."""
    try:
        if head[:1] != b'\n':  # of the number 1, and a length
            return False
        _, place = _varint(memoryview(head), 1)
        size, start = _varint(memoryview(head), place + 1)
    except ValueError:
        return False
    return head[place : place + 1] == b'\n' and head[start : start + size].isascii()


def read(file: BinaryIO) -> dict[str, Union[np.ndarray, str]]:
    """Tag -> array, bfloat16 as float32; the name of the type in place of an array of other types.

    ValueError if the file is damaged.
    """
    data = file.read()
    if data[-17:-10] == CRC:
        expected, data = int.from_bytes(data[-10:], 'big'), data[:-17]
        if zlib.crc32(data) != expected:
            raise ValueError('its checksum does not match')
    parts: dict[str, tuple[tuple[int, ...], str, list[memoryview]]] = {}
    for number, entry in _fields(memoryview(data)):
        if number != 1 or isinstance(entry, int):
            raise ValueError(f'field {number}, which no checkpoint has')
        tag, dims, kind, content = _entry(entry)
        known_dims, known_kind, contents = parts.setdefault(tag, (dims, kind, []))
        if (known_dims, known_kind) != (dims, kind):
            raise ValueError(f'two different tensors are called {tag[:100]!r}')
        contents.append(content)
    return {tag: _array(tag, *part) for tag, part in parts.items()}


def _entry(data: memoryview) -> tuple[str, tuple[int, ...], str, memoryview]:
    found = {number: value for number, value in _fields(data) if isinstance(value, memoryview)}
    if _TAG not in found or _TENSOR not in found:
        raise ValueError('an entry without a tag or a tensor')
    dims: list[int] = []
    tensor: dict[int, memoryview] = {}
    for number, value in _fields(found[_TENSOR]):
        if isinstance(value, memoryview) and number != _DIMS:
            tensor[number] = value
        elif number == _DIMS:  # one after the other, or packed
            dims += [value] if isinstance(value, int) else _packed(value)
    if _TYPE not in tensor or _CONTENT not in tensor:
        raise ValueError('a tensor without a type or a content')
    tag, kind = (bytes(text).decode(errors='replace') for text in (found[_TAG], tensor[_TYPE]))
    return tag, tuple(dims), kind, tensor[_CONTENT]


def _array(
    tag: str, dims: tuple[int, ...], kind: str, contents: list[memoryview]
) -> Union[np.ndarray, str]:
    if kind not in _TYPES:
        return kind
    dtype = np.dtype(_TYPES[kind])
    content = contents[0] if len(contents) == 1 else memoryview(b''.join(contents))
    shape = () if dims == (0,) and len(content) == dtype.itemsize else dims  # a plain number
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f'{tag[:100]!r} has {len(content):,} bytes, which is not {list(shape)} of {kind}'
        )
    numbers = np.frombuffer(content, dtype).reshape(shape)
    return float32_of_bfloat16(numbers) if kind == 'BFloat16' else numbers


def _fields(data: memoryview) -> Iterator[tuple[int, Field]]:
    """Number and value of each field of a message: a whole number, or bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        if key & 7 == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, place = _varint(data, place)
        elif key & 7 in (1, 5):
            size = 8 if key & 7 == 1 else 4
        else:
            raise ValueError(f'a field of wire type {key & 7}')
        if size > len(data) - place:
            raise ValueError(_TOO_SHORT)
        yield key >> 3, data[place : place + size]
        place += size


def _packed(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """The whole number at `place`, seven bits a byte, the lowest first; and where it ends."""
    value = 0
    for count, byte in enumerate(data[place : place + 10]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, place + count + 1
    raise ValueError(_TOO_SHORT)
