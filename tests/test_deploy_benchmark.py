"""deploy/benchmark.py: what it measures, says and refuses; with Paddle, and an engine made up."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import exported
import matplotlib.image
import pytest
import yaml
from conftest import REPOSITORY

import benchmark
from predictor import timing
from predictor.errors import UserError
from predictor.timing import Sample

COMMAND = REPOSITORY / 'deploy' / 'benchmark.py'
NOT_AN_ENGINE = 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)'
# Takes 40 ms an image and thread; a batch of 4 kills it.
ENGINE = """
import os, time
import numpy as np

class Core:
    def read_model(self, file):
        return file
    def compile_model(self, model, device, options):
        self.threads = options['INFERENCE_NUM_THREADS']
        return self
    def create_infer_request(self):
        return self
    def infer(self, inputs, share_inputs=False):
        print('chatter')
        (images,) = inputs
        if len(images) == 4:
            os.abort()
        time.sleep(0.04 * len(images) / self.threads)
        return {'logits': np.zeros((len(images), 7), np.float32)}
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """An exported network, whose model.onnx nobody reads."""
    target = exported.copy(tmp_path_factory.mktemp('exported') / 'inference')
    (target / 'model.onnx').write_bytes(b'')
    file = target / 'inference.yml'
    content = yaml.safe_load(file.read_text(encoding='utf-8'))
    content['files'].update(exported.listed(target, 'model.onnx'))
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding='utf-8')
    return target


@pytest.fixture
def measure(folder, tmp_path):
    """The command, with a package of that name and content in openvino's place."""

    def run(*arguments: str, openvino: str = ENGINE) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(COMMAND), str(folder), *arguments],
            env=environment(tmp_path, openvino),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def environment(tmp_path: Path, openvino: str) -> dict[str, str]:
    packages = tmp_path / 'packages'
    packages.mkdir()
    (packages / 'openvino.py').write_text(openvino)
    return {**os.environ, 'PYTHONPATH': str(packages)}


def rows(text: str) -> list[list[str]]:
    """Of the table, which is wide-spaced."""
    _, table = text.split('\n\n')
    return [re.split(r'\s{2,}', line) for line in table.splitlines()]


def test_table_json_and_plot_of_engines_that_run_and_one_that_crashes(measure, tmp_path):
    result = measure(
        *('--engines', 'openvino,paddle-no-onednn,paddle,tensorrt', '--batch-sizes', '4,1'),
        *('--threads', '1', '--seconds', '0.3', '--output', 'a.json', '--plot', 'a.png'),
    )
    assert result.returncode == 0, result.stderr
    assert 'Traceback' not in result.stderr
    assert 'chatter' not in result.stdout
    header, *table = rows(result.stdout)
    assert header[:4] == ['engine', 'threads', 'batch', 'p50 ms']
    crash = ['openvino', '1', 'batch 4: crashed (SIGABRT)']
    assert [row[:3] for row in table] == [
        ['openvino', '1', '1'],
        crash,
        *(['paddle', '1', batch] for batch in '14'),
        *(['paddle, no oneDNN', '1', batch] for batch in '14'),
    ]
    assert re.search(r'^tensorrt is left out: .*GPU', result.stdout, re.M)
    written = json.loads((tmp_path / 'a.json').read_text())
    assert written['model'].startswith('wide_resnet10_1, float32 [batch, 3, 8, 8]')
    assert 'paddlepaddle' in written['versions']
    assert 'GPU' in written['left_out']['tensorrt']
    openvino, paddle, _ = written['series']
    assert [figures['batch'] for figures in openvino['figures']] == [1]
    assert openvino['error'] == crash[2]
    assert paddle['error'] is None
    for figures in paddle['figures']:
        assert 0 < figures['p50_ms'] <= figures['p95_ms'] <= figures['p99_ms'] < 10_000
        assert figures['calls'] >= 3  # one a round
        assert 20 < figures['peak_memory_mib'] < 20_000
    height, width, _ = matplotlib.image.imread(tmp_path / 'a.png').shape
    assert width > height > 400


