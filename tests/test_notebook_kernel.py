"""Commands in a Jupyter kernel: %shell with Stop, `!`, and %run, one after another."""

from __future__ import annotations

import re
import time

import pytest
from conftest import REPOSITORY, TINY
from jupyter_client.manager import start_new_kernel

from engine.run.folder import RunFolder

pytestmark = pytest.mark.slow

HOUR = ' '.join([*TINY, 'train.epochs=100000', 'train.save_every=100000'])
SHORT = ' '.join(TINY)


class Kernel:
    """A kernel that was started in a folder, with what the last cell has printed."""

    def __init__(self, folder):
        self.manager, self.client = start_new_kernel(kernel_name='python3', cwd=str(folder))
        self.printed, self._stopped = '', False

    def run(self, code, *, stop_at=None, timeout=240):
        """Run a cell, and click Stop when what it prints has that; returns 'ok' or 'error'."""
        self.printed, self._stopped, self._stop_at = '', False, stop_at
        reply = self.client.execute_interactive(code, timeout=timeout, output_hook=self._hear)
        return reply['content']['status']

    def _hear(self, message):
        content = message['content']
        self.printed += content.get('text', '') + content.get('evalue', '')
        if self._stop_at and not self._stopped and re.search(self._stop_at, self.printed):
            self._stopped = True
            self.manager.interrupt_kernel()


@pytest.fixture
def kernel(tmp_path):
    kernel = Kernel(tmp_path)
    kernel.run(f'import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n%load_ext engine.notebook')
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def test_stop_saves_the_training_and_stops_the_notebook(kernel, tmp_path):
    code = f'%shell python3 {REPOSITORY}/train.py -o output.dir=run {HOUR}'
    assert kernel.run(code, stop_at='iter:4 ') == 'error'
    assert 'train.py: SIGINT: saved in run; ' in kernel.printed
    assert re.search(r'exit code 75: python3 .*train\.py', kernel.printed)
    snapshot = RunFolder(tmp_path / 'run').checkpoints().newest(print)
    assert snapshot.state['step'] >= 5
    assert kernel.run(f'{code} train.max_steps={snapshot.state["step"] + 1} --resume') == 'ok'
    assert f'step {snapshot.state["step"]}' in kernel.printed


def test_plain_command_prints_lines_without_a_bar(kernel, tmp_path):
    """Its terminal is IPython's; the threads are this machine's, though the kernel has paddle."""
    kernel.run('import paddle')
    python = '{sys.executable}'
    assert kernel.run(f'!{python} {REPOSITORY}/train.py -o output.dir=run {SHORT}') == 'ok'
    text = kernel.printed.replace('\r\n', '\n')
    assert '\r' not in text
    assert re.search(r'^iter:4  loss:', text, re.M)
    assert re.search(r'^epoch 3/3: training loss ', text, re.M)
    assert not re.search('CPU: .*your', text)


def test_commands_run_one_after_another_in_one_kernel(kernel, tmp_path):
    start = time.time()
    for command in (
        f'train.py -o output.dir=run {SHORT}',
        'eval.py -w run',
        'export.py -w run --output served',
        f'train.py -o output.dir=again {SHORT}',
    ):
        assert kernel.run(f'%run {REPOSITORY}/{command}') == 'ok', kernel.printed
        assert 'Traceback' not in kernel.printed
        assert not re.search('CPU: .*your', kernel.printed)
    assert (tmp_path / 'served' / 'inference.yml').stat().st_mtime > start
    assert (tmp_path / 'again' / 'best.pdparams').is_file()
