"""What travels over HTTP <-> arrays: the Open Inference Protocol v2, and a form with one file.

https://github.com/kserve/open-inference-protocol, and Triton's binary tensor data extension: after
the JSON, whose length a header tells, come the tensors' bytes, little-endian and row by row.

What a request claims is checked before it costs anything: JSON of 16 MB can become lists of half a
gigabyte, and Python's parser lets no other thread run meanwhile.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from email.message import Message
from typing import Any, Optional

import numpy as np

HEADER_LENGTH = 'Inference-Header-Content-Length'
VERSIONS = ('1',)
EXTENSIONS = ('binary_tensor_data', 'classification', 'model_configuration', 'statistics')
TYPES = {'float32': ('FP32', '<f4'), 'uint8': ('UINT8', '|u1')}
ODD_ENDS = 1000  # commas, brackets and quotes that a request may have besides its numbers'
LONGEST_TYPE = 1000  # letters of a Content-Type: Python's parser takes the square of that

REQUEST_KEYS = ('inputs', 'outputs', 'parameters', 'id', 'model_name', 'model_version')
INPUT_KEYS = ('name', 'shape', 'datatype', 'parameters', 'data')
OUTPUT_KEYS = ('name', 'parameters')
UNSUPPORTED = ('shared_memory_', 'sequence_')  # beginnings of parameters


class BadRequest(Exception):
    """The client has made a mistake, which the text says."""


@dataclass(frozen=True)
class Signature:
    """What the model takes and gives."""

    model: str
    platform: str
    input: str
    type: str  # float32 or uint8
    shape: tuple[int, ...]  # without the batch
    output: str
    labels: tuple[str, ...]
    max_batch: int

    @property
    def classes(self) -> int:
        return len(self.labels)

    @property
    def elements(self) -> int:
        """Numbers an image."""
        return math.prod(self.shape)

    def metadata(self) -> dict[str, Any]:
        """As GET /v2/models/{model} answers."""
        datatype, _ = TYPES[self.type]
        image = {'name': self.input, 'datatype': datatype, 'shape': [-1, *self.shape]}
        logits = {'name': self.output, 'datatype': 'FP32', 'shape': [-1, self.classes]}
        return {
            'name': self.model,
            'versions': list(VERSIONS),
            'platform': self.platform,
            'inputs': [image],
            'outputs': [logits],
        }

    def configuration(self) -> dict[str, Any]:
        """As GET /v2/models/{model}/config answers: the part of Triton's that applies here."""
        datatype, _ = TYPES[self.type]
        image = {'name': self.input, 'data_type': f'TYPE_{datatype}', 'dims': list(self.shape)}
        return {
            'name': self.model,
            'platform': self.platform,
            'max_batch_size': self.max_batch,
            'input': [image],
            'output': [{'name': self.output, 'data_type': 'TYPE_FP32', 'dims': [self.classes]}],
            'dynamic_batching': {},
        }


@dataclass(frozen=True)
class Call:
    """A request to infer, understood."""

    images: np.ndarray  # as the graph takes them
    id: Optional[str]
    binary: bool  # whether the answer is wanted as bytes
    likeliest: int = 0  # classes to return as texts instead of the logits; 0: logits


def read_call(signature: Signature, body: bytes, header_length: Optional[str]) -> Call:
    """Of a request's body and its Inference-Header-Content-Length. BadRequest if it is wrong."""
    length = len(body) if header_length is None else _header_length(header_length, len(body))
    request = _parse(signature, body[:length])
    _only(request, REQUEST_KEYS, 'the request')
    name = request.get('id')
    if name is not None and not isinstance(name, str):
        raise BadRequest('id: must be a string')
    binary = _flag(_parameters(request, ''), 'binary_data_output')
    image = _the_one(request.get('inputs'), 'inputs', signature.input)
    images = _read_images(signature, image, memoryview(body)[length:])
    likeliest = 0
    outputs = request.get('outputs')
    if outputs:  # none named: all of them
        output = _the_one(outputs, 'outputs', signature.output)
        _only(output, OUTPUT_KEYS, f'outputs: {signature.output}')
        asked = _parameters(output, f'outputs: {signature.output}: ')
        binary = _flag(asked, 'binary_data', default=binary)
        likeliest = asked.get('classification', 0)
        if type(likeliest) is not int or likeliest < 0:
            raise BadRequest('classification: must be a whole number, of classes')
    return Call(images, name, binary, likeliest)


