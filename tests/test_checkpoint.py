"""Checkpoints survive kills, full disks and damage. Nothing here imports paddle."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import pytest

from engine.errors import Diverged, UserError
from engine.files import write_atomically
from engine.run import checkpoint
from engine.run.checkpoint import Checkpoints, load
from engine.training.snapshot import Snapshot

ROOT = Path(__file__).resolve().parent.parent
FILES = ['model.pdparams', 'optimizer.pdopt', 'ema.pdparams', 'state.json', 'manifest.json']


def snapshot(number: int, *, ema: bool = True, size: int = 50) -> Snapshot:
    """A snapshot whose arrays all hold its number."""
    rng = np.random.default_rng(number)

    def arrays(names: str) -> dict[str, np.ndarray]:
        found = {name: rng.normal(size=(size, 3)).astype(np.float32) for name in names.split()}
        found['number'] = np.full(3, number, np.float32)
        return found

    return Snapshot(
        model=arrays('conv1.weight fc.bias'),
        optimizer=arrays('conv1.weight/velocity_0'),
        ema=arrays('conv1.weight fc.bias') if ema else None,
        state={'epoch': number, 'classes': ['größer', '猫', '\udcb0'], 'best': 0.1 + 0.2},
    )


def assert_equal(one: Optional[Snapshot], other: Snapshot) -> None:
    assert one is not None
    assert one.state == other.state
    for mine, theirs in [
        (one.model, other.model),
        (one.optimizer, other.optimizer),
        (one.ema or {}, other.ema or {}),
    ]:
        assert list(mine) == list(theirs)
        for name, value in theirs.items():
            assert mine[name].dtype == value.dtype
            np.testing.assert_array_equal(mine[name], value)


def newest(folder: Path) -> tuple[Optional[Snapshot], list[str]]:
    warnings: list[str] = []
    return Checkpoints(folder).newest(warnings.append), warnings


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------ saving and loading


@pytest.mark.parametrize('ema', [False, True])
def test_round_trip(tmp_path, ema):
    saved = snapshot(1, ema=ema)
    path = Checkpoints(tmp_path / 'deep' / 'checkpoints').save('epoch_0001', saved)
    assert '"größer",\n  "猫"' in (path / 'state.json').read_text(encoding='utf-8')
    found, warnings = newest(tmp_path / 'deep' / 'checkpoints')
    assert_equal(found, saved)
    assert warnings == []
    assert found.path == path
    assert (found.ema is not None) == ema
    assert_equal(load(path), saved)


def test_layout_is_the_documented_one(tmp_path):
    Checkpoints(tmp_path).save('epoch_0001', snapshot(1))
    assert names(tmp_path) == ['epoch_0001', 'latest']
    assert names(tmp_path / 'epoch_0001') == sorted(FILES)
    assert (tmp_path / 'latest').read_text() == 'epoch_0001\n'
    manifest = json.loads((tmp_path / 'epoch_0001' / 'manifest.json').read_text())
    for name in set(FILES) - {'manifest.json'}:
        size = (tmp_path / 'epoch_0001' / name).stat().st_size
        assert manifest['files'][name]['bytes'] == size
        assert len(manifest['files'][name]['sha256']) == 64


@pytest.mark.parametrize('exists', [False, True])
def test_no_checkpoint_is_none(tmp_path, exists):
    folder = tmp_path / 'checkpoints'
    if exists:
        folder.mkdir()
    assert newest(folder) == (None, [])


@pytest.mark.parametrize('keep', [1, 2, 3])
def test_keeps_the_newest(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for number in range(1, 6):
        checkpoints.save(f'epoch_{number:04d}', snapshot(number))
        assert (tmp_path / 'latest').read_text() == f'epoch_{number:04d}\n'
    expected = [f'epoch_{number:04d}' for number in range(6 - keep, 6)]
    assert names(tmp_path) == [*expected, 'latest']
    assert_equal(newest(tmp_path)[0], snapshot(5))


def test_an_old_one_that_cannot_be_removed_yet_is_removed_later(tmp_path, monkeypatch):
    """On Windows, one that is being read."""
    checkpoints, replace = Checkpoints(tmp_path, keep=1), os.replace

    def refuse(old: Path, new: Path) -> None:
        if str(new).endswith('.old'):
            raise PermissionError(13, 'Access is denied')
        replace(old, new)

    checkpoints.save('epoch_0001', snapshot(1))
    with monkeypatch.context() as reading:
        reading.setattr(os, 'replace', refuse)
        checkpoints.save('epoch_0002', snapshot(2))
    assert names(tmp_path) == ['epoch_0001', 'epoch_0002', 'latest']
    checkpoints.save('epoch_0003', snapshot(3))
    assert names(tmp_path) == ['epoch_0003', 'latest']


def test_a_second_save_replaces_the_first(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in (1, 2):
        checkpoints.save('epoch_0001', snapshot(number))
        assert_equal(newest(tmp_path)[0], snapshot(number))


def test_inside_an_epoch_and_its_end(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9)
    in_order = ['epoch_0009_batch_00200', 'epoch_0010', 'epoch_0010_batch_00001']
    for number, name in enumerate(in_order):
        checkpoints.save(name, snapshot(number))
        assert_equal(newest(tmp_path)[0], snapshot(number))


def test_newest_is_by_time_not_by_name(tmp_path):
    """A run that went on from epoch 1 is at epoch 2 again, and its older epoch 3 is history."""
    checkpoints = Checkpoints(tmp_path, keep=5)
    for number in (1, 2, 3):
        checkpoints.save(f'epoch_{number:04d}', snapshot(number))
    checkpoints.save('epoch_0002', snapshot(20))
    assert_equal(newest(tmp_path)[0], snapshot(20))
    assert (tmp_path / 'latest').read_text() == 'epoch_0002\n'


def test_copying_the_folder_does_not_change_the_order(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'here', keep=5)
    for number in (1, 2):
        checkpoints.save(f'epoch_{number:04d}', snapshot(number))
    there = tmp_path / 'there'
    for name in ('epoch_0002', 'epoch_0001'):
        shutil.copytree(tmp_path / 'here' / name, there / name, copy_function=shutil.copy)
        os.utime(there / name)
        time.sleep(0.01)
    assert_equal(newest(there)[0], snapshot(2))


def test_a_clock_that_was_set_back_costs_no_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    now = time.time()
    for number, clock in [(1, now + 3600), (2, now)]:
        monkeypatch.setattr(checkpoint.time, 'time', lambda clock=clock: clock)
        path = checkpoints.save(f'epoch_{number:04d}', snapshot(number))
        assert path.is_dir(), 'the checkpoint that was just saved is missing'
        named = tmp_path / (tmp_path / 'latest').read_text().strip()
        assert_equal(load(named), snapshot(number))


def test_the_next_save_removes_what_killed_saves_have_left(tmp_path):
    for name in ('.epoch_0001.writing', '.epoch_0007.replaced'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'model.pdparams').write_bytes(b'half')
    (tmp_path / '.latest.writing').write_bytes(b'ep')
    assert newest(tmp_path) == (None, [])
    Checkpoints(tmp_path).save('epoch_0002', snapshot(2))
    assert names(tmp_path) == ['epoch_0002', 'latest']


# ------------------------------------------------------------------ damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b'')


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'\0')


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def remove(path: Path) -> None:
    path.unlink()


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize('damage', [truncate, empty, lengthen, flip, remove, become_a_folder])
@pytest.mark.parametrize('name', FILES[:-1])
def test_damaged_file_is_skipped_by_name(tmp_path, name, damage):
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(f'epoch_{number:04d}', snapshot(number))
    damage(tmp_path / 'epoch_0002' / name)
    found, warnings = newest(tmp_path)
    assert_equal(found, snapshot(1))
    assert len(warnings) == 1
    assert str(tmp_path / 'epoch_0002' / name) in warnings[0]
    assert '\n' not in warnings[0]


def rewrite(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage that leaves the manifest valid JSON: what `change` makes of it."""
    return lambda path: path.write_text(json.dumps(change(json.loads(path.read_text()))))


