"""train.py and eval.py as processes: what they print, write, refuse, and survive."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import REPOSITORY, TINY
from PIL import Image

import eval as evaluation_command
import export as export_command
from engine import data, models, plots
from engine.config import Config, all_keys
from engine.config.key_help import is_read
from engine.errors import UserError
from engine.evaluation import evaluate
from engine.export.forms import Forms
from engine.run import chosen_weights
from engine.run.reading import load_run_config
from engine.weights import load_weights

QUICK = ('-c', str(REPOSITORY / 'configs' / 'quickstart.yaml'), '-o', *TINY)


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """train.py in the background."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / 'train.py'), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_line(process: subprocess.Popen, pattern: str) -> str:
    """Read its output until a line matches."""
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f'it ended without {pattern!r}: {process.stderr.read()}')


def one_line(text: str) -> str:
    """The single line that a refusal may print."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert 'Traceback' not in text
    return lines[0]


def weights(run: Path, checkpoint: str = 'epoch_0003') -> dict[str, bytes]:
    names = ('model.pdparams', 'optimizer.pdopt', 'ema.pdparams')
    return {name: (run / 'checkpoints' / checkpoint / name).read_bytes() for name in names}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """An uninterrupted run: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp('finished')
    process = start(folder, *QUICK)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return folder / 'output' / 'quickstart', out


def test_console_lines_are_those_that_scripts_grep_for(finished):
    _, out = finished
    assert re.search(r'^Epoch 0: CosineAnnealingDecay set learning rate to 0\.1\.$', out, re.M)
    assert re.search(r'^iter:0  loss:\d\.\d{4}(  \S+)+$', out, re.M)
    assert re.search(r'^iter:4  loss:\d\.\d{4}', out, re.M)
    assert re.search(r'^acc:\d+ total:80 ratio:0\.\d+$', out, re.M)
    assert re.match(r'CPU: \d+ threads?( \(your OMP_NUM_THREADS\))?(, oneDNN)?\ndevice: cpu', out)


def test_run_folder_has_all_documented_files(finished):
    run, _ = finished
    for name in ('config.yaml', 'train.log', 'curves.png', 'best.pdparams', 'checkpoints/latest'):
        assert (run / name).stat().st_size > 0, name
    assert (run / 'classes.txt').read_text() == ''.join(f'{digit}\n' for digit in range(10))
    assert (run / 'first_batch.png').read_bytes().startswith(b'\x89PNG')
    assert any((run / 'vdl').iterdir())
    assert (run / 'checkpoints' / 'latest').read_text() == 'epoch_0003\n'
    assert (run / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_metrics_are_one_json_line_an_epoch_and_agree_with_the_log(finished):
    run, out = finished
    records = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [record['epoch'] for record in records] == [0, 1, 2]
    printed = [float(ratio) for ratio in re.findall(r'ratio:(\S+)', out)]
    assert [record['eval_accuracy'] for record in records] == pytest.approx(printed, abs=1e-6)
    assert records[-1]['best_accuracy'] == max(printed)
    assert records[-1]['step'] == 15


def test_plain_log_has_what_the_pipe_has_and_the_settings_of_the_cpu(finished):
    run, out = finished
    first, settings, *lines = (run / 'train.log').read_text().splitlines()
    assert settings.startswith('CPU: OMP_NUM_THREADS=')
    assert [first, *lines] == out.splitlines()


def test_the_picture_of_the_first_batch_is_what_the_network_was_given(finished, tmp_path):
    run, _ = finished
    config = load_run_config(run, [])
    dataset = data.load_data(config)
    batches = data.train_batches(dataset, config)
    batch = next(iter(batches))
    path = tmp_path / 'expected.png'
    plots.first_batch(batch, batches.options.mean, batches.options.std, dataset.classes, path)
    np.testing.assert_array_equal(pixels_of(run / 'first_batch.png'), pixels_of(path))


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert('RGB'))


