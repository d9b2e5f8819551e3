"""How many cores a process takes itself to have, in engine/ and in deploy/, and what it sets."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import paddle
import pytest
from conftest import REPOSITORY

from engine.machine import cpu
from predictor import container, machine, paddle_import

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
    monkeypatch.setattr(container, 'CGROUP', tmp_path)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(64)), raising=False)
    monkeypatch.delenv('PADDLE_LOCAL_SIZE', raising=False)
    return limit


def test_cores_are_limited_by_the_container(limit):
    expected = 64 if limit == math.inf else math.ceil(limit)
    assert cpu.cores_per_process() == expected
    assert machine.cores() == expected


def test_the_limit_of_a_group_around_its_own_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(container, 'PROC', tmp_path)
    monkeypatch.setattr(container, 'CGROUP', tmp_path)
    (tmp_path / 'self').mkdir()
    (tmp_path / 'self' / 'cgroup').write_text('4:cpu,cpuacct:/\n0::/job/step\n')
    (tmp_path / 'job' / 'step').mkdir(parents=True)
    (tmp_path / 'job' / 'step' / 'cpu.max').write_text('max 100000\n')
    (tmp_path / 'job' / 'cpu.max').write_text('300000 100000\n')
    assert container.cpu_limit() == 3.0


def test_processes_of_a_machine_share_its_cores(limit, monkeypatch):
    monkeypatch.setenv('PADDLE_LOCAL_SIZE', '3')
    assert cpu.cores_per_process() == (21 if limit == math.inf else 1)


# ------------------------------------------------------------------ one thread, set by whom?

PADDLE, OTHER = '7f00-7f01 r-xp 0 0:0 0 /x/paddle/base/libpaddle.so\n', '/usr/lib/libc.so.6\n'
# Of this process and its ancestors: the environment that each was started with, what it has loaded.
ANCESTORS = {
    'the command line': ([('OMP_NUM_THREADS=1', OTHER), ('A=1', OTHER)], False),
    'a notebook': ([('OMP_NUM_THREADS=1', OTHER), ('A=1', PADDLE), ('A=1', OTHER)], True),
    "a notebook's shell": ([('OMP_NUM_THREADS=1', OTHER)] * 2 + [('A=1', PADDLE)], True),
    'before a notebook': ([('OMP_NUM_THREADS=1', OTHER)] * 3 + [('A=1', OTHER)], False),
    'an import in this process': ([('A=1', PADDLE)], True),
    'no /proc': ([], False),
}


@pytest.fixture(params=ANCESTORS)
def ancestors(request, tmp_path, monkeypatch) -> bool:
    processes, by_paddle = ANCESTORS[request.param]
    for number, (variables, maps) in enumerate(processes):
        folder = tmp_path / (str(number) if number else 'self')
        folder.mkdir()
        (folder / 'environ').write_bytes(f'LANG=C\0{variables}\0'.encode())
        (folder / 'maps').write_text(maps)
        (folder / 'stat').write_text(f'5 (a b) c) S {number + 1} 5 5 0')
    monkeypatch.setattr(cpu, 'PROC', tmp_path)
    monkeypatch.setattr(cpu, '_ours', set())
    monkeypatch.setattr(cpu, '_keep_freed_memory', lambda: None)
    monkeypatch.setattr(cpu, 'cores_per_process', lambda: 6)
    for name in ('KMP_BLOCKTIME', 'MKL_DEBUG_CPU_TYPE'):
        monkeypatch.setenv(name, '7')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    return by_paddle


def test_one_thread_is_the_users_setting_unless_an_import_of_paddle_has_set_it(
    ancestors, monkeypatch
):
    asked = []
    monkeypatch.setattr(paddle.base.core, 'set_num_threads', asked.append)
    line = cpu.prepare_cpu()
    threads = 6 if ancestors else 1
    reason = 'the cores of this process' if ancestors else 'your setting'
    assert f'OMP_NUM_THREADS={threads} ({reason})' in line
    assert os.environ['OMP_NUM_THREADS'] == str(threads)
    assert asked == [threads]  # of the paddle that is imported already
    assert cpu.prepare_cpu() == line  # a second command in the same process


# ------------------------------------------------------------------ for an Ascend


@pytest.mark.parametrize('there', [True, False])
def test_npu_flags_are_set_with_a_plugin_and_the_users_own_are_kept(there, tmp_path, monkeypatch):
    for name in paddle_import.NPU_FLAGS:
        monkeypatch.setenv(name, 'x')  # so that what is set now does not stay
        monkeypatch.delenv(name)
    monkeypatch.setattr(paddle.base.core, 'set_num_threads', lambda threads: None)
    monkeypatch.setenv('CUSTOM_DEVICE_ROOT', str(tmp_path) if there else '')
    monkeypatch.setenv('FLAGS_npu_jit_compile', '1')
    cpu.prepare_cpu()
    expected = '0' if there else None
    for name in ('FLAGS_use_stride_kernel', 'FLAGS_npu_storage_format'):
        assert os.environ.get(name) == expected
    assert [os.environ[name] for name in paddle_import.NPU_FLAGS if 'jit' in name] == ['1']


@pytest.mark.slow
def test_after_an_import_of_paddle_a_command_has_all_cores():
    """As in a notebook: %run, and a shell."""
    script = f"""
import os, subprocess, sys
import paddle
sys.path.insert(0, {str(REPOSITORY)!r})
code = 'from engine.machine import cpu; print(cpu.prepare_cpu())'
subprocess.run(f'true; {{sys.executable}} -c "{{code}}"; true', shell=True)
sys.stdout.flush()
from engine.machine import cpu
print(cpu.prepare_cpu())
"""
    variables = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}
    process = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        env={**variables, 'PYTHONPATH': str(REPOSITORY), 'PYTHONUNBUFFERED': '1'},
    )
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if line.startswith('CPU: ')]
    cores = cpu.cores_per_process()
    assert len(lines) == 2
    for line in lines:
        assert f'OMP_NUM_THREADS={cores} (the cores of this process)' in line
