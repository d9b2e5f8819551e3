"""Choosing a device and starting the processes, where it goes wrong, on machines made up here."""

from __future__ import annotations

import os
import sys

import paddle
import pytest
from conftest import REPOSITORY
from fake_npu import run

from engine.errors import Stopped, UserError
from engine.machine import collectives, devices, failures, processes, start
from engine.machine.start import start_paddle

TRAIN = str(REPOSITORY / 'train.py')
QUICKSTART = ('-c', str(REPOSITORY / 'configs' / 'quickstart.yaml'), '-o')

# ------------------------------------------------------------------ what is raised

# As GPU allocators of 2.6 and 3.x write it (paddle/phi/core/memory/allocation/cuda_allocator.cc);
# Python has it as a MemoryError.
GPU_MEMORY = """

--------------------------------------
C++ Traceback (most recent call last):
--------------------------------------
0   paddle::memory::allocation::Allocator::Allocate(unsigned long)

----------------------
Error Message Summary:
----------------------
ResourceExhaustedError:

Out of memory error on GPU 0. Cannot allocate 392.000000MB memory on GPU 0, 15.7GB memory has been \
allocated and available memory is only 52.5MB.
"""
CUDNN = (
    '(PreconditionNotMet) The third-party dynamic library (libcudnn.so) that Paddle depends on is '
    'not configured correctly. (error code is libcudnn.so: cannot open shared object file)'
)
HCCP = (
    'EJ0001: 2024-05-20-10:11:12 Failed to initialize the HCCP process. Reason: Maybe the last '
    'training process is running.\n Solution: Wait for 10s after killing the last training process'
)
RAISED = [
    ('train.py', MemoryError(GPU_MEMORY), UserError, 'out of memory: Out of memory error on GPU 0'),
    ('train.py', MemoryError(GPU_MEMORY), UserError, 'data.batch_size .*train.amp=O1.*eval.batch'),
    ('eval.py', MemoryError(GPU_MEMORY), UserError, '[^;]*; a smaller eval.batch_size needs less'),
    ('train.py', MemoryError(), UserError, 'out of memory: no memory is left; '),
    ('train.py', RuntimeError(CUDNN), UserError, 'libcudnn.so is not .*docs/gpu.md'),
    (
        'train.py',
        RuntimeError('CUDA error(209), no kernel image is available for execution on the device'),
        UserError,
        'no code for this gpu; docs/gpu.md',
    ),
    ('train.py', RuntimeError(f'(External) HCCL error.\n{HCCP}'), Stopped, '15 seconds: EJ0001'),
]


@pytest.mark.parametrize(('program', 'error', 'kind', 'line'), RAISED)
def test_known_device_errors_become_one_line(program, error, kind, line, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [f'/somewhere/{program}'])
    with pytest.raises(kind, match=line) as caught, failures.translated():
        raise error
    assert '\n' not in str(caught.value)


def test_out_of_memory_on_a_cpu_is_one_line():
    with (
        pytest.raises(UserError, match=r'^out of memory: .*400000000000000'),
        failures.translated(),
    ):
        paddle.empty([10**14])


def test_other_errors_are_not_translated():
    bug = RuntimeError('(NotFound) The kernel is not registered')
    with pytest.raises(RuntimeError) as caught, failures.translated():
        raise bug
    assert caught.value is bug


def test_a_plugin_that_does_not_load_is_one_line_and_nothing_written(tmp_path):
    plugins = tmp_path / 'plugins'
    plugins.mkdir()
    (plugins / 'libpaddle-custom-npu.so').write_text('no library')
    work = tmp_path / 'work'
    work.mkdir()
    machine = {'CUSTOM_DEVICE_ROOT': str(plugins)}
    process = run(work, machine, TRAIN, *QUICKSTART, 'device=cpu')
    assert process.returncode == 2
    (line,) = [line for line in process.stderr.splitlines() if 'init.cc' not in line]
    assert 'libpaddle-custom-npu.so cannot be loaded: ' in line
    assert 'set_env.sh' in line
    assert 'CUSTOM_DEVICE_ROOT=' in line
    assert not list(work.iterdir())


# ------------------------------------------------------------------ which device


