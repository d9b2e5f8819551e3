"""Weight files: what fits is loaded, what does not fit is named, and code in them never runs."""

from __future__ import annotations

import ast
import collections
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors.numpy import load_file, save_file

from engine import safe_pickle
from engine.errors import UserError
from engine.models import build
from engine.weights import (
    Arrays,
    fit_weights,
    float32_arrays,
    load_weights,
    parse_arrays,
    read_weights,
    state_arrays,
    write_arrays,
)
from engine.weights.formats import safetensors as safetensors_file

ROOT = Path(__file__).resolve().parent.parent


def network(seed: int = 0, num_classes: int = 3) -> nn.Layer:
    paddle.seed(seed)
    return build('wide_resnet10_1', num_classes=num_classes)


def small(seed: int = 0) -> nn.Layer:
    paddle.seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1D(3))


def assert_same(model: nn.Layer, arrays: Arrays) -> None:
    assert sorted(model.state_dict()) == sorted(arrays)
    for name, value in state_arrays(model).items():
        np.testing.assert_array_equal(value, arrays[name], err_msg=name)


def refused(model: nn.Layer, path: Path) -> str:
    """The one line that refuses the file; the model is as before."""
    before = state_arrays(model)
    with pytest.raises(UserError) as error:
        load_weights(model, path)
    assert_same(model, before)
    text = str(error.value)
    assert text.count('\n') == 0, text
    assert str(path) in text
    return text


def write(path: Path, arrays: object) -> Path:
    with path.open('wb') as file:
        pickle.dump(arrays, file, protocol=4)
    return path


# ------------------------------------------------------------------ loading


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_file_written_by_paddle_loads(tmp_path, protocol):
    source, target = network(1), network(2)
    path = tmp_path / 'model.pdparams'
    paddle.save(source.state_dict(), str(path), protocol=protocol)
    report = load_weights(target, path)
    assert_same(target, state_arrays(source))
    assert sorted(report.mapped) == sorted(source.state_dict())
    assert report.dropped == report.initial == []


def test_paddle_loads_our_file(tmp_path):
    source, target = network(1), network(2)
    path = tmp_path / 'model.pdparams'
    with path.open('wb') as file:
        write_arrays(file, state_arrays(source))
    missing, unexpected = target.set_state_dict(paddle.load(str(path)))
    assert missing == unexpected == []
    assert_same(target, state_arrays(source))


def test_weights_survive_writing_and_reading(tmp_path):
    source, target = network(1), network(2)
    path = tmp_path / 'best.pdparams'
    with path.open('wb') as file:
        write_arrays(file, state_arrays(source))
    load_weights(target, path)
    assert_same(target, state_arrays(source))


@pytest.mark.parametrize('as_text', [False, True])
def test_safetensors_loads(tmp_path, as_text):
    source, target = network(1), network(2)
    path = tmp_path / 'model.safetensors'
    save_file(state_arrays(source), path)
    report = load_weights(target, str(path) if as_text else path)
    assert_same(target, state_arrays(source))
    assert len(report.mapped) == len(source.state_dict())


def test_loaded_weights_are_a_copy(tmp_path):
    """Training on must not write into the arrays that were given."""
    arrays = state_arrays(small(1))
    given = {name: value.copy() for name, value in arrays.items()}
    model = small(2)
    fit_weights(model, given, 'here')
    model[0].weight.set_value(paddle.zeros_like(model[0].weight))
    for name, value in arrays.items():
        np.testing.assert_array_equal(given[name], value)


def test_state_arrays_are_a_copy():
    model = small(1)
    arrays = state_arrays(model)
    before = arrays['0.weight'].copy()
    with paddle.no_grad():
        model[0].weight.scale_(0.0)
    np.testing.assert_array_equal(arrays['0.weight'], before)


@pytest.mark.parametrize('suffix', ['.pdparams', '.safetensors'])
@pytest.mark.parametrize('dtype', ['float64', 'float16'])
def test_other_precisions_are_converted_or_refused(tmp_path, suffix, dtype):
    """A half-precision or NumPy-made file is no bug of ours: no traceback, no half-loaded model."""
    arrays = {name: value.astype(dtype) for name, value in state_arrays(small(1)).items()}
    path = tmp_path / f'weights{suffix}'
    if suffix == '.pdparams':
        write(path, arrays)
    else:
        save_file(arrays, path)
    model = small(2)
    try:
        load_weights(model, path)
    except UserError:
        assert dtype in refused(model, path)
    else:
        assert_same(model, {name: value.astype('float32') for name, value in arrays.items()})


