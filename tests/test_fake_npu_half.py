"""Mixed precision without a GPU: training on the fake npu with the kernels of fake_npu_half.cc.

They compute in float32 and round what comes out to float16, which shows where Paddle casts, what
the loss scale and the master weights do, and what is saved; not how fast or exact a device is.
paddle-custom-npu's momentum ignores the master weights of O2, and so does this one, unless it is
asked for a GPU's: O2 is tested with that.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import REPOSITORY
from fake_npu import NO_PLUGIN, build, run

from engine.weights import parse_arrays, read_weights

TRAIN, EVAL = str(REPOSITORY / 'train.py'), str(REPOSITORY / 'eval.py')
TRAIN_O2 = str(REPOSITORY / 'tests' / 'train_o2.py')
QUICKSTART = ('-c', str(REPOSITORY / 'configs' / 'quickstart.yaml'), '-o', 'train.log_every=1')
SHORT = (*QUICKSTART, 'train.max_steps=8', 'train.save_every_steps=5', 'train.ema=0.9')
MODES = {
    'float32': (),
    'O1': ('train.amp=O1', 'train.loss_scale=32'),
    'O2': ('train.amp=O2',),
}
INSIDE = Path('checkpoints', 'epoch_0000_batch_00005')
END = Path('checkpoints', 'epoch_0000_batch_00008')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        paddle.__version__.startswith('2.'), reason='its wheel lacks the header dense_tensor.inl'
    ),
]


@pytest.fixture(scope='module')
def npu(tmp_path_factory):
    """The environment of a machine with the fake npu and its float16 kernels."""
    return build(tmp_path_factory.mktemp('plugin'), half=True)


@pytest.fixture(scope='module')
def with_masters(npu):
    """The same, whose momentum updates master weights: with train_o2.py, O2 is computed."""
    return {**npu, 'FAKE_NPU_MASTERS': '1'}


@pytest.fixture(scope='module')
def trained(with_masters, tmp_path_factory):
    """The beginning of the quick start in each mode: {mode: (run folder, what it printed)}."""
    folder = tmp_path_factory.mktemp('trained')
    result = {}
    for mode, settings in MODES.items():
        settings = (*SHORT, *settings, 'device=npu', f'output.dir={mode}')
        process = run(folder, with_masters, TRAIN_O2, *settings)
        assert process.returncode == 0, process.stderr
        result[mode] = folder / mode, process.stdout
    return result


def losses(out: str) -> np.ndarray:
    return np.array([float(loss) for loss in re.findall(r'^iter:\d+  loss:(\S+)', out, re.M)])


def record(folder: Path) -> dict[str, float]:
    """What metrics.jsonl says of the only epoch."""
    (line,) = (folder / 'metrics.jsonl').read_text().splitlines()
    return json.loads(line)


def files(checkpoint: Path) -> dict[str, bytes]:
    return {
        name: (checkpoint / name).read_bytes() for name in ('model.pdparams', 'optimizer.pdopt')
    }


def state(checkpoint: Path) -> dict:
    return json.loads((checkpoint / 'state.json').read_text())


def statistics(name: str) -> bool:
    return name.endswith(('._mean', '._variance'))


def with_scale(checkpoint: Path, copy: Path, scale: float) -> Path:
    """A copy of the checkpoint with another loss scale."""
    shutil.copytree(checkpoint, copy)
    changed = state(copy)
    changed['loss_scale']['scale'] = scale
    content = json.dumps(changed).encode()
    (copy / 'state.json').write_bytes(content)
    manifest = json.loads((copy / 'manifest.json').read_text())
    entry = {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
    manifest['files']['state.json'] = entry
    (copy / 'manifest.json').write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize('mode', ['O1', 'O2'])
def test_mixed_precision_trains_as_float32_does_to_a_hundredth(trained, mode):
    (folder, out), (reference_folder, reference_out) = trained[mode], trained['float32']
    assert f'\nmixed precision: {mode} float16' in out
    assert len(losses(out)) == 8
    np.testing.assert_allclose(losses(out), losses(reference_out), rtol=0, atol=1e-2)
    assert losses(out).tolist() != losses(reference_out).tolist()  # it wasn't computed in float32
    ours, expected = record(folder), record(reference_folder)
    assert ours['eval_loss'] == pytest.approx(expected['eval_loss'], rel=0, abs=1e-2)
    arrays, expected = (
        read_weights(f / 'best.pdparams').arrays for f in (folder, reference_folder)
    )
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-2, atol=1e-2, err_msg=name)


@pytest.mark.parametrize('mode', ['O1', 'O2'])
def test_all_that_mixed_precision_saves_is_float32_and_not_rounded_to_float16(trained, mode):
    folder, _ = trained[mode]
    saved = (INSIDE / 'model.pdparams', END / 'model.pdparams', END / 'optimizer.pdopt')
    for file in (*saved, Path('best.pdparams')):
        arrays = parse_arrays((folder / file).read_bytes(), file)
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}, file
        for name, array in arrays.items():
            if array.ndim > 1:
                rounded = array.astype(np.float16).astype(np.float32)
                assert (rounded != array).mean() > 0.5, f'{file}: {name}'


def test_on_an_npu_o2_becomes_o1_and_best_pdparams_holds_what_was_trained(npu, tmp_path):
    """In O2, paddle-custom-npu's momentum would leave what is saved at its first values."""
    settings = ('train.amp=O2', 'train.max_steps=8', 'device=npu', 'output.dir=run')
    process = run(tmp_path, npu, TRAIN, *QUICKSTART, *settings)
    assert process.returncode == 0, process.stderr
    lacks = 'momentum there ignores its float32 master weights'
    assert f'\nmixed precision: O1 float16 (not O2: {lacks})\n' in process.stdout
    weights = str(tmp_path / 'run' / 'best.pdparams')
    process = run(tmp_path, NO_PLUGIN, EVAL, *QUICKSTART, 'device=cpu', '-w', weights)
    (loss,) = re.findall(r', loss (\S+),', process.stdout)
    assert float(loss) == pytest.approx(record(tmp_path / 'run')['eval_loss'], rel=0, abs=2e-3)


