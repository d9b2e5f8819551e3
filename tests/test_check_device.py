"""python3 -m benchmarks.check_device writes its page whatever check fails."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import fake_npu
import paddle
import pytest
from conftest import REPOSITORY

from benchmarks import check_device, device_page
from benchmarks.device_page import Failure, Page, Skipped


def outcomes(page: Path) -> dict[str, str]:
    """Check -> pass, fail or skipped, of the page's first table."""
    lines = [line.split(' | ') for line in page.read_text().splitlines() if line.startswith('| ')]
    return {line[0][2:]: line[1] for line in lines if line[1] in ('pass', 'fail', 'skipped')}


def raising(error: Exception):
    def check(page: Page) -> None:
        raise error

    return check


def test_a_failed_check_does_not_end_the_others(tmp_path, monkeypatch):
    page = tmp_path / 'page.md'
    about = {'kind': 'gpu', 'name': 'Card', 'cards': 1}
    monkeypatch.setattr(check_device, 'ask', lambda *given, **options: about)
    checks = {
        'wrong': raising(Failure('off by | 3')),
        'absent': raising(Skipped('there is one card')),
        'broken': raising(ZeroDivisionError('our own bug')),
        'right': lambda page: page.note('right', 'pass', 'off by 0'),
    }
    monkeypatch.setattr(check_device, 'CHECKS', checks)
    monkeypatch.setattr(sys, 'argv', ['device', '--output', str(page)])
    with pytest.raises(SystemExit) as end:
        check_device.main()
    assert end.value.code == 1
    expected = {'wrong': 'fail', 'absent': 'skipped', 'broken': 'fail', 'right': 'pass'}
    assert outcomes(page) == expected
    text = page.read_text()
    assert text.startswith('# Card: 1 pass, 2 fail\n')
    assert '| wrong | fail | off by / 3 |\n' in text
    assert 'our own bug' in text


@pytest.fixture
def page(tmp_path) -> Page:
    about = {'kind': 'npu', 'name': 'Card', 'cards': 1}
    return Page(tmp_path / 'page.md', tmp_path, quick=True, end=math.inf, about=about)


def test_a_failed_command_reports_its_own_reason(page, monkeypatch):
    monkeypatch.chdir(page.scratch)
    Path('workerlog.0').write_text('ValueError: of yesterday')
    script = 'import sys; sys.exit("train.py: no such file")'
    with pytest.raises(Failure, match=r'^exit code 1: train\.py: no such file$'):
        device_page.run(page, ['-c', script])


def test_a_launcher_that_times_out_can_end_its_processes(page, monkeypatch):
    """They have sessions of their own, and would stay on the cards."""
    monkeypatch.setattr(device_page, 'LEAST_S', 3.0)
    page.end = 0
    launcher = """
import pathlib, signal, sys, time
def end(number, frame):
    pathlib.Path('ended').touch()
    sys.exit(number)
signal.signal(signal.SIGTERM, end)
time.sleep(60)
"""
    with pytest.raises(Failure, match=r'^took more than 3 s$'):
        device_page.run(page, ['-c', launcher])
    assert (page.scratch / 'ended').exists()


@pytest.mark.parametrize(
    ('reason', 'outcome'),
    [
        ('exit code 1: UserError: train.amp: O2 fails on this device: a step has', 'pass'),
        ('took more than 150 s', 'fail'),
        (None, 'fail'),
    ],
)
def test_only_masters_that_stay_show_that_o2_fails_on_an_npu(page, reason, outcome, monkeypatch):
    def ask(*given, **options):
        if reason is not None:
            raise Failure(reason)

    monkeypatch.setattr(check_device, 'ask', ask)
    try:
        check_device.check_o2(page)
    except Failure as failure:
        page.note('o2', 'fail', str(failure))
    assert outcomes(page.file) == {'o2': outcome}


def run(tmp_path: Path, device: str, *only: str, **variables: str) -> dict[str, str]:
    page = tmp_path / 'page.md'
    command = [sys.executable, '-m', 'benchmarks.check_device', '--device', device, '--quick']
    command += ['--output', str(page), '--only', *only]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1500,
        env={**os.environ, **variables},
    )
    assert page.exists(), done.stderr
    found = outcomes(page)
    assert done.returncode == ('fail' in found.values()), done.stdout
    return found


@pytest.mark.slow
def test_on_a_cpu_everything_passes(tmp_path):
    found = run(tmp_path, 'cpu', *check_device.CHECKS)
    assert 'fail' not in found.values(), found
    for check in ('device', 'losses: oneDNN', 'same_seed', 'resume', 'processes', 'speed'):
        assert found[check] == 'pass'
    assert found['engines: paddle float32'] == 'pass'
    assert found['sync_bn'] == 'skipped'


@pytest.mark.slow
@pytest.mark.skipif(paddle.__version__.startswith('2.'), reason='no float16 kernels to build')
def test_on_a_fake_npu_checks_pass_and_fail_as_expected(tmp_path):
    """Its momentum ignores master weights, as the plug-in's does; its collectives do nothing."""
    machine = fake_npu.build(tmp_path, half=True)
    found = run(tmp_path, 'npu', 'device', 'losses', 'o2', 'resume', 'processes', **machine)
    for check in ('device', 'losses: float32', 'losses: O1 float16', 'o2', 'resume'):
        assert found[check] == 'pass', found
    assert found['losses: O2, which becomes O1'] == 'pass'
    assert found['processes'] == 'fail'
