"""How many cores a process takes itself to have: in engine/runtime.py, and in deploy/."""

from __future__ import annotations

import math
import os

import pytest

from engine import runtime
from predictor import machine

V1 = 'cpu/cpu.cfs_{}_us'
CONTAINERS = {  # files of /sys/fs/cgroup, and the limit
    'none': ({}, math.inf),
    'version 2, unlimited': ({'cpu.max': 'max 100000\n'}, math.inf),
    'version 2': ({'cpu.max': '250000 100000\n'}, 2.5),
    'version 1, unlimited': (
        {V1.format('quota'): '-1\n', V1.format('period'): '100000\n'},
        math.inf,
    ),
    'version 1': ({V1.format('quota'): '50000\n', V1.format('period'): '100000\n'}, 0.5),
    'half of version 1': ({V1.format('quota'): '50000\n'}, math.inf),
    'nonsense': ({'cpu.max': 'much\n'}, math.inf),
}


@pytest.fixture(params=CONTAINERS)
def limit(request, tmp_path, monkeypatch) -> float:
    files, limit = CONTAINERS[request.param]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for module in (runtime, machine):
        monkeypatch.setattr(module, 'CGROUP', tmp_path)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(64)), raising=False)
    monkeypatch.delenv('PADDLE_LOCAL_SIZE', raising=False)
    return limit


def test_a_container_has_the_cores_that_it_may_use(limit):
    wanted = 64 if limit == math.inf else math.ceil(limit)
    assert runtime.cores_per_process() == wanted
    assert machine.cores() == wanted


def test_processes_share_them(limit, monkeypatch):
    monkeypatch.setenv('PADDLE_LOCAL_SIZE', '3')
    assert runtime.cores_per_process() == (21 if limit == math.inf else 1)
