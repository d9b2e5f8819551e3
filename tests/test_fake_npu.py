"""The commands on an Ascend without an Ascend: two devices called npu that fake_npu.cc makes up.

This shows that `device: npu` is chosen and used, that nothing is lost on the way to a device and
back, that checkpoints cross between devices, and that each process gets a device of its own. It
shows nothing of Ascend's arithmetic: every operator is Paddle's CPU kernel, between copies. Two
things are absent from it, and not tested here: mixed precision, for which it has no kernels (but
see test_fake_npu_half.py), and the messages between processes, since its collectives do nothing.
Two processes thus train two networks, and an evaluation counts only the first one's half of the
images.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import REPOSITORY
from fake_npu import NO_PLUGIN, build, run

from engine.weights import read_weights

TRAIN, EVAL, EXPORT = (str(REPOSITORY / name) for name in ('train.py', 'eval.py', 'export.py'))
# On a CPU, for comparison: with a CPU's own loss, eight steps make 6e-4 out of its rounding.
LIKE_NPU = str(REPOSITORY / 'tests' / 'train_like_npu.py')
QUICKSTART = ('-c', str(REPOSITORY / 'configs' / 'quickstart.yaml'), '-o', 'train.log_every=1')
INSIDE = Path('checkpoints', 'epoch_0000_batch_00005')
END = Path('checkpoints', 'epoch_0000_batch_00008')


@pytest.fixture(scope='module')
def npu(tmp_path_factory):
    """The environment of a machine with two of them."""
    return build(tmp_path_factory.mktemp('plugin'))


@pytest.fixture(scope='module')
def trained(npu, tmp_path_factory):
    """The beginning of the quick start on either device: {device: (run folder, process)}."""
    folder = tmp_path_factory.mktemp('trained')
    short = (*QUICKSTART, 'train.max_steps=8', 'train.save_every_steps=5', 'data.batch_size=16')
    short = (*short, 'train.cpu_conv=paddle')  # the npu's kernels are these
    result = {}
    for device, script in (('cpu', LIKE_NPU), ('npu', TRAIN)):
        process = run(folder, npu, script, *short, f'device={device}', f'output.dir={device}')
        assert process.returncode == 0, process.stderr
        result[device] = folder / device, process
    return result


@pytest.fixture(scope='module')
def resumed(npu, trained, tmp_path_factory):
    """The npu's run once more from its checkpoint inside the epoch, where `device` says auto."""
    folder = tmp_path_factory.mktemp('resumed')
    checkpoint = str(trained['npu'][0] / INSIDE)
    settings = ('-o', 'device=auto', 'output.dir=run')
    process = run(folder, npu, TRAIN, '--resume', checkpoint, *settings)
    assert process.returncode == 0, process.stderr
    return folder / 'run', process


def devices_used(process_output: str) -> list[str]:
    """Those that anything was copied to, by the lines of the plugin."""
    return re.findall(r'^fake npu: device (\d) is used$', process_output, re.M)


def steps(out: str) -> np.ndarray:
    """float [steps, 3]: iteration, loss and learning rate of the iter: lines."""
    found = re.findall(r'^iter:(\d+)  loss:(\S+)  lr:(\S+)', out, re.M)
    return np.array([[float(number) for number in line] for line in found])


def records(folder: Path) -> list[dict[str, float]]:
    """What metrics.jsonl says of each epoch, but for the time that it took."""
    kept = ('step', 'lr', 'train_loss', 'train_accuracy', 'eval_loss', 'eval_accuracy', 'eval_top5')
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{name: line[name] for name in kept} for line in lines]


def files(checkpoint: Path) -> dict[str, bytes]:
    return {
        name: (checkpoint / name).read_bytes() for name in ('model.pdparams', 'optimizer.pdopt')
    }


def assert_close(ours: Path, reference: Path) -> None:
    """Two weight files have the same arrays, to 1e-5."""
    arrays, expected = read_weights(ours).arrays, read_weights(reference).arrays
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=0, atol=1e-5, err_msg=name)


def test_the_quick_start_on_an_npu_has_the_losses_and_weights_that_it_has_on_a_cpu(trained):
    (cpu_run, cpu), (npu_run, npu) = trained['cpu'], trained['npu']
    assert '\ndevice: npu (as requested' in npu.stdout
    assert devices_used(npu.stderr) == ['0']
    assert devices_used(cpu.stderr) == []
    assert len(steps(npu.stdout)) == 8
    # The last of four decimals may be rounded the other way.
    np.testing.assert_allclose(steps(npu.stdout), steps(cpu.stdout), rtol=0, atol=1.1e-4)
    (ours,), (expected,) = records(npu_run), records(cpu_run)
    assert ours == pytest.approx(expected, rel=0, abs=1e-5)
    assert_close(npu_run / 'best.pdparams', cpu_run / 'best.pdparams')


