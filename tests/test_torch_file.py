"""PyTorch's files are read without PyTorch, and hostile files are refused.

PyTorch wrote the files in data/ (data/make_torch_files.py); the hostile ones are assembled
here from opcodes.
"""

from __future__ import annotations

import io
import os
import pickle
import runpy
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from engine.errors import UserError
from engine.weights import read_weights
from engine.weights.formats.pytorch_pickle import Storage, Tensor

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / 'tests' / 'data'
ENTRIES = runpy.run_path(str(DATA / 'make_torch_files.py'))['ENTRIES']
OURS = {
    'conv1.weight': ENTRIES['conv1.weight'],
    'bn1.weight': ENTRIES['bn1.weight'],
    'bn1.bias': ENTRIES['bn1.bias'],
    'bn1._mean': ENTRIES['bn1.running_mean'],
    'bn1._variance': ENTRIES['bn1.running_var'],
    'fc.weight': ENTRIES['fc.weight'].T,
    'fc.bias': ENTRIES['fc.bias'],
}
FORMATS = pytest.mark.parametrize('form', ['zip', 'legacy'])


def assert_ours(arrays, *, without=()):
    assert sorted(set(arrays) - set(without)) == sorted(OURS)
    for name, value in OURS.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_weights(path)
    text = str(error.value)
    assert '\n' not in text
    assert str(path) in text
    return text


# ------------------------------------------------------------------ files of PyTorch


@FORMATS
@pytest.mark.parametrize('content', ['plain', 'training', 'averaged', 'shared', 'bfloat16'])
def test_files_written_by_pytorch_are_read(form, content):
    found = read_weights(DATA / f'{form}_{content}.pth')
    assert_ours(found.arrays)
    assert {array.dtype for array in found.arrays.values()} == {np.dtype(np.float32)}


@FORMATS
def test_views_are_read(form):
    """Channels last, transposed, every second number, and nothing at all."""
    found = read_weights(DATA / f'{form}_views.pth').arrays
    assert_ours(found, without=['empty'])
    assert found['empty'].shape == (0, 3)


@FORMATS
def test_all_types_are_read(form):
    found = read_weights(DATA / f'{form}_types.pth')
    assert_ours({name: found.arrays[name] for name in OURS})
    assert found.arrays['conv1.weight'].dtype == np.float16
    kinds = {name[6:]: a for name, a in found.arrays.items() if name.startswith('torch.')}
    assert len(kinds) == 12
    for kind, array in kinds.items():
        assert array.dtype == ('float32' if kind == 'bfloat16' else kind)
        np.testing.assert_array_equal(array, [0, 1, 1, 1] if kind == 'bool' else range(4))
    assert found.dropped[-1] == 'torch.float8_e4m3fn (its numbers are torch.float8_e4m3fn)'


def test_suffix_does_not_matter(tmp_path):
    for form in ('zip', 'legacy'):
        for name in ('model_best.pth.tar', 'pytorch_model.bin', 'weights.pdparams', 'weights'):
            path = tmp_path / name
            path.write_bytes((DATA / f'{form}_training.pth').read_bytes())
            assert_ours(read_weights(path).arrays)


def test_storages_of_gpus_and_of_python_2_are_read(tmp_path):
    """xternalz's checkpoints: written on a GPU, by Python 2."""
    content = (DATA / 'legacy_training.pth').read_bytes()
    assert b'ctorch\nFloatStorage' in content
    content = content.replace(b'ctorch\nFloatStorage', b'ctorch.cuda\nFloatStorage')
    as_unicode = b'X' + struct.pack('<I', len('state_dict')) + b'state_dict'
    as_text = b'U' + bytes([len('state_dict')]) + b'state_dict'
    assert as_unicode in content
    path = tmp_path / 'model_best.pth.tar'
    path.write_bytes(content.replace(as_unicode, as_text))
    assert_ours(read_weights(path).arrays)


def test_optimizer_states_are_not_read(monkeypatch):
    read, method = [], Storage.array
    monkeypatch.setattr(
        Storage, 'array', lambda self, kind: read.append(self) or method(self, kind)
    )
    read_weights(DATA / 'zip_training.pth')
    assert len({storage.key for storage in read}) == len(OURS)