def test_visualdl_holds_scalars_and_the_first_batch(finished):
    from visualdl.reader.reader import LogReader

    run, _ = finished
    reader = LogReader(file_path=str(next((run / 'vdl').iterdir())))
    tags = reader.get_tags()
    expected = {
        'train/loss',
        'train/learning_rate',
        'train/images_per_second',
        'epoch/eval_accuracy',
    }
    assert expected <= set(tags['scalar'])
    assert 'first_batch' in tags['image']
    assert len(reader.get_data('scalar', 'train/loss')) == 15


def test_a_run_is_never_overwritten(finished, here):
    run, _ = finished
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob('*'))
    result = here('train.py', *QUICK, f'output.dir={run}')
    assert result.returncode == 2
    assert '--resume' in one_line(result.stderr)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in run.rglob('*'))


def test_resuming_a_finished_run_reports_it_and_changes_no_weight(finished, here):
    run, _ = finished
    before = weights(run)
    result = here('train.py', '--resume', str(run))
    assert result.returncode == 0, result.stderr
    assert 'finished after epoch 3' in result.stdout
    assert 'iter:' not in result.stdout
    assert weights(run) == before


def test_resume_after_a_kill_in_mid_epoch_is_bit_identical(finished, tmp_path, command):
    arguments = (*QUICK, 'train.save_every_steps=2')
    process = start(tmp_path, *arguments)
    wait_for_line(process, r'^iter:3 ')  # of the first epoch: step 2 is saved, step 4 perhaps not
    process.kill()
    process.communicate()
    result = command('train.py', *arguments, '--resume')
    assert result.returncode == 0, result.stderr
    assert re.search(r'continuing from \S+epoch_0000_batch_0000[24], step [24]', result.stdout)
    run = tmp_path / 'output' / 'quickstart'
    assert weights(run) == weights(finished[0])
    kept = ('train_loss', 'train_accuracy', 'eval_loss', 'eval_accuracy', 'lr', 'step')
    ours, undisturbed = (
        [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        for folder in (run, finished[0])
    )
    assert [[r[k] for k in kept] for r in ours] == [[r[k] for k in kept] for r in undisturbed]
    for tag in ('train/loss', 'epoch/eval_accuracy'):
        assert visualdl_shows(run, tag) == visualdl_shows(finished[0], tag)


def visualdl_shows(run: Path, tag: str) -> list[tuple[int, float]]:
    """Step and value of a tag, of the one file that it reads."""
    from visualdl.reader.reader import LogReader

    reader = LogReader(file_path=str(max((run / 'vdl').iterdir())))
    return [(record.id, record.value) for record in reader.get_data('scalar', tag)]


@pytest.mark.parametrize(
    'number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_exits_75_and_the_run_resumes(finished, tmp_path, command, number):
    process = start(tmp_path, *QUICK, 'train.save_every=100')
    wait_for_line(process, r'^Epoch 1:')
    wait_for_line(process, r'^iter:0 ')
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert 'Traceback' not in err
    result = command('train.py', *QUICK, 'train.save_every=100', '--resume')
    assert result.returncode == 0, result.stderr
    assert weights(tmp_path / 'output' / 'quickstart') == weights(finished[0])


def test_a_signal_in_an_evaluation_saves_and_the_run_resumes(finished, tmp_path, command):
    stopped = command('tests/distributed_driver.py', 'train', 'stopped_in_evaluation', *QUICK)
    assert stopped.returncode == 75, stopped.stderr
    assert '\nacc:' not in stopped.stdout
    saved = tmp_path / 'output' / 'quickstart' / 'checkpoints' / 'epoch_0000_batch_00005'
    assert saved.is_dir()
    result = command('train.py', *QUICK, '--resume')
    assert result.returncode == 0, result.stderr
    assert f'continuing from {saved.relative_to(tmp_path)}, step 5' in result.stdout
    assert weights(tmp_path / 'output' / 'quickstart') == weights(finished[0])


def test_a_resume_that_has_nothing_to_train_leaves_the_run_as_it_is(finished, here):
    run, _ = finished
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    result = here('train.py', *QUICK, 'train.epochs=2', f'output.dir={run}', '--resume')
    assert result.returncode == 0, result.stderr
    assert 'nothing is left to train: 15 of 10 steps are done' in result.stdout
    assert {path: path.read_bytes() for path in run.rglob('*') if path.is_file()} == before


@pytest.mark.parametrize('best_was', ['of the checkpoint', 'of an epoch before it'])
def test_the_best_weights_are_of_an_epoch_that_counts(finished, tmp_path, here, best_was):
    """The last epoch, which was the best, runs again, with a rate that ruins everything."""
    run = tmp_path / 'run'
    shutil.copytree(finished[0], run)
    shutil.copy(run / 'checkpoints' / 'epoch_0003' / 'ema.pdparams', run / 'best.pdparams')
    shutil.rmtree(run / 'checkpoints' / 'epoch_0003')
    second = run / 'checkpoints' / 'epoch_0002'
    state = json.loads((second / 'state.json').read_text())
    ours = hashlib.sha256((second / 'ema.pdparams').read_bytes()).hexdigest()
    kept = ours if best_was == 'of the checkpoint' else 'that of a missing file'
    state['progress'] |= {'best': 1.0, 'best_epoch': 1, 'best_sha256': kept}
    rewrite(second, 'state.json', json.dumps(state))
    result = here('train.py', '--resume', str(run), '-o', 'optimizer.lr=5')
    assert result.returncode == 0, result.stderr
    assert ('the best is chosen again' in result.stdout) == (kept != ours)
    assert ('runs again; written again' in result.stdout) == (kept == ours)
    weights = chosen_weights.read_chosen(run / 'best.pdparams')
    assert (weights.sha256 == ours) == (kept == ours)
    recorded = chosen_weights.recorded_accuracy(weights)
    config = load_run_config(run, [])
    dataset = data.load_data(config, train=False)
    model = models.build(config.model.name, num_classes=len(dataset.classes))
    load_weights(model, run / 'best.pdparams')
    measured = evaluate(model, data.test_batches(dataset, config))
    assert recorded['top1'] == pytest.approx(measured.top1, abs=0.02)
    assert recorded['epoch'] == (2 if kept == ours else 3)


def rewrite(checkpoint: Path, name: str, text: str) -> None:
    """Another content for a file of a checkpoint, and its manifest."""
    (checkpoint / name).write_text(text)
    manifest = json.loads((checkpoint / 'manifest.json').read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    manifest['files'][name] = {'bytes': len(text.encode()), 'sha256': digest}
    (checkpoint / 'manifest.json').write_text(json.dumps(manifest))


def test_a_checkpoint_of_an_older_version_is_one_line(finished, tmp_path, here):
    shutil.copytree(finished[0], tmp_path / 'run')
    rewrite(tmp_path / 'run' / 'checkpoints' / 'epoch_0003', 'state.json', '{"epoch": 3}')
    result = here('train.py', '--resume', str(tmp_path / 'run'))
    assert result.returncode == 2
    assert 'epoch_0003 is of an older version' in one_line(result.stderr)


def test_divergence_before_any_checkpoint_promises_none(tmp_path, here):
    result = here('train.py', *QUICK, 'optimizer.lr=1e25')
    assert result.returncode == 3, result.stderr
    assert one_line(result.stderr).endswith('No checkpoint was saved yet')
    again = here('train.py', *QUICK, 'train.epochs=1')  # nothing is lost there
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_train_eval_and_export_do_without_what_windows_lacks(finished, tmp_path, command):
    """By imitation; the parts that are left out for it say so in a line, or are not missed."""
    on_windows, run = 'tests/as_on_windows.py', tmp_path / 'output' / 'quickstart'
    trained = command(on_windows, str(REPOSITORY / 'train.py'), *QUICK)
    assert trained.returncode == 0, trained.stderr
    assert weights(run) == weights(finished[0])
    assert trained.stderr.startswith(f'cannot lock {run.relative_to(tmp_path)}')
    (run / 'inference').mkdir()
    for arguments in (('eval.py', '-w', str(run)), ('export.py', '-w', str(run))):
        result = command(on_windows, str(REPOSITORY / arguments[0]), *arguments[1:])
        assert result.returncode == 0, result.stderr
    assert (run / 'inference' / 'inference.yml').is_file()
    assert (run / 'eval' / 'epoch_0003' / 'eval.json').is_file()


def test_max_steps_ends_inside_an_epoch_and_more_steps_continue_there(finished, tmp_path, command):
    short = command('train.py', *QUICK, 'train.max_steps=7')
    assert short.returncode == 0, short.stderr
    assert 'total:80' in short.stdout
    assert command('train.py', *QUICK, '--resume').returncode == 0
    assert weights(tmp_path / 'output' / 'quickstart') == weights(finished[0])


def test_divergence_exits_3_names_step_and_rate_and_keeps_the_last_checkpoint(here, tmp_path):
    good = here('train.py', *QUICK, 'train.epochs=1')
    assert good.returncode == 0, good.stderr
    run = tmp_path / 'output' / 'quickstart'
    before = weights(run, 'epoch_0001')
    result = here('train.py', *QUICK, '--resume', '-o', 'optimizer.lr=1e25')
    assert result.returncode == 3, result.stderr
    message = one_line(result.stderr)
    assert re.search(r'step \d+ \(learning rate ', message)
    assert message.endswith(
        'The last checkpoint is intact: output/quickstart/checkpoints/epoch_0001'
    )
    assert weights(run, 'epoch_0001') == before
    assert (run / 'checkpoints' / 'latest').read_text() == 'epoch_0001\n'


def test_a_damaged_checkpoint_is_skipped_and_reported(finished, tmp_path, command):
    assert command('train.py', *QUICK).returncode == 0
    run = tmp_path / 'output' / 'quickstart'
    newest = run / 'checkpoints' / 'epoch_0003' / 'model.pdparams'
    newest.write_bytes(newest.read_bytes()[:-100])
    result = command('train.py', *QUICK, '--resume')
    assert result.returncode == 0, result.stderr
    assert re.search(r'skipped a checkpoint: \S+epoch_0003\S+ has [\d,]+ bytes', result.stdout)
    assert 'continuing from output/quickstart/checkpoints/epoch_0002' in result.stdout
    assert weights(run) == weights(finished[0])


def test_two_processes_cannot_train_in_one_folder(tmp_path, command):
    long = (*QUICK, 'train.epochs=1000', 'eval.start=1000')
    first = start(tmp_path, *long)
    wait_for_line(first, r'^iter:0 ')
    second = command('train.py', *long, '--resume')
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert second.returncode == 2
    assert f': process {first.pid}; kill {first.pid} makes it save' in one_line(second.stderr)


def test_the_estimate_names_shorter_configs_and_training_continues(tmp_path, command):
    long = ('train.epochs=100000000', 'train.log_every=1')
    process = start(tmp_path, *QUICK, *long)
    text = wait_for_line(process, r'^This run takes about')
    wait_for_line(process, r'^iter:[2-9] ')
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert 'weeks' in text
    assert 'configs/quickstart.yaml' in text
    assert 'configs/wrn16_2_cifar10_short.yaml' in text


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (('model.num_classes=5',), 'model.num_classes is 5'),
        (('output.dir=/dev/null/run',), '/dev/null/run'),
        (('device=gpu',), 'device: gpu is not available'),
        (
            (
                'data.name=cifar10',
                'data.image_size=null',
                'data.num_images=1024',
                'data.download=false',
            ),
            'CIFAR-10 is not in data',
        ),
        (('model.pretrained=nowhere.pdparams',), 'nowhere.pdparams'),
    ],
)
def test_input_that_cannot_work_is_one_line_exit_2_and_nothing_written(
    here, tmp_path, tmp_path_factory, settings, expected
):
    home = str(tmp_path_factory.mktemp('home'))  # no data set of an earlier paddle lies there
    result = here('train.py', *QUICK, *settings, HOME=home)
    assert result.returncode == 2, result.stderr
    assert expected in one_line(result.stderr)
    assert not list(tmp_path.iterdir())


def test_eval_measures_the_configs_own_run(finished, here):
    run, out = finished
    result = here('eval.py', '-w', str(run))
    assert result.returncode == 0, result.stderr
    assert f'\nacc:{re.findall("acc:(.*)", out)[-1]}\n' in result.stdout  # what training saw last
    assert 'averaged (EMA)' in result.stdout
    report = json.loads((run / 'eval' / 'epoch_0003' / 'eval.json').read_text())
    assert report['total'] == 80
    rows = (run / 'eval' / 'epoch_0003' / 'confusion.csv').read_text().splitlines()[1:]
    counts = [[int(n) for n in row.split(',')[1:]] for row in rows]
    assert sum(map(sum, counts)) == 80
    assert sum(counts[i][i] for i in range(10)) == report['correct']
    assert (run / 'eval' / 'epoch_0003' / 'confusion.png').stat().st_size > 5000
    assert (run / 'eval' / 'epoch_0003' / 'mistakes.png').stat().st_size > 5000


def test_eval_of_two_views_reports_them_and_equals_their_average(finished, here):
    run, _ = finished
    one = here('eval.py', '-w', str(run))
    assert one.returncode == 0, one.stderr
    assert 'views' not in one.stdout
    folder = run / 'eval' / 'epoch_0003'
    alone = json.loads((folder / 'eval.json').read_text())
    assert alone['views'] == 'one'

    result = here('eval.py', '-w', str(run), '-o', 'eval.views=flip')
    assert result.returncode == 0, result.stderr
    assert re.search(r'^eval\.views flip: averaged, top-5 [\d.]+ %, loss ', result.stdout, re.M)
    report = json.loads((run / 'eval' / 'epoch_0003_flip' / 'eval.json').read_text())
    assert report['views'] == 'flip'
    assert json.loads((folder / 'eval.json').read_text()) == alone

    config = load_run_config(run, [])
    dataset = data.load_data(config)
    model = models.build(config.model.name, num_classes=10)
    averaged = run / 'checkpoints' / 'epoch_0003' / 'ema.pdparams'
    load_weights(model, averaged)
    model.eval()
    test = dataset.test
    images = (test.pixels - dataset.mean[:, None, None]) / dataset.std[:, None, None]
    p = 0
    for view in (images, images[..., ::-1].copy()):
        logits = model(paddle.to_tensor(view.astype(np.float32))).numpy().astype(np.float64)
        p += np.exp(logits) / np.exp(logits).sum(1, keepdims=True) / 2
    assert report['correct'] == (p.argmax(1) == test.labels).sum()
    assert report['loss'] == pytest.approx(-np.log(p[np.arange(80), test.labels]).mean(), abs=1e-4)
    assert abs(report['loss'] - alone['loss']) > 1e-3


@pytest.mark.slow
def test_a_run_with_every_augmentation_resumes_inside_an_epoch(command, tmp_path):
    strong = (
        *QUICK,
        *('data.auto_augment=randaugment', 'data.color_jitter=[0.4, 0.4, 0.4]'),
        *('data.random_erasing=0.5', 'data.mixup=0.4', 'data.cutmix=1', 'eval.views=flip'),
        'train.epochs=2',
    )
    whole = command('train.py', *strong, 'output.dir=whole')
    assert whole.returncode == 0, whole.stderr
    first = command('train.py', *strong, 'train.max_steps=7')
    assert first.returncode == 0, first.stderr
    second = command('train.py', *strong, '--resume')
    assert second.returncode == 0, second.stderr
    assert 'epoch_0001_batch_00002, step 7' in second.stdout
    run = tmp_path / 'output' / 'quickstart'
    assert weights(run, 'epoch_0002') == weights(tmp_path / 'whole', 'epoch_0002')
    assert re.findall('acc:.*', second.stdout)[-1] == re.findall('acc:.*', whole.stdout)[-1]
    # And what training saw of both views is what eval.py sees.
    assert command('eval.py', '-w', str(run)).returncode == 0
    report = json.loads((run / 'eval' / 'epoch_0002_flip' / 'eval.json').read_text())
    record = json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])
    assert report['views'] == 'flip'
    assert record['eval_loss'] == pytest.approx(report['loss'], abs=1e-5)


