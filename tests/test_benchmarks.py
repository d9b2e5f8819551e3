"""What the benchmarks make of what they measured; and, slowly, that each of them works."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, execute
from matplotlib.figure import Figure

from benchmarks import accuracy, cost, record_run
from benchmarks.paddle_step import seconds_by_kernel
from benchmarks.report import Claim, Result, keep, read_results
from benchmarks.train_step import OLDER, OURS, RACES, TWO, judge
from engine.errors import UserError


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    """Of three short epochs, with a quarter of the images held out."""
    folder = tmp_path_factory.mktemp('run')
    done = execute(folder, 'train.py', '-o', *TINY, 'data.holdout=0.25', 'output.dir=short')
    assert (done.returncode, done.stderr) == (0, '')
    return folder / 'short'


def test_a_run_is_recorded_as_it_was(run):
    content = record_run.describe(run)
    records = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert content['accuracy'] == records[-1]['eval_accuracy']
    assert content['train_accuracy'] == records[-1]['train_accuracy']
    assert content['epochs'] == len(records)
    assert content['training_seconds'] == round(sum(record['seconds'] for record in records))
    assert content['settings']['data.holdout'] == 0.25
    assert content['processes'] == 1
    assert not {'output.dir', 'data.root'} & set(content['settings'])


def test_a_run_that_is_not_finished_is_not_recorded(run, tmp_path):
    part = Path(shutil.copytree(run, tmp_path / 'part'))
    lines = (part / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (part / 'metrics.jsonl').write_text(''.join(lines[:-1]))
    with pytest.raises(UserError, match='part is not finished: 2 of 3 epochs'):
        record_run.describe(part)
    (part / 'metrics.jsonl').unlink()
    with pytest.raises(UserError, match='0 of 3 epochs'):
        record_run.describe(part)


@pytest.mark.parametrize('arguments', [[], ['nowhere']])
@pytest.mark.parametrize('module', ['record_run', 'accuracy'])
def test_wrong_runs_are_refused_in_a_line(module, arguments):
    command = [sys.executable, '-m', f'benchmarks.{module}', *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.count('\n') == 1
    assert 'Traceback' not in done.stderr


def test_accuracy_on_held_out_images_is_not_drawn_as_of_test_images(run):
    with pytest.raises(UserError, match='one was measured on held-out training images'):
        accuracy.require_tested(['one'], {'one': record_run.describe(run)})


def test_another_recipe_in_pytorch_is_refused():
    ours = {'epochs': 10, 'settings': {'data.batch_size': 64, 'optimizer.lr': 0.4}}
    same = {'epochs': 10, 'settings': {'data.batch_size': 128, 'optimizer.lr': 0.4}}
    for theirs in (None, same, {'epochs': 10}):
        accuracy.require_same_recipe('one', ours, theirs)
    for theirs in ({**same, 'epochs': 1}, {**same, 'settings': {'data.holdout': 0.2}}):
        with pytest.raises(UserError, match='one has another recipe in PyTorch: '):
            accuracy.require_same_recipe('one', ours, theirs)


def test_results_are_kept_in_the_folder_that_is_named(tmp_path):
    folder = tmp_path / 'new'
    keep('device', Result({'cpu': 1}, [Claim('', 2.0, 1.0, 'x')], others=('cpu', 'gpu')), folder)
    keep('device', Result({'gpu': 2}, others=('cpu', 'gpu')), folder)
    keep('growth', Result({'line': 3}, pictures={'growth.png': Figure()}), folder)
    keep('growth', Result({'slope': 4}), folder)
    content = read_results(folder)
    assert {name: content['device'][name] for name in ('cpu', 'gpu', 'claims')} == {
        'cpu': 1,
        'gpu': 2,
        'claims': [],
    }
    assert 'line' not in content['growth']
    assert (folder / 'growth.png').stat().st_size > 0


def test_pytorch_stands_beside_the_run(tmp_path):
    ours = {'model': 'wide_resnet16_2', 'epochs': 10, 'accuracy': 0.8, 'training_seconds': 900}
    series = {'ours': [ours, ours], 'PyTorch': [{**ours, 'accuracy': 0.7}, None]}
    rows = accuracy.describe(['one', 'two'], series).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]
    assert cells == [
        ['one', 'wide_resnet16_2', '10', '15.0', '80.00%', '15.0', '70.00%'],
        ['two', 'wide_resnet16_2', '10', '15.0', '80.00%', '', ''],
    ]


def test_what_runs_for_a_kernel_of_onednns_counts_as_its_own():
    def event(name: str, start_us: float, end_us: float) -> dict:
        return {'name': f'{name}[some time]', 'ts': start_us, 'dur': end_us - start_us}

    events = [
        event('add kernel launch', 40, 45),
        event('oneDNN batch norm forward', 10, 20),
        event('add kernel launch', 12, 15),
        event('add dygraph', 39, 46),
        event('oneDNN batch norm forward', 20, 30),
        event('add kernel launch', 30, 31),
        {'name': 'a thread', 'ph': 'M'},
    ]
    taken = seconds_by_kernel(events)
    assert taken == pytest.approx({'batch norm forward': 20e-6, 'add': 6e-6})


def test_a_slope_is_the_power_by_which_time_grows():
    measured = {f'{n}': cost.Cost(n * 10**9, [n**1.5], n**2) for n in (1, 2, 4)}
    times, bytes_ = zip(*((c.seconds, c.peak_bytes) for c in measured.values()))
    assert cost.slope(measured, times) == pytest.approx(1.5)
    assert cost.slope(measured, bytes_) == pytest.approx(2)


def test_the_better_of_ours_is_judged_by_the_better_of_pytorchs():
    speeds = {OURS: 10.0, TWO: 12.0, OLDER: 5.0, 'PyTorch': 4.0, 'PyTorch, channels last': 8.0}
    measured = {
        name: {'rounds': [speed - 1, speed, speed + 2], 'gflops': 1.0, 'matmul_gflops': 2.0}
        for name, speed in speeds.items()
    }
    result = Result(figures={})
    judge(RACES[0], measured, result)
    assert [claim.value for claim in result.claims] == [2.0, 1.5]
    assert not Claim('', 0.99, 1.0, 'x').reached


@pytest.mark.slow
def test_every_benchmark_that_needs_nothing_else_works():
    parts = [
        'scaling',
        'pipeline',
        'startup',
        'memory',
        'growth',
        'cost',
        'convolutions',
        'profile_step',
        'device',
    ]
    command = [sys.executable, '-m', 'benchmarks', *parts, '--quick', '--device', 'cpu']
    before = (REPOSITORY / 'benchmarks' / 'results.json').read_bytes()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    for part in parts:
        assert f'\n## {part}\n' in done.stdout
    assert ': failed' not in done.stdout
    assert (REPOSITORY / 'benchmarks' / 'results.json').read_bytes() == before