def test_pytorch_is_not_imported():
    code = (
        'import sys; from engine.weights import read_weights; '
        f'read_weights({str(DATA / "zip_plain.pth")!r}); '
        'print({"torch", "paddle"} & {name.partition(".")[0] for name in sys.modules})'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == 'set()\n', done.stderr


# ------------------------------------------------------------------ other files


def test_whole_models_are_refused_by_name():
    for form in ('zip', 'legacy'):
        text = refused(DATA / f'{form}_model.pth')
        assert 'torch.nn.modules.linear.Linear' in text
        assert 'state_dict()' in text


def test_torchscript_is_refused():
    assert 'TorchScript archive' in refused(DATA / 'torchscript.pt')


def test_other_zip_archives_are_refused(tmp_path):
    path = tmp_path / 'arrays.npz'
    np.savez(path, a=np.zeros(3))
    assert 'ZIP archive, but none of PyTorch' in refused(path)
    with zipfile.ZipFile(path, 'w'):
        pass
    assert 'ZIP archive, but none of PyTorch' in refused(path)


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        (b'\x1f\x8b\x08' + bytes(50), 'gzip'),
        (b'\x89HDF\r\n\x1a\n' + bytes(50), 'HDF5'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', 'git lfs pull'),
        (b'<!DOCTYPE html><html><body>404</body></html>', 'web page'),
        (bytes(257) + b'ustar' + bytes(500), 'tar archive'),
        (b'\xd8^:\x7f\xb5\x7fb\x8d', 'encrypted by MindSpore'),
        (b'', 'damaged'),
    ],
)
def test_files_mistaken_for_weights_are_named(tmp_path, content, what):
    path = tmp_path / 'weights.pth'
    path.write_bytes(content)
    assert what in refused(path)


@FORMATS
def test_truncated_file_is_refused(tmp_path, form):
    content = (DATA / f'{form}_training.pth').read_bytes()
    path = tmp_path / 'cut.pth'
    for length in [*range(0, len(content), 23), len(content) - 1]:
        path.write_bytes(content[:length])
        refused(path)


@FORMATS
def test_any_changed_byte_is_read_or_refused(tmp_path, form):
    """Refused in one line, or read as other numbers (the older format has no checksums)."""
    content = (DATA / f'{form}_plain.pth').read_bytes()
    path, outcomes = tmp_path / 'changed.pth', set()
    rng = np.random.default_rng(0)
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_weights(path)
            outcomes.add('read')
        except UserError as error:
            outcomes.add('in several lines' if '\n' in str(error) else 'refused')
    assert outcomes == {'read', 'refused'}


def test_changed_number_fails_the_checksum(tmp_path):
    content = (DATA / 'zip_plain.pth').read_bytes()
    number = ENTRIES['conv1.weight'].tobytes()[:16]
    path = tmp_path / 'changed.pth'
    path.write_bytes(content.replace(number, bytes(16)))
    assert 'damaged: data/0' in refused(path)


# ------------------------------------------------------------------ files made by hand


@dataclass
class Name:
    module: str
    name: str


@dataclass
class Call:
    function: object
    arguments: tuple


@dataclass
class Persistent:
    pid: object


@dataclass
class Built:
    thing: object
    state: object


def opcodes(value: object) -> bytes:
    """A pickle's opcodes for a value, without those of its beginning and end."""
    if isinstance(value, Name):
        return f'c{value.module}\n{value.name}\n'.encode()
    if isinstance(value, Call):
        return opcodes(value.function) + opcodes(value.arguments) + b'R'
    if isinstance(value, Persistent):
        return opcodes(value.pid) + b'Q'
    if isinstance(value, Built):
        return opcodes(value.thing) + opcodes(value.state) + b'b'
    if isinstance(value, tuple):
        return b'(' + b''.join(map(opcodes, value)) + b't'
    if isinstance(value, dict):
        return b'}(' + b''.join(opcodes(x) for pair in value.items() for x in pair) + b'u'
    return pickle.dumps(value, protocol=2)[2:-1].split(b'q\0')[0]


def storage(key='0', kind='FloatStorage', count=6, what='storage') -> Persistent:
    return Persistent((what, Name('torch', kind), key, 'cpu', count))


def tensor(offset=0, shape=(2, 3), strides=(3, 1), of=None, rebuild='_rebuild_tensor_v2', more=()):
    arguments = (of or storage(), offset, shape, strides, False, {}, *more)
    return Call(Name('torch._utils', rebuild), arguments)


def archive(path: Path, content: object, files=None, *, compressed=False) -> Path:
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    numbers = np.arange(6, dtype=np.float32).tobytes()
    with zipfile.ZipFile(path, 'w', kind) as file:
        file.writestr('x/data.pkl', b'\x80\x02' + opcodes(content) + b'.')
        for name, data in (files or {'data/0': numbers, 'byteorder': b'little'}).items():
            file.writestr(f'x/{name}', data)
    return path


