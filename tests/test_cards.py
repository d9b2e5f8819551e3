"""deploy/predictor on a GPU or an NPU, without one: what engines are asked for, and what they lack.

Stand-ins say which file of which version they imitate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import exported
import numpy as np
import paddle
import pytest
from conftest import execute
from PIL import Image

import installation
from predictor import Predictor, devices, engines, machine, paddle_import
from predictor.errors import UserError
from predictor.exported_folder import Description, open_folder
from predictor.onnx_engines import import_onnxruntime
from predictor.setting import Setting

PADDLE = int(paddle.__version__[0])
GPU = Setting('gpu:0', 1, 4, 'float32', True)
CPU = dataclasses.replace(GPU, device='cpu')
# The parts of NVIDIA's cuda.h that are called.
DRIVER = """
int cuInit(unsigned flags) { return flags; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, 'CACHE', tmp_path / 'cache')
    monkeypatch.setenv('CUSTOM_DEVICE_ROOT', '')


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """These packages and no other; _ stands for -."""
    found = {name.replace('_', '-'): version for name, version in versions.items()}
    for_gpus = 'paddlepaddle-gpu' in found
    paddles = [version for name, version in found.items() if name.startswith('paddle')]
    monkeypatch.setattr(installation, 'paddle_version', lambda: paddles[0] if paddles else '0.0.0')
    monkeypatch.setattr(installation, 'built_for', lambda kind: for_gpus == (kind == 'gpu'))
    monkeypatch.setattr(
        installation, 'version', lambda *names: next((found[n] for n in names if n in found), None)
    )


def graph_of(kind: str, *, uint8: bool = False) -> Description:
    files = {f'inference.{kind}': 'a', 'inference.pdiparams': 'b', 'model.onnx': 'c'}
    return dataclasses.replace(open_folder(exported.folder(uint8=uint8)), files=files)


# ------------------------------------------------------------------ TensorRT


class Recorder:
    """Stands in for paddle.inference.Config: refuses what the real one refuses, keeps the rest."""

    def __init__(self, *files: str) -> None:
        self.real = paddle.inference.Config()
        self.calls: list[tuple] = [('Config', *(Path(file).name for file in files))]

    def __getattr__(self, name: str):
        method = getattr(self.real, name)

        def call(*arguments: object, **options: object) -> None:
            with contextlib.suppress(RuntimeError):  # a Paddle for CPUs has no TensorRT
                method(*arguments, **options)
            self.calls.append((name, *arguments, options) if options else (name, *arguments))

        return call


@pytest.fixture
def card(monkeypatch):
    """A machine that says it has an NVIDIA card and TensorRT 8.5.3; what its Config is asked."""
    monkeypatch.setattr(paddle.device.cuda, 'get_device_name', lambda number: 'Tesla T4')
    for which in ('compile', 'runtime'):  # as the GPU wheels of 2.6.2 and 3.3.0 (cu118) say
        monkeypatch.setattr(paddle.inference, f'get_trt_{which}_version', lambda: (8, 5, 3))
    installed(monkeypatch, paddlepaddle_gpu=paddle.__version__, tensorrt='8.5.3.1')
    asked: list[Recorder] = []

    def config(description: Description, setting: Setting) -> list[tuple]:
        class Inference:
            PrecisionType = paddle.inference.PrecisionType

            @staticmethod
            def Config(*files: str) -> Recorder:
                asked.append(Recorder(*files))
                return asked[-1]

        engine = object.__new__(engines.TensorRT)
        engine._config(Inference, description, setting)
        return asked[-1].calls

    return config