def test_eval_without_arguments_of_its_own_finds_run_of_the_config(finished, here):
    run, _ = finished
    result = here('eval.py', '-c', QUICK[1], '-o', f'output.dir={run}', 'eval.batch_size=7')
    assert result.returncode == 0, result.stderr
    assert 'total:80' in result.stdout


def test_eval_of_best_and_of_a_lone_copy_of_it_agree(finished, here, tmp_path):
    run, _ = finished
    inside = here('eval.py', '-w', str(run / 'best.pdparams'))
    lone = tmp_path / 'copy.pdparams'
    lone.write_bytes((run / 'best.pdparams').read_bytes())
    outside = here('eval.py', '-c', str(run / 'config.yaml'), '-w', str(lone))
    line = re.compile(r'^acc:.*$', re.M)
    assert line.search(inside.stdout).group() == line.search(outside.stdout).group()


def test_the_report_of_a_run_that_cannot_be_written_to_goes_elsewhere(finished, tmp_path, here):
    """A file where the folder would be stands for the read-only disk."""
    run = shutil.copytree(finished[0], tmp_path / 'run')
    shutil.rmtree(run / 'eval', ignore_errors=True)
    (run / 'eval').write_text('')
    before = sorted(run.rglob('*'))
    result = here('eval.py', '-w', str(run))
    assert result.returncode == 0, result.stderr
    assert 'total:80' in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f'no report: nothing can be written in {run}/eval/epoch_0003; --output')
    elsewhere = here('eval.py', '-w', str(run), '--output', 'deep/report')
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert json.loads((tmp_path / 'deep' / 'report' / 'eval.json').read_text())['total'] == 80
    refused = here('eval.py', '-w', str(run), '--output', f'{run}/eval/report')
    assert refused.returncode == 2
    assert 'nothing can be written' in one_line(refused.stderr)
    assert sorted(run.rglob('*')) == before


