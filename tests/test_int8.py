"""export.py --int8: a network in 8 bits, and the refusal of one that would lose accuracy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, execute
from exporting import HAS_CONVERTER

from engine.config import load_config
from engine.data import load_data
from engine.export import onnx_model
from engine.weights import read_weights, write_arrays

pytestmark = pytest.mark.skipif(not HAS_CONVERTER, reason='paddle2onnx has no wheel here')

QUICKSTART = str(REPOSITORY / 'configs' / 'quickstart.yaml')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Three epochs of the quick start, after which most digits are recognised."""
    folder = tmp_path_factory.mktemp('digits')
    settings = ('train.epochs=3', 'output.dir=run')
    result = execute(folder, 'train.py', '-c', QUICKSTART, '-o', *settings)
    assert result.returncode == 0, result.stderr
    return folder / 'run'


def accuracies(line: str) -> list[float]:
    return [float(share) for share in re.findall(r'(\d+\.\d+) %', line)]


def measured(model: Path, mean: np.ndarray, std: np.ndarray) -> float:
    test = load_data(load_config(QUICKSTART)).test
    pixels = (test.pixels - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
    logits = onnx_model.load(model)(pixels.astype(np.float32))
    return 100 * (logits.argmax(1) == test.labels).mean()


def test_the_weights_have_8_bits_and_the_accuracy_is_the_printed_one(run, tmp_path):
    import onnx.numpy_helper

    result = execute(tmp_path, 'export.py', '-w', str(run), '--output', 'out', '--int8')
    assert (result.returncode, result.stderr) == (0, '')
    (line,) = re.findall(r'model\.int8\.onnx: .* of 359 of 359 test images, .*', result.stdout)
    small, plain = accuracies(line)
    assert plain > 50
    assert plain - small <= 0.5
    out = tmp_path / 'out'
    about = yaml.safe_load((out / 'inference.yml').read_text(encoding='utf-8'))
    mean, std = np.array(about['input']['mean']), np.array(about['input']['std'])
    assert measured(out / 'model.int8.onnx', mean, std) == pytest.approx(small, abs=0.3)
    assert measured(out / 'model.onnx', mean, std) == pytest.approx(plain, abs=0.01)
    assert 'model.int8.onnx' in about['files']
    weights = onnx.load(out / 'model.int8.onnx').graph.initializer
    integers = [
        onnx.numpy_helper.to_array(w) for w in weights if w.data_type == onnx.TensorProto.INT8
    ]
    assert sum(array.size for array in integers) > 0.95 * 77_000
    # Or two products would not fit into 16 bits, which is all that a CPU without VNNI has for them.
    assert 60 < max(np.abs(array.astype(int)).max() for array in integers) <= 64
    assert 2 * 255 * 64 < 2**15
    assert sorted(path.name for path in out.iterdir()) == sorted([*about['files'], 'inference.yml'])


def test_a_network_that_8_bits_would_break_is_refused_and_nothing_is_written(run, tmp_path):
    """One unused feature is so large that the others become 0."""
    content = read_weights(run / 'best.pdparams').arrays
    content['bn1.weight'][0] *= 1e5
    content['fc.weight'][0] = 0
    with (tmp_path / 'wild.pdparams').open('wb') as file:
        write_arrays(file, content)
    options = ('-c', QUICKSTART, '-w', 'wild.pdparams', '--output', 'out', '--int8')
    result = execute(tmp_path, 'export.py', *options)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    small, plain = accuracies(line)[:2]
    assert plain - small > 20
    assert line.endswith('leave out --int8')
    assert not (tmp_path / 'out').exists()