def without(name: str) -> Callable[[Path], None]:
    """The manifest less the entry of one file."""

    def change(content: dict) -> dict:
        del content['files'][name]
        return content

    return rewrite(change)


def state_entry(entry: Optional[object] = None, **changes: object) -> Callable[[Path], None]:
    """The manifest with another entry for state.json, or with changes in it (... removes a key)."""

    def change(content: dict) -> dict:
        merged = {**content['files']['state.json'], **changes}
        kept = {key: value for key, value in merged.items() if value is not ...}
        content['files']['state.json'] = kept if changes else entry
        return content

    return rewrite(change)


MANIFESTS: dict[str, Callable[[Path], None]] = {
    'truncated': truncate,
    'empty': empty,
    'missing': remove,
    'a folder': become_a_folder,
    'binary': lambda path: path.write_bytes(b'\xff\xfe\x00\x80'),
    'text': lambda path: path.write_text('nothing'),
    'a list': rewrite(lambda content: [content]),
    'null': lambda path: path.write_text('null'),
    'without files': rewrite(lambda content: {'saved_at': content['saved_at']}),
    'files are a list': rewrite(lambda content: {**content, 'files': ['model.pdparams']}),
    'an entry is a number': state_entry(5),
    'an entry is a list': state_entry(['bytes', 'sha256']),
    'an entry is null': state_entry(None),
    'no size': state_entry(bytes=...),
    'no hash': state_entry(sha256=...),
    'size is a text': state_entry(bytes='5'),
    'size is null': state_entry(bytes=None),
    'no entries': rewrite(lambda content: {**content, 'files': {}}),
    'model not listed': without('model.pdparams'),
    'optimizer not listed': without('optimizer.pdopt'),
    'state not listed': without('state.json'),
}