@pytest.mark.parametrize('what', ['missing', 'no run', 'other model', 'code'])
def test_eval_refuses_in_one_line(finished, here, tmp_path, what):
    run, _ = finished
    sentinel = tmp_path / 'ran'
    if what == 'code':
        code = f"cos\nsystem\n(S'touch {sentinel}'\ntR."
        (tmp_path / 'evil.pdparams').write_text(code)
    arguments, expected = {
        'missing': (['-w', 'nowhere'], 'nowhere'),
        'no run': (['-c', QUICK[1]], 'train first'),
        'other model': (['-w', str(run), '-o', 'model.name=wide_resnet16_1'], 'block1.layer.1.bn1'),
        'code': (['-c', QUICK[1], '-w', 'evil.pdparams'], 'can run code'),
    }[what]
    result = here('eval.py', *arguments)
    assert result.returncode == 2
    assert expected in one_line(result.stderr)
    assert not sentinel.exists()


@pytest.fixture
def keys_read(monkeypatch) -> set[str]:
    """The keys that are read from a config, other than by a section's own property."""
    found: set[str] = set()

    def read(section, name):
        if sys._getframe(1).f_globals['__name__'] != 'engine.config.keys':
            prefix = '' if type(section) is Config else f'{type(section).__name__.lower()}.'
            found.add(prefix + name)
        return object.__getattribute__(section, name)

    sections = [type(value) for value in vars(Config()).values() if is_dataclass(value)]
    for section in (Config, *sections):
        monkeypatch.setattr(section, '__getattribute__', read, raising=False)
    return found