def test_one_wrong_type_leaves_the_model_unchanged(tmp_path):
    """The last entry, so that the others would be in the model by then."""
    arrays = state_arrays(small(1))
    last = list(arrays)[-1]
    arrays[last] = np.array(['a'] * 3)
    assert last in refused(small(2), write(tmp_path / 'text.pdparams', arrays))


@pytest.mark.parametrize('value', [np.array([None] * 3), np.array([{}, [], 1], dtype=object)])
def test_arrays_of_objects_are_refused(tmp_path, value):
    arrays = {**state_arrays(small(1)), '1.bias': value}
    assert '1.bias' in refused(small(2), write(tmp_path / 'objects.pdparams', arrays))


# ------------------------------------------------------------------ weights that do not fit


def test_missing_keys_are_named(tmp_path):
    arrays = state_arrays(network(1))
    del arrays['conv1.weight'], arrays['bn1._mean']
    text = refused(network(2), write(tmp_path / 'less.pdparams', arrays))
    assert 'missing' in text
    assert 'conv1.weight' in text
    assert 'bn1._mean' in text


def test_unknown_keys_are_named(tmp_path):
    arrays = {**state_arrays(network(1)), 'head.weight': np.zeros((2, 2), np.float32)}
    text = refused(network(2), write(tmp_path / 'more.pdparams', arrays))
    assert 'unknown' in text
    assert 'head.weight' in text
    assert 'missing' not in text


def test_both_shapes_are_named(tmp_path):
    path = write(tmp_path / 'ten.pdparams', state_arrays(network(1, num_classes=10)))
    text = refused(network(2, num_classes=3), path)
    assert 'fc.weight is [64, 10] there and [64, 3] in the model' in text
    assert 'fc.bias is [10] there and [3] in the model' in text


@pytest.mark.parametrize('shape', [(3, 2), (6,), (1, 2, 3), (2, 3, 1), ()])
def test_same_size_in_another_shape_is_refused(tmp_path, shape):
    value = np.zeros(shape, np.float32)
    arrays = {**state_arrays(small(1)), '0.weight': value}
    text = refused(small(2), write(tmp_path / 'shape.pdparams', arrays))
    assert f'0.weight is {list(shape)} there and [2, 3] in the model' in text


def test_many_problems_stay_one_readable_line(tmp_path):
    arrays = {f'other.{number}': np.zeros(1, np.float32) for number in range(500)}
    text = refused(network(2), write(tmp_path / 'other.pdparams', arrays))
    assert len(text) < 1000
    assert 'other.0' in text
    assert '497 more' in text
    assert 'conv1.weight' in text


def test_deeper_network_is_refused(tmp_path):
    deeper = build('wide_resnet16_1', num_classes=3)
    path = write(tmp_path / 'deeper.pdparams', state_arrays(deeper))
    assert 'block1.layer.1' in refused(network(), path)


@pytest.mark.parametrize('key', [1, None, (1, 2), b'bytes'])
def test_keys_that_are_not_text_are_refused(tmp_path, key):
    arrays = {**state_arrays(small(1)), key: np.zeros(3, np.float32)}
    refused(small(2), write(tmp_path / 'keys.pdparams', arrays))


# ------------------------------------------------------------------ damaged files


@pytest.mark.parametrize('suffix', ['.pdparams', '.safetensors'])
@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'hello',
        b'# a read-me\n\nwith lines\nand more lines\n',
        b'import os\nos.system("true")\n',
        b'model:\n  name: wide_resnet28_10\n',
        b'config\nvalue\n.',
        b'<!doctype html>\n<html>\n<body>404\n</body></html>\n',
        b'\x80\x04',
        b'\x80\x09]\n.',
        b'\x80\x04\x8c\xff',
        b'PK\x03\x04' + bytes(100),
        bytes(1000),
        b'\xff' * 1000,
    ],
)
def test_other_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f'file{suffix}'
    path.write_bytes(content)
    refused(small(), path)