@pytest.mark.parametrize('kind', MANIFESTS)
def test_damaged_manifest_is_skipped_by_name(tmp_path, kind):
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(f'epoch_{number:04d}', snapshot(number))
    MANIFESTS[kind](tmp_path / 'epoch_0002' / 'manifest.json')
    found, warnings = newest(tmp_path)
    assert_equal(found, snapshot(1))
    assert len(warnings) == 1
    assert str(tmp_path / 'epoch_0002' / 'manifest.json') in warnings[0]


@pytest.mark.parametrize('bit', [0x01, 0x20, 0x80])
def test_any_flipped_bit_of_the_manifest(tmp_path, bit):
    """Whatever it hits, one of the two checkpoints is loaded, and it is what was saved."""
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(f'epoch_{number:04d}', snapshot(number, size=2))
    path = tmp_path / 'epoch_0002' / 'manifest.json'
    content = path.read_bytes()
    skipped = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= bit
        path.write_bytes(bytes(damaged))
        found, warnings = newest(tmp_path)
        assert found is not None, f'byte {position}: {damaged.decode("latin-1")}'
        assert_equal(found, snapshot(found.state['epoch'], size=2))
        skipped += len(warnings)
    assert skipped > len(content) / 2


def test_a_file_that_does_not_hold_arrays(tmp_path):
    """Damage that the manifest agrees with: written so, or tampered with by someone careful."""
    Checkpoints(tmp_path).save('epoch_0001', snapshot(1))
    path, content = tmp_path / 'epoch_0001', b'not a pickle'
    (path / 'model.pdparams').write_bytes(content)
    manifest = json.loads((path / 'manifest.json').read_text())
    manifest['files']['model.pdparams'] = {
        'bytes': len(content),
        'sha256': hashlib.sha256(content).hexdigest(),
    }
    (path / 'manifest.json').write_text(json.dumps(manifest))
    found, warnings = newest(tmp_path)
    assert found is None
    assert 'model.pdparams' in warnings[0]


def test_all_damaged_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for number in (1, 2, 3):
        checkpoints.save(f'epoch_{number:04d}', snapshot(number))
    truncate(tmp_path / 'epoch_0001' / 'model.pdparams')
    flip(tmp_path / 'epoch_0002' / 'optimizer.pdopt')
    remove(tmp_path / 'epoch_0003' / 'manifest.json')
    found, warnings = newest(tmp_path)
    assert found is None
    assert len(warnings) == 3
    for name, warning in zip(['epoch_0003', 'epoch_0002', 'epoch_0001'], warnings):
        assert name in warning


def test_saving_works_beside_damaged_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save('epoch_0001', snapshot(1))
    flip(tmp_path / 'epoch_0001' / 'manifest.json')
    (tmp_path / 'epoch_0000').mkdir()
    checkpoints.save('epoch_0002', snapshot(2))
    assert_equal(newest(tmp_path)[0], snapshot(2))


def test_load_refuses_what_is_not_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r'manifest\.json'):
        load(tmp_path)
    with pytest.raises(UserError, match='nowhere'):
        load(tmp_path / 'nowhere')