def old_file(path: Path, content: object, count=6, system=None, version=1001, keys=('0',)) -> Path:
    magic = 0x1950A86A20F9469CFC6C
    system = {'little_endian': True} if system is None else system
    head = [pickle.dumps(part, protocol=2) for part in (magic, version, system)]
    body = b'\x80\x02' + opcodes(content) + b'.' + pickle.dumps([*keys], protocol=2)
    numbers = struct.pack('<q', count) + np.arange(6, dtype=np.float32).tobytes()
    path.write_bytes(b''.join(head) + body + numbers)
    return path


def legacy(of: Persistent) -> Persistent:
    return Persistent((*of.pid, None))


def test_correct_files_made_by_hand_load(tmp_path):
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    for path in (
        archive(tmp_path / 'new.pth', {'w': tensor()}),
        old_file(tmp_path / 'old.pth', {'w': tensor(of=legacy(storage()))}),
    ):
        np.testing.assert_array_equal(read_weights(path).arrays['w'], expected)


@pytest.mark.parametrize(
    'lie',
    [
        {'offset': 1},
        {'offset': -1},
        {'offset': 1 << 62},
        {'offset': 0.0},
        {'offset': False},
        {'shape': (3, 3)},
        {'shape': (-2, -3)},
        {'shape': (1 << 62, 1 << 62)},
        {'shape': (2, 3, 1)},
        {'shape': None},
        {'shape': (0, 1 << 80)},
        {'shape': (1 << 40, 1 << 40), 'strides': (0, 0)},  # allocates terabytes of one number
        {'strides': (4, 1)},
        {'strides': (3, 2)},
        {'strides': (-3, 1)},
        {'strides': (1 << 62, 1 << 62)},
        {'strides': (3,)},
        {'strides': ('3', '1')},
        {'shape': (1,) * 40, 'strides': (1,) * 40},
        {'of': storage(count=7)},
        {'of': storage(count=5)},
        {'of': storage(count=1 << 60)},
        {'of': storage(count=-6)},
        {'of': storage(kind='DoubleStorage')},
        {'of': storage(kind='QInt8Storage')},
        {'of': storage(key='1')},
        {'of': storage(key='../../../etc/passwd')},
        {'of': storage(what='module')},
        {'of': Persistent('0')},
        {'of': Persistent(('storage', 'FloatStorage', '0', 'cpu', 6))},
        {'of': {'not': 'a storage'}},
        {'rebuild': '_rebuild_tensor_v3', 'more': ('O',)},
        {'rebuild': '_rebuild_tensor_v3', 'more': (Name('torch', 'float64'),)},
        {'rebuild': '_rebuild_tensor_v3', 'more': ()},
        {'rebuild': '_rebuild_sparse_tensor'},
        {'rebuild': '_rebuild_qtensor'},
        {'more': ({'neg': True},)},
    ],
    ids=repr,
)
def test_tensors_with_wrong_sizes_are_refused(tmp_path, lie):
    refused(archive(tmp_path / 'new.pth', {'w': tensor(**lie)}))
    of = lie.get('of', storage())
    if isinstance(of, Persistent) and isinstance(of.pid, tuple):
        lie = {**lie, 'of': legacy(of)}
        refused(old_file(tmp_path / 'old.pth', {'w': tensor(**lie)}))


def test_many_views_of_one_storage_are_refused(tmp_path):
    """Every tensor is inside of its storage, but together they would be terabytes on disk."""
    numbers = np.zeros(25_000, np.float32).tobytes()
    of = storage(count=25_000)
    many = {f'w{i}': tensor(0, (25_000,), (1,), of) for i in range(100)}
    text = refused(archive(tmp_path / 'many.pth', many, {'data/0': numbers}))
    assert 'bytes of arrays' in text


def test_zip_bombs_are_refused(tmp_path):
    of = storage(count=25_000_000)
    files = {'data/0': bytes(100_000_000)}
    path = archive(tmp_path / 'bomb.pth', {'w': tensor(of=of)}, files, compressed=True)
    assert path.stat().st_size < 200_000
    start = time.perf_counter()
    assert 'larger than the file' in refused(path)
    assert time.perf_counter() - start < 0.5


def test_two_types_for_one_storage_are_refused(tmp_path):
    other = tensor(of=storage(kind='IntStorage'))
    assert 'two different' in refused(archive(tmp_path / 'two.pth', {'a': tensor(), 'b': other}))


def test_big_endian_files_are_refused(tmp_path):
    files = {'data/0': bytes(24), 'byteorder': b'big'}
    assert 'big-endian' in refused(archive(tmp_path / 'new.pth', {'w': tensor()}, files))
    content = {'w': tensor(of=legacy(storage()))}
    path = old_file(tmp_path / 'old.pth', content, system={'little_endian': False})
    assert 'big-endian' in refused(path)


