"""paddlepaddle-gpu 2.6.2, the GPU wheel of the package index, on a machine without a GPU.

It lists its kernels anywhere: what engine/machine/support.py and docs/gpu.md say of them is asked
here.
"""

from __future__ import annotations

import pytest
from conftest import REPOSITORY
from environments import answer, install
from fake_npu import run

pytestmark = pytest.mark.slow

WITH = ('numpy<2', 'pyyaml', 'pillow', 'matplotlib', 'scikit-learn', 'tqdm', 'protobuf<7')
WITH = (*WITH, 'setuptools', 'safetensors', 'visualdl', 'opencv-python-headless<4.12', 'simplejpeg')
WITHOUT_GPU = {'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(REPOSITORY)}


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    return install(tmp_path_factory.mktemp('gpu') / 'venv', 'paddlepaddle-gpu==2.6.2', *WITH)


def test_it_has_the_kernels_of_the_recipes_and_momentum_none_in_bfloat16(python):
    code = (
        'import json; from benchmarks import device_checks; '
        'print(json.dumps(device_checks.registered("gpu")))'
    )
    found = answer(python, code, **WITHOUT_GPU)
    for name, types in found.items():
        assert {'float', 'float16'} <= set(types), name
    lacking = {name for name, types in found.items() if 'bfloat16' not in types}
    assert {'momentum', 'merged_momentum'} <= lacking
    assert not lacking & {'conv2d', 'conv2d_grad', 'batch_norm', 'batch_norm_grad', 'relu'}


def test_without_a_gpu_it_trains_on_the_cpu_and_logs_it(python, tmp_path):
    settings = ('-c', str(REPOSITORY / 'configs' / 'quickstart.yaml'), '-o', 'train.max_steps=1')
    train = (str(REPOSITORY / 'train.py'), *settings)
    process = run(tmp_path, WITHOUT_GPU, *train, python=python)
    assert process.returncode == 0, process.stderr
    assert 'no gpu and no npu available, though this paddle was built for gpus' in process.stdout
    process = run(tmp_path, WITHOUT_GPU, *train, 'device=gpu', 'output.dir=b', python=python)
    assert process.returncode == 2
    assert 'device: gpu is not available (cpu is); it needs paddlepaddle-gpu' in process.stderr
    assert not (tmp_path / 'b').exists()
