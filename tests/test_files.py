"""engine/files.py and locks.py: disks that cannot sync a folder or lock a file; long names."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from engine import cli, files, locks
from engine.download import download
from engine.errors import UserError
from engine.export.exported_folder import new_folder
from engine.files import write_atomically
from engine.locks import locked
from engine.machine import failures, home
from engine.run.checkpoint import Checkpoints, load
from engine.training.snapshot import Snapshot

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EBADF)


def refuse_sync(monkeypatch, what, code: int) -> None:
    """os.fsync fails for folders, or for files."""
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        if what(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', sync)


def save(folder):
    return Checkpoints(folder).save('epoch_0001', Snapshot({}, {}, None, {}))


@pytest.mark.parametrize('code', [errno.EINVAL, errno.EIO, errno.ENOTSUP])
def test_a_disk_that_cannot_sync_folders_is_usable(tmp_path, monkeypatch, code):
    refuse_sync(monkeypatch, stat.S_ISDIR, code)
    write_atomically(tmp_path / 'file', lambda file: file.write(b'content'))
    assert (tmp_path / 'file').read_bytes() == b'content'
    assert load(save(tmp_path / 'checkpoints')).state == {}
    with new_folder(tmp_path / 'out') as folder:
        (folder / 'deep').mkdir()
        (folder / 'deep' / 'file').write_text('content')
    assert (tmp_path / 'out' / 'deep' / 'file').read_text() == 'content'


@pytest.mark.parametrize('kind', ['pipe', 'device', 'folder', 'link to a pipe'])
def test_only_a_regular_file_is_replaced(tmp_path, kind):
    path = other = tmp_path / 'null'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'device':
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.stat(os.devnull).st_rdev)
        except (AttributeError, PermissionError):
            pytest.skip('only a superuser of a Unix makes device files')
    else:
        other = tmp_path / 'pipe'
        os.mkfifo(other)
        path = other if kind == 'pipe' else path
        if path != other:
            path.symlink_to(other)
    before = os.lstat(path)
    with pytest.raises(FileExistsError, match='Not a regular file'):
        write_atomically(path, lambda file: file.write(b'content'))
    with pytest.raises(FileExistsError, match='Not a regular file'):
        download(['http://127.0.0.1:9/'], path, md5='')
    assert os.lstat(path) == before
    assert set(tmp_path.iterdir()) == {path, other}


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('MPLCONFIGDIR', str(tmp_path))
    (tmp_path / 'curves.png').mkdir()
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: write_atomically(tmp_path / 'curves.png', lambda file: None))
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith('curves.png: Not a regular file\n')


def test_a_file_that_cannot_be_synced_is_an_error_everywhere(tmp_path, monkeypatch):
    refuse_sync(monkeypatch, stat.S_ISREG, errno.EIO)
    with pytest.raises(OSError, match='file'):
        write_atomically(tmp_path / 'file', lambda file: file.write(b'content'))
    with pytest.raises(UserError, match='cannot save'):
        save(tmp_path / 'checkpoints')
    with pytest.raises(OSError), new_folder(tmp_path / 'out') as folder:
        (folder / 'file').write_text('content')
    assert [path.name for path in tmp_path.iterdir()] == ['checkpoints']


@pytest.mark.parametrize('code', NO_LOCKS)
@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_a_disk_without_locks_gets_one_line(tmp_path, monkeypatch, capsys, code, kind):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr('fcntl.flock', flock)
    path = tmp_path if kind == 'folder' else tmp_path / 'lock'
    with locked(path):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'cannot lock {path} ({os.strerror(code)})')


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_a_second_process_waits_for_the_lock(tmp_path, kind):
    path, over = tmp_path if kind == 'folder' else tmp_path / 'lock', threading.Event()
    order = []

    def second() -> None:
        with locked(path):
            order.append('second')

    with ThreadPoolExecutor(1) as pool:
        with locked(path):
            waiting = pool.submit(second)
            over.wait(0.3)
            order.append('first')
        waiting.result(10)
    assert order == ['first', 'second']


def test_locks_on_windows(tmp_path, monkeypatch):
    """By imitation: fcntl is taken away, and msvcrt locks one byte far behind the content."""
    held: dict[tuple[int, int], int] = {}

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1)
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in held:
            raise PermissionError(errno.EACCES, 'Permission denied')
        held[place] = descriptor

    monkeypatch.setitem(sys.modules, 'fcntl', None)
    monkeypatch.setitem(sys.modules, 'msvcrt', SimpleNamespace(locking=locking, LK_NBLCK=2))
    with (tmp_path / 'lock').open('wb') as one, (tmp_path / 'lock').open('wb') as other:
        locks.lock(one.fileno())
        with pytest.raises(locks.Busy):
            locks.lock(other.fileno())
    (((_, place), _),) = held.items()
    assert place > 1e6


@pytest.mark.parametrize('length', [255, 250, 200])
@pytest.mark.parametrize('letter', ['x', '字'])
def test_a_name_at_the_limit_of_file_systems(tmp_path, letter, length):
    name = letter * (length // len(letter.encode()))
    write_atomically(tmp_path / name, lambda file: file.write(b'content'))
    with locked(files.beside(tmp_path / name, 'lock')):
        time.sleep(0)
    assert (tmp_path / name).read_bytes() == b'content'


def test_a_machine_without_writable_temporary_folders_is_one_line(tmp_path, monkeypatch):
    """As a container that was started with --read-only and without a tmpfs."""
    monkeypatch.setattr(tempfile, 'tempdir', None)
    monkeypatch.setattr(tempfile, '_candidate_tempdir_list', lambda: [str(tmp_path / 'missing')])
    with pytest.raises(UserError, match='set TMPDIR'), failures.translated(), home.elsewhere():
        raise AssertionError('not reached')