@pytest.mark.parametrize(
    'lie', [{'count': 5}, {'count': 1 << 61}, {'version': 1002}, {'system': []}, {'keys': ()},
            {'keys': ('0', '0')}, {'keys': ('0', '1')}, {'keys': (['0'],)}],
)  # fmt: skip
def test_legacy_file_with_inconsistent_parts_is_refused(tmp_path, lie):
    refused(old_file(tmp_path / 'old.pth', {'w': tensor(of=legacy(storage()))}, **lie))


def test_view_of_a_storage_is_refused(tmp_path):
    view = Persistent((*storage().pid, ('1', 0, 6)))
    refused(old_file(tmp_path / 'old.pth', {'w': tensor(of=view)}))


def gadgets(sentinel: Path) -> dict[str, object]:
    touch = f'open({str(sentinel)!r}, "w").close()'
    inert = Call(Name('argparse', 'Namespace'), ())
    return {
        'os.system': Call(Name('os', 'system'), (f'touch {sentinel}',)),
        'posix.system': Call(Name('posix', 'system'), (f'touch {sentinel}',)),
        'eval': Call(Name('builtins', 'eval'), (touch,)),
        'exec': Call(Name('__builtin__', 'exec'), (touch,)),
        'Python 2 eval': Call(Name('__builtin__', 'eval'), (touch,)),
        'getattr': Call(Name('builtins', 'getattr'), (inert, '__class__')),
        'import': Call(Name('builtins', '__import__'), ('os',)),
        'runpy': Call(Name('runpy', '_run_code'), (touch, {})),
        'torch.load': Call(Name('torch.serialization', 'load'), (str(sentinel),)),
        'numpy.load': Call(Name('numpy', 'load'), (str(sentinel),)),
        'dotted name': Call(Name('torch._utils', '_rebuild_tensor.__globals__'), ()),
        'dotted module': Call(Name('argparse', '_os.system'), (f'touch {sentinel}',)),
        'state of a class': Built(Name('argparse', 'Namespace'), {'__setstate__': print}),
        'state of a function': Built(Name('torch._utils', '_rebuild_tensor'), {'x': 1}),
        'state of a tensor': Built(tensor(), {'storage': None}),
        'state of a list': Built([], {'__class__': 1}),
        'calling a text': Call('text', ()),
        'calling a tensor': Call(tensor(), ()),
        'rebuilding by a text': Call(Name('torch._tensor', '_rebuild_from_type_v2'), ('x',) * 4),
        'apply': Call(
            Name('torch._tensor', '_rebuild_from_type_v2'),
            (Name('builtins', 'eval'), Name('torch', 'Tensor'), (touch,), {}),
        ),
    }


@pytest.mark.parametrize('name', sorted(gadgets(Path('sentinel'))))
@FORMATS
def test_code_is_refused_and_not_run(tmp_path, name, form):
    sentinel = tmp_path / 'sentinel'
    content = {'w': gadgets(sentinel)[name]}
    make = archive if form == 'zip' else old_file
    refused(make(tmp_path / 'evil.pth', content))
    assert not sentinel.exists()


def test_plain_pickle_would_run_the_code(tmp_path):
    sentinel = tmp_path / 'sentinel'
    pickle.loads(b'\x80\x02' + opcodes(gadgets(sentinel)['os.system']) + b'.')
    assert sentinel.exists()


def test_code_in_the_header_of_a_legacy_file_is_refused(tmp_path):
    """Its three leading pickles and its list of keys are restricted, too."""
    sentinel = tmp_path / 'sentinel'
    evil = b'\x80\x02' + opcodes(Call(Name('os', 'system'), (f'touch {sentinel}',))) + b'.'
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), pickle.dumps(1001, protocol=2)]
    path = tmp_path / 'evil.pth'
    path.write_bytes(b''.join(parts) + evil)
    assert 'system' in refused(path)
    whole = old_file(path, {'w': tensor(of=legacy(storage()))}).read_bytes()
    keys = pickle.dumps(['0'], protocol=2)
    assert whole.count(keys) == 1
    path.write_bytes(whole.replace(keys, evil))
    assert 'system' in refused(path)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    'content',
    [
        {'a\nb\x1b[2J': tensor()},
        {'state_dict': {'a\nb': tensor()}},
        {'w': tensor(of=storage(key='a\nb'))},
        {'w': tensor(of=storage(key='k' * 1000))},
    ],
)
def test_names_cannot_write_control_characters(tmp_path, content):
    text = refused(archive(tmp_path / 'names.pth', content))
    assert text.isprintable()
    assert len(text) < 1000