def test_a_step_that_leaves_the_master_weights_stops_the_run(npu, tmp_path):
    settings = ('train.amp=O2', 'train.max_steps=8', 'device=npu', 'output.dir=run')
    process = run(tmp_path, npu, TRAIN_O2, *QUICKSTART, *settings)
    assert process.returncode == 2, process.stderr
    assert 'train.py: train.amp: O2 fails on this device: ' in process.stderr
    assert process.stderr.endswith('; -o train.amp=O1\n')
    assert not (tmp_path / 'run' / 'best.pdparams').exists()
    assert not list((tmp_path / 'run').glob('checkpoints/*'))


def test_eval_on_a_cpu_measures_what_the_run_in_mixed_precision_has(trained, tmp_path):
    folder, _ = trained['O2']
    weights = shutil.copy(folder / 'best.pdparams', tmp_path)
    process = run(tmp_path, NO_PLUGIN, EVAL, *QUICKSTART, 'device=cpu', '-w', weights)
    assert process.returncode == 0, process.stderr
    (loss,) = re.findall(r', loss (\S+),', process.stdout)
    assert float(loss) == pytest.approx(record(folder)['eval_loss'], rel=0, abs=2e-3)


def test_resume_with_o2_restores_loss_scale_and_master_weights(with_masters, trained, tmp_path):
    whole, undisturbed = trained['O2']
    resume = ('--resume', str(whole / INSIDE), '-o', 'output.dir=run')
    process = run(tmp_path, with_masters, TRAIN_O2, *resume)
    assert process.returncode == 0, process.stderr
    assert losses(process.stdout).tolist() == losses(undisturbed)[5:].tolist()
    assert files(tmp_path / 'run' / END) == files(whole / END) != files(whole / INSIDE)
    best, expected = (
        (folder / 'best.pdparams').read_bytes() for folder in (tmp_path / 'run', whole)
    )
    assert best == expected
    scale = state(tmp_path / 'run' / END)['loss_scale']
    assert scale == state(whole / END)['loss_scale']
    assert scale['incr_count'] == 8


def test_a_step_whose_gradients_overflow_changes_no_weight_and_halves_the_loss_scale(
    with_masters, trained, tmp_path
):
    before = with_scale(trained['O2'][0] / INSIDE, tmp_path / 'before', 2.0**40)
    settings = ('train.amp=O2', 'device=npu', 'output.dir=run')
    process = run(tmp_path, with_masters, TRAIN_O2, *SHORT, *settings, '--resume', str(before))
    assert process.returncode == 0, process.stderr
    after = tmp_path / 'run' / END
    assert np.isfinite(losses(process.stdout)).all()
    scale = state(after)['loss_scale']
    assert (scale['scale'], scale['incr_count']) == (2.0**37, 0)
    assert files(after)['optimizer.pdopt'] == files(before)['optimizer.pdopt']
    ours, expected = (read_weights(c / 'model.pdparams').arrays for c in (after, before))
    changed = {name for name in expected if not np.array_equal(ours[name], expected[name])}
    assert changed == {name for name in expected if statistics(name)}


def test_gradients_that_add_up_over_two_batches_with_o2_are_those_of_float32(
    with_masters, tmp_path
):
    settings = ('train.accumulate=2', 'model.dropout=0.3')
    short = (*QUICKSTART, 'train.max_steps=4', 'device=npu', *settings)
    found = {}
    for mode in ('none', 'O2'):
        process = run(
            tmp_path, with_masters, TRAIN_O2, *short, f'train.amp={mode}', f'output.dir={mode}'
        )
        assert process.returncode == 0, process.stderr
        found[mode] = read_weights(tmp_path / mode / 'best.pdparams').arrays
    for name, array in found['none'].items():
        np.testing.assert_allclose(found['O2'][name], array, rtol=1e-2, atol=1e-2, err_msg=name)


def test_with_a_fixed_loss_scale_that_overflows_nothing_is_learned_and_nothing_breaks(
    with_masters, trained, tmp_path
):
    settings = ('train.amp=O2', 'train.loss_scale=1e29', 'device=npu', 'output.dir=run')
    process = run(tmp_path, with_masters, TRAIN_O2, *QUICKSTART, 'train.max_steps=3', *settings)
    assert process.returncode == 0, process.stderr
    assert len(losses(process.stdout)) == 3
    assert losses(process.stdout)[0] == losses(trained['float32'][1])[0]
    arrays = read_weights(tmp_path / 'run' / 'best.pdparams').arrays
    assert all(np.isfinite(array).all() for array in arrays.values())
