"""What a command prints, whatever the terminal: encodings, closed streams, bars, epochs' lines."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import REPOSITORY, TINY
from PIL import Image

import train
from engine import console, cpu_conv
from engine.config import load_config
from engine.config.recipes import DEFAULT_CONFIG
from engine.machine import cpu
from engine.run.checkpoint import load
from engine.run.log import Log


def trained(folder, monkeypatch, *overrides, columns=80):
    """What train.py prints in this process, to a terminal of its own."""
    settings = [*TINY, f'output.dir={folder}', *overrides]
    config = load_config(DEFAULT_CONFIG, settings)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    with ThreadPoolExecutor() as pool, monkeypatch.context() as patch:
        reading = pool.submit(read_all, ours)
        with os.fdopen(theirs, 'w', encoding='utf-8') as terminal:
            patch.setattr(sys, 'stdout', terminal)
            train.train(config, train.RunFolder(folder), None, Log())
        return reading.result().decode().replace('\r\n', '\n')


def read_all(descriptor):
    """Until the other side of the terminal is closed."""
    content = b''
    with contextlib.suppress(OSError):
        while part := os.read(descriptor, 1 << 16):
            content += part
    os.close(descriptor)
    return content


@pytest.mark.parametrize('columns', [80, 50])
def test_the_bar_has_the_time_left_and_a_line_an_epoch_stays(tmp_path, monkeypatch, columns):
    """The bar is written after \\r, and cleared in the end."""
    monkeypatch.delenv('JPY_PARENT_PID', raising=False)
    text = trained(tmp_path / 'run', monkeypatch, 'train.epochs=2', columns=columns)
    parts = re.split(r'[\r\n]', text)
    bars = [part for part in parts if part.startswith('epoch ') and '|' in part]
    assert len(bars) > 5
    assert all(len(bar) <= columns for bar in bars)
    assert all(re.search(r'\| \d/5, left:\d+s  loss:\d', bar) for bar in bars if ', ' in bar)
    assert not any(part.startswith('iter:') for part in parts)
    log = (tmp_path / 'run' / 'train.log').read_text()
    line = r'(epoch \d/2): training loss \d+\.\d{4}, accuracy \d+\.\d\d %, \d+\.\d images/s, \d+s'
    for lines in (parts, log.splitlines()):
        found = [match[1] for match in (re.fullmatch(line, text) for text in lines) if match]
        assert found == ['epoch 1/2', 'epoch 2/2']
    assert re.search('finished after epoch 2: .* after epoch [12]\\)$', log, re.M)
    assert log.count('\nEpoch 0: CosineAnnealingDecay set') == 1


def test_in_a_notebook_a_terminal_gets_plain_lines(tmp_path, monkeypatch):
    """The terminal is IPython's, which keeps what a bar overwrites."""
    monkeypatch.setenv('JPY_PARENT_PID', '1')
    text = trained(tmp_path / 'run', monkeypatch, 'train.epochs=1')
    assert '\r' not in text
    assert text == (tmp_path / 'run' / 'train.log').read_text()
    assert len(re.findall(r'^iter:\d  loss:\d\.\d{4}  lr:.*  left:\d+s$', text, re.M)) == 5


# ------------------------------------------------------------------ closed terminals and pipes


@pytest.mark.parametrize('kind', ['terminal', 'pipe'])
def test_training_continues_without_its_terminal_or_pipe(tmp_path, monkeypatch, kind):
    """In a session of its own, so that no SIGHUP comes; the log has the rest."""
    reader, writer = os.openpty() if kind == 'terminal' else os.pipe()
    settings = [*TINY, f'output.dir={tmp_path / "run"}', 'train.epochs=2']
    config = load_config(DEFAULT_CONFIG, settings)
    begun = threading.Event()

    def read_a_line():
        os.read(reader, 1)
        os.close(reader)
        begun.set()

    with ThreadPoolExecutor() as pool, os.fdopen(writer, 'w') as stream:
        pool.submit(read_a_line)
        monkeypatch.setattr(sys, 'stdout', stream)
        monkeypatch.setattr(sys, 'stderr', sys.stderr)  # restored afterwards, too
        console.survive_closed_output()
        print('a line', flush=True)
        assert begun.wait(10)
        train.train(config, train.RunFolder(tmp_path / 'run'), None, Log())
        os.write(writer, b'as a library does it in C++')
    log = (tmp_path / 'run' / 'train.log').read_text()
    assert 'finished after epoch 2' in log


def test_closing_the_terminal_saves_the_run(tmp_path):
    """The kernel sends SIGHUP to the processes of the terminal."""
    process, terminal = pty.fork()
    if not process:
        os.chdir(tmp_path)
        quick = ['-c', 'quickstart', '-o', *TINY, 'train.epochs=1000', 'eval.start=1000']
        os.execv(sys.executable, [sys.executable, str(REPOSITORY / 'train.py'), *quick])
    text = b''
    while b'epoch 2/1000' not in text:
        text += os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 75
    run = tmp_path / 'output' / 'quickstart'
    saved = load(run / 'checkpoints' / (run / 'checkpoints' / 'latest').read_text().strip())
    last = re.findall(
        r'SIGHUP: saved in output/quickstart; .* continues', (run / 'train.log').read_text()
    )
    assert len(last) == 1
    assert saved.state['step'] >= 5