def test_errors_stay_short_for_exponential_tuples(tmp_path):
    """A tuple of itself twice, forty times over, is small until it is printed."""
    path = tmp_path / 'doubled.pth'
    doubled = b'N' + 40 * b'2\x86'
    for before, after in ((b'', b''), (b'(' + opcodes(storage()) + b'K\0', b')tR')):
        call = opcodes(Name('torch._utils', '_rebuild_tensor')) if before else b''
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr(
                'x/data.pkl', b'\x80\x02}X\1\0\0\0w' + call + before + doubled + after + b's.'
            )
        assert len(refused(path)) < 1000


def test_class_names_cannot_write_control_characters(tmp_path):
    path = tmp_path / 'name.pth'
    path.write_bytes(b'\x80\x04X\x05\0\0\0a\nb\x1b[X\x01\0\0\0c\x93.')
    assert 'holds a b [.c, which' in refused(path)


def test_objects_beside_the_weights_are_placeholders(tmp_path):
    """Placeholders swallow their content; nothing of them reaches the arrays."""
    namespace = Built(Call(Name('argparse', 'Namespace'), ()), {'__class__': 'x', 'lr': 0.1})
    content = {'state_dict': {'w': tensor()}, 'args': namespace}
    found = read_weights(archive(tmp_path / 'args.pth', content))
    assert list(found.arrays) == ['w']


def test_records_of_mmengine_are_placeholders(tmp_path):
    """Its records name their functions by getattr, which is not called; nor for anything else."""
    history = Name('mmengine.logging.history_buffer', 'HistoryBuffer')
    function = Call(Name('builtins', 'getattr'), (history, 'mean'))
    content = {
        'meta': Call(Name('mmengine.config.config', 'ConfigDict'), ()),
        'state_dict': {'w': tensor()},
        'message_hub': {'loss': Built(Call(history, ()), {'statistics_methods': function})},
    }
    assert list(read_weights(archive(tmp_path / 'epoch_3.pth', content)).arrays) == ['w']
    content['x'] = Call(Name('builtins', 'getattr'), (Name('collections', 'OrderedDict'), 'update'))
    assert 'holds builtins.getattr' in refused(archive(tmp_path / 'x.pth', content))


def test_tensor_checks_its_bounds():
    of = Storage('0', 'float32', 6, lambda key, size: np.arange(6, dtype='<f4').tobytes())
    np.testing.assert_array_equal(Tensor(of, 1, (2, 2), (2, 1)).array(), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(Tensor(of, 5, (), ()).array(), 5)
    with pytest.raises(pickle.UnpicklingError):
        Tensor(of, 2, (2, 3), (2, 1))


# ------------------------------------------------------------------ with PyTorch


@pytest.mark.torch
@pytest.mark.parametrize('as_legacy', [False, True])
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_files_of_the_installed_pytorch_are_read(tmp_path, as_legacy, protocol):
    torch = pytest.importorskip('torch')
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 5)
    )
    state = {f'module.{name}': value for name, value in model.state_dict().items()}
    path = tmp_path / 'model.pth'
    torch.save(
        {'epoch': 1, 'state_dict': state, 'rng': torch.get_rng_state()},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not as_legacy,
    )
    found = read_weights(path).arrays
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    np.testing.assert_array_equal(found['0.weight'], expected['0.weight'])
    np.testing.assert_array_equal(found['1._variance'], expected['1.running_var'])
    np.testing.assert_array_equal(found['2.weight'], expected['2.weight'].T)


@pytest.mark.torch
def test_committed_files_equal_the_script(tmp_path):
    """As far as torch is the same: names, sizes and numbers."""
    torch = pytest.importorskip('torch')
    for path in sorted(DATA.glob('*_training.pth')):
        buffer = io.BytesIO(path.read_bytes())
        state = torch.load(buffer, weights_only=True)['state_dict']
        for name, value in ENTRIES.items():
            np.testing.assert_array_equal(state[f'module.{name}'].numpy(), value)


@pytest.mark.torch
def test_100_megabytes_load_within_a_second(tmp_path):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'large.pth'
    torch.save({f'layer.{i}.weight': torch.zeros(500, 500) for i in range(100)}, path)
    read_weights(path)
    start = time.perf_counter()
    assert sum(array.nbytes for array in read_weights(path).arrays.values()) == 100_000_000
    assert time.perf_counter() - start < 1.0
    os.unlink(path)