@pytest.mark.parametrize('suffix', ['.pdparams', '.safetensors'])
@pytest.mark.parametrize('share', [0.01, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f'model{suffix}'
    if suffix == '.pdparams':
        paddle.save(network(1).state_dict(), str(path))
    else:
        save_file(state_arrays(network(1)), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert 'damaged' in refused(network(2), path)


@pytest.mark.parametrize('suffix', ['.pdparams', '.safetensors'])
def test_folder_and_missing_file_are_refused(tmp_path, suffix):
    folder = tmp_path / f'folder{suffix}'
    folder.mkdir()
    assert 'is a folder; name the weight file in it' in refused(small(), folder)
    assert 'No such file' in refused(small(), tmp_path / f'nowhere{suffix}')


@pytest.mark.parametrize(
    'content',
    [[], [np.zeros(3)], np.zeros(3), 'text', 5, None, {}, {'a': 1}, {'a': [1.0, 2.0]}, {'a': {}}],
)
def test_pickles_of_other_content_are_refused(tmp_path, content):
    refused(small(), write(tmp_path / 'other.pdparams', content))


def test_nested_state_dict_is_found(tmp_path):
    source, target = small(1), small(2)
    path = tmp_path / 'nested.pdparams'
    paddle.save({'model': source.state_dict(), 'epoch': 3}, str(path))
    assert "from 'model'" in load_weights(target, path).source
    assert_same(target, state_arrays(source))


def test_several_state_dicts_are_refused_by_name(tmp_path):
    content = {'one': state_arrays(small(1)), 'other': state_arrays(small(1))}
    text = refused(small(2), write(tmp_path / 'two.pdparams', content))
    assert 'one, other' in text


def test_own_checkpoints_are_read_strictly(tmp_path):
    """What is not exactly a map of names to arrays is no file of ours: nothing is converted."""
    path = tmp_path / 'model.pdparams'
    arrays = {'module.bn1.running_mean': np.zeros(3, np.uint16)}
    found = parse_arrays(pickle.dumps(arrays), path)
    assert list(found) == list(arrays)
    assert found['module.bn1.running_mean'].dtype == np.uint16
    for content in ({'model': arrays}, {'epoch': 3}, {1: np.zeros(3)}, [np.zeros(3)]):
        with pytest.raises(UserError, match='not a state dict'):
            parse_arrays(pickle.dumps(content), path)


FUZZ = """
import collections, os, resource, sys
import numpy as np
import paddle
from engine.errors import UserError
from engine.weights import load_weights

path, outcomes, rng = sys.argv[1], collections.Counter(), np.random.default_rng(0)
content = open(path, 'rb').read()
model = paddle.nn.Sequential(paddle.nn.Linear(2, 3), paddle.nn.BatchNorm1D(3))
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)  # a changed length may ask for much
for position in range(len(content)):
    damaged = bytearray(content)
    damaged[position] ^= int(rng.integers(1, 256))
    with open(path, 'wb') as file:
        file.write(damaged)
    try:
        load_weights(model, path)
        outcomes['loaded'] += 1
    except UserError as error:
        outcomes['in one line' if '\\n' not in str(error) else 'in several lines'] += 1
    except Exception as error:
        outcomes[f'{type(error).__name__}: {error}'] += 1
print(dict(outcomes))
"""


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='limits memory as Linux does')
@pytest.mark.parametrize('suffix', ['.pdparams', '.safetensors'])
def test_any_changed_byte_is_read_or_refused(tmp_path, suffix):
    """Random damage loads as other numbers or is refused in one line; it never ends otherwise."""
    path = tmp_path / f'model{suffix}'
    if suffix == '.pdparams':
        write(path, state_arrays(small(1)))
    else:
        save_file(state_arrays(small(1)), path)
    done = subprocess.run(
        [sys.executable, '-c', FUZZ, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = ast.literal_eval(done.stdout.splitlines()[-1])
    assert set(outcomes) == {'loaded', 'in one line'}
    assert min(outcomes.values()) > 20


def safetensors(path: Path, header: object, numbers: bytes = b'') -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + numbers)
    return path


def test_safetensors_in_bfloat16_is_read(tmp_path):
    """bfloat16 is the usual type of such files."""
    values = np.array([[1.0, -2.5, 0.0], [2.0**100, -0.0, np.inf]], np.float32)
    halves = (values.view(np.uint32) >> 16).astype('<u2').tobytes()
    header = {
        '__metadata__': {'format': 'pt'},
        'bn.running_mean': {'dtype': 'BF16', 'shape': [2, 3], 'data_offsets': [4, 16]},
        'bn.running_var': {'dtype': 'F16', 'shape': [2], 'data_offsets': [0, 4]},
    }
    numbers = np.array([0.5, 3.0], '<f2').tobytes() + halves
    for name in ('half.safetensors', 'half.bin'):  # by its content, whatever it is called
        arrays = read_weights(safetensors(tmp_path / name, header, numbers)).arrays
        assert arrays['bn._mean'].dtype == np.float32
        np.testing.assert_array_equal(arrays['bn._mean'], values)
        np.testing.assert_array_equal(arrays['bn._variance'], [0.5, 3.0])


@pytest.mark.parametrize(
    'entry',
    [
        {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 25]},
        {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [24, 0]},
        {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [4, 28]},
        {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [-24, 0]},
        {'dtype': 'F32', 'shape': [-2, -3], 'data_offsets': [0, 24]},
        {'dtype': 'F32', 'shape': [1 << 62, 1 << 62], 'data_offsets': [0, 24]},
        {'dtype': 'F32', 'shape': [0, 1 << 80], 'data_offsets': [0, 0]},
        {'dtype': 'F32', 'shape': [6.0], 'data_offsets': [0, 24]},
        {'dtype': 'F32', 'shape': [True, 6], 'data_offsets': [0, 24]},
        {'dtype': 'F32', 'shape': 6, 'data_offsets': [0, 24]},
        {'dtype': 'F32', 'shape': [6]},
        {'dtype': 'F8_E4M3', 'shape': [24], 'data_offsets': [0, 24]},
        {'dtype': ['F32'], 'shape': [6], 'data_offsets': [0, 24]},
        {'dtype': 'F32', 'shape': [1] * 70 + [6], 'data_offsets': [0, 24]},
        [],
        None,
    ],
)
def test_safetensors_with_a_wrong_header_is_refused(tmp_path, entry):
    header = {'0.weight': entry}
    path = safetensors(tmp_path / 'lie.safetensors', header, bytes(24))
    assert 'is damaged or not a safetensors file' in refused(small(), path)


def test_our_safetensors_file_is_read_by_the_package(tmp_path):
    arrays = {
        'a': np.arange(6, dtype='>f4').reshape(2, 3),
        'b': np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        'c': np.array(1.5, np.float16),
        'd': np.zeros((0, 3), bool),
    }
    path = tmp_path / 'ours.safetensors'
    with path.open('wb') as file:
        safetensors_file.write(file, arrays)
    for found in (load_file(path), read_weights(path).arrays):
        assert sorted(found) == sorted(arrays)
        for name, value in arrays.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype.newbyteorder('=')
    with pytest.raises(ValueError, match='complex'):
        safetensors_file.write(io.BytesIO(), {'complex': np.zeros(1, complex)})


def test_bfloat16_of_paddle_becomes_float32(tmp_path):
    """paddle.save writes it as uint16."""
    source, target = small(1), small(2)
    path = tmp_path / 'half.pdparams'
    halves = {name: value.astype('bfloat16') for name, value in source.state_dict().items()}
    paddle.save(halves, str(path))
    load_weights(target, path)
    expected = {name: value.astype('float32').numpy() for name, value in halves.items()}
    assert_same(target, expected)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('source', ['float32', 'float16', 'float64'])
def test_16_bit_model_takes_weights_of_any_precision(dtype, source):
    """Each tensor keeps its type: batch norms are float32 there, too."""
    target = network(2)
    for layer in target.sublayers():
        if isinstance(layer, (nn.Conv2D, nn.Linear)):
            layer.to(dtype=dtype)
    types = {name: tensor.dtype for name, tensor in target.state_dict().items()}
    assert len(set(types.values())) == 2
    arrays = {name: value.astype(source) for name, value in state_arrays(network(1)).items()}
    fit_weights(target, arrays, 'there')
    for name, tensor in target.state_dict().items():
        assert tensor.dtype == types[name], name
        found = tensor.astype('float32').numpy()
        half = tensor.dtype != paddle.float32
        if not (half and dtype == 'bfloat16'):  # which NumPy has not
            expected = arrays[name].astype('float16' if half else 'float32').astype('float32')
            np.testing.assert_array_equal(found, expected, err_msg=name)
        np.testing.assert_allclose(found, arrays[name], rtol=2**-7, atol=1e-6, err_msg=name)


def test_float32_arrays_are_a_copy_of_any_precision_in_float32():
    model = small(1)
    exact = state_arrays(model)
    for dtype in ('float32', 'float16', 'bfloat16'):
        tensors = {n: t.clone().astype(dtype) for n, t in model.state_dict().items()}
        arrays = float32_arrays(tensors)
        before = {name: array.copy() for name, array in arrays.items()}
        for name, array in arrays.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, exact[name], rtol=2**-7, err_msg=name)
        with paddle.no_grad():
            for tensor in tensors.values():
                tensor.scale_(0.0)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)


