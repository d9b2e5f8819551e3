"""Messages of the Open Inference Protocol v2 <-> arrays: tensors in JSON, or as bytes after it.

https://github.com/kserve/open-inference-protocol, and Triton's binary tensor data extension: after
the JSON, whose length is in a header, come the bytes of the tensors, little-endian and row by row.

A request is checked before its JSON is parsed: 16 MB of JSON can become lists of half a gigabyte,
and no other thread runs while Python parses them.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from server.errors import BadRequest, require

HEADER_LENGTH = 'Inference-Header-Content-Length'
VERSION = '1'  # of the model
TYPES = {'float32': ('FP32', '<f4'), 'uint8': ('UINT8', '|u1')}
MAX_OTHER_SIGNS = 1000  # commas, brackets and quotes that a request may have besides its numbers'
MAX_DIGITS = 1000  # of one number

REQUEST_KEYS = ('inputs', 'outputs', 'parameters', 'id', 'model_name', 'model_version')
INPUT_KEYS = ('name', 'shape', 'datatype', 'parameters', 'data')
OUTPUT_KEYS = ('name', 'parameters')
UNSUPPORTED = ('shared_memory_', 'sequence_')  # prefixes of parameters


@dataclass(frozen=True)
class Signature:
    """The input and the output of the model."""

    model: str
    input: str
    type: str  # float32 or uint8
    shape: tuple[int, ...]  # without the batch
    output: str
    labels: tuple[str, ...]
    max_batch: int

    @property
    def datatype(self) -> str:
        return TYPES[self.type][0]


@dataclass(frozen=True)
class InferRequest:
    """What POST /v2/models/{model}/infer asks for."""

    images: np.ndarray  # as the graph takes them
    id: Optional[str]
    binary: bool  # whether the answer is to be bytes
    top: int = 0  # classes to return as texts instead of the logits; 0: logits


def read_request(signature: Signature, body: bytes, header_length: Optional[str]) -> InferRequest:
    """From the body and its Inference-Header-Content-Length. BadRequest if it is wrong."""
    length = len(body) if header_length is None else _read_length(header_length, len(body))
    request = _parse(signature, body[:length])
    _check_keys(request, REQUEST_KEYS, 'the request')
    name = request.get('id')
    require(name is None or isinstance(name, str), 'id: must be a string')
    binary = _flag(_parameters(request, ''), 'binary_data_output')
    images = _read_images(signature, request.get('inputs'), memoryview(body)[length:])
    if not request.get('outputs'):  # none named: all of them
        return InferRequest(images, name, binary)
    _, parameters = _single(request['outputs'], 'outputs', signature.output, OUTPUT_KEYS)
    top = parameters.get('classification', 0)
    require(type(top) is int and top >= 0, 'classification: must be a whole number, of classes')
    return InferRequest(images, name, _flag(parameters, 'binary_data', default=binary), top)


def write_response(
    signature: Signature, request: InferRequest, logits: np.ndarray
) -> tuple[bytes, int]:
    """The response's body, and the length of the JSON at its head."""
    output: dict[str, Any] = {'name': signature.output}
    if request.top:
        texts = _top_classes(signature, logits, request.top)
        output |= {'datatype': 'BYTES', 'shape': [len(texts), len(texts[0])]}
        values: list[Any] = [text for row in texts for text in row]
        data = b''.join(struct.pack('<I', len(t.encode())) + t.encode() for t in values)
    else:
        output |= {'datatype': 'FP32', 'shape': list(logits.shape)}
        values, data = logits.ravel().tolist(), logits.astype('<f4').tobytes()
    if request.binary:
        output['parameters'] = {'binary_data_size': len(data)}
    else:
        finite = bool(np.isfinite(logits).all())
        require(finite, 'the logits of these images are not finite: JSON has no such numbers')
        output['data'] = values
    response: dict[str, Any] = {'model_name': signature.model, 'model_version': VERSION}
    if request.id is not None:
        response['id'] = request.id
    head = json.dumps({**response, 'outputs': [output]}).encode()
    return head + data * request.binary, len(head)


def _top_classes(signature: Signature, logits: np.ndarray, count: int) -> list[list[str]]:
    """Triton's `logit:index:label`, the most probable first, for each image."""
    order = np.argsort(-logits, axis=1, kind='stable')[:, :count].tolist()
    return [
        [f'{row[index]:.6f}:{index}:{signature.labels[index]}' for index in indices]
        for row, indices in zip(logits, order)
    ]


def _read_length(text: str, most: int) -> int:
    valid = text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most
    require(valid, f'{HEADER_LENGTH}: must be a whole number, and at most {most}')
    return int(text)