def test_tensorrt_inside_paddle_gets_batches_from_one_to_the_largest(card, tmp_path):
    """For .pdmodel; the real Config takes these arguments, but builds nothing without a card."""
    setting = Setting('gpu:1', 1, 4, 'float16', True)
    calls = card(graph_of('pdmodel'), setting)
    assert calls[0] == ('Config', 'inference.pdmodel', 'inference.pdiparams')
    names = [call[0] for call in calls]
    assert names.index('enable_use_gpu') < names.index('enable_tensorrt_engine')
    assert names.index('set_optim_cache_dir') < names.index('enable_tensorrt_engine')
    gpu = calls[names.index('enable_use_gpu')]
    assert gpu == ('enable_use_gpu', 256, 1, paddle.inference.PrecisionType.Float32)
    options = calls[names.index('enable_tensorrt_engine')][1]
    assert options['precision_mode'] == paddle.inference.PrecisionType.Half
    assert (options['max_batch_size'], options['use_static']) == (4, True)
    least, most = {'image': [1, 3, 8, 8]}, {'image': [4, 3, 8, 8]}
    assert calls[-1] == ('set_trt_dynamic_shape_info', least, most, most)
    (cache,) = (tmp_path / 'cache' / 'tensorrt').iterdir()
    assert cache.name.endswith(f'-Tesla_T4-{paddle.__version__}-8.5.3-float16-4')


@pytest.fixture
def converted(monkeypatch):
    """paddle.tensorrt as of Paddle's commit 02a5e4e, python/paddle/tensorrt/export.py: its checks
    of the path, and its real loader; then files instead of a built engine. What it was given."""
    asked: list[tuple] = []

    def convert(model_path: str, config: SimpleNamespace) -> None:
        if Path(model_path).is_file():
            prefix, suffix = str(Path(model_path).with_suffix('')), Path(model_path).suffix
        else:
            prefix, suffix = model_path, '.json'
        if suffix != '.json' or not Path(f'{prefix}.pdiparams').exists():
            raise ValueError(model_path)
        executor = paddle.static.Executor(paddle.CPUPlace())
        with paddle.pir_utils.IrGuard():
            program, fed, _ = paddle.static.io.load_inference_model(model_path, executor=executor)
        asked.append((program, fed, config))
        for suffix in ('.json', '.pdiparams'):
            Path(config.save_model_dir + suffix).write_text('built')

    module, export = ModuleType('paddle.tensorrt'), ModuleType('paddle.tensorrt.export')
    module.__spec__ = ModuleSpec('paddle.tensorrt', None)
    module.convert, module.export = convert, export
    export.Input = lambda **options: SimpleNamespace(**options)
    export.TensorRTConfig = lambda **options: SimpleNamespace(**options)
    export.PrecisionMode = {'FP16': 'half', 'FP32': 'single'}
    monkeypatch.setitem(sys.modules, 'paddle.tensorrt', module)
    monkeypatch.setitem(sys.modules, 'paddle.tensorrt.export', export)
    monkeypatch.setattr(paddle, 'tensorrt', module, raising=False)
    return asked


@pytest.mark.skipif(PADDLE < 3, reason='of Paddle 3')
def test_tensorrt_for_paddle_3_converts_once_and_reads_what_it_has_built(
    card, converted, tmp_path, monkeypatch
):
    half = dataclasses.replace(GPU, precision='float16')
    calls = card(graph_of('json'), half)
    ((_, fed, config),) = converted
    (image,) = config.inputs
    assert fed == [image.name] == ['image']
    shapes = image.min_input_shape, image.optim_input_shape, image.max_input_shape
    assert shapes == ((1, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8))
    assert (image.input_data_type, image.input_range) == ('float32', (-2.0, 2.0))
    assert config.precision_mode == 'half'
    (cache,) = (tmp_path / 'cache' / 'tensorrt').iterdir()
    files = ['inference.json', 'inference.pdiparams']
    assert sorted(path.name for path in cache.iterdir()) == files
    assert calls[0] == ('Config', *files)
    assert 'enable_tensorrt_engine' not in [call[0] for call in calls]
    card(graph_of('json'), half)
    assert len(converted) == 1
    card(graph_of('json'), dataclasses.replace(half, batch=8))
    assert len(converted) == 2
    installed(monkeypatch, paddlepaddle_gpu=paddle.__version__, tensorrt='8.6.1')
    card(graph_of('json'), half)  # another TensorRT cannot read what the first has built
    assert len(converted) == 3


