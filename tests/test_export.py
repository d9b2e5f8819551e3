"""export.py: what it writes is the network, whole, described, and read by Paddle alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_npu
import numpy as np
import paddle
import pytest
from conftest import REPOSITORY, TINY, execute
from exporting import (
    FAMILIES,
    HAS_CONVERTER,
    QUICKSTART,
    a_file,
    by_inference,
    by_jit,
    by_onnx,
    description,
    export_file,
    image_of,
    noise,
    raw,
)
from paddle import inference, nn
from PIL import Image
from sklearn.datasets import load_sample_images

from engine import data, models
from engine.config import load_config
from engine.data.sources.cifar_layouts import VARIANTS
from engine.errors import UserError
from engine.export import static_model, verification
from engine.export.exported_folder import class_names, graph_input, new_folder
from engine.export.forms import Forms
from engine.run import chosen_weights
from engine.run.reading import read_records
from engine.weights import load_weights, read_weights, write_arrays
from export import default_output

CLASSES = ['1e3', 'Kätzchen', 'no']  # two of which YAML can take for something else
SIZE = 16

# An environment that lacks it.
WITHOUT_PADDLE2ONNX = """
import importlib.metadata
version = importlib.metadata.version
def without(name):
    if name == 'paddle2onnx':
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = without
"""


def pictures(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for part in ('train', 'val'):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 256, (24, 30, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f'{number}.png')
    return root


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run on pictures of three classes, with dropout and averaged weights; no pictures left."""
    folder = tmp_path_factory.mktemp('trained')
    root = pictures(folder / 'pictures')
    settings = [
        text for text in TINY if not text.startswith(('data.num', 'data.crop', 'data.name'))
    ]
    own = ('data.name=folder', f'data.root={root}', f'data.image_size={SIZE}', 'eval.resize=20')
    more = ('data.batch_size=6', 'data.scale=[0.9, 1]', 'train.epochs=2', 'train.ema=0.8')
    recipe = folder / 'tiny.yaml'
    recipe.write_text('seed: 1\n')
    result = execute(folder, 'train.py', '-c', str(recipe), '-o', *settings, *own, *more)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(root)
    return folder / 'output' / 'tiny'


@pytest.fixture(scope='module')
def exported(run):
    """The folder that the command makes of that run, moved to another place; its output."""
    result = execute(run.parent.parent, 'export.py', '-w', str(run))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''
    target = run.parent.parent / 'elsewhere'
    (run / 'inference').rename(target)
    return target, result.stdout


def verify(model: nn.Layer, folder: Path, size: int) -> list[str]:
    return verification.verify(model, folder, image_of(size))


def one_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


def test_a_run_is_exported_with_its_averaged_weights_in_test_mode(run, exported):
    folder, out = exported
    model = models.build('wide_resnet10_1', num_classes=3, dropout=0.3)
    plain = models.build('wide_resnet10_1', num_classes=3)
    load_weights(model, run / 'checkpoints' / 'epoch_0002' / 'ema.pdparams')
    load_weights(plain, run / 'checkpoints' / 'epoch_0002' / 'model.pdparams')
    model.eval()
    plain.eval()
    for count in (1, 3):
        images = noise(count, SIZE)
        expected = model(paddle.to_tensor(images)).numpy()
        np.testing.assert_allclose(by_jit(folder, images), expected, atol=1e-5)
        np.testing.assert_allclose(by_inference(folder, images), expected, atol=1e-5)
        assert np.abs(plain(paddle.to_tensor(images)).numpy() - expected).max() > 1e-3
    assert 'weights averaged (EMA): ' in out
    assert f'float32 [batch, 3, {SIZE}, {SIZE}] -> 3 logits' in out
    form = r'^(inference\.\w+ through .+): logits differ by at most (\S+) \(the largest is \S+\), '
    found = re.findall(form + r'same first class on (?:all|7 of) 8 photographs$', out, re.M)
    assert [name.split(' through ')[1] for name, _ in found] == [
        'paddle.jit.load',
        'paddle.inference',
        'paddle.inference with oneDNN',
    ]
    assert all(float(difference) < 1e-4 for _, difference in found)
    ours = ('CPU: ', 'device: ', 'wide_resnet10_1', 'float32 [', 'inference.', 'wrote ')
    assert all(line.startswith(ours) for line in out.splitlines()), 'Paddle, too, printed something'


