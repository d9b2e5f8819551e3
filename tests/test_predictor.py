"""deploy/predictor: the same answers from every engine, one chosen with a reason, and one line for
every folder and machine on which it cannot be."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import exported
import fake_npu
import numpy as np
import paddle
import pytest
import yaml
from conftest import REPOSITORY, execute

import installation
from engine import models
from engine.data.augmentation import normalise
from predictor import Predictor, engines
from predictor.errors import UserError
from predictor.exported_folder import open_folder
from predictor.setting import Setting

FAMILIES = [
    ('wide_resnet10_1', 8),
    ('resnext11_2x4d', 8),
    pytest.param('resnext50_2x4d', 32, marks=pytest.mark.slow),
]
PADDLE = int(paddle.__version__[0])
HERE = ['paddle'] + [
    name
    for name in ('onnxruntime', 'openvino')
    if exported.HAS_ONNX and installation.installed(name)
]
CPU = Setting('cpu', 1, 2, 'float32', True)
ANSWERS = """
import sys
import numpy as np
from predictor import Predictor
predictor = Predictor(sys.argv[1], **eval(sys.argv[2]))
print(predictor.engine, '|', predictor.setting.device, '|', predictor.reason)
size = predictor.description.input.size
pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
np.save(sys.argv[3], predictor.probabilities(pixels))
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('CUSTOM_DEVICE_ROOT', '')


def pixels_of(count: int, size: int = exported.SIZE) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)


def in_memory(name: str, size: int, pixels: np.ndarray) -> np.ndarray:
    """The network's logits without any export."""
    model = models.build(name, num_classes=len(exported.CLASSES))
    model.set_state_dict(exported.arrays(name, size))
    model.eval()
    view = exported.preparation(exported.config(name, size, size + 2))
    images = normalise(pixels.transpose(0, 3, 1, 2), view.mean, view.std)
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