def test_help_of_eval_and_export_leaves_out_no_key_that_they_read(finished, keys_read, tmp_path):
    run, _ = finished
    config, weights = load_run_config(run, []), chosen_weights.read_chosen(run)
    keys_read.clear()
    evaluation_command.evaluate(config, weights, tmp_path / 'eval')
    export_command.export(config, weights, tmp_path / 'exported', Forms())
    keys = set(keys_read) & set(all_keys())
    assert {'model.name', 'data.name', 'eval.batch_size', 'data.num_images'} <= keys
    assert {name for name in keys if not is_read(name, training=False)} == set()


def test_without_a_run_existing_runs_are_named(finished, monkeypatch):
    run, _ = finished
    monkeypatch.chdir(run.parent.parent)
    monkeypatch.setattr(sys, 'argv', ['eval.py', '-c', 'wrn16_2_cifar10_short'])
    (run.parent / 'without_config' / 'checkpoints').mkdir(parents=True)
    (run.parent / 'without_config' / 'train.log').touch()
    with pytest.raises(UserError) as refused:
        chosen_weights.resolve_weights(evaluation_command.parse_arguments())
    assert str(refused.value) == (
        'output/wrn16_2_cifar10_short is not a run yet; there are -w output/quickstart'
    )


def test_resuming_another_run_never_overwrites_this_one(finished, here, tmp_path):
    run, _ = finished
    mine = ('-o', f'output.dir={tmp_path / "here"}')
    assert here('train.py', *QUICK, 'seed=5', 'train.max_steps=2', *mine).returncode == 0
    before = (tmp_path / 'here' / 'config.yaml').read_text()
    result = here('train.py', '--resume', str(run), *mine)
    assert result.returncode == 2
    assert 'holds a run already' in one_line(result.stderr)
    assert (tmp_path / 'here' / 'config.yaml').read_text() == before