def test_the_description_has_all_that_its_users_need(run, exported):
    folder, _ = exported
    about = description(folder)
    assert about['model'] == 'wide_resnet10_1'
    assert about['classes'] == CLASSES
    size = {'resize_short': 20, 'crop': SIZE, 'shape': [-1, 3, SIZE, SIZE], 'layout': 'NCHW'}
    assert size.items() <= about['input'].items()
    assert about['input']['colours'] == 'RGB'
    assert about['input']['mean'] == [123.675, 116.28, 103.53]
    assert about['input']['std'] == [58.395, 57.12, 57.375]
    source = about['weights']
    averaged = run / 'checkpoints' / 'epoch_0002' / 'ema.pdparams'
    assert Path(source['path']) == averaged
    assert source['sha256'] == hashlib.sha256(averaged.read_bytes()).hexdigest()
    record = json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])
    assert source['accuracy']['top1'] == record['eval_accuracy']
    assert (source['accuracy']['epoch'], source['accuracy']['data']) == (2, 'folder')
    assert about['versions']['paddle'] == paddle.__version__
    changelog = (REPOSITORY / 'CHANGELOG.md').read_text('utf-8')
    assert f'\n## {about["versions"]["exporter"]}' in changelog
    assert about['output'] == {
        'name': 'logits',
        'type': 'float32',
        'shape': [-1, 3],
        'meaning': 'logits',
    }
    assert '(pixels - mean) / std' in (folder / 'inference.yml').read_text().splitlines()[0]


def test_every_file_is_listed_with_its_size_and_checksum(exported):
    folder, _ = exported
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    del files['inference.yml']
    assert description(folder)['files'] == {
        name: {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }


def test_nothing_but_these_files_is_written(run, exported):
    folder, out = exported
    graph = {'inference.json'} if paddle.__version__ >= '3' else {'inference.pdmodel'}
    names = {path.name for path in folder.iterdir()} - {'inference.pdiparams.info'}  # Paddle 2's
    assert names == graph | {'inference.pdiparams', 'inference.yml'}
    assert all(name in out.splitlines()[-1] for name in names)
    assert not list(run.glob('.*.writing'))


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        pytest.param(name, size, id=name, marks=[pytest.mark.slow] if size > 8 else [])
        for name, size in FAMILIES
    ],
)
def test_every_family_has_the_same_logits_once_exported(tmp_path, name, size):
    model = a_file(tmp_path / 'weights.pdparams', name)
    export_file(tmp_path / 'weights.pdparams', name, size, tmp_path / 'out', onnx=HAS_CONVERTER)
    readers = [by_jit, by_inference] + [by_onnx] * HAS_CONVERTER
    for count in (1, 3):
        images = noise(count, size)
        expected = model(paddle.to_tensor(images)).numpy()
        scale = max(1.0, np.abs(expected).max())
        for read in readers:
            np.testing.assert_allclose(read(tmp_path / 'out', images), expected, atol=1e-4 * scale)