def test_threads_and_batches_reach_the_engine(measure, tmp_path):
    result = measure(
        *('--engines', 'openvino', '--batch-sizes', '1,3', '--threads', '1,2'),
        *('--seconds', '0.3', '--output', 'a.json'),
    )
    assert result.returncode == 0, result.stderr
    series = json.loads((tmp_path / 'a.json').read_text())['series']
    found = {
        (one['threads'], figures['batch']): figures for one in series for figures in one['figures']
    }
    assert list(found) == [(1, 1), (1, 3), (2, 1), (2, 3)]
    for (threads, batch), figures in found.items():
        least = 40 * batch / threads
        assert (
            least <= figures['p50_ms'] < 1.9 * least
        )  # half of what the other count of threads takes
        assert figures['images_per_second'] <= 25 * threads


def test_figures_of_known_samples():
    one = benchmark.Series('openvino', 1)
    one.samples[4] = [Sample([0.1, 0.1, 0.1], 5 << 20), Sample([0.5], 9 << 20)]
    figures = one.figures(4)
    assert (figures['calls'], figures['images_per_second'], figures['p50_ms']) == (4, 20.0, 100.0)
    assert 100 < figures['p95_ms'] < figures['p99_ms'] < 500
    assert figures['peak_memory_mib'] == 5  # what larger batches took later is not this one's
    one.samples[4][0] = Sample([0.1], None)  # on a card, whose memory it is not
    assert one.figures(4)['peak_memory_mib'] is None
    assert benchmark.table([one]).rstrip().endswith(' 2')


@pytest.mark.skipif(not exported.HAS_ONNX, reason='paddle2onnx or onnxruntime is not installed')
def test_runs_without_modules_missing_on_windows(tmp_path):
    driver, command = REPOSITORY / 'tests' / 'as_on_windows.py', [COMMAND, exported.folder()]
    options = ('--seconds', '0.1', '--batch-sizes', '1', '--threads', '1')
    engines = ('--engines', 'onnxruntime')
    result = subprocess.run(
        [sys.executable, driver, *command, *options, *engines],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'CUSTOM_DEVICE_ROOT': '', 'XDG_CACHE_HOME': str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r'\nonnxruntime +1 +1 +\d', result.stdout)


def test_the_hosts_memory_is_not_reported_for_a_card():
    engine = timing.Engine(str(exported.folder()), engine='paddle', device='cpu', batch=1)
    assert engine.measure(1, 0.01).memory > 1 << 20
    engine._predictor.setting = dataclasses.replace(engine._predictor.setting, device='gpu:0')
    assert engine.measure(1, 0.01).memory is None


def test_memory_is_none_where_the_system_does_not_report_it(monkeypatch):
    assert timing.peak_memory() > 1 << 20
    monkeypatch.setattr(timing, 'STATUS', Path('nowhere'))
    assert timing.peak_memory() > 1 << 20
    monkeypatch.setitem(sys.modules, 'resource', None)
    assert timing.peak_memory() is None


@pytest.mark.parametrize(
    ('openvino', 'reason'),
    [
        (NOT_AN_ENGINE, 'crashed (SIGKILL)'),
        ('raise ImportError("no such symbol")', 'no such symbol'),
        (ENGINE.replace('time.sleep', 'np.nothing'), "module 'numpy' has no attribute 'nothing'"),
    ],
)
def test_the_table_names_why_no_engine_works(measure, tmp_path, openvino, reason):
    result = measure(
        *('--engines', 'openvino', '--seconds', '0.1', '--threads', '1', '--plot', 'a.png'),
        openvino=openvino,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == 'benchmark.py: no engine runs this model here'
    assert 'Traceback' not in result.stderr
    _, row = rows(result.stdout)
    assert row[:2] == ['openvino', '1']
    assert reason in row[2]
    assert not (tmp_path / 'a.png').exists()


def called(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments])
    benchmark.main()


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ('--output there.json', '--output there.json already exists; name a new file'),
        ('--plot dangling.png', '--plot dangling.png already exists; name a new file'),
        ('--output no/a.json', '--output no/a.json: no is not a writable folder'),
        ('--plot a.jpeg', '--plot a.jpeg: the name must end in .png, .svg, .pdf'),
        ('--plot a.svg --output a.svg', '--output and --plot name the same file'),
    ],
)
def test_unwritable_results_are_refused_before_measuring(monkeypatch, tmp_path, options, reason):
    monkeypatch.chdir(tmp_path)
    Path('there.json').write_text('kept')
    Path('dangling.png').symlink_to('nowhere')
    with pytest.raises(UserError, match='^' + re.escape(reason) + '$'):
        called(monkeypatch, 'no folder at all', *options.split())
    assert Path('there.json').read_text() == 'kept'