def write_answer(signature: Signature, call: Call, logits: np.ndarray) -> tuple[bytes, int]:
    """The response's body, and how long the JSON at its head is."""
    answer: dict[str, Any] = {'model_name': signature.model, 'model_version': VERSIONS[-1]}
    if call.id is not None:
        answer['id'] = call.id
    if call.likeliest:
        datatype, texts = 'BYTES', _likeliest(signature, logits, call.likeliest)
        shape, values = [len(texts), len(texts[0])], [text for row in texts for text in row]
        data = b''.join(struct.pack('<I', len(t.encode())) + t.encode() for t in values)
    else:
        datatype, shape, values = 'FP32', list(logits.shape), logits.ravel().tolist()
        data = logits.astype('<f4').tobytes()
    output: dict[str, Any] = {'name': signature.output, 'datatype': datatype, 'shape': shape}
    answer['outputs'] = [output]
    if call.binary:
        output['parameters'] = {'binary_data_size': len(data)}
    elif np.isfinite(logits).all():
        output['data'] = values
    else:
        raise BadRequest('the logits of these images are not finite, which JSON cannot say')
    head = json.dumps(answer).encode()
    return head + data * call.binary, len(head)


def _likeliest(signature: Signature, logits: np.ndarray, count: int) -> list[list[str]]:
    """Triton's `logit:index:label`, the likeliest first, for each image."""
    order = np.argsort(-logits, axis=1, kind='stable')[:, :count].tolist()
    return [
        [f'{row[index]:.6f}:{index}:{signature.labels[index]}' for index in places]
        for row, places in zip(logits, order)
    ]


def misunderstood(body: bytes) -> str:
    """What is wrong with a body that is text, a picture in base64 say; '' if it is no such text."""
    start = body[:64].lstrip()
    if start.startswith(b'data:'):
        return "is a data URL: send the picture's own bytes, what base64 decodes to"
    if start.startswith((b'/9j/', b'iVBORw0KGgo', b'R0lGOD', b'UklGR')):
        return "is base64: send the picture's own bytes"
    if start.startswith((b'{', b'[')):
        return (
            "is JSON: send a picture's bytes (curl --data-binary @picture.jpg); tensors go to "
            '/v2/models/MODEL/infer'
        )
    return ''


def file_in_form(content_type: str, body: bytes) -> bytes:
    """The one file of a multipart/form-data body. BadRequest if there is none, or another."""
    if len(content_type) > LONGEST_TYPE:
        raise BadRequest(f'a Content-Type of {len(content_type):,} letters')
    message = Message()
    message['Content-Type'] = content_type
    try:
        boundary = message.get_boundary()
    except ValueError:  # of an encoding that it names
        boundary = None
    if not boundary:
        raise BadRequest('multipart/form-data without a boundary')
    mark = b'\r\n--' + boundary.encode('latin-1', 'replace')
    parts = (b'\r\n' + body).split(mark, ODD_ENDS)[1:]
    if not parts or not parts[-1].startswith(b'--'):
        raise BadRequest('the form is cut short')
    split = [part.partition(b'\r\n\r\n') for part in parts[:-1]]
    fields = [(head.lower(), content) for head, blank, content in split if blank]
    files = [content for head, content in fields if b'filename=' in head or b'filename*=' in head]
    if not files and len(fields) == 1:  # of a client that names no file
        files = [fields[0][1]]
    if len(files) != 1:
        raise BadRequest(f'the form has {len(files)} files; send one: curl -F file=@picture.jpg')
    return files[0]