# ------------------------------------------------------------------ code


class Touch:
    """Unpickled by the ordinary pickle, it runs `call`."""

    def __init__(self, call, *args) -> None:
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def payloads(sentinel: Path) -> dict[str, object]:
    touch = f'open({str(sentinel)!r}, "w").close()'
    return {
        'open': Touch(open, str(sentinel), 'w'),
        'os.system': Touch(os.system, f'touch {sentinel}'),
        'os.mkdir': Touch(os.mkdir, str(sentinel)),
        'exec': Touch(exec, touch),
        'eval': Touch(eval, touch),
        'subprocess': Touch(subprocess.call, ['touch', str(sentinel)]),
        'Path.touch': Touch(Path.touch, sentinel),
        'numpy.save': Touch(np.save, str(sentinel), np.zeros(1)),
        'ndarray.tofile': Touch(np.ndarray.tofile, np.zeros(1), str(sentinel)),
        'getattr': Touch(getattr, 'text', 'upper'),
        'numpy.load': Touch(np.load, str(sentinel)),
        'paddle.Tensor': Touch(paddle.to_tensor, [1.0]),
    }


@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('name', sorted(payloads(Path('sentinel'))))
@pytest.mark.parametrize('place', ['a value', 'a key', 'everything', 'beside the arrays'])
def test_code_is_refused_and_not_run(tmp_path, name, place, protocol):
    sentinel = tmp_path / 'sentinel'
    payload = payloads(sentinel)[name]
    content: object = {
        'a value': {'0.weight': payload},
        'a key': {payload: np.zeros(3)},
        'everything': payload,
        'beside the arrays': {**state_arrays(small(1)), 'StructuredToParameterName@@': payload},
    }[place]
    path = tmp_path / 'evil.pdparams'
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    text = refused(small(2), path)
    assert 'can run code' in text
    assert not sentinel.exists()


