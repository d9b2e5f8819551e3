"""deploy/server/tensors.py: requests and responses of the Open Inference Protocol, to the byte."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from server.errors import BadRequest
from server.tensors import Signature, read_request, write_response

FLOATS = Signature(
    model='net',
    input='image',
    type='float32',
    shape=(3, 2, 2),
    output='logits',
    labels=('a', 'b', 'größe', 'd', 'e'),
    max_batch=4,
)
BYTES = Signature(**{**FLOATS.__dict__, 'type': 'uint8', 'shape': (2, 2, 3)})
PIXELS = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) / 8


def request(signature: Signature = FLOATS, /, **changes) -> dict:
    """A valid request with changes to its input; None leaves a key out."""
    datatype = 'FP32' if signature is FLOATS else 'UINT8'
    given = {'name': 'image', 'datatype': datatype, 'shape': [2, *signature.shape]}
    given = {**given, 'data': list(range(24)), **changes}
    return {'inputs': [{key: value for key, value in given.items() if value is not None}]}


def call(given, signature: Signature = FLOATS, rest: bytes = b'', length=None):
    head = given if isinstance(given, bytes) else json.dumps(given).encode()
    if rest and length is None:
        length = str(len(head))
    return read_request(signature, head + rest, length)


def refusal(*given, **more) -> str:
    with pytest.raises(BadRequest) as caught:
        call(*given, **more)
    text = str(caught.value)
    assert '\n' not in text
    assert len(text) < 300
    return text


@pytest.mark.parametrize('nested', [False, True])
@pytest.mark.parametrize('signature', [FLOATS, BYTES], ids=['float32', 'uint8'])
def test_json_data_may_be_flat_or_nested(signature, nested):
    values = np.arange(24).reshape(2, *signature.shape)
    data = values.tolist() if nested else values.ravel().tolist()
    found = call(request(signature, data=data), signature)
    assert found.images.dtype == signature.type
    np.testing.assert_array_equal(found.images, values)
    assert not found.binary
    assert found.id is None


@pytest.mark.parametrize('signature', [FLOATS, BYTES], ids=['float32', 'uint8'])
def test_binary_data_is_read(signature):
    values = np.arange(24, dtype='<f4' if signature is FLOATS else 'u1')
    parameters = {'binary_data_size': values.nbytes}
    given = request(signature, data=None, parameters=parameters)
    found = call(given, signature, values.tobytes())
    assert found.images.dtype == signature.type
    np.testing.assert_array_equal(found.images, values.reshape(2, *signature.shape))


def test_json_floats_keep_their_values():
    data = PIXELS.ravel().tolist()
    np.testing.assert_array_equal(call(request(data=data)).images, PIXELS)


def test_binary_output_is_requested_by_either_parameter():
    def binary(parameters=None, output=None) -> bool:
        given = {**request(), 'parameters': parameters}
        if output is not None:
            given['outputs'] = [{'name': 'logits', 'parameters': output}]
        return call(given).binary

    assert not binary()
    assert not binary(output={})
    assert binary({'binary_data_output': True})
    assert not binary({'binary_data_output': False})
    assert binary(output={'binary_data': True})
    assert not binary({'binary_data_output': True}, {'binary_data': False})
    assert binary({'binary_data_output': True}, {})


def test_id_is_returned():
    logits = np.arange(10, dtype=np.float32).reshape(2, 5)
    content, length = write_response(FLOATS, call({**request(), 'id': 'größe'}), logits)
    assert length == len(content)
    assert json.loads(content) == {
        'model_name': 'net',
        'model_version': '1',
        'id': 'größe',
        'outputs': [
            {'name': 'logits', 'datatype': 'FP32', 'shape': [2, 5], 'data': list(range(10))}
        ],
    }
    assert 'id' not in json.loads(write_response(FLOATS, call(request()), logits)[0])


def test_binary_response():
    logits = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    given = {**request(), 'parameters': {'binary_data_output': True}}
    content, length = write_response(FLOATS, call(given), logits)
    (output,) = json.loads(content[:length])['outputs']
    assert output == {
        'name': 'logits',
        'datatype': 'FP32',
        'shape': [2, 5],
        'parameters': {'binary_data_size': 40},
    }
    np.testing.assert_array_equal(np.frombuffer(content[length:], '<f4').reshape(2, 5), logits)


def test_classification_returns_the_top_classes():
    logits = np.array([[1, 3, 2, 0, -1], [0, 0, 0, 0, 9]], np.float32)
    outputs = [{'name': 'logits', 'parameters': {'classification': 2}}]
    content, _ = write_response(FLOATS, call({**request(), 'outputs': outputs}), logits)
    assert json.loads(content)['outputs'] == [
        {
            'name': 'logits',
            'datatype': 'BYTES',
            'shape': [2, 2],
            'data': ['3.000000:1:b', '2.000000:2:größe', '9.000000:4:e', '0.000000:0:a'],
        }
    ]
    outputs[0]['parameters'] = {'classification': 9, 'binary_data': True}
    content, length = write_response(FLOATS, call({**request(), 'outputs': outputs}), logits)
    (output,) = json.loads(content[:length])['outputs']
    assert output['shape'] == [2, 5]
    assert output['parameters'] == {'binary_data_size': len(content) - length}
    assert content[length:].startswith(b'\x0c\0\0\x003.000000:1:b')


def test_non_finite_logits_are_refused_in_json_only():
    logits = np.full((2, 5), np.nan, np.float32)
    with pytest.raises(BadRequest, match='not finite'):
        write_response(FLOATS, call(request()), logits)
    given = {**request(), 'parameters': {'binary_data_output': True}}
    assert write_response(FLOATS, call(given), logits)[0].endswith(logits.tobytes())


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'name': 'pixels'}, "it has 'image'"),
        ({'name': None}, "it has 'image'"),
        ({'datatype': 'FP64'}, 'datatype must be FP32'),
        ({'datatype': 'UINT8'}, 'datatype must be FP32'),
        ({'datatype': None}, 'datatype must be FP32'),
        ({'datatype': ['FP32']}, 'datatype must be FP32'),
        ({'shape': None}, 'shape must be [images, 3, 2, 2]'),
        ({'shape': [2, 2, 2, 3]}, 'shape must be'),
        ({'shape': [24]}, 'shape must be'),
        ({'shape': []}, 'shape must be'),
        ({'shape': [0, 3, 2, 2], 'data': []}, 'one image or more'),
        ({'shape': [-1, 3, 2, 2]}, 'one image or more'),
        ({'shape': [True, 3, 2, 2]}, 'shape must be'),
        ({'shape': [2.0, 3, 2, 2]}, 'shape must be'),
        ({'shape': ['2', 3, 2, 2]}, 'shape must be'),
        ({'shape': [10**30, 3, 2, 2]}, 'shape must be'),
        ({'shape': [5, 3, 2, 2], 'data': [0] * 60}, '5 images; this server takes at most 4'),
        ({'shape': [2**62, 3, 2, 2]}, 'at most 4'),
        ({'data': None}, 'either data or the parameter binary_data_size'),
        ({'parameters': {'binary_data_size': 96}}, 'either data or'),
        ({'data': []}, 'data must be 24 numbers'),
        ({'data': [0] * 23}, 'data must be 24 numbers'),
        ({'data': [0] * 25}, 'data must be 24 numbers'),
        ({'data': [[0] * 12, [0] * 11]}, 'data must be 24 numbers'),
        ({'data': [[0] * 12, [0] * 12]}, 'data must be 24 numbers'),
        ({'data': [[0, 1], [[0], 1]]}, 'data must be 24 numbers'),
        ({'data': 7}, 'data must be 24 numbers'),
        ({'data': 'x' * 24}, 'data must be 24 numbers'),
        ({'data': {'a': 1}}, 'data must be 24 numbers'),
        ({'data': ['1'] * 24}, 'numbers only'),
        ({'data': [None] * 24}, 'numbers only'),
        ({'data': [0] * 23 + [True]}, 'numbers only'),
        ({'data': [0] * 23 + [[1]]}, 'numbers only'),
        ({'data': [0] * 23 + [1e39]}, 'not finite'),
        ({'data': [0] * 23 + [10**400]}, 'not finite'),
        ({'dtype': 'FP32'}, "unknown key 'dtype'"),
        ({'parameters': {'shared_memory_region': 'x'}}, 'is not supported'),
        ({'parameters': 3}, 'must be an object'),
        ({'data': None, 'parameters': {'binary_data_size': 96}}, '0 bytes follow the JSON'),
    ],
)
def test_wrong_input_is_refused(changes, says):
    assert says in refusal(request(**changes))


@pytest.mark.parametrize(
    ('data', 'says'),
    [
        ([0] * 23 + [-1], 'between 0 and 255'),
        ([0] * 23 + [256], 'between 0 and 255'),
        ([0] * 23 + [1.0], 'whole numbers only'),
        ([0] * 23 + [10**30], 'whole numbers only'),
    ],
)
def test_uint8_data_out_of_range_is_refused(data, says):
    assert says in refusal(request(BYTES, data=data), BYTES)


@pytest.mark.parametrize('size', [-96, 0, 92, 100, 2**70, 96.0, '96', True, [96]])
def test_wrong_binary_data_size_is_refused(size):
    given = request(data=None, parameters={'binary_data_size': size})
    assert 'binary_data_size must be 96' in refusal(given, rest=b'\0' * 96)


@pytest.mark.parametrize('count', [95, 97, 960])
def test_wrong_number_of_bytes_is_refused(count):
    given = request(data=None, parameters={'binary_data_size': 96})
    text = refusal(given, rest=b'\0' * count)
    assert f'{count} bytes follow the JSON, and the inputs have 96' in text


def test_unannounced_bytes_are_refused():
    assert '3 bytes follow the JSON, and no input takes them' in refusal(request(), rest=b'abc')


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_non_finite_binary_data_is_refused(value):
    values = np.zeros(24, '<f4')
    values[5] = value
    given = request(data=None, parameters={'binary_data_size': 96})
    assert 'not finite' in refusal(given, rest=values.tobytes())


@pytest.mark.parametrize('length', ['', '-1', '1e2', '5000', '9' * 5000, '٣', ' 3', '0x10'])
def test_wrong_header_length_is_refused(length):
    assert 'must be a whole number, and at most' in refusal(request(), length=length)


def test_header_length_that_truncates_the_json_is_refused():
    for length in ('0', '10'):
        assert 'not JSON' in refusal(request(), length=length)


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        (b'', 'not JSON'),
        (b'\xff\xfe', 'not JSON'),
        (b'{"inputs": [', 'not JSON'),
        (b'[]', 'must be a JSON object'),
        (b'null', 'must be a JSON object'),
        ({}, 'inputs: must be a list'),
        ({'inputs': {}}, 'inputs: must be a list'),
        ({'inputs': []}, 'inputs: 0 given; the model has one'),
        ({'inputs': [3]}, 'inputs: must be a list of objects'),
        ({'inputs': request()['inputs'] * 2}, 'inputs: 2 given'),
        ({**request(), 'id': 3}, 'id: must be a string'),
        ({**request(), 'output': []}, "unknown key 'output'"),
        ({**request(), 'parameters': []}, 'parameters: must be an object'),
        (
            {**request(), 'parameters': {'sequence_id': 1}},
            "parameter 'sequence_id' is not supported",
        ),
        ({**request(), 'parameters': {'binary_data_output': 1}}, 'must be true or false'),
        ({**request(), 'outputs': [{'name': 'probabilities'}]}, "it has 'logits'"),
        ({**request(), 'outputs': [{'name': 'logits'}] * 2}, 'outputs: 2 given'),
        ({**request(), 'outputs': 'logits'}, 'outputs: must be a list'),
        ({**request(), 'outputs': [{'name': 'logits', 'data': 1}]}, "unknown key 'data'"),
        (
            {**request(), 'outputs': [{'name': 'logits', 'parameters': {'classification': -3}}]},
            'classification: must be a whole number',
        ),
        (
            {**request(), 'outputs': [{'name': 'logits', 'parameters': {'binary_data': 'yes'}}]},
            'binary_data: must be true or false',
        ),
    ],
)
def test_wrong_request_is_refused(given, says):
    assert says in refusal(given)


@pytest.mark.parametrize('word', ['NaN', 'Infinity', '-Infinity'])
def test_nan_and_infinity_in_json_are_refused(word):
    text = json.dumps(request(data=['X'] + [0] * 23)).replace('"X"', word).encode()
    assert f'{word} is not a JSON number' in refusal(text)


def test_null_and_empty_values_count_as_missing():
    given = {**request(), 'id': None, 'parameters': None, 'outputs': []}
    assert call(given).images.shape == (2, 3, 2, 2)


@pytest.mark.parametrize(
    'text',
    [
        b'[' * 16_000_000,
        b'[' * 1500,
        b'{"a":' * 1500,
        b'[' + b'[],' * 5_000_000 + b'0]',
        b'[' + b'{},' * 5_000_000 + b'0]',
        b'[' + b'0,' * 8_000_000 + b'0]',
        b'[' + b'"",' * 5_000_000 + b'0]',
        b'{"id": ' + b'1' * 16_000_000 + b'}',
        b'{"id": 0.' + b'1' * 16_000_000 + b'}',
        b' ' * 16_000_000,
    ],
    ids=lambda text: text[:6].decode(),
)
def test_malicious_json_is_refused_before_it_is_parsed(text):
    """The parser holds the GIL: the whole server would stand still."""
    start = time.process_time()
    refusal(text)
    assert time.process_time() - start < 1.0