# ------------------------------------------------------------------ encodings


NAMES = ['cat', 'caf\u00e9', '\u732b', '\U0001f431']  # ASCII, Latin-1, GBK, and none of these
COMMAND = """
import sys
from engine import cli
def main():
    print('names:', *sys.argv[1:])
    print('more:', *sys.argv[1:], file=sys.stderr)
    with open('written', 'w') as file:
        file.write(str(file.fileno()))
cli.run(main)
"""


@pytest.mark.parametrize(
    ('encoding', 'shown'),
    [
        ('ascii', r'cat caf\xe9 \u732b \U0001f431'),
        ('latin-1', 'cat caf\u00e9 \\u732b \\U0001f431'),
        ('gbk', 'cat caf\u00e9 \u732b \\U0001f431'),
        ('utf-8', 'cat caf\u00e9 \u732b \U0001f431'),
    ],
)
def test_characters_that_cannot_be_encoded_are_replaced(tmp_path, encoding, shown):
    environment = {**os.environ, 'PYTHONIOENCODING': encoding, 'PYTHONPATH': str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, '-c', COMMAND, *NAMES],
        cwd=tmp_path,
        capture_output=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode(encoding) == f'names: {shown}\n'
    assert result.stderr.decode(encoding) == f'more: {shown}\n'


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '>&- 2>&-', '<&- >&- 2>&-'])
def test_closed_streams_do_not_end_a_command_nor_become_files(tmp_path, closed):
    arguments = ['sh', '-c', f'exec "$@" {closed}', 'sh', sys.executable, '-c', COMMAND, *NAMES]
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
    assert subprocess.run(arguments, cwd=tmp_path, env=environment).returncode == 0
    assert int((tmp_path / 'written').read_text()) > 2


def test_a_batch_larger_than_the_training_set_and_a_zero_rate_are_logged(monkeypatch, tmp_path):
    one_step = ('data.batch_size=1000', 'train.epochs=1', 'schedule.name=one_cycle')
    out = trained(tmp_path / 'run', monkeypatch, *one_step, columns=200)
    assert (
        '\nstep: 1000 images; the training set has only 80: each epoch is one step '
        '(data.batch_size)\n' in out
    )
    assert '\nthe learning rate is 0 in all 1 steps (schedule.name: one_cycle, ' in out
    out = trained(tmp_path / 'good', monkeypatch, 'train.epochs=1', 'data.batch_size=80')
    assert 'the training set has only' not in out
    assert 'the learning rate is 0' not in out


def test_the_end_of_a_training_names_what_can_be_done_with_it_to_be_copied(monkeypatch, tmp_path):
    folder = tmp_path / 'a run'
    out = trained(folder, monkeypatch, 'train.epochs=1', columns=200)
    for command in ('python3 eval.py -w', 'python3 export.py -w'):
        (line,) = (line for line in out.splitlines() if command in line)
        assert shlex.split(line.partition(command)[2]) == [str(folder)]


def test_the_first_line_is_short_and_the_log_has_the_settings(monkeypatch, tmp_path):
    for whose, ours in (('', {'OMP_NUM_THREADS'}), (' (your OMP_NUM_THREADS)', set())):
        monkeypatch.setattr(cpu, '_ours', ours)
        monkeypatch.setenv('OMP_NUM_THREADS', '2')
        assert cpu.describe_cpu() == f'CPU: 2 threads{whose}'
        assert cpu.describe_cpu(onednn=True) == f'CPU: 2 threads{whose}, oneDNN'
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert cpu.describe_cpu().startswith('CPU: 1 thread (')
    config = load_config(DEFAULT_CONFIG, [])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        log = train.open_log(config, 'CPU: OMP_NUM_THREADS=1 (because)', ['device: cpu'])
    onednn = ', oneDNN' if cpu_conv.choose(config.train)[0] else ''
    assert out.getvalue() == f'{cpu.describe_cpu()}{onednn}\ndevice: cpu\n'
    assert log._early[1] == 'CPU: OMP_NUM_THREADS=1 (because)'


def test_a_python_that_reads_names_in_ascii_is_named(tmp_path):
    """LC_ALL=C alone gives a Python in UTF-8; without it, a class's name is bytes."""
    for split in ('train', 'val'):
        for name in ('\u732b', 'dog'):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(folder / '1.png')
    environment = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONPATH': str(REPOSITORY)}
    code = f"""if True:
        from engine import cli, config, data
        from engine.config.recipes import DEFAULT_CONFIG
        settings = ['data.name=folder', 'data.root={tmp_path}']
        cli.run(lambda: data.load_data(config.load_config(DEFAULT_CONFIG, settings)))
    """
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, env={**os.environ, **environment}
    )
    assert result.returncode == 2, result.stderr
    line = result.stderr.decode('ascii')
    assert r'the name of the class \u732b in ' in line
    assert 'export PYTHONUTF8=1' in line