def test_raw_pixels_are_normalised_inside(tmp_path, capsys):
    model = a_file(tmp_path / 'weights.pdparams', 'wide_resnet10_1')
    export_file(tmp_path / 'weights.pdparams', 'wide_resnet10_1', 8, tmp_path / 'out', uint8=True)
    assert 'uint8 [batch, 8, 8, 3] -> 7 logits' in capsys.readouterr().out
    about = description(tmp_path / 'out')['input']
    assert (about['type'], about['shape'], about['layout']) == ('uint8', [-1, 8, 8, 3], 'NHWC')
    mean, std = np.array(about['mean']), np.array(about['std'])
    assert 'raw pixels from 0 to 255' in (tmp_path / 'out' / 'inference.yml').read_text()
    for count in (1, 3):
        pixels = raw(count, 8)
        images = ((pixels - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
        expected = model(paddle.to_tensor(images)).numpy()
        for read in (by_jit, by_inference):
            np.testing.assert_allclose(read(tmp_path / 'out', pixels), expected, atol=1e-5)


def test_the_photographs_are_real_different_and_as_evaluation_sees_them():
    view = data.Preparation(40, 32, np.zeros(3), np.ones(3))
    pixels = verification.photographs(graph_input(view))
    assert (pixels.shape, pixels.dtype) == ((8, 32, 32, 3), np.uint8)
    assert len({picture.tobytes() for picture in pixels}) == 8
    china = Image.fromarray(load_sample_images().images[0])
    expected = china.resize((59, 40), Image.Resampling.BILINEAR).crop((14, 4, 46, 36))
    assert np.abs(pixels[0].astype(int) - np.asarray(expected)).mean() < 1


def test_a_lone_file_has_numbered_classes_as_many_as_its_last_layer(tmp_path):
    a_file(tmp_path / 'weights.pdparams', 'wide_resnet10_1', classes=7)
    export_file(tmp_path / 'weights.pdparams', 'wide_resnet10_1', 8, tmp_path / 'out')
    about = description(tmp_path / 'out')
    assert about['classes'] == [str(i) for i in range(7)]
    assert 'accuracy' not in about['weights']
    config = load_config(QUICKSTART)
    assert default_output(config, tmp_path / 'weights.pdparams') == Path('output/inference/weights')


def test_classes_beyond_the_named_ones_are_numbered_and_fewer_are_refused(run):
    weights = chosen_weights.read_chosen(run)
    assert class_names(5, weights) == [*CLASSES, '3', '4']
    with pytest.raises(UserError, match='trained on 3 classes'):
        class_names(2, weights)


@pytest.mark.parametrize('arrays', [{}, {'fc.bias': np.zeros(0, np.float32)}])
def test_weights_without_a_last_layer_are_refused_by_its_name(tmp_path, arrays):
    model = models.build('wide_resnet10_1', num_classes=1).state_dict()
    body = {name: value.numpy() for name, value in model.items() if not name.startswith('fc.')}
    with (tmp_path / 'body.pdparams').open('wb') as file:
        write_arrays(file, {**body, **arrays})
    with pytest.raises(UserError, match=r'does not fit the model: .*fc\.weight'):
        export_file(tmp_path / 'body.pdparams', 'wide_resnet10_1', 8, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_accuracy_is_that_of_the_checkpoint_or_of_the_best(run, tmp_path):
    records = read_records(run)
    for epoch in (0, 1):
        weights = chosen_weights.read_chosen(run / 'checkpoints' / f'epoch_000{epoch + 1}')
        assert chosen_weights.recorded_accuracy(weights)['top1'] == records[epoch]['eval_accuracy']
    best = chosen_weights.recorded_accuracy(chosen_weights.read_chosen(run / 'best.pdparams'))
    assert (best['top1'], best['epoch']) == (
        records[-1]['best_accuracy'],
        records[-1]['best_epoch'] + 1,
    )
    assert best['holdout'] == 0
    assert best == {**best, 'data': 'folder', 'views': 'one', 'holdout': 0}
    shutil.copytree(run / 'checkpoints' / 'epoch_0001', tmp_path / 'epoch_0001')
    unknown = chosen_weights.read_chosen(tmp_path / 'epoch_0001')
    assert chosen_weights.recorded_accuracy(unknown) is None


def test_weights_that_were_changed_have_no_accuracy(run):
    arrays = read_weights(run / 'best.pdparams').arrays
    arrays['fc.bias'][0] += 1e-3
    other = run / 'other.pdparams'
    with other.open('wb') as file:
        write_arrays(file, arrays)
    assert chosen_weights.recorded_accuracy(chosen_weights.read_chosen(other)) is None


@pytest.mark.parametrize('root', ['cifar10', 'cifar100', 'digits', 'synthetic', 'own'])
def test_pictures_are_prepared_as_in_evaluation(root, tmp_path):
    settings = {'own': ['data.name=digits', 'data.mean=[1, 2, 3]', 'data.std=[4, 5, 6]']}
    config = load_config(QUICKSTART, settings.get(root, [f'data.name={root}']))
    view = data.preparation(config)
    if root.startswith('cifar'):
        variant = VARIANTS[root]
        mean, std, side = variant.mean, variant.std, 32
    else:
        dataset = data.load_data(config)
        mean, std, side = dataset.mean, dataset.std, dataset.test.pixels.shape[-1]
    np.testing.assert_array_equal(view.mean, mean)
    np.testing.assert_array_equal(view.std, std)
    assert (view.size, view.resize) == (side, side)


class OtherInAGraph(nn.Layer):
    """A network that changes when it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        logits = self.fc(x.mean([2, 3]))
        return logits if paddle.in_dynamic_mode() else logits + 0.01


def test_a_network_that_differs_once_exported_is_refused(tmp_path):
    network = OtherInAGraph()
    static_model.save(network, tmp_path, image_of(4))
    with pytest.raises(UserError, match=r'its logits differ by 0\.01 '):
        verify(network, tmp_path, 4)


def test_a_changed_or_truncated_file_is_refused(tmp_path):
    """As a disk that is full or bad would leave it."""
    model = models.build('wide_resnet10_1', num_classes=3)
    static_model.save(model, tmp_path, image_of(8))
    assert len(verify(model, tmp_path, 8)) == 3
    file = tmp_path / 'inference.pdiparams'
    whole = bytearray(file.read_bytes())
    changed = np.frombuffer(whole, np.uint8).copy()
    changed[-4000:-2000] ^= 0x10
    file.write_bytes(changed.tobytes())
    with pytest.raises(UserError, match='another network'):
        verify(model, tmp_path, 8)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match='cannot be read back') as error:
        verify(model, tmp_path, 8)
    one_line(str(error.value))


@pytest.mark.parametrize('trouble', ['fails', 'differs', 'is missing'])
def test_onednn_that_fails_or_differs_is_a_warning(tmp_path, monkeypatch, trouble):
    """oneDNN is another implementation; this Paddle reads the files without it."""
    model = models.build('wide_resnet10_1', num_classes=3)
    static_model.save(model, tmp_path, image_of(8))
    create, other = inference.create_predictor, tmp_path / 'other'
    other.mkdir()
    static_model.save(models.build('wide_resnet10_1', num_classes=3), other, image_of(8))
    graph = static_model.graph_file(other)

    def troubled(config: inference.Config) -> inference.Predictor:
        if not config.mkldnn_enabled():
            return create(config)
        if trouble == 'fails':
            raise NotImplementedError('\n----\n(Unimplemented) it has bugs\n  [more]')
        wrong = inference.Config(str(graph), str(graph.with_suffix('.pdiparams')))
        wrong.disable_glog_info()
        return create(wrong)

    monkeypatch.setattr(inference, 'create_predictor', troubled)
    if trouble == 'is missing':
        monkeypatch.setattr(inference.Config, 'mkldnn_enabled', lambda self: False)
    *sound, last = verify(model, tmp_path, 8)
    assert not any(line.startswith('warning') for line in sound)
    expected = {
        'fails': r'^warning: .*oneDNN fails \(\(Unimplemented\) it has bugs\); .*disable_mkldnn',
        'differs': r'^warning: .*oneDNN: logits differ by .*; .*disable_mkldnn',
        'is missing': 'with oneDNN: this Paddle was built without it$',
    }[trouble]
    assert re.search(expected, last)


def test_the_format_is_chosen_before_paddle_is_imported(monkeypatch):
    """test_triton.py shows that pdmodel is then written."""
    for graph, flag in (('pdmodel', '0'), ('json', '1')):
        monkeypatch.setattr('engine.export.forms.paddle_version', lambda: '3.3.1')
        monkeypatch.setenv('FLAGS_enable_pir_api', 'unset')
        Forms(graph=graph).prepare()
        assert ('FLAGS_enable_pir_api', flag) in os.environ.items()
    monkeypatch.setattr('engine.export.forms.paddle_version', lambda: '2.6.2')
    Forms(graph='pdmodel').prepare()
    with pytest.raises(UserError, match='--format json needs Paddle 3'):
        Forms(graph='json').prepare()


@pytest.mark.parametrize('first', [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_and_leave_nothing(tmp_path, first):
    a_file(tmp_path / 'weights.pdparams', 'wide_resnet10_1', first=first)
    with pytest.raises(UserError, match='not finite'):
        export_file(tmp_path / 'weights.pdparams', 'wide_resnet10_1', 8, tmp_path / 'a' / 'b')
    assert [path.name for path in tmp_path.iterdir()] == ['weights.pdparams']


@pytest.mark.parametrize(
    'what',
    [
        'full',
        'file',
        'in a file',
        'missing',
        'no run',
        'code',
        'launched',
        'triton full',
        'within',
        'no onnx',
    ],
)
def test_impossible_arguments_give_one_line_and_exit_code_2_and_write_nothing(tmp_path, what, run):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine.txt').write_text('mine')
    (tmp_path / 'models' / 'wide_resnet10_1' / '1').mkdir(parents=True)
    (tmp_path / 'python').mkdir()
    (tmp_path / 'python' / 'sitecustomize.py').write_text(WITHOUT_PADDLE2ONNX)
    (tmp_path / 'evil.pdparams').write_text("cos\nsystem\n(S'touch ran'\ntR.")
    before = sorted(tmp_path.rglob('*'))
    here = ('-w', str(run), '--output')
    arguments, expected = {
        'full': ((*here, 'full'), 'full is not empty; choose another folder'),
        'file': ((*here, 'full/mine.txt'), 'is a file; choose another folder'),
        'in a file': ((*here, 'full/mine.txt/new'), 'new cannot be written; choose another folder'),
        'missing': (('-w', 'nowhere'), 'nowhere'),
        'no run': (('-c', str(QUICKSTART)), 'train first'),
        'code': (('-w', 'evil.pdparams'), 'can run code'),
        'launched': ((*here, 'new'), 'paddle.distributed.launch'),
        'triton full': ((*here, 'new', '--triton', 'models'), 'wide_resnet10_1 is not empty'),
        'within': (
            (*here, 'new/wide_resnet10_1/1', '--triton', 'new'),
            'must not contain',
        ),
        'no onnx': (
            (*here, 'new', '--triton', 'other'),
            'model.onnx needs paddle2onnx, which is not',
        ),
    }[what]
    world = {
        'launched': {'PADDLE_TRAINERS_NUM': '2'},
        'no onnx': {'PYTHONPATH': str(tmp_path / 'python'), 'PYTHONDONTWRITEBYTECODE': '1'},
    }.get(what, {})
    result = execute(tmp_path, 'export.py', *arguments, **world)
    assert (result.returncode, result.stdout) == (2, '')
    assert expected in one_line(result.stderr)
    assert sorted(tmp_path.rglob('*')) == before


def test_another_network_than_the_weights_is_refused_by_name(tmp_path):
    a_file(tmp_path / 'weights.pdparams', 'wide_resnet10_1')
    with pytest.raises(UserError, match='look like wide_resnet10_1'):
        export_file(tmp_path / 'weights.pdparams', 'resnext11_2x4d', 8, tmp_path / 'out')


def test_a_killed_export_leaves_no_folder_and_the_next_one_cleans_up(run, tmp_path):
    output, aside = tmp_path / 'out', tmp_path / '.out.writing'
    command = [sys.executable, str(REPOSITORY / 'export.py'), '-w', str(run)]
    process = subprocess.Popen([*command, '--output', str(output)], stdout=subprocess.DEVNULL)
    while not (aside / 'inference.pdiparams').exists():
        assert process.poll() is None, 'it ended without writing'
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert aside.exists()
    assert not output.exists()
    with new_folder(output) as folder:
        assert list(folder.iterdir()) == []
        (folder / 'inference.yml').write_text('')
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_two_exports_to_one_folder_wait_for_each_other(tmp_path):
    output, inside, over = tmp_path / 'out', threading.Event(), threading.Event()

    def first() -> None:
        with new_folder(output) as folder:
            inside.set()
            assert over.wait(60)
            (folder / 'inference.yml').write_text('first')

    def second() -> None:
        with new_folder(output) as folder:
            (folder / 'inference.yml').write_text('second')

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert inside.wait(60)
        other = pool.submit(second)
        time.sleep(0.3)  # in which the second would spoil what the first has written
        over.set()
        one.result(60)
        with pytest.raises(UserError, match='not empty'):
            other.result(60)
    assert (output / 'inference.yml').read_text() == 'first'
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_a_folder_that_was_filled_in_the_meantime_is_not_overwritten(tmp_path):
    output = tmp_path / 'out'

    def write() -> None:
        with new_folder(output) as folder:
            (folder / 'inference.yml').write_text('')
            output.mkdir()
            (output / 'mine.txt').write_text('mine')

    with pytest.raises(UserError, match='not empty'):
        write()
    assert [path.name for path in tmp_path.rglob('*')] == ['out', 'mine.txt']


def test_a_network_is_exported_from_an_npu_for_any_device(run, exported, tmp_path):
    """A fake NPU, see test_fake_npu.py."""
    machine = fake_npu.build(tmp_path)
    here = ('-w', str(run), '-o', 'device=npu', '--output', str(tmp_path / 'out'))
    result = execute(tmp_path, 'export.py', *here, **machine)
    assert result.returncode == 0, result.stderr
    assert 'fake npu: device 0 is used' in result.stdout + result.stderr
    images = noise(3, SIZE)
    expected = by_jit(exported[0], images)
    np.testing.assert_allclose(by_jit(tmp_path / 'out', images), expected, atol=1e-6)