# ------------------------------------------------------------------ what may not be saved


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save('epoch_0001', snapshot(1))
    before = names(tmp_path)
    bad = snapshot(2)
    bad.model['fc.bias'][7, 1] = value
    with pytest.raises(Diverged, match=r'fc\.bias'):
        checkpoints.save('epoch_0002', bad)
    assert names(tmp_path) == before
    assert_equal(newest(tmp_path)[0], snapshot(1))


def test_nothing_is_created_for_the_first_save_that_diverged(tmp_path):
    bad = snapshot(1)
    bad.model['fc.bias'][0, 0] = np.nan
    with pytest.raises(Diverged):
        Checkpoints(tmp_path / 'checkpoints').save('epoch_0001', bad)
    assert not (tmp_path / 'checkpoints').exists()


# ------------------------------------------------------------------ one file


def test_write_atomically_creates_and_replaces(tmp_path):
    path = tmp_path / 'best.pdparams'
    for content in (b'one', b'two, longer'):
        write_atomically(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
        assert names(tmp_path) == [path.name]


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), ValueError('a bug')])
def test_write_atomically_leaves_the_old_file(tmp_path, error):
    path = tmp_path / 'best.pdparams'
    path.write_bytes(b'old')

    def write(file) -> None:
        file.write(b'half of the new')
        raise error

    with pytest.raises(type(error), match=str(error.args[-1])):
        write_atomically(path, write)
    assert path.read_bytes() == b'old'
    if isinstance(error, OSError):
        assert names(tmp_path) == [path.name]


# ------------------------------------------------------------------ full disks and kills

PREAMBLE = f"""
import os, sys
import numpy as np
sys.path.insert(0, {str(ROOT)!r})
from engine.run.checkpoint import Checkpoints
from engine.training.snapshot import Snapshot
from engine.errors import UserError
from engine.files import write_atomically

def snapshot(number, size=50):
    arrays = {{'weight': np.full(size, number, np.float32)}}
    return Snapshot(arrays, {{'weight/velocity_0': arrays['weight']}}, arrays, {{'epoch': number}})
"""