class Machine:
    """One with these cards, as paddle sees it; what becomes of it is in `device` and `variables`.

    `taken` is where fleet puts the process, whatever was chosen before (parallel.py of 2.6.2 to
    3.3.1, init_parallel_env: `_set_expected_place`).
    """

    def __init__(self, monkeypatch, *, gpus: int = 0, npus: int = 0) -> None:
        self.device, self.cudnn, self.taken = 'cpu', [90100, 90100], None
        self.variables: dict[str, str] = {}
        self.working = True
        cards = [f'npu:{number}' for number in range(npus)]
        for where, name, value in (
            (paddle.device, 'get_available_custom_device', lambda: cards),
            (paddle.device, 'get_all_custom_device_type', lambda: ['npu']),  # the plug-in is there
            (paddle.device, 'is_compiled_with_cuda', lambda: gpus > 0),
            (paddle.device.cuda, 'device_count', lambda: gpus),
            (paddle.device.cuda, 'get_device_name', lambda number: f'Card {number}'),
            (paddle, 'get_cudnn_version', lambda: self.cudnn.pop(0)),
            (paddle, 'ones', self.ones),
            (paddle, 'set_device', self.choose),
            (paddle.distributed.fleet, 'init', self.init),
            (start, '_import_quietly', lambda: paddle),
            (devices, 'device_kind', lambda: self.device),
            (processes, 'barrier', lambda: None),
        ):
            monkeypatch.setattr(where, name, value)
        for name in list(os.environ):
            if name.startswith(('FLAGS_selected_', 'PADDLE_')):
                monkeypatch.delenv(name)
        for name in ('PADDLE_DISTRI_BACKEND', 'PADDLE_XCCL_BACKEND', 'FLAGS_selected_npus'):
            monkeypatch.setenv(name, 'x')  # so that what is set now does not stay
            monkeypatch.delenv(name)
        monkeypatch.setenv('FLAGS_selected_gpus', 'x')
        monkeypatch.delenv('FLAGS_selected_gpus')

    def ones(self, shape):
        if not self.working:
            raise RuntimeError('CUDA error(209), no kernel image is available for execution')
        return paddle.zeros(shape)

    def choose(self, device: str) -> None:
        self.device = device

    def init(self, **options) -> None:
        self.variables = dict(os.environ)
        self.device = self.taken or self.device


def test_auto_does_not_choose_an_npu_without_a_card(monkeypatch):
    machine = Machine(monkeypatch)
    assert start_paddle('auto').startswith('device: cpu (auto: no gpu and no npu available)')
    assert machine.device == 'cpu'
    with pytest.raises(UserError, match='npu is not available'):
        start_paddle('npu')


def test_the_log_names_the_gpu_of_this_process(monkeypatch):
    Machine(monkeypatch, gpus=4)
    monkeypatch.setenv('FLAGS_selected_gpus', '2')
    assert start_paddle('auto').startswith('device: gpu (Card 2), ')


def test_a_gpu_without_cudnn_or_code_for_it_is_one_line(monkeypatch):
    machine = Machine(monkeypatch, gpus=1)
    machine.working = False
    with pytest.raises(UserError, match=r'no code for this gpu; docs/gpu.md .*-o device=cpu'):
        start_paddle('auto')
    machine.cudnn = [None, -1]  # device/__init__.py of 2.6.2 and 3.3.1, when asked again
    for _ in range(2):
        with pytest.raises(UserError, match=r'cuDNN cannot be loaded; docs/gpu.md .*-o device=cpu'):
            start_paddle('auto')


@pytest.mark.parametrize(('device', 'backend'), [('cpu', 'gloo'), ('gpu', 'nccl'), ('npu', 'xccl')])
def test_each_process_computes_on_the_device_that_it_reports(device, backend, monkeypatch):
    """Whatever the launcher took the machine for: Paddle sets the device again by the backend."""
    machine = Machine(monkeypatch, gpus=2, npus=2)
    monkeypatch.setattr(processes, 'WORLD_SIZE', 2)
    monkeypatch.setenv('PADDLE_DISTRI_BACKEND', 'gloo' if device == 'npu' else 'xccl')
    monkeypatch.setenv('PADDLE_LOCAL_RANK', '1')
    assert start_paddle(device).startswith(f'device: {device} (as requested, 2 processes)')
    assert machine.variables['PADDLE_DISTRI_BACKEND'] == backend
    assert machine.variables.get('PADDLE_XCCL_BACKEND') == ('npu' if device == 'npu' else None)
    assert machine.variables.get(f'FLAGS_selected_{device}s') == (None if device == 'cpu' else '1')
    machine.taken = 'other'
    with pytest.raises(UserError, match=f'device: {device} was chosen, .* has taken other'):
        start_paddle(device)


def test_more_processes_than_cards_is_one_line(monkeypatch):
    Machine(monkeypatch, npus=2)
    monkeypatch.setattr(processes, 'WORLD_SIZE', 4)
    monkeypatch.setenv('PADDLE_LOCAL_RANK', '2')
    with pytest.raises(UserError, match='device: npu: more processes than cards'):
        start_paddle('npu')


def test_a_barrier_precedes_the_first_collective_on_an_npu(monkeypatch):
    """hccl gives the others 120 seconds to come; an evaluation's first collective is its last."""
    waited = []
    monkeypatch.setattr(processes, 'WORLD_SIZE', 2)
    monkeypatch.setattr(processes, 'barrier', lambda: waited.append(devices.device_kind()))
    monkeypatch.setattr(collectives, '_connected', False)
    for kind in ('gpu', 'npu', 'npu', 'cpu', 'cpu'):
        monkeypatch.setattr(devices, 'device_kind', lambda kind=kind: kind)
        collectives.barrier_before_collective()
    assert waited == ['npu', 'cpu', 'cpu']