@pytest.mark.skipif(PADDLE < 3, reason='of Paddle 3')
def test_an_interrupted_build_leaves_nothing(card, converted, tmp_path, monkeypatch):
    def interrupted(model_path: str, config: SimpleNamespace) -> None:
        Path(f'{config.save_model_dir}.json').write_text('half')
        raise KeyboardInterrupt

    convert = paddle.tensorrt.convert
    monkeypatch.setattr(paddle.tensorrt, 'convert', interrupted)
    with pytest.raises(KeyboardInterrupt):
        card(graph_of('json'), GPU)
    (cache,) = (tmp_path / 'cache' / 'tensorrt').iterdir()
    assert not list(cache.iterdir())
    monkeypatch.setattr(paddle.tensorrt, 'convert', convert)
    card(graph_of('json'), GPU)
    names = ['inference.json', 'inference.pdiparams']
    assert sorted(path.name for path in cache.iterdir()) == names


@pytest.mark.parametrize('kind', ['pdmodel', 'json'])
def test_the_tensorrt_that_this_paddle_needs_is_named(card, converted, monkeypatch, kind):
    """pdmodel asks the library, json the package."""
    if kind == 'json' and PADDLE < 3:
        pytest.skip('of Paddle 3')
    description, wheel = graph_of(kind), {'paddlepaddle_gpu': paddle.__version__}

    def missing() -> object:
        return engines.TensorRT.missing(description, GPU)

    assert missing() is None
    monkeypatch.setattr(paddle.inference, 'get_trt_runtime_version', lambda: (10, 3, 0))
    installed(monkeypatch, **wheel, tensorrt='10.3.0b6')
    assert missing() == 'this paddle needs TensorRT 8.5.3, and 10.3.0 is installed'

    def fail() -> None:  # as 2.6.2 without the library
        raise RuntimeError('\n----\nPreconditionNotMetError: dso_handle is null (at x:1)')

    monkeypatch.setattr(paddle.inference, 'get_trt_runtime_version', fail)
    installed(monkeypatch, **wheel)
    assert missing().startswith('TensorRT 8.5.3 is not found (')
    monkeypatch.setattr(paddle.inference, 'get_trt_compile_version', lambda: (0, 0, 0))
    assert missing() == 'this paddle was built without TensorRT'
    bytes_in = graph_of(kind, uint8=True)
    assert 'without --uint8' in engines.TensorRT.missing(bytes_in, GPU)