def start(script: str, *args: object, **options) -> subprocess.Popen:
    code = PREAMBLE + textwrap.dedent(script)
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    return subprocess.Popen(
        [sys.executable, '-c', code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def require_sound(folder: Path, at_least: int) -> int:
    """The newest checkpoint loads, is consistent, and isn't older than one that was complete."""
    found, warnings = newest(folder)
    assert found is not None, f'{names(folder)} {warnings}'
    assert warnings == []
    number = found.state['epoch']
    for arrays in (found.model, found.optimizer, found.ema):
        for value in arrays.values():
            assert (value == number).all()
    assert number >= at_least
    return number


def visible(folder: Path) -> list[str]:
    return [name for name in names(folder) if not name.startswith('.')]


def test_full_disk_leaves_the_last_checkpoint(tmp_path):
    """RLIMIT_FSIZE stands for the full disk: writing beyond it fails with an OSError, too."""
    script = """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        checkpoints = Checkpoints(__import__('pathlib').Path(sys.argv[1]), keep=2)
        checkpoints.save('epoch_0001', snapshot(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for name in ('epoch_0002', 'epoch_0001'):
            try:
                checkpoints.save(name, snapshot(2, size=100_000))
            except UserError as error:
                print(error)
        checkpoints.save('epoch_0003', snapshot(3))
    """
    first, second = finish(start(script, tmp_path)).splitlines()
    for line, name in ((first, 'epoch_0002'), (second, 'epoch_0001')):
        assert f'cannot save {tmp_path / name}' in line
        assert 'File too large' in line
        assert f'The last checkpoint is intact: {tmp_path / "epoch_0001"}' in line
    assert names(tmp_path) == ['epoch_0001', 'epoch_0003', 'latest']
    assert load(tmp_path / 'epoch_0001').state == {'epoch': 1}
    assert require_sound(tmp_path, 3) == 3


def test_full_disk_at_the_first_checkpoint(tmp_path):
    script = """
        import resource, signal
        from pathlib import Path
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            Checkpoints(Path(sys.argv[1])).save('epoch_0001', snapshot(2, size=100_000))
        except UserError as error:
            print(error)
        old = Path(sys.argv[1]) / 'best.pdparams'
        old.write_bytes(b'old')
        try:
            write_atomically(old, lambda file: file.write(bytes(100_000)))
        except OSError:
            print(old.read_bytes())
    """
    message, old = finish(start(script, tmp_path)).splitlines()
    assert 'cannot save' in message
    assert 'intact' not in message
    assert old == "b'old'"
    assert names(tmp_path) == ['best.pdparams']


@pytest.mark.parametrize('obstacle', ['a file where the folder should be', 'a read-only parent'])
def test_a_folder_that_cannot_be_written(tmp_path, obstacle):
    folder = tmp_path / 'checkpoints'
    if obstacle.startswith('a file'):
        folder.write_text('')
    else:
        if os.geteuid() == 0:
            pytest.skip('root may write anywhere')
        tmp_path.chmod(0o500)
    with pytest.raises(UserError, match='cannot save'):
        Checkpoints(folder).save('epoch_0001', snapshot(1))


def test_kill_at_random_instants(tmp_path):
    script = """
        from pathlib import Path
        checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
        number = int(sys.argv[2])
        while True:
            checkpoints.save(f'epoch_{number:04d}', snapshot(number, size=20_000))
            print(number, flush=True)
            number += 1
    """
    rng = random.Random(0)
    last = 0
    for _ in range(15):
        process = start(script, tmp_path, last + 1)
        assert process.stdout is not None
        process.stdout.readline()  # at least one is complete
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        out, _ = process.communicate(timeout=120)
        complete = int((out.split() or [str(last + 1)])[-1])
        last = require_sound(tmp_path, complete)
        assert len(visible(tmp_path)) <= 4  # two kept, one not yet pruned, and latest
        assert (tmp_path / 'latest').read_text().strip() in names(tmp_path)
    Checkpoints(tmp_path, keep=2).save(f'epoch_{last + 1:04d}', snapshot(last + 1))
    assert names(tmp_path) == [f'epoch_{last:04d}', f'epoch_{last + 1:04d}', 'latest']


@pytest.mark.parametrize(
    ('keep', 'second'), [(2, 'epoch_0002'), (1, 'epoch_0002'), (2, 'epoch_0001'), (1, 'epoch_0001')]
)
def test_kill_before_each_change_of_the_disk(tmp_path, keep, second):
    """Every instant, not only random ones: a child dies before the n-th change, for every n.

    Also where the second save has the name of the first: a run that is stopped twice at one step.
    """
    script = """
        from pathlib import Path
        changes, fatal = 0, int(sys.argv[1])
        def audit(event, args):
            global changes
            writes = event == 'open' and isinstance(args[2], int) and args[2] & os.O_ACCMODE
            if writes or event in ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir'):
                if changes == fatal:
                    os._exit(9)
                changes += 1
        folder, keep, second, runs = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], 0
        while True:
            here, fatal, runs = folder / str(runs), runs, runs + 1
            Checkpoints(here, keep=keep).save('epoch_0001', snapshot(1))
            child = os.fork()
            if not child:
                sys.addaudithook(audit)
                Checkpoints(here, keep=keep).save(second, snapshot(2))
                os._exit(0)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
                break
        print(runs)
    """
    runs = int(finish(start(script, 0, tmp_path, keep, second)))
    assert runs > 8  # a folder, five files, two renames
    lost = []
    for run in range(runs):
        folder = tmp_path / str(run)
        found, _ = newest(folder)
        if found is None:
            lost.append((run, names(folder)))
            continue
        require_sound(folder, 1)
        named = folder / (folder / 'latest').read_text().strip()
        aside = folder / f'.{named.name}.replaced'  # between the two renames of a replacement
        assert named.is_dir() or aside.is_dir(), names(folder)
        Checkpoints(folder, keep=keep).save('epoch_0003', snapshot(3))
        assert_equal(newest(folder)[0], snapshot(3))
        assert not [name for name in names(folder) if name.startswith('.')]
        assert len(visible(folder)) <= keep + 1
    assert lost == [], 'no checkpoint can be loaded after these kills'


def test_a_failed_replacement_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    """ "On any failure the ones before are as they were", also when it is the last rename."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save('epoch_0001', snapshot(1))
    replace = os.replace

    def fail(source, target) -> None:
        if str(target).endswith('epoch_0001'):
            raise OSError(5, 'Input/output error')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(UserError, match='cannot save'):
        checkpoints.save('epoch_0001', snapshot(2))
    monkeypatch.undo()
    assert_equal(newest(tmp_path)[0], snapshot(1))
