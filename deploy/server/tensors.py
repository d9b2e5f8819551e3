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

HEADER_LENGTH = 'Inference-Header-Content-Length'
VERSIONS = ('1',)
TYPES = {'float32': ('FP32', '<f4'), 'uint8': ('UINT8', '|u1')}
MAX_OTHER_SIGNS = 1000  # commas, brackets and quotes that a request may have besides its numbers'
MAX_DIGITS = 1000  # of one number

REQUEST_KEYS = ('inputs', 'outputs', 'parameters', 'id', 'model_name', 'model_version')
INPUT_KEYS = ('name', 'shape', 'datatype', 'parameters', 'data')
OUTPUT_KEYS = ('name', 'parameters')
UNSUPPORTED = ('shared_memory_', 'sequence_')  # prefixes of parameters


class BadRequest(Exception):
    """The client has made a mistake; the text says which."""


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of the model."""

    model: str
    platform: str
    input: str
    type: str  # float32 or uint8
    shape: tuple[int, ...]  # without the batch
    output: str
    labels: tuple[str, ...]
    max_batch: int

    def metadata(self) -> dict[str, Any]:
        """The answer to GET /v2/models/{model}."""
        datatype, _ = TYPES[self.type]
        image = {'name': self.input, 'datatype': datatype, 'shape': [-1, *self.shape]}
        logits = {'name': self.output, 'datatype': 'FP32', 'shape': [-1, len(self.labels)]}
        return {
            'name': self.model,
            'versions': list(VERSIONS),
            'platform': self.platform,
            'inputs': [image],
            'outputs': [logits],
        }

    def configuration(self) -> dict[str, Any]:
        """The answer to GET /v2/models/{model}/config: the part of Triton's that applies here."""
        datatype, _ = TYPES[self.type]
        image = {'name': self.input, 'data_type': f'TYPE_{datatype}', 'dims': list(self.shape)}
        logits = {'name': self.output, 'data_type': 'TYPE_FP32', 'dims': [len(self.labels)]}
        return {
            'name': self.model,
            'platform': self.platform,
            'max_batch_size': self.max_batch,
            'input': [image],
            'output': [logits],
            'dynamic_batching': {},
        }


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
    if name is not None and not isinstance(name, str):
        raise BadRequest('id: must be a string')
    binary = _flag(_parameters(request, ''), 'binary_data_output')
    images = _read_images(signature, request.get('inputs'), memoryview(body)[length:])
    if not request.get('outputs'):  # none named: all of them
        return InferRequest(images, name, binary)
    output = _single(request['outputs'], 'outputs', signature.output)
    _check_keys(output, OUTPUT_KEYS, f'outputs: {signature.output}')
    parameters = _parameters(output, f'outputs: {signature.output}: ')
    top = parameters.get('classification', 0)
    if type(top) is not int or top < 0:
        raise BadRequest('classification: must be a whole number, of classes')
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
    elif np.isfinite(logits).all():
        output['data'] = values
    else:
        raise BadRequest('the logits of these images are not finite: JSON has no such numbers')
    response: dict[str, Any] = {'model_name': signature.model, 'model_version': VERSIONS[-1]}
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
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most):
        raise BadRequest(f'{HEADER_LENGTH}: must be a whole number, and at most {most}')
    return int(text)


