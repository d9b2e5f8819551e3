"""CIFAR in every layout, and every kind of damaged file, on small sets in the true formats."""

import builtins
import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cifar_files import CIFAR10_NAMES, Part, python2_pickle, small_cifar

from engine import safe_pickle
from engine.data.sources import cifar
from engine.data.sources.cifar import load_cifar
from engine.errors import UserError
from engine.weights import resolve

REPOSITORY = Path(__file__).resolve().parent.parent

LAYOUTS = [
    'write_python',
    'write_python_archive',
    'write_binary',
    'write_binary_archive',
    'write_split',
    'write_verify_split',
]
VARIANTS = ['cifar10', 'cifar100']


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without Paddle's cache, so that nothing but the test's own files can be found."""
    folder = tmp_path / 'home'
    folder.mkdir()
    monkeypatch.setenv('HOME', str(folder))
    return folder


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / 'data'
    folder.mkdir()
    return folder


def assert_is(small, loaded):
    (pixels, labels), (test_pixels, test_labels), classes, _ = loaded
    assert pixels.dtype == test_pixels.dtype == np.uint8
    assert labels.dtype == test_labels.dtype == np.int64
    np.testing.assert_array_equal(pixels, small.train_pixels)
    np.testing.assert_array_equal(labels, small.train_labels)
    np.testing.assert_array_equal(test_pixels, small.test.pixels)
    np.testing.assert_array_equal(test_labels, small.test.labels)
    assert classes == small.classes


def complaint(name, root, *, fetch=False):
    """The one line with which a set is refused."""
    with pytest.raises(UserError) as caught:
        load_cifar(name, root, fetch=fetch)
    text = str(caught.value)
    assert '\n' not in text
    return text


# ------------------------------------------------------------------ finding


@pytest.mark.parametrize(
    ('name', 'layout'),
    [
        *[('cifar10', layout) for layout in LAYOUTS],
        *[('cifar100', layout) for layout in LAYOUTS[:-1]],  # the last one's name says CIFAR-10
    ],
)
def test_each_layout_gives_the_same_arrays_wherever_one_points(base, name, layout):
    small = small_cifar(name)
    for root in getattr(small, layout)(base):
        loaded = load_cifar(name, root, fetch=False)
        assert_is(small, loaded)
        assert str(base) in loaded[3]


@pytest.mark.parametrize('name', VARIANTS)
def test_a_split_may_lie_in_the_folder_of_the_archive(base, name):
    small = small_cifar(name)
    folder = base / small.files.binary_folder
    small.write_split(folder)
    for root in (base, folder):
        assert_is(small, load_cifar(name, root, fetch=False))


def test_a_relative_root_works(base, monkeypatch):
    small = small_cifar('cifar10')
    small.write_verify_split(base)
    monkeypatch.chdir(base / 'cifar-10-batches-bin')
    assert_is(small, load_cifar('cifar10', Path('.'), fetch=False))


@pytest.mark.parametrize('layout', ['write_python', 'write_binary', 'write_python_archive'])
def test_both_variants_live_in_one_folder(base, layout):
    sets = [small_cifar(name) for name in VARIANTS]
    for small in sets:
        getattr(small, layout)(base)
    for small in sets:
        assert_is(small, load_cifar(small.name, base, fetch=False))


def packed(folder: Path, archive: Path, *, mode: str = 'w:gz', inside: str = '') -> Path:
    with tarfile.open(archive, mode) as tar:
        tar.add(folder, arcname=inside or folder.name)
    return archive


@pytest.mark.parametrize(
    ('name', 'file', 'mode', 'inside'),
    [
        ('cifar10', 'cifar-10-python.tar', 'w', ''),
        ('cifar10', 'cifar-10-python (1).tar.gz', 'w:gz', ''),
        ('cifar10', 'cifar-10-batches-py.tar.gz', 'w:gz', ''),
        ('cifar10', 'cifar-10-python.tgz', 'w:gz', 'x/cifar-10-batches-py'),
        ('cifar100', 'cifar-100-python(2).tar.gz', 'w:gz', 'renamed'),
    ],
)
def test_an_archive_under_another_name_is_found(base, tmp_path, name, file, mode, inside):
    small = small_cifar(name)
    _, folder = small.write_python(tmp_path / 'made')
    archive = packed(folder, base / file, mode=mode, inside=inside)
    for root in (base, archive):
        assert_is(small, load_cifar(name, root, fetch=False))
    anything = archive.rename(base / 'mine.bin')
    assert_is(small, load_cifar(name, anything, fetch=False))


def test_an_archive_of_something_else_is_called_that(base):
    small_cifar('cifar100').write_python_archive(base)
    text = complaint('cifar10', base / 'cifar-100-python.tar.gz')
    assert 'has no file of CIFAR-10, such as data_batch_1; it has meta, test, train' in text


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize('layout', ['write_python', 'write_binary'])
def test_a_nested_or_renamed_folder_is_found(base, name, layout):
    small = small_cifar(name)
    _, folder = getattr(small, layout)(base / 'x' / 'x')
    assert_is(small, load_cifar(name, base, fetch=False))
    renamed = folder.rename(base / 'x' / 'my copy')
    for root in (base, base / 'x', renamed):
        assert_is(small, load_cifar(name, root, fetch=False))


def test_looking_for_a_set_ends_soon(base):
    for number in range(2000):
        (base / f'{number}' / 'in').mkdir(parents=True)
    assert 'is not in' in complaint('cifar10', base)


def test_an_archive_whose_members_begin_with_a_dot(base):
    small = small_cifar('cifar10')
    small.write_python(base)
    with tarfile.open(base / 'cifar-10-python.tar.gz', 'w:gz') as tar:
        tar.add(base / 'cifar-10-batches-py', arcname='./cifar-10-batches-py')
    assert_is(small, load_cifar('cifar10', base / 'cifar-10-python.tar.gz', fetch=False))


def test_files_of_different_length_are_joined_in_order(base):
    small = small_cifar('cifar10').with_labels([3])
    small.write_binary(base)
    assert_is(small, load_cifar('cifar10', base, fetch=False))


def test_what_paddle_has_downloaded_is_found(base, home):
    small = small_cifar('cifar10')
    small.write_python_archive(home / '.cache' / 'paddle' / 'dataset' / 'cifar')
    assert_is(small, load_cifar('cifar10', base, fetch=True))
    assert list(base.iterdir()) == []


def test_the_users_own_folder_comes_before_the_cache(base, home):
    own = small_cifar('cifar10', seed=1)
    own.write_binary(base)
    small_cifar('cifar10', seed=2).write_python_archive(home / '.cache/paddle/dataset/cifar')
    assert_is(own, load_cifar('cifar10', base, fetch=True))


def test_class_names_are_numbers_where_their_file_is_missing(base):
    small_cifar('cifar10').write_binary(base)
    (base / 'cifar-10-batches-bin' / 'batches.meta.txt').unlink()
    classes = load_cifar('cifar10', base, fetch=False)[2]
    assert classes == list('0123456789')


def test_pickles_of_python_3_are_read_too(base):
    small = small_cifar('cifar10')
    small.write_python(base)
    for file, part in zip(small.files.python_train, small.train):
        batch = pickle.dumps(small.python_batch(part, ''), protocol=4)
        (base / 'cifar-10-batches-py' / file).write_bytes(batch)
    assert_is(small, load_cifar('cifar10', base, fetch=False))


@pytest.mark.parametrize('name', VARIANTS)
def test_batches_pickled_anew_with_keys_of_text_are_read(base, name):
    small = small_cifar(name)
    _, folder = small.write_python(base)
    for path in folder.iterdir():
        old = pickle.loads(path.read_bytes(), encoding='bytes')
        new = {key.decode(): value for key, value in old.items()}
        for key in (key for key in new if key.endswith('label_names')):
            new[key] = [name.decode() for name in new[key]]
        path.write_bytes(pickle.dumps(new))
    assert_is(small, load_cifar(name, base, fetch=False))


def test_the_small_files_are_what_python_2_wrote():
    """No opcode of Python 3 and the module names of NumPy 1, else the tests above prove little."""
    text = python2_pickle(small_cifar('cifar10').python_batch(small_cifar('cifar10').test, 'x'))
    assert text.startswith(b'\x80\x02')
    assert b'numpy.core.multiarray\n_reconstruct' in text
    for foreign in (b'_codecs', b'numpy._core', b'X\x04\x00\x00\x00data'):
        assert foreign not in text


# ------------------------------------------------------------------ downloading


def test_a_missing_set_is_downloaded_and_found_the_next_time(base, tmp_path, monkeypatch):
    small = small_cifar('cifar10')
    archive = small.write_python_archive(tmp_path / 'mirror')[1]
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    variant = dataclasses.replace(cifar.VARIANTS['cifar10'], md5=md5)
    monkeypatch.setitem(cifar.VARIANTS, 'cifar10', variant)
    monkeypatch.setattr(cifar, 'MIRRORS', (f'{archive.parent.as_uri()}/',))
    assert_is(small, load_cifar('cifar10', base / 'new', fetch=True))
    monkeypatch.setattr(cifar, 'MIRRORS', ())
    assert_is(small, load_cifar('cifar10', base / 'new', fetch=False))


def test_a_failing_download_says_where_to_put_the_file(base, monkeypatch):
    monkeypatch.setattr(cifar, 'MIRRORS', ('http://127.0.0.1:9/', 'http://127.0.0.1:19/'))
    text = complaint('cifar10', base, fetch=True)
    assert str(base) in text
    assert 'cifar-10-python.tar.gz' in text
    assert 'the folder with data_batch_1' in text
    assert text.count('refused') == 2
    assert 'http://127.0.0.1:9/' in text
    assert 'http://127.0.0.1:19/' in text


def test_a_root_that_is_some_other_file_is_refused(base, monkeypatch):
    monkeypatch.setattr(cifar, 'MIRRORS', ('http://127.0.0.1:9/',))
    (base / 'notes.txt').write_text('hello')
    for fetch in (False, True):
        assert 'notes.txt' in complaint('cifar10', base / 'notes.txt', fetch=fetch)


# ------------------------------------------------------------------ missing and damaged files


@pytest.mark.parametrize('name', VARIANTS)
def test_nothing_there(base, name):
    text = complaint(name, base)
    assert str(base) in text
    assert small_cifar(name).files.python_archive in text
    assert 'quickstart' in text
    assert list(base.iterdir()) == []


def test_a_folder_that_does_not_exist(base):
    assert 'nowhere' in complaint('cifar10', base / 'nowhere')


@pytest.mark.parametrize('layout', ['write_python', 'write_binary', 'write_split'])
@pytest.mark.parametrize('number', [1, 3, 5])
def test_a_missing_training_file_is_named(base, layout, number):
    getattr(small_cifar('cifar10'), layout)(base)
    file = next(base.rglob(f'data_batch_{number}*'))
    file.unlink()
    text = complaint('cifar10', base)
    assert f'{file.name} is missing' in text
    assert str(file.parent) in text


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize('layout', ['write_python', 'write_binary', 'write_split'])
def test_a_missing_test_file_is_named(base, name, layout):
    small = small_cifar(name)
    getattr(small, layout)(base)
    file = small.files.python_test if layout == 'write_python' else small.files.binary_test
    next(path for path in base.rglob(file) if path.is_file()).unlink()
    assert f'{file} is missing' in complaint(name, base)


def test_a_file_missing_in_an_archive_is_named(base):
    small = small_cifar('cifar10')
    small.write_python(base)
    (base / 'cifar-10-batches-py' / 'data_batch_3').unlink()
    with tarfile.open(base / 'cifar-10-python.tar.gz', 'w:gz') as tar:
        tar.add(base / 'cifar-10-batches-py', arcname='cifar-10-batches-py')
    text = complaint('cifar10', base / 'cifar-10-python.tar.gz')
    assert 'data_batch_3 is missing' in text
    assert 'cifar-10-python.tar.gz' in text


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize('kept', [1, 100, 3072, -1])
def test_truncated_binary_files(base, name, kept):
    small = small_cifar(name)
    small.write_binary(base)
    file = base / small.files.binary_folder / small.files.binary_train[-1]
    file.write_bytes(file.read_bytes()[:kept])
    text = complaint(name, base)
    assert file.name in text
    assert 'truncated' in text


@pytest.mark.parametrize('kept', [0.0, 1e-4, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('layout', ['write_python_archive', 'write_binary_archive'])
def test_truncated_archives(base, layout, kept):
    _, archive = getattr(small_cifar('cifar10'), layout)(base)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content))])
    for root in (base, archive):
        assert archive.name in complaint('cifar10', root)


@pytest.mark.parametrize(
    'content',
    [
        b'<html><body>404 Not Found</body></html>\n' * 50,
        gzip.compress(b'no tar' * 999),
        b'\0' * 2048,
    ],
    ids=['web page', 'no tar inside', 'zeros'],
)
def test_an_archive_that_is_none(base, content):
    archive = base / 'cifar-10-python.tar.gz'
    archive.write_bytes(content)
    assert archive.name in complaint('cifar10', base)


@pytest.mark.parametrize('where', [0.2, 0.5, 0.8])
def test_an_archive_with_a_changed_byte_fails_its_checksum(base, where):
    _, archive = small_cifar('cifar10', images=200).write_binary_archive(base)
    content = bytearray(archive.read_bytes())
    content[int(where * len(content))] ^= 1  # in the midst of random pixels
    archive.write_bytes(content)
    assert archive.name in complaint('cifar10', base)


@pytest.mark.parametrize('kept', [0.0, 1e-4, 0.01, 0.5, 0.99])
@pytest.mark.parametrize('file', ['data_batch_2', 'test_batch', 'batches.meta'])
def test_truncated_pickles(base, file, kept):
    small_cifar('cifar10').write_python(base)
    path = base / 'cifar-10-batches-py' / file
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert file in complaint('cifar10', base)


@pytest.mark.parametrize('file', ['data_batch_1.bin', 'test_batch.bin'])
def test_empty_binary_files(base, file):
    small_cifar('cifar10').write_binary(base)
    (base / 'cifar-10-batches-bin' / file).write_bytes(b'')
    assert file in complaint('cifar10', base)


@pytest.mark.parametrize('layout', ['write_python', 'write_binary'])
@pytest.mark.parametrize('label', [10, 200])
def test_labels_out_of_range(base, layout, label):
    getattr(small_cifar('cifar10').with_labels([0, 1, label]), layout)(base)
    text = complaint('cifar10', base)
    assert 'data_batch_5' in text
    assert f'image 2 has label {label}' in text


def test_negative_labels(base):
    small_cifar('cifar100').with_labels([5, -1]).write_python(base)
    text = complaint('cifar100', base)
    assert 'train' in text
    assert 'label -1' in text


@pytest.mark.parametrize(('name', 'other'), [VARIANTS, VARIANTS[::-1]])
@pytest.mark.parametrize('encoding', ['python', 'binary'])
@pytest.mark.parametrize('images', [4, 100])
def test_a_file_of_the_other_variant(base, name, other, encoding, images):
    small, foreign = small_cifar(name), small_cifar(other, images=images)
    getattr(small, f'write_{encoding}')(base)
    getattr(foreign, f'write_{encoding}')(base / 'other')
    files, others = small.files, foreign.files
    folder = base / getattr(files, f'{encoding}_folder')
    source = base / 'other' / getattr(others, f'{encoding}_folder')
    for kind in ('test', 'train'):  # the training file last: it is read first
        file, its = getattr(files, f'{encoding}_{kind}'), getattr(others, f'{encoding}_{kind}')
        file, its = (name[0] if isinstance(name, tuple) else name for name in (file, its))
        (folder / file).write_bytes((source / its).read_bytes())
        assert file in complaint(name, base)


def test_a_class_list_of_the_wrong_length(base):
    small = dataclasses.replace(small_cifar('cifar10'), classes=CIFAR10_NAMES[:9])
    for layout in ('write_python', 'write_binary'):
        getattr(small, layout)(base / layout)
        text = complaint('cifar10', base / layout)
        assert 'batches.meta' in text
        assert '9' in text


@pytest.mark.parametrize('layout', ['write_python', 'write_binary'])
def test_a_folder_where_a_file_should_be(base, layout):
    getattr(small_cifar('cifar10'), layout)(base)
    for file in ('test_batch', 'data_batch_3'):
        path = next(base.rglob(f'{file}*'))
        path.unlink()
        path.mkdir()
        assert path.name in complaint('cifar10', base)


def test_a_folder_where_the_archive_should_be(base):
    (base / 'cifar-10-python.tar.gz').mkdir()
    assert 'cifar-10-python.tar.gz' in complaint('cifar10', base)


# ------------------------------------------------------------------ pickles of something else


def rewrite(base, file, value):
    """Put a pickle of `value` in place of a file of a sound CIFAR-10."""
    if not (base / 'cifar-10-batches-py').exists():
        small_cifar('cifar10').write_python(base)
    (base / 'cifar-10-batches-py' / file).write_bytes(python2_pickle(value))


@pytest.mark.parametrize(
    'pixels',
    [
        np.zeros((2, 3071), np.uint8),
        np.zeros((3, 3072), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros(2 * 3072, np.uint8),
        np.zeros((2, 3072), np.int64),
        np.zeros((2, 3072), np.float32),
        [[0] * 3072] * 2,
        None,
    ],
    ids=['3071', 'too many', '4-D', '1-D', 'int64', 'float32', 'list', 'none'],
)
def test_pixels_of_the_wrong_shape(base, pixels):
    rewrite(base, 'data_batch_4', {b'data': pixels, b'labels': [1, 2]})
    assert 'data_batch_4' in complaint('cifar10', base)


@pytest.mark.parametrize(
    'labels',
    [3, None, [], ['cat', 'dog'], [[1], [2]], [1, [2]], {b'a': 1}, [0.5, 1.5], b'ab'],
    ids=repr,
)
def test_labels_of_the_wrong_shape(base, labels):
    rewrite(base, 'data_batch_4', {b'data': np.zeros((2, 3072), np.uint8), b'labels': labels})
    assert 'data_batch_4' in complaint('cifar10', base)


@pytest.mark.parametrize('value', [[1, 2], 7, None, {}, np.zeros(3)], ids=repr)
@pytest.mark.parametrize('file', ['data_batch_1', 'batches.meta'])
def test_pickles_that_hold_something_else(base, file, value):
    rewrite(base, file, value)
    assert file in complaint('cifar10', base)


@pytest.mark.parametrize('names', [7, None, [1] * 10, b'airplane'], ids=repr)
def test_class_names_that_are_none(base, names):
    rewrite(base, 'batches.meta', {b'label_names': names})
    assert 'batches.meta' in complaint('cifar10', base)


def test_class_names_in_another_encoding_are_read_as_well_as_can_be(base):
    rewrite(base, 'batches.meta', {b'label_names': [b'caf\xe9', *[b'tea'] * 9]})
    assert load_cifar('cifar10', base, fetch=False)[2] == ['caf\ufffd', *['tea'] * 9]


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def calls(sentinel):
    return {
        'os.system': Call(os.system, f'touch {sentinel}'),
        'eval': Call(builtins.eval, f'open({str(sentinel)!r}, "w")'),
        'subprocess': Call(subprocess.check_call, ['touch', str(sentinel)]),
        'nested': {b'labels': [Call(os.mkdir, str(sentinel))]},
    }


@pytest.mark.parametrize('kind', ['os.system', 'eval', 'subprocess', 'nested'])
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(base, tmp_path, kind, protocol):
    sentinel = tmp_path / 'ran'
    payload = pickle.dumps(calls(sentinel)[kind], protocol=protocol)
    for file in ('test_batch', 'batches.meta', 'data_batch_1'):
        small_cifar('cifar10').write_python(base / file)
        (base / file / 'cifar-10-batches-py' / file).write_bytes(payload)
        text = complaint('cifar10', base / file)
        assert file in text
        assert 'run code' in text
    assert not sentinel.exists()
    pickle.loads(payload)  # the payload is a real one
    assert sentinel.exists()


def test_a_pickle_in_an_archive_is_not_run_either(base, tmp_path):
    sentinel = tmp_path / 'ran'
    payload = pickle.dumps(calls(sentinel)['os.system'])
    with tarfile.open(base / 'cifar-10-python.tar.gz', 'w:gz') as tar:
        member = tarfile.TarInfo('cifar-10-batches-py/data_batch_1')
        member.size = len(payload)
        tar.addfile(member, io.BytesIO(payload))
    assert 'data_batch_1' in complaint('cifar10', base)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    'text',
    [
        b'cnumpy\nload\n.',
        b'cnumpy\nfromfile\n.',
        b'\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.',
        b'cbuiltins\ngetattr\n.',
        b'cengine.errors\nUserError\n.',
    ],
)
def test_only_what_rebuilds_arrays_resolves(text):
    with pytest.raises(UserError, match=r'file\.pkl holds'):
        safe_pickle.loads(text, 'file.pkl')


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    'value',
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.array(1.5),
        np.float64(2.5),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
    ],
    ids=['float32', '0-d', 'scalar', 'fortran'],
)
def test_arrays_survive_every_protocol(protocol, value):
    loaded = safe_pickle.loads(pickle.dumps({'x': [value]}, protocol=protocol), 'file')['x'][0]
    assert loaded.dtype == value.dtype
    np.testing.assert_array_equal(loaded, value)


# ------------------------------------------------------------------ the command


@pytest.mark.parametrize('damaged', [False, True], ids=['missing', 'damaged'])
def test_train_refuses_in_one_line_and_creates_nothing(base, home, damaged):
    work = base.parent / 'work'
    work.mkdir()
    if damaged:
        (base / 'cifar-10-python.tar.gz').write_bytes(b'')
    command = [sys.executable, str(REPOSITORY / 'train.py'), '-o', f'data.root={base}']
    done = subprocess.run(
        [*command, 'data.download=false', 'device=cpu'],
        cwd=work,
        env={**os.environ, 'HOME': str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert str(base) in lines[0]
    assert 'cifar-10-python.tar.gz' in lines[0]
    assert list(work.iterdir()) == []


def test_parts_know_their_coarse_labels():
    part = Part(np.zeros((2, 3, 32, 32), np.uint8), np.array([0, 99]))
    assert part.coarse.tolist() == [0, 19]


def test_a_user_without_a_home_has_no_earlier_downloads(tmp_path, monkeypatch):
    """As of `docker run --user 1234`: no HOME, and no line in /etc/passwd."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv('HOME')
    monkeypatch.setattr('pwd.getpwuid', unknown)
    with pytest.raises(UserError, match='CIFAR-10 is not in'):
        load_cifar('cifar10', tmp_path, fetch=False)
    with pytest.raises(UserError, match='no home folder to keep its weights in'):
        resolve('resnext50_32x4d')