def test_a_plot_without_matplotlib_is_refused_before_measuring(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert importlib.util.find_spec('matplotlib') is None
    with pytest.raises(UserError, match='--plot needs matplotlib'):
        called(monkeypatch, 'no folder at all', '--plot', str(tmp_path / 'a.png'))


def test_a_file_created_meanwhile_is_not_overwritten(tmp_path):
    (tmp_path / 'a.json').write_text('kept')
    with pytest.raises(UserError, match='meanwhile'):
        benchmark.write_new(tmp_path / 'a.json', b'lost')
    assert (tmp_path / 'a.json').read_text() == 'kept'
    with pytest.raises(UserError, match=r'^/proc/a\.json: No such file'):
        benchmark.write_new(Path('/proc/a.json'), b'lost')


def test_no_available_engine_is_one_line(monkeypatch, folder):
    with pytest.raises(UserError, match=r'^no engine can run here \(tensorrt: .*GPU'):
        called(monkeypatch, str(folder), '--engines', 'tensorrt', '--device', 'cpu')


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ('--engines tensorflow', "'tensorflow' is not one of auto, tensorrt, openvino"),
        ('--batch-sizes 1,0', '0 is not a whole number above 0'),
        ('--threads ,', ' is not a whole number above 0'),
        ('--seconds nan', 'nan is not a number above 0'),
        ('--seconds 0', '0 is not a number above 0'),
    ],
)
def test_wrong_options_are_refused(monkeypatch, options, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        called(monkeypatch, 'folder', *options.split())


def test_help_imports_nothing_large(tmp_path):
    result = subprocess.run(
        [sys.executable, '-X', 'importtime', str(COMMAND), '--help'],
        capture_output=True,
        text=True,
    )
    assert '--batch-sizes' in result.stdout
    assert 'argparse' in result.stderr
    assert not re.search(r' (matplotlib|paddle|onnxruntime|openvino)$', result.stderr, re.M)


def test_ctrl_c_ends_the_engines_too(folder, tmp_path):
    command = [sys.executable, str(COMMAND), str(folder), '--engines', 'openvino']
    options = ['--seconds', '600', '--threads', '1', '--output', 'a.json']
    with subprocess.Popen(
        [*command, *options],
        env=environment(tmp_path, ENGINE),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if line.startswith('measuring'):
                break
        time.sleep(1)  # the engine starts, and is busy for 200 s
        (engine,) = children(process.pid)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert errors == ''
    assert not (tmp_path / 'a.json').exists()
    deadline = time.monotonic() + 10
    while Path(f'/proc/{engine}').exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(process: int) -> list[int]:
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):  # it has just ended
            parent = int(stat.read_text().rpartition(')')[2].split()[1])
            found += [int(stat.parent.name)] if parent == process else []
    return found


def test_an_engine_without_a_style_of_its_own_is_drawn():
    charts = pytest.importorskip('predictor.charts')
    figures = [{'batch': 1, 'p50_ms': 2.0, 'images_per_second': 500.0}]
    series = [{'engine': name, 'threads': 1, 'figures': figures} for name in ('paddle', 'new')]
    assert charts.draw(series, 'title', 'png').startswith(b'\x89PNG')
