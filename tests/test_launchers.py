"""Paddle's launchers on two fake NPUs: each process computes where its line says.

The launcher of each version names the processes' cards in another way, or takes the machine for
one without: those of 2.6.2 (the 910), 3.2.2 (the newest wheel on aarch64) and 3.3.1, each in an
environment of its own, with the packages that training imports.
"""

from __future__ import annotations

import re
from pathlib import Path

import fake_npu
import pytest
from conftest import REPOSITORY
from environments import answer, install

TRAIN = str(REPOSITORY / 'train.py')
QUICKSTART = ('-c', str(REPOSITORY / 'configs' / 'quickstart.yaml'), '-o', 'train.max_steps=2')
WITH = ('numpy<2.4', 'pyyaml', 'pillow', 'matplotlib', 'scikit-learn', 'tqdm', 'protobuf<7')
WITH = (*WITH, 'setuptools', 'safetensors', 'visualdl', 'opencv-python-headless', 'simplejpeg')

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', params=['2.6.2', '3.2.2', '3.3.1'])
def machine(request, tmp_path_factory):
    """A python with that Paddle, and the environment of a machine with two NPUs."""
    folder = tmp_path_factory.mktemp('machine')
    numpy = ['numpy<2'] if request.param.startswith('2.') else []
    python = install(folder / 'venv', f'paddlepaddle=={request.param}', *WITH, *numpy)
    code = 'import json, paddle; print(json.dumps(paddle.sysconfig.get_include()))'
    include = Path(answer(python, code, CUSTOM_DEVICE_ROOT=''))
    return python, build(folder, include, request.param)


def build(folder: Path, include: Path, version: str) -> dict[str, str]:
    variables = fake_npu.build(folder, include=include, version=version)
    return {'CUSTOM_DEVICE_ROOT': variables['CUSTOM_DEVICE_ROOT']}  # empty, CUDA's confuses them


def launched(tmp_path: Path, machine, launcher: tuple[str, ...], *settings: str, **environment):
    """The logs of two processes that train for two steps, from their launcher's exit on."""
    python, variables = machine
    launch = ('-m', 'paddle.distributed.launch', *launcher, '--log_dir', 'workers')
    arguments = (*launch, TRAIN, *QUICKSTART, 'output.dir=run', *settings)
    process = fake_npu.run(tmp_path, {**variables, **environment}, *arguments, python=python)
    assert process.returncode == 0, process.stdout + process.stderr
    return [(tmp_path / 'workers' / f'workerlog.{i}').read_text() for i in (0, 1)]


def used(log: str) -> list[str]:
    return re.findall(r'^fake npu: device (\d) is used$', log, re.M)


def test_npus_gives_each_process_its_card(machine, tmp_path):
    """Up to 3.2.2 this needs the variable; later it does no harm."""
    first, second = launched(
        tmp_path, machine, ('--npus', '0,1'), 'device=npu', PADDLE_XCCL_BACKEND='npu'
    )
    assert re.search(r'^device: npu \(as requested, 2 processes\), paddle ', first, re.M)
    assert [used(first), used(second)] == [['0'], ['1']]
    assert (tmp_path / 'run' / 'best.pdparams').exists()


def test_nproc_per_node_gives_each_process_its_card(machine, tmp_path):
    first, second = launched(tmp_path, machine, ('--nproc_per_node', '2'), 'device=npu')
    assert re.search(r'^device: npu \(as requested, 2 processes\), paddle ', first, re.M)
    assert [used(first), used(second)] == [['0'], ['1']]


def test_two_processes_on_the_cpu_use_no_cards(machine, tmp_path):
    first, second = launched(tmp_path, machine, ('--nproc_per_node', '2'), 'device=cpu')
    assert re.search(r'^device: cpu \(as requested, 2 processes\), paddle ', first, re.M)
    assert [used(first), used(second)] == [[], []]
    assert re.search(r'^acc:\d+ total:359 ', first, re.M)  # the two count together