def test_a_run_can_branch_off_a_checkpoint_of_another(finished, command, here, tmp_path):
    first = finished[0] / 'checkpoints' / 'epoch_0002'
    branch = tmp_path / 'branch-\N{SNOWMAN}-\N{ROCKET}'
    result = command('train.py', '--resume', str(first), '-o', f'output.dir={branch}')
    assert result.returncode == 0, result.stderr
    assert weights(branch) == weights(finished[0])
    assert (branch / 'best.pdparams').exists()
    assert here('eval.py', '-w', str(branch)).returncode == 0


def test_less_training_than_is_done_already_is_reported(here, tmp_path):
    short = (*QUICK, 'eval.every=3', 'train.save_every=1')
    assert here('train.py', *short, 'train.max_steps=15').returncode == 0
    process = here('train.py', *short, '--resume', '-o', 'train.epochs=2')
    assert process.returncode == 0, process.stderr
    assert 'Traceback' not in process.stderr


def test_a_resumed_run_needs_its_pretrained_file_no_more(finished, here, tmp_path):
    start_from = tmp_path / 'start.pdparams'
    start_from.write_bytes((finished[0] / 'best.pdparams').read_bytes())
    arguments = (*QUICK, f'model.pretrained={start_from}', 'train.epochs=2')
    first = here('train.py', *arguments, 'train.max_steps=5')
    assert 'pretrained: ' in first.stdout, first.stderr
    start_from.unlink()
    result = here('train.py', *arguments, '--resume')
    assert result.returncode == 0, result.stderr


def test_a_name_that_is_too_long_for_disks_is_one_line(here, tmp_path):
    result = here('train.py', *QUICK, f'output.dir={"x" * 300}')
    assert result.returncode == 2
    assert 'name too long' in one_line(result.stderr).lower()


def test_a_full_disk_while_saving_is_one_line_and_the_last_checkpoint_is_intact(tmp_path):
    """RLIMIT_FSIZE stands for the disk: the checkpoint's largest file does not fit any more."""
    arguments = (*QUICK, 'train.epochs=1')
    first = start(tmp_path, *arguments)
    first.communicate(timeout=120)
    run = tmp_path / 'output' / 'quickstart'
    before = weights(run, 'epoch_0001')
    code = (
        'import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); '
        'script = sys.argv[1]; sys.argv = sys.argv[1:]; '
        f'sys.path.insert(0, {str(REPOSITORY)!r}); runpy.run_path(script, run_name="__main__")'
    )
    script = [str(REPOSITORY / 'train.py'), *QUICK, 'train.epochs=2', '--resume']
    result = subprocess.run(
        [sys.executable, '-c', code, *script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 2, result.stderr
    assert 'too large' in one_line(result.stderr).lower()
    assert weights(run, 'epoch_0001') == before