def elsewhere(
    cwd: Path, folder: Path, options: dict, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A Predictor in a process of its own; its probabilities are in answers.npy, in `cwd`."""
    return subprocess.run(
        [sys.executable, '-c', ANSWERS, str(folder), repr(options), str(cwd / 'answers.npy')],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY / 'deploy'), **environment},
    )


def user_error(folder: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        Predictor(folder, **options)
    (line,) = str(caught.value).splitlines()
    return line


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize(('name', 'size'), FAMILIES)
def test_every_engine_gives_the_networks_own_logits_for_any_batch(name, size):
    folder = exported.folder(name, size)
    for engine in HERE:
        predictor = Predictor(folder, engine=engine, batch=4)
        assert predictor.engine == engine
        for count in (1, 2, 3, 4, 5):
            pixels = pixels_of(count, size)
            expected = in_memory(name, size, pixels)
            logits = predictor.logits(predictor.prepare(pixels))
            assert (logits.dtype, logits.shape) == (np.float32, (count, len(exported.CLASSES)))
            tolerance = 1e-4 * max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance, err_msg=engine)
            assert np.ptp(expected) > 0.1


def test_raw_pixels_give_what_normalised_ones_give():
    folder, pixels = exported.folder(uint8=True), pixels_of(3)
    expected = in_memory('wide_resnet10_1', exported.SIZE, pixels)
    for engine in HERE:
        predictor = Predictor(folder, engine=engine, batch=2)
        prepared = predictor.prepare(pixels)
        np.testing.assert_array_equal(prepared, pixels)
        assert prepared.dtype == np.uint8
        np.testing.assert_allclose(predictor.logits(prepared), expected, rtol=0, atol=1e-4)


def test_paddle_gives_the_same_without_onednn():
    pixels = pixels_of(3)
    answers = [
        Predictor(exported.folder(), engine='paddle', onednn=onednn).probabilities(pixels)
        for onednn in (True, False)
    ]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


def test_pixels_are_normalised_as_in_training_to_the_last_bit():
    predictor, pixels = Predictor(exported.folder(), engine='paddle'), pixels_of(50)
    view = exported.preparation(exported.config())
    expected = normalise(pixels.transpose(0, 3, 1, 2), view.mean, view.std)
    prepared = predictor.prepare(pixels)
    np.testing.assert_array_equal(prepared, expected)
    assert prepared.dtype == np.float32
    assert prepared.flags.c_contiguous


def test_probabilities_are_the_softmax_of_the_logits_however_large():
    predictor, pixels = Predictor(exported.folder(), engine='paddle'), pixels_of(4)
    logits = predictor.logits(predictor.prepare(pixels)).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(predictor.probabilities(pixels), expected, atol=1e-6)
    predictor._engine = lambda images: np.full((len(images), 7), 1e4, np.float32)
    np.testing.assert_allclose(predictor.probabilities(pixels), np.full((4, 7), 1 / 7), atol=1e-6)


@pytest.mark.parametrize('engine', HERE)
def test_array_views_and_empty_batches_are_accepted(engine):
    predictor, pixels = Predictor(exported.folder(), engine=engine, batch=2), pixels_of(6)
    expected = predictor.probabilities(pixels)
    np.testing.assert_allclose(predictor.probabilities(pixels[::-1])[::-1], expected, atol=1e-5)
    mirrored = np.ascontiguousarray(pixels[:, :, ::-1])[:, :, ::-1]
    np.testing.assert_allclose(predictor.probabilities(mirrored), expected, atol=1e-5)
    images = np.asfortranarray(predictor.prepare(pixels))
    logits = predictor.logits(images)
    np.testing.assert_allclose(logits, predictor.logits(np.ascontiguousarray(images)), atol=1e-5)
    assert predictor.probabilities(pixels[:0]).shape == (0, len(exported.CLASSES))


@pytest.mark.parametrize('engine', HERE)
def test_a_later_call_does_not_change_earlier_answers(engine):
    predictor = Predictor(exported.folder(), engine=engine)
    first = predictor.logits(predictor.prepare(pixels_of(1)))
    kept = first.copy()
    predictor.logits(predictor.prepare(255 - pixels_of(1)))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize('engine', HERE)
def test_instances_run_in_parallel_threads(engine, capfd):
    predictor, pixels = Predictor(exported.folder(), engine=engine, batch=4), pixels_of(40)
    expected = predictor.probabilities(pixels)

    def answer(_: int) -> np.ndarray:
        twin = predictor.another()
        assert (twin.engine, twin.reason) == (predictor.engine, predictor.reason)
        return np.concatenate([twin.probabilities(pixels[i : i + 4]) for i in range(0, 40, 4)])

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(answer, range(6)):
            np.testing.assert_allclose(found, expected, atol=1e-5)
    capfd.readouterr()
    os.write(1, b'still here\n')  # each has silenced Paddle for a while
    assert capfd.readouterr().out == 'still here\n'


# ------------------------------------------------------------------ folders


def test_a_folder_can_be_moved_renamed_and_made_read_only(tmp_path):
    expected = Predictor(exported.folder(), engine=HERE[-1]).probabilities(pixels_of(2))
    home = tmp_path / '模型 with spaces'
    home.mkdir()
    moved = Path(shutil.copytree(exported.folder(), home / "l'été [1] 100%"))
    moved.chmod(0o555)
    for engine in HERE:
        found = Predictor(moved, engine=engine).probabilities(pixels_of(2))
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=engine)


def test_a_description_has_the_settings_of_export():
    description = open_folder(str(exported.folder()))
    assert description.classes == exported.CLASSES
    assert (description.input.size, description.input.resize) == (exported.SIZE, exported.RESIZE)
    assert description.input.mean.tolist() == [123.675, 116.28, 103.53]
    assert description.input.shape == (3, exported.SIZE, exported.SIZE)
    assert open_folder(exported.folder(uint8=True)).input.shape == (8, 8, 3)
    assert (description.model, description.output) == ('wide_resnet10_1', 'logits')
    assert description.accuracy is None


def test_copies_have_the_same_identity_and_other_weights_another(tmp_path):
    first = open_folder(exported.folder())
    assert open_folder(exported.copy(tmp_path / 'a')).identity == first.identity
    assert open_folder(exported.folder(uint8=True)).identity != first.identity


def test_a_damaged_description_is_named_in_one_line(tmp_path):
    whole = (exported.folder() / 'inference.yml').read_bytes()
    folder = tmp_path / 'folder'
    folder.mkdir()
    file, rng = folder / 'inference.yml', np.random.default_rng(0)
    cases = [b'', b'\xff\xfe\0', b'\0\0', b'- 1\n- 2\n', b'just text', b'format: 1\n', b'{' * 50]
    cases += [b'format: 1\ndate: 2020-99-99\n', b'a: !!bool maybe', b'a: !!int ""', b'a: [}']
    cases += [whole[:length] for length in range(0, len(whole), 100)]
    for _ in range(100):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        cases.append(bytes(changed))
    for case in cases:
        file.write_bytes(case)
        assert str(folder) in user_error(folder), case  # as a last resort, by the missing graph


WRONG = {
    'input: null': ('inference.yml', 'has no'),
    'input: 5': ('inference.yml', 'damaged'),
    'input: []': ('inference.yml', 'damaged'),
    'classes: 5': ('inference.yml', 'classes must be a list'),
    'classes: [a, b, c, d, e, f, no]': ('inference.yml', 'classes must be a list of texts'),
    'classes: [a, b]': ('inference.yml', '2 classes for outputs'),
    'output: {name: logits}': ('inference.yml', "has no 'shape'"),
    'weights: 5': ('inference.yml', 'damaged'),
    'files: 5': ('inference.yml', 'damaged'),
    'files: {5: {bytes: 1, sha256: a}}': ('inference.yml', 'names no graph'),
    'files: {inference.json: {bytes: .inf, sha256: a}}': ('inference.yml', 'damaged'),
    'files: {inference.json: 7}': ('inference.yml', 'damaged'),
    'format: 2': ('inference.yml', 'format 2, which this version does not know'),
    'format: new': ('inference.yml', 'format new, which this version does not know'),
}


@pytest.mark.parametrize('change', WRONG)
def test_a_wrong_description_is_refused_with_the_reason(tmp_path, change):
    folder = exported.copy(tmp_path / 'folder', **yaml.safe_load(change))
    error = user_error(folder)
    for expected in WRONG[change]:
        assert expected in error


def test_an_impossible_input_is_refused(tmp_path):
    given = yaml.safe_load((exported.folder() / 'inference.yml').read_text(encoding='utf-8'))
    changes = [{'type': 'float64'}, {'crop': 4}, {'crop': 'x'}, {'shape': 5}, {'std': [1, 0, 1]}]
    changes += [{'mean': [1, 2]}, {'mean': 'grey'}, {'mean': [1, 2, float('nan')]}, {'crop': None}]
    changes += [{'resize_short': 4}, {'crop': float('inf')}, {'std': [[1, 1, 1]]}]
    for number, change in enumerate(changes):
        folder = tmp_path / str(number)
        exported.copy(folder, input={**given['input'], **change})
        assert 'inference.yml is damaged' in user_error(folder), change


def test_missing_truncated_and_changed_files_are_named_with_a_remedy(tmp_path):
    names = sorted({path.name for path in exported.folder().iterdir()} - {'inference.yml'})
    assert len(names) >= 2
    for name in names:
        folder = exported.copy(tmp_path / name)
        file, whole = folder / name, (folder / name).read_bytes()
        file.unlink()
        assert user_error(folder).startswith(f'{file}: No such file')
        file.write_bytes(whole[:-1])
        assert f'{file} has {len(whole) - 1:,} bytes instead of {len(whole):,}' in user_error(
            folder
        )
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        error = user_error(folder)
        assert f'{file} is damaged' in error
        assert 'copy it again' in error
    assert 'is not a folder' in user_error(tmp_path / 'nowhere')
    assert 'is not a folder' in user_error(tmp_path / names[0] / 'inference.yml')
    (tmp_path / 'empty').mkdir()
    assert 'has no inference.yml; did export.py write it?' in user_error(tmp_path / 'empty')


# ------------------------------------------------------------------ choice


@pytest.fixture
def broken(monkeypatch):
    """Made-up engines, first, second and third. By name: what one lacks, or that it fails when it
    starts or when it runs."""
    broken: dict[str, str] = {}

    def engine(name: str) -> type:
        class Engine:
            @staticmethod
            def missing(description: object, setting: object) -> object:
                return None if broken.get(name) in ('start', 'run') else broken.get(name)

            def __init__(self, description: object, setting: object) -> None:
                if broken.get(name) == 'start':
                    raise LookupError('\n----\nHeading:\n----\nno such card\nat line 5')

            def __call__(self, images: np.ndarray) -> np.ndarray:
                if broken.get(name) == 'run':
                    raise ArithmeticError
                return np.zeros((len(images), 7), np.float32)

        return Engine

    names = ('first', 'second', 'third')
    monkeypatch.setattr(engines, 'ENGINES', {name: engine(name) for name in names})
    return broken


@pytest.mark.parametrize('device', ['cpu', 'gpu:0'])
def test_the_first_engine_that_runs_is_chosen_and_the_reason_names_the_others(broken, device):
    setting, description = dataclasses.replace(CPU, device=device), open_folder(exported.folder())
    chosen = engines.choose(description, setting)
    assert chosen.name == 'first'
    assert chosen.reason == f'the first of first, second, third that runs on {device}'
    broken.update(first='has no card', second='start')
    chosen = engines.choose(description, setting)
    assert chosen.name == 'third'
    assert chosen.reason.endswith(
        f' that runs on {device}; first: has no card; '
        f'second: engine second does not start on {device}: no such card'
    )
    with pytest.raises(
        UserError, match=rf'^engine second does not start on {device}: no such card$'
    ):
        engines.make('second', description, setting)


@pytest.mark.parametrize(('how', 'text'), [('start', 'no such card'), ('run', 'ArithmeticError')])
def test_an_engine_that_fails_is_left_out_and_tried_the_next_time(broken, how, text):
    broken['first'] = how
    predictor = Predictor(exported.folder(), report=pytest.fail)
    assert predictor.engine == 'second'
    assert predictor.reason.endswith(f'first: engine first does not start on cpu: {text}')
    assert predictor.logits(np.zeros((3, 3, 8, 8), np.float32)).shape == (3, 7)
    broken.clear()
    assert Predictor(exported.folder(), report=pytest.fail).engine == 'first'
    broken.update(first=how, second='not available', third='not available')
    assert f'engine first does not start on cpu: {text}' in user_error(exported.folder())


def test_the_order_is_fixed_and_tensorrt_is_not_tried_on_a_cpu(monkeypatch):
    """The quickest first: docs/performance.md."""
    assert list(engines.ENGINES) == ['tensorrt', 'openvino', 'onnxruntime', 'paddle']
    predictor = Predictor(exported.folder(), report=pytest.fail)
    assert predictor.engine == HERE[-1]
    monkeypatch.setattr(installation, 'installed', lambda name: name == 'paddle')
    predictor = Predictor(exported.folder(), report=pytest.fail)
    assert predictor.engine == 'paddle'
    assert ' that runs on cpu; openvino: ' in predictor.reason
    assert 'tensorrt' not in predictor.reason.lower()


def test_without_any_engine_the_error_names_what_each_lacks(monkeypatch):
    monkeypatch.setattr(installation, 'installed', lambda name: False)
    error = user_error(exported.folder())
    assert error.startswith('no engine can run here (openvino: ')
    assert error.endswith('see deploy/requirements.txt')
    assert 'paddle: paddlepaddle is not installed' in error


@pytest.mark.skipif(not exported.HAS_ONNX, reason='needs onnxruntime and paddle2onnx')
def test_paddle_need_not_be_installed(tmp_path):
    """Its import fails, as do those of the rest of the repository and of what only that needs."""
    names = ('paddle', 'openvino', 'engine', 'cv2', 'simplejpeg')
    for name in names:
        (tmp_path / 'hidden' / name).mkdir(parents=True)
    hide = f"""
import importlib.util, sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {names}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in {names} else find(name)
"""
    (tmp_path / 'sitecustomize.py').write_text(hide)
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY / 'deploy')])
    result = elsewhere(tmp_path, exported.folder(), {}, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('onnxruntime | cpu | the first of ')
    assert 'openvino: openvino is not installed' in result.stdout
    expected = Predictor(exported.folder(), engine='paddle').probabilities(
        np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    )
    np.testing.assert_allclose(np.load(tmp_path / 'answers.npy'), expected, atol=1e-5)


def test_a_missing_device_or_engine_is_one_line():
    folder = exported.folder()
    cases = {
        'TensorRT needs an NVIDIA GPU, and the device is cpu': {'engine': 'tensorrt'},
        'float16 needs a GPU or an NPU': {'engine': 'paddle', 'precision': 'float16'},
        '--device gpu is not available: 0 GPUs, 0 NPUs': {'device': 'gpu'},
        '--device npu:7 is not available': {'device': 'npu:7'},
        '--device tpu: use auto, cpu, gpu, gpu:1, npu': {'device': 'tpu'},
        '--device gpu:x: use auto': {'device': 'gpu:x'},
        '--device : use auto': {'device': ''},
    }
    for expected, options in cases.items():
        assert expected in user_error(folder, **options)
    assert 'no engine can run here' in user_error(folder, precision='float16')


@pytest.mark.skipif(not exported.HAS_ONNX, reason='needs onnxruntime and paddle2onnx')
def test_a_model_that_an_engine_cannot_read_is_one_line(tmp_path):
    for name in HERE[1:]:
        folder = exported.copy(tmp_path / name)
        (folder / 'model.onnx').write_bytes(b'junk' * 10)
        about = yaml.safe_load((folder / 'inference.yml').read_text(encoding='utf-8'))
        about['files'].update(exported.listed(folder, 'model.onnx'))
        (folder / 'inference.yml').write_text(yaml.safe_dump(about), encoding='utf-8')
        error = user_error(folder, engine=name)
        assert error.startswith(f'engine {name} does not start on cpu: ')
        assert 'model' in error


def test_without_model_onnx_its_engines_name_the_option_of_export(tmp_path):
    folder = exported.copy(tmp_path / 'folder')
    about = yaml.safe_load((folder / 'inference.yml').read_text(encoding='utf-8'))
    about['files'].pop('model.onnx', None)
    (folder / 'inference.yml').write_text(yaml.safe_dump(about), encoding='utf-8')
    for engine in ('onnxruntime', 'openvino'):
        error = user_error(folder, engine=engine)
        assert 'has no model.onnx' in error
        assert '--onnx' in error


def test_a_graph_of_paddle_3_is_refused_in_paddle_2(tmp_path, monkeypatch):
    folder = exported.copy(tmp_path / 'folder')
    about = yaml.safe_load((folder / 'inference.yml').read_text(encoding='utf-8'))
    (folder / 'inference.json').write_text('{}')
    files = exported.listed(folder, 'inference.json', 'inference.pdiparams')
    (folder / 'inference.yml').write_text(yaml.safe_dump({**about, 'files': files}))
    if PADDLE > 2:
        monkeypatch.setattr(installation, 'paddle_version', lambda: '2.6.2')
    error = user_error(folder, engine='paddle')
    assert error.startswith('engine paddle cannot run here: inference.json needs Paddle 3')
    assert '--format pdmodel' in error


@pytest.mark.skipif(PADDLE < 3, reason='there, all folders are of that kind')
def test_a_pdmodel_gives_the_same_answers(tmp_path):
    file = exported.weight_file(tmp_path, 'wide_resnet10_1')
    size = (f'data.image_size={exported.SIZE}', f'eval.resize={exported.RESIZE}', 'device=cpu')
    what = ('-c', str(exported.RECIPE), '-w', str(file), '-o', 'model.name=wide_resnet10_1', *size)
    result = execute(tmp_path, 'export.py', *what, '--format', 'pdmodel', '--output', 'old')
    assert result.returncode == 0, result.stderr
    old = Predictor(tmp_path / 'old', engine='paddle', batch=2)
    assert old.description.graph.name == 'inference.pdmodel'
    for count in (1, 3):
        pixels = pixels_of(count)
        expected = in_memory('wide_resnet10_1', exported.SIZE, pixels)
        np.testing.assert_allclose(old.logits(old.prepare(pixels)), expected, rtol=0, atol=1e-4)


# ------------------------------------------------------------------ devices that are not available


def test_an_npu_is_found_used_and_gives_a_cpus_answers(tmp_path):
    """A made-up one, see test_fake_npu.py."""
    ascend = fake_npu.build(tmp_path)
    result = elsewhere(tmp_path, exported.folder(), {'batch': 2}, **ascend)
    if PADDLE == 2:  # whose executor needs kernels for copies that the made-up device has not
        assert result.stdout.startswith('the cpu is used, not npu:0: no engine can run here ')
        assert 'engine paddle does not start on npu:0' in result.stdout
        return
    assert result.returncode == 0, result.stderr
    assert '\npaddle | npu:0 | the first of ' in '\n' + result.stdout
    assert 'fake npu: device 0 is used' in result.stderr
    found = np.load(tmp_path / 'answers.npy')
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    expected = Predictor(exported.folder(), engine='paddle').probabilities(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    result = elsewhere(tmp_path, exported.folder(), {'device': 'npu:1'}, **ascend)
    assert 'fake npu: device 1 is used' in result.stderr
    result = elsewhere(tmp_path, exported.folder(), {'device': 'npu:2'}, **ascend)
    assert result.stderr.splitlines()[-1].endswith(
        '--device npu:2 is not available: 0 GPUs, 2 NPUs'
    )