def _parse(signature: Signature, text: bytes) -> dict[str, Any]:
    """The JSON object, unless it has more of any sign than the model's largest request."""
    elements = math.prod(signature.shape)
    numbers = signature.max_batch * elements
    for sign, most in {b',': numbers, b'[': numbers // 2, b'{': 0, b'"': 0}.items():
        if text.count(sign) > most + MAX_OTHER_SIGNS:
            raise BadRequest(
                f'more than {signature.max_batch} images of {elements:,} numbers can need: '
                f'{text.count(sign):,} {sign.decode()}'
            )
    try:
        request = json.loads(text, parse_int=_parse_int, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # of Unicode, too
        raise BadRequest(f'not JSON: {str(error).splitlines()[0][:200]}') from None
    if not isinstance(request, dict):
        raise BadRequest('the request must be a JSON object')
    return request


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
    parameters = given.get('parameters')
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequest(f'{where}parameters: must be an object')
    for name in parameters:
        if name.startswith(UNSUPPORTED):
            raise BadRequest(f'{where}parameter {name[:50]!r} is not supported here')
    return parameters


def _flag(parameters: dict[str, Any], name: str, *, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f'{name}: must be true or false')
    return value


def _single(given: Any, what: str, name: str) -> dict[str, Any]:
    """The only one of the request's inputs or outputs."""
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise BadRequest(f'{what}: must be a list of objects')
    if len(given) != 1:
        raise BadRequest(f'{what}: {len(given)} given; the model has one, {name!r}')
    tensor: dict[str, Any] = given[0]
    if tensor.get('name') != name:
        raise BadRequest(f'{what}: the model has none of that name; it has {name!r}')
    return tensor


def _read_images(signature: Signature, inputs: Any, rest: memoryview) -> np.ndarray:
    given = _single(inputs, 'inputs', signature.input)
    where = f'inputs: {signature.input}: '
    _check_keys(given, INPUT_KEYS, where.rstrip(': '))
    datatype, dtype = TYPES[signature.type]
    if given.get('datatype') != datatype:
        raise BadRequest(f'{where}datatype must be {datatype}')
    shape = _shape(signature, given.get('shape'), where)
    size = _parameters(given, where).get('binary_data_size')
    if (size is None) == ('data' not in given):
        raise BadRequest(f'{where}give either data or the parameter binary_data_size')
    if size is not None:
        images = _from_bytes(rest, size, dtype, shape, where)
    elif rest:
        raise BadRequest(f'{len(rest):,} bytes follow the JSON, and no input takes them')
    else:
        images = _from_numbers(given['data'], signature.type, shape, where)
    if not np.isfinite(images).all():
        raise BadRequest(f'{where}a number is not finite')
    return images


def _shape(signature: Signature, given: Any, where: str) -> tuple[int, ...]:
    if (
        not isinstance(given, list)
        or not all(type(side) is int for side in given)
        or tuple(given[1:]) != signature.shape
        or given[0] < 1
    ):
        sides = ', '.join(map(str, signature.shape))
        raise BadRequest(f'{where}shape must be [images, {sides}], with one image or more')
    if given[0] > signature.max_batch:
        raise BadRequest(
            f'{where}{given[0]} images; this server takes at most {signature.max_batch} a request'
        )
    return tuple(given)


def _from_bytes(
    rest: memoryview, size: Any, dtype: str, shape: tuple[int, ...], where: str
) -> np.ndarray:
    """A view of the body's bytes."""
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if type(size) is not int or size != expected:
        raise BadRequest(f'{where}binary_data_size must be {expected:,} for this shape')
    if len(rest) != expected:
        raise BadRequest(
            f'{len(rest):,} bytes follow the JSON, and the inputs have {expected:,}; is '
            f'{HEADER_LENGTH} right?'
        )
    return np.frombuffer(rest, dtype).reshape(shape)


def _from_numbers(data: Any, kind: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """From nested lists, or from one flat list."""
    try:
        cells = np.array(data, dtype=object)
    except ValueError:
        cells = np.empty(0, dtype=object)
    if not isinstance(data, list) or cells.shape not in (shape, (math.prod(shape),)):
        raise BadRequest(
            f'{where}data must be {math.prod(shape):,} numbers, in one list or nested as the shape'
        )
    types = set(map(type, cells.ravel().tolist()))
    if not types <= ({int} if kind == 'uint8' else {int, float}):
        raise BadRequest(f'{where}data must be {"whole " * (kind == "uint8")}numbers only')
    with np.errstate(over='ignore'):  # what is too large becomes infinite, and is refused as such
        numbers = cells.astype(np.float64).reshape(shape)
        if kind == 'uint8' and (numbers.min() < 0 or numbers.max() > 255):
            raise BadRequest(f'{where}data must be between 0 and 255')
        return np.ascontiguousarray(numbers, kind)