def test_resume_inside_an_epoch_on_an_npu_is_bit_identical(trained, resumed):
    (whole, undisturbed), (folder, process) = trained['npu'], resumed
    assert f'continuing from {whole / INSIDE}, step 5\n' in process.stdout
    assert steps(process.stdout).tolist() == steps(undisturbed.stdout)[5:].tolist()
    assert files(folder / END) == files(whole / END) != files(whole / INSIDE)
    assert records(folder) == records(whole)


def test_device_auto_chooses_the_npu_and_logs_the_reason(resumed):
    _, process = resumed
    assert '\ndevice: npu (paddle-custom-npu' in process.stdout
    assert devices_used(process.stderr) == ['0']


def test_eval_on_an_npu_measures_what_a_cpu_measures(npu, trained, tmp_path):
    folder, training = trained['cpu']  # whose log ends with what a CPU measures
    process = run(tmp_path, npu, EVAL, '-w', str(folder), '-o', 'device=npu')
    assert process.returncode == 0, process.stderr
    assert '\ndevice: npu (as requested' in process.stdout
    assert devices_used(process.stderr) == ['0']
    (line,) = re.findall(r'^acc:.*$', training.stdout, re.M)
    assert f'\n{line}\n' in process.stdout
    report = json.loads((folder / 'eval' / END.name / 'eval.json').read_text())
    assert report['total'] == 359
    assert report['loss'] == pytest.approx(records(folder)[-1]['eval_loss'], rel=0, abs=1e-6)


@pytest.mark.slow
def test_what_an_npu_exports_gives_the_logits_that_a_cpu_exports(npu, trained, tmp_path):
    folder, _ = trained['cpu']
    graphs = []
    for device in ('npu', 'cpu'):
        settings = ('-o', f'device={device}', '--output', device)
        process = run(tmp_path, npu, EXPORT, '-w', str(folder), *settings)
        assert process.returncode == 0, process.stderr
        assert devices_used(process.stderr) == (['0'] if device == 'npu' else [])
        graphs.append(paddle.jit.load(str(tmp_path / device / 'inference')))
    images = paddle.to_tensor(
        np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype('float32')
    )
    ours, expected = (graph(images).numpy() for graph in graphs)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 0.01


def test_npu_without_its_plugin_is_one_line_exit_2_and_nothing_written(tmp_path):
    process = run(tmp_path, NO_PLUGIN, TRAIN, *QUICKSTART, 'device=npu')
    assert process.returncode == 2
    expected = 'train.py: device: npu is not available (cpu is); it needs paddle-custom-npu\n'
    assert process.stderr == expected
    assert process.stdout == ''
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(('before', 'after'), [('npu', 'cpu'), ('cpu', 'npu')])
def test_a_checkpoint_of_one_device_resumes_on_another(npu, trained, tmp_path, before, after):
    whole, undisturbed = trained[before]
    settings = ('-o', f'device={after}', 'output.dir=run')
    script = TRAIN if after == 'npu' else LIKE_NPU
    process = run(tmp_path, npu, script, '--resume', str(whole / INSIDE), *settings)
    assert process.returncode == 0, process.stderr
    assert f'resume: the config has changed: device: {before} -> {after}\n' in process.stdout
    assert f'\ndevice: {after} (as requested' in process.stdout
    ours, expected = steps(process.stdout), steps(undisturbed.stdout)[5:]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1.1e-4)
    assert_close(tmp_path / 'run' / END / 'model.pdparams', whole / END / 'model.pdparams')
    assert records(tmp_path / 'run')[0] == pytest.approx(records(whole)[0], rel=0, abs=1e-5)


@pytest.mark.slow
def test_sigterm_on_an_npu_saves_exits_75_and_resumes(npu, tmp_path):
    arguments = (TRAIN, *QUICKSTART, 'train.max_steps=26', 'device=npu')
    whole = run(tmp_path, npu, *arguments, 'output.dir=whole')
    assert whole.returncode == 0, whole.stderr
    interrupted = subprocess.Popen(
        [sys.executable, *arguments, 'output.dir=run'],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONUNBUFFERED': '1', **npu},
    )
    for line in interrupted.stdout:
        if line.startswith('iter:3 '):
            interrupted.send_signal(signal.SIGTERM)
    assert interrupted.wait(timeout=60) == 75, interrupted.stderr.read()
    stopped_in = (tmp_path / 'run' / 'checkpoints' / 'latest').read_text()
    assert stopped_in.startswith('epoch_0000_batch_')
    result = run(tmp_path, npu, *arguments, 'output.dir=run', '--resume')
    assert result.returncode == 0, result.stderr
    assert f'{stopped_in.strip()}, step ' in result.stdout
    end = Path('checkpoints', 'epoch_0001_batch_00003')
    assert files(tmp_path / 'run' / end) == files(tmp_path / 'whole' / end)
    assert records(tmp_path / 'run') == records(tmp_path / 'whole')
