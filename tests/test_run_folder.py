"""The folder of a run: what may be begun there, who trains there, and finding it from a path."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from engine.config import Config, load_config
from engine.errors import UserError
from engine.run import chosen_weights
from engine.run.checkpoint import Checkpoints, serialised
from engine.run.folder import RunFolder
from engine.run.log import Log
from engine.run.reading import find_run, read_snapshot
from engine.training.snapshot import Snapshot

STATE = {'classes': ['a', 'b'], 'images': 8, 'step': 4, 'progress': {}}


def a_run(path: Path) -> RunFolder:
    """As training leaves it, with a checkpoint and best.pdparams, but no longer locked."""
    run = RunFolder(path)
    run.open(load_config(REPOSITORY / 'configs' / 'quickstart.yaml'), ['a', 'b'])
    os.close(run.lock._descriptor)
    run.log_file.write_text('line\n')
    run.metrics_file.write_text('{"epoch": 0}\n')
    run.checkpoints().save('epoch_0001', Snapshot({}, {}, None, STATE))
    run.best_file.write_bytes(serialised({}))
    return run


def arguments(*texts: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument('-w', dest='weights', type=Path)
    parser.add_argument('-c', dest='config', type=Path)
    parser.add_argument('-o', dest='override', nargs='+', default=[])
    return parser.parse_args(texts)


# ------------------------------------------------------------------ what may be begun


def test_what_a_killed_start_has_left_does_not_hinder_the_next(tmp_path):
    """Whatever of it was written before the kill."""
    run = RunFolder(tmp_path / 'run')
    run.open(Config(), ['a'])
    run.log_file.write_text('')
    run.metrics_file.write_text('')
    run.first_batch_file.write_bytes(b'')
    (run.path / '.train.log.writing').write_bytes(b'half')
    (run.path / 'vdl').mkdir()
    (run.path / 'checkpoints' / '.epoch_0001.writing').mkdir(parents=True)
    for path in [None, *run.path.iterdir()]:
        if path is not None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        run.require_new()


@pytest.mark.parametrize('kept', ['checkpoints', 'best.pdparams', 'metrics.jsonl', 'notes.txt'])
def test_what_is_worth_keeping_is_not_overwritten(tmp_path, kept):
    run = a_run(tmp_path / 'run')
    for path in run.path.iterdir():
        if path.name not in (kept, 'config.yaml'):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run.path / kept).exists() or (run.path / kept).write_text('mine')
    with pytest.raises(UserError, match='holds a run already'):
        run.require_new()
    run.config_file.unlink()
    with pytest.raises(UserError, match='is not empty'):
        run.require_new()


def test_what_another_process_saved_since_the_first_look_is_not_overwritten(tmp_path):
    """While this one was reading its data, say."""
    run = a_run(tmp_path / 'run')
    before = run.config_file.read_bytes()
    with pytest.raises(UserError, match='holds a run already'):
        RunFolder(run.path).open(Config(seed=7), ['b'], new=True)
    assert run.config_file.read_bytes() == before
    RunFolder(tmp_path / 'other').open(Config(), ['a'], new=True)


# ------------------------------------------------------------------ who trains there

HOLDER = """
import sys, time
from pathlib import Path
from engine.config import Config
from engine.run.folder import RunFolder
RunFolder(Path(sys.argv[1])).open(Config(), ['a'])
print('open', flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the folder open."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(tmp_path / 'run')],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'open\n'
    yield process
    process.kill()
    process.wait()


def test_the_process_that_trains_there_is_named(tmp_path, holder):
    run, number = RunFolder(tmp_path / 'run'), holder.pid
    expected = re.escape(f'run: process {number}; kill {number} makes it save and end')
    for attempt in (run.lock.require_free, lambda: run.open(Config(), ['a'])):
        with pytest.raises(UserError, match=f'another process is training in .*{expected}'):
            attempt()
    holder.kill()
    holder.wait()
    run.lock.require_free()
    run.open(Config(), ['a'])


@pytest.mark.parametrize(
    ('content', 'message'),
    [(b'', 'run'), (b'\xff\xfe', 'run'), (b'12 elsewhere\n', 'run: process 12 on elsewhere')],
)
def test_a_process_on_another_machine_or_without_a_number(tmp_path, holder, content, message):
    (tmp_path / 'run' / '.lock').write_bytes(content)
    with pytest.raises(UserError, match=f'{message}$'):
        RunFolder(tmp_path / 'run').lock.require_free()


def test_a_disk_without_locks_gets_one_line_and_the_run_begins(tmp_path, monkeypatch, capsys):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr('fcntl.flock', flock)
    run = RunFolder(tmp_path / 'run')
    for _ in range(2):  # the second is a resume, which looks at the lock once more
        run.lock.require_free()
        run.open(Config(), ['a'])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f'cannot lock {run.path}')
    run.require_ours()
    other = f'{os.getpid() + 1} {socket.gethostname()}\n'
    (run.path / '.lock').write_text(other)  # as the second process does there
    with pytest.raises(UserError, match='taken by another process'):
        run.require_ours()


def test_a_machine_that_changes_its_name_keeps_training(tmp_path, monkeypatch):
    """As a laptop does in another network."""
    run = RunFolder(tmp_path / 'run')
    run.open(Config(), ['a'])
    monkeypatch.setattr(socket, 'gethostname', lambda: 'another-name')
    run.require_ours()