def _parse(signature: Signature, text: bytes) -> dict[str, Any]:
    """The JSON object, unless it has more of any sign than the model's largest request."""
    elements = math.prod(signature.shape)
    numbers = signature.max_batch * elements
    for sign, most in {b',': numbers, b'[': numbers // 2, b'{': 0, b'"': 0}.items():
        count = text.count(sign)
        require(
            count <= most + MAX_OTHER_SIGNS,
            f'more than {signature.max_batch} images of {elements:,} numbers can need: '
            f'{count:,} {sign.decode()}',
        )
    try:
        request = json.loads(text, parse_int=_parse_int, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # of Unicode, too
        raise BadRequest(f'not JSON: {str(error).splitlines()[0][:200]}') from None
    require(isinstance(request, dict), 'the request must be a JSON object')
    return dict(request)


def _parse_int(digits: str) -> float:
    """Python's own int takes minutes for a million digits."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f'a number of {len(digits):,} digits')
    return int(digits) if len(digits) < 20 else float(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is not a JSON number')


def _check_keys(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in known:
            raise BadRequest(f'{where}: unknown key {name[:50]!r}; known: {", ".join(known)}')


def _parameters(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Clients send many that mean nothing here; only what would change the answer is refused."""
    parameters = {} if given.get('parameters') is None else given['parameters']
    require(isinstance(parameters, dict), f'{where}parameters: must be an object')
    for name in parameters:
        if name.startswith(UNSUPPORTED):
            raise BadRequest(f'{where}parameter {name[:50]!r} is not supported here')
    return dict(parameters)


def _flag(parameters: dict[str, Any], name: str, *, default: bool = False) -> bool:
    value = parameters.get(name, default)
    require(isinstance(value, bool), f'{name}: must be true or false')
    return bool(value)


def _single(
    given: Any, what: str, name: str, keys: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The only one of the request's inputs or outputs, and its parameters."""
    listed = isinstance(given, list) and all(isinstance(tensor, dict) for tensor in given)
    require(listed, f'{what}: must be a list of objects')
    require(len(given) == 1, f'{what}: {len(given)} given; the model has one, {name!r}')
    named = given[0].get('name') == name
    require(named, f'{what}: the model has none of that name; it has {name!r}')
    _check_keys(given[0], keys, f'{what}: {name}')
    return given[0], _parameters(given[0], f'{what}: {name}: ')


def _read_images(signature: Signature, inputs: Any, rest: memoryview) -> np.ndarray:
    given, parameters = _single(inputs, 'inputs', signature.input, INPUT_KEYS)
    where = f'inputs: {signature.input}: '
    known = given.get('datatype') == signature.datatype
    require(known, f'{where}datatype must be {signature.datatype}')
    shape = _shape(signature, given.get('shape'), where)
    size = parameters.get('binary_data_size')
    one_of_them = (size is None) == ('data' in given)
    require(one_of_them, f'{where}give either data or the parameter binary_data_size')
    if size is None:
        require(not rest, f'{len(rest):,} bytes follow the JSON, and no input takes them')
        images = _from_numbers(given['data'], signature.type, shape, where)
    else:
        images = _from_bytes(rest, size, TYPES[signature.type][1], shape, where)
    require(bool(np.isfinite(images).all()), f'{where}a number is not finite')
    return images


def _shape(signature: Signature, given: Any, where: str) -> tuple[int, ...]:
    valid = isinstance(given, list) and all(type(side) is int for side in given)
    valid = valid and tuple(given[1:]) == signature.shape and given[0] >= 1
    sides, most = ', '.join(map(str, signature.shape)), signature.max_batch
    require(valid, f'{where}shape must be [images, {sides}], with one image or more')
    require(
        given[0] <= most, f'{where}{given[0]} images; this server takes at most {most} a request'
    )
    return tuple(given)


def _from_bytes(
    rest: memoryview, size: Any, dtype: str, shape: tuple[int, ...], where: str
) -> np.ndarray:
    """A view of the body's bytes."""
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    fits = type(size) is int and size == expected
    require(fits, f'{where}binary_data_size must be {expected:,} for this shape')
    require(
        len(rest) == expected,
        f'{len(rest):,} bytes follow the JSON, and the inputs have {expected:,}; is '
        f'{HEADER_LENGTH} right?',
    )
    return np.frombuffer(rest, dtype).reshape(shape)


def _from_numbers(data: Any, kind: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """From nested lists, or from one flat list."""
    try:
        cells = np.array(data, dtype=object)
    except ValueError:
        cells = np.empty(0, dtype=object)
    require(
        isinstance(data, list) and cells.shape in (shape, (math.prod(shape),)),
        f'{where}data must be {math.prod(shape):,} numbers, in one list or nested as the shape',
    )
    whole = kind == 'uint8'
    allowed = set(map(type, cells.ravel().tolist())) <= ({int} if whole else {int, float})
    require(allowed, f'{where}data must be {"whole " * whole}numbers only')
    with np.errstate(over='ignore'):  # what is too large becomes infinite, and is refused as such
        numbers = cells.astype(np.float64).reshape(shape)
        in_range = not whole or (numbers.min() >= 0 and numbers.max() <= 255)
        require(in_range, f'{where}data must be between 0 and 255')
        return np.ascontiguousarray(numbers, kind)
