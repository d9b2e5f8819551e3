"""engine/machine/signals.py: what SIGTERM and SIGINT do to a loop, alone and under a launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

# A loop as in train.py, whose steps take 50 ms, and which then saves for 0.6 s.
LOOP = """
import sys, time
from engine.errors import Stopped
from engine.machine.signals import StopSignals

try:
    with StopSignals() as stop:
        try:
            print('ready', flush=True)
            for step in range(400):
                time.sleep(0.05)
                stop.check()
        except Stopped as signal:
            print(f'stopped by {signal}', flush=True)
            time.sleep(0.6)
            print('saved', flush=True)
            raise
except Stopped:
    time.sleep(0.3)
    print('end', flush=True)
    sys.exit(75)
"""


ENDS = 'ends after this step, and saves; wait for "saved in"'


def started(*, launched: bool, ignore: str = '') -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith('PADDLE_')}
    if launched:
        environment |= {'PADDLE_TRAINERS_NUM': '1', 'PADDLE_TRAINER_ID': '0'}
    process = subprocess.Popen(
        [sys.executable, '-c', ignore + LOOP],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == 'ready\n'
    return process


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=15)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize('launched', [False, True])
def test_one_signal_stops_the_loop_after_its_step(launched, number):
    process = started(launched=launched)
    process.send_signal(number)
    code, out, err = ended(process)
    assert code == 75
    assert out == f'stopped by {number.name}\nsaved\nend\n'
    more = '' if launched or number == signal.SIGHUP else ' (once more ends at once)'
    assert err == f'\n{number.name}: {ENDS}{more}\n'


def test_three_in_a_row_from_a_launcher_stop_the_loop_once():
    process = started(launched=True)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    code, out, err = ended(process)
    assert code == 75
    assert out == 'stopped by SIGTERM\nsaved\nend\n'
    assert err == f'\nSIGTERM: {ENDS}\n'


def test_late_signals_of_a_launcher_do_not_interrupt_saving():
    process = started(launched=True)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == 'stopped by SIGTERM\n'
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == 'saved\n'
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, out, _ = ended(process)
    assert (code, out) == (75, 'end\n')


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_without_a_launcher_the_second_signal_ends_at_once(number, code):
    process = started(launched=False)
    process.send_signal(number)
    assert process.stdout.readline() == f'stopped by {number.name}\n'
    process.send_signal(number)
    returned, out, err = ended(process)
    assert 'saved' not in out
    # Python ends by SIGINT as by an uncaught KeyboardInterrupt.
    assert returned in (code, 130)
    assert err.count(ENDS) == 1


@pytest.mark.parametrize(
    ('first', 'then'),
    [
        (signal.SIGINT, (signal.SIGHUP, signal.SIGHUP)),  # from the kernel, and from the shell
        (signal.SIGHUP, (signal.SIGHUP, signal.SIGTERM)),  # as a session ends
    ],
)
def test_closing_the_terminal_does_not_interrupt_saving(first, then):
    process = started(launched=False)
    process.send_signal(first)
    assert process.stdout.readline() == f'stopped by {first.name}\n'
    for number in then:
        process.send_signal(number)
        time.sleep(0.05)
    code, out, _ = ended(process)
    assert (code, out) == (75, 'saved\nend\n')


def test_under_nohup_closing_the_terminal_has_no_effect():
    ignore = 'import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n'
    process = started(launched=False, ignore=ignore)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == 'stopped by SIGTERM\n'
    assert ended(process)[0] == 75


def test_a_system_without_sighup(monkeypatch):
    """Windows, by imitation."""
    from engine.machine import signals

    monkeypatch.setattr(signals, 'HANGUP', None)
    before = signal.getsignal(signal.SIGHUP)
    with signals.StopSignals():
        assert signal.getsignal(signal.SIGHUP) is before


@pytest.mark.parametrize('launched', [False, True])
def test_handlers_are_restored_unless_a_launcher_is_stopping_the_job(launched, monkeypatch):
    from engine.machine import signals

    monkeypatch.setattr(signals, 'LAUNCHED', launched)
    numbers = (*signals.STOPPING, signals.HANGUP)
    before = {number: signal.getsignal(number) for number in numbers}
    with signals.StopSignals() as stop:
        assert all(signal.getsignal(n) != handler for n, handler in before.items())
        stop.check()
    assert {number: signal.getsignal(number) for number in numbers} == before