def test_plain_pickle_would_run_the_code(tmp_path):
    """The test above can fail: the ordinary pickle does run what it refuses."""
    sentinel = tmp_path / 'sentinel'
    pickle.loads(pickle.dumps(payloads(sentinel)['os.mkdir']))
    assert sentinel.exists()


@pytest.mark.parametrize(
    'opcodes',
    [
        b"cos\nsystem\n(S'touch SENTINEL'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch SENTINEL'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch SENTINEL'\no.",  # OBJ
        b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch SENTINEL\x85R.',  # STACK_GLOBAL
        b'cnumpy\nndarray.tofile\n.',  # a dotted name behind an allowed one
        b'\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.',
        b'\x80\x04\x8c\x05numpy\x8c\x13f2py.compile.__init__\x93.',
        b'\x80\x02\x82\x01.',  # EXT1
        b'Pid\n.',  # PERSID
    ],
)
def test_every_opcode_that_names_a_function_is_refused(tmp_path, opcodes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'opcodes.pdparams'
    path.write_bytes(opcodes)
    refused(small(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


# ------------------------------------------------------------------ safe_pickle alone


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_are_read(protocol):
    content = {
        'matrix': np.arange(6, dtype=np.float32).reshape(2, 3),
        'columns': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        'scalar': np.float64(1.5),
        'zero-dimensional': np.array(3, np.int64),
        'big-endian': np.arange(3, dtype='>i4'),
        'ordered': collections.OrderedDict(a=1, b=[2, (3, None)]),
        b'bytes': 'text',
    }
    data = pickle.dumps(content, protocol=protocol)
    found, expected = safe_pickle.loads(data, 'here'), pickle.loads(data)
    assert list(found) == list(content)
    for name, value in content.items():
        assert type(found[name]) is type(value)
        if isinstance(value, np.ndarray):
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(found[name], value)
        else:
            assert found[name] == value


@pytest.mark.parametrize('as_view', [False, True])
def test_bytes_and_views_are_accepted(as_view):
    data = pickle.dumps({'a': np.arange(3)})
    found = safe_pickle.loads(memoryview(data) if as_view else data, 'here')
    np.testing.assert_array_equal(found['a'], np.arange(3))


def test_names_of_numpy_1_and_2_are_known():
    """numpy.core became numpy._core in NumPy 2; a file may come from either."""
    data = pickle.dumps(np.arange(3), protocol=2)
    for module in (b'numpy.core', b'numpy._core'):
        renamed = data.replace(b'numpy._core', b'numpy.core').replace(b'numpy.core', module)
        np.testing.assert_array_equal(safe_pickle.loads(renamed, 'here'), np.arange(3))


def test_error_names_file_and_function():
    with pytest.raises(UserError, match=r'^over there.*posix.*system|^over there.*nt.*system'):
        safe_pickle.loads(pickle.dumps(os.system), 'over there')
    with pytest.raises(UserError, match=r'^over there .*damaged'):
        safe_pickle.loads(b'\x80\x04', 'over there')


def test_read_weights_needs_no_model(tmp_path):
    path = tmp_path / 'model.pdparams'
    paddle.save(small(1).state_dict(), str(path))
    arrays = read_weights(path).arrays
    assert sorted(arrays) == sorted(small(1).state_dict())
    buffer = io.BytesIO()
    write_arrays(buffer, arrays)
    assert sorted(pickle.loads(buffer.getvalue())) == sorted(arrays)


# ------------------------------------------------------------------ arrays with wrong headers


def pickled_array(shape: str, dtype: str, state: str, content: str) -> bytes:
    """An array as pickle protocol 0 writes it, with whatever in the place of its parts."""
    return (
        f'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS"b"\ntR'
        f'(I1\n{shape}cnumpy\ndtype\n({dtype}I0\nI1\ntR{state}I00\n{content}tb.'
    ).encode()


F4, PLAIN = "S'f4'\n", "(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
EIGHT = "S'" + 8 * '\\0' + "'\n"
AS_BYTES = f'c_codecs\nencode\n({EIGHT}S"latin1"\ntR'


def test_correct_array_loads():
    found = safe_pickle.loads(pickled_array('(I2\nt', F4, PLAIN, AS_BYTES), 'here')
    np.testing.assert_array_equal(found, np.zeros(2, np.float32))
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ('shape', 'dtype', 'state', 'content'),
    [
        ('(I3\nt', F4, PLAIN, AS_BYTES),  # larger than its content
        ('(L1000000000000L\nt', F4, PLAIN, AS_BYTES),
        ('(L4611686018427387905L\nI4\nt', F4, PLAIN, AS_BYTES),  # 2 in 64 bits
        ('(I-2\nt', F4, PLAIN, AS_BYTES),
        ('(I2\nt', "S'O8'\n", PLAIN.replace('<', '|'), AS_BYTES),  # bytes as pointers
        ('(I1\nt', "S'V8'\n", PLAIN.replace('<', '|'), AS_BYTES),
        ('(I2\nt', "S'f4,O'\n", PLAIN, AS_BYTES),
        ('(I2\nt', F4, PLAIN.replace('NNN', "(cnumpy\ndtype\n(S'O8'\ntR(I9\nttNN"), AS_BYTES),
        ('(I2\nt', F4, PLAIN.replace("'<'", "'f8'"), AS_BYTES),
        ('(I2\nt', F4, PLAIN, EIGHT),
        ('(I2\nt', F4, PLAIN, 'N'),
        ('I2\n', F4, PLAIN, AS_BYTES),
    ],
)
def test_arrays_with_wrong_headers_are_refused(shape, dtype, state, content):
    with pytest.raises(UserError, match=r'^here is damaged'):
        safe_pickle.loads(pickled_array(shape, dtype, state, content), 'here')


@pytest.mark.parametrize(
    'opcodes',
    [
        # Allocating by a shape, without any content.
        b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L99999999999999L\ntS"b"\ntR.',
        b'cnumpy\nndarray\n((L99999999999999L\ntS"f4"\ntR.',
        b'\x80\x04cnumpy\nndarray\n(L99999999999999L\nt\x81.',
    ],
)
def test_a_shape_alone_allocates_nothing(opcodes):
    try:
        found = safe_pickle.loads(opcodes, 'here')
    except UserError:
        return
    assert getattr(found, 'size', 0) == 0


def test_an_array_is_filled_once_only():
    """A second time would free memory that the arrays made of it meanwhile still look at."""
    once = pickled_array('(I2\nt', F4, PLAIN, AS_BYTES)[:-1]
    again = once[once.index(b'(I1') :]
    with pytest.raises(UserError, match='twice'):
        safe_pickle.loads(once + again + b'.', 'here')


def test_a_memo_index_allocates_nothing():
    """The unpickler in C would allocate, and write, a table of 64 GB."""
    assert safe_pickle.loads(b'\x80\x02Nr\xff\xff\xff\xff.', 'here') is None