def test_tensorrt_without_a_writable_cache_is_an_error(card, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(machine, 'CACHE', tmp_path / 'file')
    with pytest.raises(RuntimeError, match='Not a directory; XDG_CACHE_HOME names another'):
        card(graph_of('pdmodel'), GPU)


# ------------------------------------------------------------------ ONNX Runtime with CUDA

# onnxruntime, cuda_execution_provider_info.cc of 2024: an unknown name or value is an error.
CUDA_OPTIONS = {
    'device_id': range(8),
    'cudnn_conv_algo_search': ('EXHAUSTIVE', 'HEURISTIC', 'DEFAULT'),
}


@pytest.fixture
def session(monkeypatch):
    """onnxruntime-gpu's InferenceSession, which runs on the CPU here; CUDA's options, and how
    many sessions were made."""
    if not installation.installed('onnxruntime'):
        pytest.skip('needs onnxruntime')
    onnxruntime = import_onnxruntime()
    real, asked = onnxruntime.InferenceSession, []

    class Session:
        def __init__(self, path: str, options: object, *, providers: list) -> None:
            ((name, chosen),) = providers
            assert name == 'CUDAExecutionProvider'
            assert all(value in CUDA_OPTIONS[key] for key, value in chosen.items())
            asked.append(chosen)
            self._real = real(path, options, providers=['CPUExecutionProvider'])

        def get_providers(self) -> list[str]:
            return ['CUDAExecutionProvider', 'CPUExecutionProvider']

        def run(self, *arguments: object) -> list[np.ndarray]:
            return self._real.run(*arguments)

    monkeypatch.setattr(onnxruntime, 'InferenceSession', Session)
    return asked


@pytest.mark.skipif(not exported.HAS_ONNX, reason='needs onnxruntime and paddle2onnx')
def test_cuda_tries_no_algorithms_in_answers_and_instances_share_the_weights(session, monkeypatch):
    installed(monkeypatch, onnxruntime_gpu='1.20.0')
    monkeypatch.setattr(devices, '_nvidia_cards', lambda: 2)
    monkeypatch.setattr(installation, 'installed', lambda name: name == 'onnxruntime')
    first = Predictor(exported.folder(), batch=2)
    assert (first.engine, first.setting.device) == ('onnxruntime', 'gpu:0')
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(
        first.another().probabilities(pixels), first.probabilities(pixels)
    )
    assert session == [{'device_id': 0, 'cudnn_conv_algo_search': 'HEURISTIC'}]


@pytest.mark.skipif(not exported.HAS_ONNX, reason='needs onnxruntime and paddle2onnx')
def test_without_cuda_onnxruntime_does_not_use_the_cpu_silently(monkeypatch):
    """The real one, for CPUs, which has no CUDA either."""
    installed(monkeypatch, onnxruntime_gpu='1.20.0')
    description = open_folder(exported.folder())
    refused = pytest.raises(UserError, match='does not find CUDA')
    with pytest.warns(UserWarning, match='CUDA'), refused:
        engines.make('onnxruntime', description, GPU)
    monkeypatch.setattr(devices, '_nvidia_cards', lambda: 1)
    monkeypatch.setattr(installation, 'installed', lambda name: name == 'onnxruntime')
    reported: list[str] = []
    with pytest.warns(UserWarning, match='CUDA'):
        predictor = Predictor(description, report=reported.append)
    assert (predictor.engine, predictor.setting.device) == ('onnxruntime', 'cpu')
    assert any(
        line.startswith('the cpu is used, not gpu:0: ') and 'find CUDA' in line for line in reported
    )
    with pytest.warns(UserWarning, match='CUDA'), pytest.raises(UserError, match='find CUDA'):
        Predictor(description, device='gpu')


def test_the_driver_is_asked_for_cards_where_paddle_is_not_installed(monkeypatch, tmp_path):
    compiler = shutil.which('gcc') or pytest.skip('a driver needs a compiler')
    (tmp_path / 'cuda.c').write_text(DRIVER)
    library = tmp_path / 'libcuda.so.1'
    subprocess.run([compiler, '-shared', '-fPIC', tmp_path / 'cuda.c', '-o', library], check=True)
    monkeypatch.setattr(installation, 'installed', lambda name: False)
    installed(monkeypatch, onnxruntime_gpu='1.20.0')
    assert devices.find_device('auto') == 'cpu'  # a package without a driver
    monkeypatch.setattr(devices, 'DRIVER', str(library))
    assert devices.find_device('auto') == 'gpu:0'
    assert devices.find_device('gpu:1') == 'gpu:1'
    with pytest.raises(UserError, match='gpu:2 is not available: 2 GPUs, 0 NPUs'):
        devices.find_device('gpu:2')
    installed(monkeypatch, onnxruntime='1.20.0')
    assert devices.find_device('auto') == 'cpu'


# ------------------------------------------------------------------ Paddle


def test_a_cloned_paddle_engine_gives_the_same_answers():
    engine = engines.make(
        'paddle', open_folder(exported.folder()), dataclasses.replace(GPU, device='cpu')
    )
    images = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(engine.another()(images), engine(images))


def test_what_an_installed_paddle_cannot_do_is_named(monkeypatch):
    description = graph_of('json')
    half = Setting('npu:0', 1, 1, 'float16', True)
    installed(monkeypatch, paddlepaddle='3.3.1')
    assert 'computes in float32' in engines.Paddle.missing(description, half)
    assert engines.Paddle.missing(description, GPU) == 'the installed Paddle is for CPUs'
    installed(monkeypatch, paddlepaddle='2.6.2')
    assert engines.Paddle.missing(graph_of('pdmodel'), half) is None


def test_a_plug_in_that_does_not_load_is_one_line(tmp_path):
    """Paddle's own loader, and a file that is no library."""
    (tmp_path / 'plugins').mkdir()
    (tmp_path / 'plugins' / 'libpaddle-custom-npu.so').write_text('junk')
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')

    def lines(*options: str, code: int) -> list[str]:
        what = (str(exported.folder()), 'a.png', *options)
        # Of OMP_NUM_THREADS Paddle warns while it is imported: not a matter of a predictor.
        environment = {'CUSTOM_DEVICE_ROOT': str(tmp_path / 'plugins'), 'OMP_NUM_THREADS': '2'}
        result = execute(tmp_path, 'deploy/predict.py', *what, **environment)
        assert result.returncode == code, result.stderr
        reported = result.stderr.splitlines()
        assert 'libpaddle-custom-npu.so cannot be loaded: ' in reported[0]
        assert reported[0].endswith('or export CUSTOM_DEVICE_ROOT= to do without it')
        return reported

    (line,) = lines('--device', 'npu', code=2)
    assert line.startswith('predict.py: the plug-in ')
    without, line = lines('--engine', 'paddle', code=2)
    assert without.startswith('Paddle is not used: the plug-in ')
    assert line.startswith('predict.py: engine paddle cannot run here: the plug-in ')
    if exported.HAS_ONNX:
        without, *_ = lines(code=0)
        assert without.startswith('Paddle is not used: the plug-in ')


def test_a_paddle_that_does_not_load_leaves_the_cards_to_others(monkeypatch):
    def import_paddle() -> None:
        raise UserError('paddle does not load: no libcudnn')

    monkeypatch.setattr(paddle_import, 'import_paddle', import_paddle)
    monkeypatch.setattr(devices, '_nvidia_cards', lambda: 2)
    installed(monkeypatch, paddlepaddle_gpu='3.3.1', onnxruntime_gpu='1.20.0')
    reported: list[str] = []
    assert devices.find_device('auto', reported.append) == 'gpu:0'
    assert devices.find_device('gpu:1', reported.append) == 'gpu:1'
    assert reported == 2 * ['Paddle is not used: paddle does not load: no libcudnn']
    with pytest.raises(UserError, match='no libcudnn'):
        devices.find_device('npu')
    installed(monkeypatch, paddlepaddle_gpu='3.3.1', onnxruntime='1.20.0')
    assert devices.find_device('auto', reported.append) == 'cpu'
    with pytest.raises(UserError, match='no libcudnn'):
        devices.find_device('gpu')


def test_npu_flags_are_set_and_the_users_own_are_kept(tmp_path, monkeypatch):
    for name in paddle_import.NPU_FLAGS:
        monkeypatch.setenv(name, 'unset')
        monkeypatch.delenv(name)
    flag, users = 'FLAGS_use_stride_kernel', 'FLAGS_npu_jit_compile'
    monkeypatch.setenv(users, '1')
    paddle_import.import_paddle()
    assert flag not in os.environ
    monkeypatch.setenv('CUSTOM_DEVICE_ROOT', str(tmp_path))
    paddle_import.import_paddle()
    assert (os.environ[flag], os.environ[users]) == ('0', '1')