def _header_length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most):
        raise BadRequest(f'{HEADER_LENGTH}: must be a whole number, and at most {most}')
    return int(text)


def _parse(signature: Signature, text: bytes) -> dict[str, Any]:
    """The JSON object, unless it has more of anything than the model's largest request."""
    numbers = signature.max_batch * signature.elements
    most = {b',': numbers, b'[': numbers // 2, b'{': 0, b'"': 0}
    for sign, count in most.items():
        if text.count(sign) > count + ODD_ENDS:
            raise BadRequest(
                f'more than {signature.max_batch} images of {signature.elements:,} numbers can '
                f'need: {text.count(sign):,} {sign.decode()}'
            )
    try:
        request = json.loads(text, parse_int=_whole, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # of Unicode, too
        raise BadRequest(f'not JSON: {str(error).splitlines()[0][:200]}') from None
    if not isinstance(request, dict):
        raise BadRequest('the request must be a JSON object')
    return request


def _whole(digits: str) -> Any:
    """Python's own int takes minutes for a million digits."""
    if len(digits) > ODD_ENDS:
        raise ValueError(f'a number of {len(digits):,} digits')
    return int(digits) if len(digits) < 20 else float(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is no JSON number')


def _only(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in known:
            raise BadRequest(f'{where}: unknown key {name[:50]!r}; known: {", ".join(known)}')


def _parameters(given: dict[str, Any], where: str) -> dict[str, Any]:
    """Clients send many that are none of ours; only what would change the answer is refused."""
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


def _the_one(given: Any, what: str, name: str) -> dict[str, Any]:
    """The only one of the request's inputs or outputs."""
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise BadRequest(f'{what}: must be a list of objects')
    if len(given) != 1:
        raise BadRequest(f'{what}: {len(given)} given; the model has one, {name!r}')
    if given[0].get('name') != name:
        raise BadRequest(f'{what}: the model has none of that name; it has {name!r}')
    (one,) = given
    assert isinstance(one, dict)
    return one


def _read_images(signature: Signature, given: dict[str, Any], rest: memoryview) -> np.ndarray:
    where = f'inputs: {signature.input}: '
    _only(given, INPUT_KEYS, where.rstrip(': '))
    datatype, dtype = TYPES[signature.type]
    if given.get('datatype') != datatype:
        raise BadRequest(f'{where}datatype must be {datatype}')
    shape = _shape(signature, given.get('shape'), where)
    size = _parameters(given, where).get('binary_data_size')
    if (size is None) == ('data' not in given):
        raise BadRequest(f'{where}give either data or the parameter binary_data_size')
    if size is None:
        if rest:
            raise BadRequest(f'{len(rest):,} bytes follow the JSON, and no input takes them')
        images = _from_numbers(given['data'], signature.type, shape, where)
    else:
        images = _from_bytes(rest, size, dtype, shape, where)
    if not np.isfinite(images).all():
        raise BadRequest(f'{where}a number is not finite')
    return images


def _shape(signature: Signature, given: Any, where: str) -> tuple[int, ...]:
    wanted = ', '.join(str(side) for side in signature.shape)
    if (
        not isinstance(given, list)
        or not all(type(side) is int for side in given)
        or tuple(given[1:]) != signature.shape
        or given[0] < 1
    ):
        raise BadRequest(f'{where}shape must be [images, {wanted}], with one image or more')
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
    """Of nested lists, or of one flat list."""
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
        raise BadRequest(f'{where}data must be {"whole " * (kind == "uint8")}numbers alone')
    with np.errstate(over='ignore'):  # what is too large becomes infinite, and is refused as such
        numbers = cells.astype(np.float64).reshape(shape)
        if kind == 'uint8' and (numbers.min() < 0 or numbers.max() > 255):
            raise BadRequest(f'{where}data must lie between 0 and 255')
        return np.ascontiguousarray(numbers, kind)