@pytest.mark.parametrize('how', ['deleted', 'moved', 'emptied'])
def test_a_folder_that_is_removed_during_training_is_noticed(tmp_path, how):
    run = RunFolder(tmp_path / 'run')
    run.open(Config(), ['a'])
    run.require_ours()
    log = Log()
    log.attach(run, step=0, epoch=0)
    run.path.rename(tmp_path / 'other')
    if how != 'moved':
        shutil.rmtree(tmp_path / 'other')
    if how == 'emptied':
        run.path.mkdir()
    for attempt in (run.require_ours, log.flush):  # VisualDL would write into a new run there
        with pytest.raises(UserError, match='was deleted, moved'):
            attempt()


# ------------------------------------------------------------------ finding it


@pytest.mark.parametrize(
    ('inside', 'path'),
    [
        ('.', 'run'),
        ('.', 'run/best.pdparams'),
        ('.', 'run/checkpoints/epoch_0001'),
        ('.', 'run/checkpoints/epoch_0001/model.pdparams'),
        ('run', '.'),
        ('run', 'best.pdparams'),
        ('run/checkpoints', 'epoch_0001'),
        ('run/checkpoints', '../best.pdparams'),
        ('run/checkpoints/epoch_0001', '.'),
        ('run/checkpoints/epoch_0001', 'model.pdparams'),
        ('elsewhere', 'link.pdparams'),
    ],
)
def test_a_run_is_found_from_any_working_directory(tmp_path, monkeypatch, inside, path):
    run = a_run(tmp_path / 'run')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'link.pdparams').symlink_to(run.best_file)
    monkeypatch.chdir(tmp_path / inside)
    found = find_run(Path(path))
    assert found is not None
    assert found.resolve() == run.path.resolve()
    config, _ = chosen_weights.resolve_weights(arguments('-w', path))
    assert config.model.name == 'wide_resnet10_1'


def test_a_path_outside_of_runs_has_no_run(tmp_path):
    (tmp_path / 'config.yaml').write_text('')
    (tmp_path / 'weights.pdparams').write_bytes(b'')
    assert find_run(tmp_path / 'weights.pdparams') is None


@pytest.mark.parametrize('of', ['', 'best.pdparams', 'checkpoints/epoch_0001'])
def test_a_run_without_its_config_does_not_get_the_default_config(tmp_path, of):
    run = a_run(tmp_path / 'run')
    run.config_file.unlink()
    for texts in (['-w', str(run.path / of)], ['-o', f'output.dir={run.path}']):
        with pytest.raises(UserError, match=r'run: config\.yaml of this run is missing; name the'):
            chosen_weights.resolve_weights(arguments(*texts))
    recipe = str(REPOSITORY / 'configs' / 'quickstart.yaml')
    config, _ = chosen_weights.resolve_weights(arguments('-w', str(run.path / of), '-c', recipe))
    assert config.model.name == 'wide_resnet10_1'


def test_a_checkpoint_without_its_run_needs_a_config(tmp_path):
    a_run(tmp_path / 'run')
    alone = shutil.copytree(tmp_path / 'run' / 'checkpoints' / 'epoch_0001', tmp_path / 'copy')
    with pytest.raises(UserError, match='a checkpoint without its run; name its config with -c'):
        chosen_weights.resolve_weights(arguments('-w', str(alone)))


def test_a_checkpoint_of_an_older_version_is_one_line(tmp_path):
    run = a_run(tmp_path / 'run')
    run.checkpoints().save('epoch_0002', Snapshot({}, {}, None, {'epoch': 2}))
    with pytest.raises(UserError, match='epoch_0002 is of an older version'):
        chosen_weights.read_chosen(run.path)


# ------------------------------------------------------------------ while a run trains


def test_checkpoints_that_are_removed_while_they_are_read(tmp_path, monkeypatch):
    """Between the listing and the look at each, and between the look and the reading."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save('epoch_0001', Snapshot({}, {}, None, {'epoch': 1}))
    saved = []

    def save_next(count: list[int]) -> None:
        saved.append(len(saved) + 2)
        following = Snapshot({}, {}, None, {'epoch': saved[-1]})
        Checkpoints(tmp_path, keep=1).save(f'epoch_{saved[-1]:04d}', following)

    for name in ('_saved_at', 'load'):
        function = getattr(sys.modules['engine.run.checkpoint'], name)
        armed = [True]

        def racing(path, function=function, armed=armed):
            if armed and armed.pop():
                save_next(saved)
            return function(path)

        monkeypatch.setattr(f'engine.run.checkpoint.{name}', racing)
        warnings: list[str] = []
        found = Checkpoints(tmp_path).newest(warnings.append)
        assert found is not None
        assert found.state['epoch'] == saved[-1]
        assert warnings == []
    assert len(saved) == 2


def test_a_listing_during_a_save_that_shows_no_checkpoint_is_repeated(tmp_path, monkeypatch):
    """Between reading the first and the last name of a folder, one may come and one may go."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save('epoch_0001', Snapshot({}, {}, None, {}))
    listings = iter([[], checkpoints._newest_first()])
    monkeypatch.setattr(checkpoints, '_newest_first', lambda: iter(next(listings)))
    assert checkpoints.newest(print) is not None


def test_the_newest_is_read_while_another_process_saves(tmp_path):
    """For real: a process that saves as fast as it can, and keeps one."""
    script = (
        'import sys; from pathlib import Path; from engine.run.checkpoint import *\n'
        'for n in range(1, 10**6):\n'
        "    Checkpoints(Path(sys.argv[1]), keep=1).save(f'epoch_{n:06d}', "
        'Snapshot({}, {}, None, {}))\n'
        '    print(n, flush=True)\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', script, str(tmp_path / 'checkpoints')],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )
    try:
        process.stdout.readline()
        for _ in range(200):
            warnings: list[str] = []
            assert read_snapshot(tmp_path, warnings.append) is not None
            assert warnings == []
    finally:
        process.kill()
        process.communicate()
