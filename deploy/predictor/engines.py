"""The engines that run a graph: called with its input, each gives float32 logits [N, classes].

Before one is made, its class says what it lacks here (`missing`), as one line, or None.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import sys
import threading
import warnings
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Iterator, Optional, Protocol

import numpy as np

from predictor.errors import UserError
from predictor.folder import ONNX, Description

_HOME = os.path.expanduser('~')  # '~' for a container's user who has none
_CACHES = Path('/' if _HOME == '~' else _HOME, '.cache')
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or _CACHES) / 'wide-resnet-resnext'
GPU_MEMORY_MB = 256  # to begin with; it grows
WORKSPACE = 1 << 30  # bytes that TensorRT may use while it builds
_SILENCE = threading.Lock()  # or one thread would take another's silence for standard output


@dataclass(frozen=True)
class Setting:
    """How an engine is to run: never 'auto'."""

    device: str  # cpu, gpu:0, npu:0
    threads: int  # of a CPU
    batch: int  # the largest that will come; others run too, except with TensorRT
    precision: str  # float32, float16 or int8
    onednn: bool

    @property
    def kind(self) -> str:
        return self.device.partition(':')[0]

    @property
    def number(self) -> int:
        return int(self.device.partition(':')[2] or 0)


class Engine(Protocol):
    """Used by one thread at a time."""

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


class Paddle:
    """Paddle Inference: a CPU, with oneDNN or without, a GPU, or an Ascend NPU."""

    @staticmethod
    def missing(description: Description, setting: Setting) -> Optional[str]:
        if setting.precision == 'float16' and setting.kind == 'cpu':
            return 'float16 needs a GPU or an NPU'
        return _paddle_missing(description, setting)

    def __init__(self, description: Description, setting: Setting) -> None:
        inference = _paddle().inference
        config = self._config(inference, description, setting)
        config.disable_glog_info()
        with _quiet():
            self._predictor = inference.create_predictor(config)
            self._input = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
            self._output = self._predictor.get_output_handle(self._predictor.get_output_names()[0])
            self(np.zeros((1, *description.input.shape), description.input.type))

    def _config(self, inference: Any, description: Description, setting: Setting) -> Any:
        config = inference.Config(str(description.graph), str(description.parameters))
        half = inference.PrecisionType.Half
        precision = half if setting.precision == 'float16' else inference.PrecisionType.Float32
        if setting.kind == 'gpu':
            config.enable_use_gpu(GPU_MEMORY_MB, setting.number, precision)
        elif setting.kind == 'npu':
            config.enable_custom_device('npu', setting.number, precision)
        else:
            config.disable_gpu()
            config.set_cpu_math_library_num_threads(setting.threads)
            (config.enable_mkldnn if setting.onednn else config.disable_mkldnn)()
        if hasattr(config, 'enable_new_executor'):
            config.enable_new_executor()  # without it enable_memory_optim crashes
        config.enable_memory_optim()
        return config

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self._input.reshape(images.shape)
        self._input.copy_from_cpu(images)
        self._predictor.run()
        return np.asarray(self._output.copy_to_cpu())


class TensorRT(Paddle):
    """TensorRT inside Paddle Inference, on an NVIDIA GPU: batches of 1 to `setting.batch`.

    What it builds, which takes minutes, is kept in CACHE for the same model, card and setting.
    """

    @staticmethod
    def missing(description: Description, setting: Setting) -> Optional[str]:
        if setting.kind != 'gpu':
            return f'TensorRT needs an NVIDIA GPU, and the device is {setting.device}'
        if _paddle_missing(description, setting):
            return _paddle_missing(description, setting)
        if description.graph.suffix == '.json' and not installed('tensorrt'):
            return 'the package tensorrt is not installed'
        return None

    def _config(self, inference: Any, description: Description, setting: Setting) -> Any:
        paddle = _paddle()
        card = paddle.device.cuda.get_device_name(setting.number).replace(' ', '_')
        name = f'{description.identity}-{card}-{paddle.__version__}'
        cache = CACHE / 'tensorrt' / f'{name}-{setting.precision}-{setting.batch}'
        cache.mkdir(parents=True, exist_ok=True)
        if description.graph.suffix == '.pdmodel':
            return self._inside_paddle(inference, description, setting, cache)
        built = cache / 'inference.json'
        if not built.exists():
            _convert(description, setting, cache)
        files = {built.name: '', 'inference.pdiparams': ''}
        there = replace(description, folder=cache, files=files)
        return super()._config(inference, there, replace(setting, precision='float32'))

    def _inside_paddle(
        self, inference: Any, description: Description, setting: Setting, cache: Path
    ) -> Any:
        """For .pdmodel: Paddle builds, and keeps in the cache what it has built."""
        config = super()._config(inference, description, replace(setting, precision='float32'))
        half = inference.PrecisionType.Half
        precision = half if setting.precision == 'float16' else inference.PrecisionType.Float32
        config.set_optim_cache_dir(str(cache))
        config.enable_tensorrt_engine(
            workspace_size=WORKSPACE,
            max_batch_size=setting.batch,
            min_subgraph_size=3,
            precision_mode=precision,
            use_static=True,
            use_calib_mode=False,
        )
        least, most = ({description.input.name: shape} for shape in _shapes(description, setting))
        config.set_trt_dynamic_shape_info(least, most, most)
        return config


def _convert(description: Description, setting: Setting, cache: Path) -> None:
    """For .json: a graph that holds the built engine, whole under its name or not at all."""
    import paddle
    from paddle.tensorrt.export import Input, PrecisionMode, TensorRTConfig

    least, most = _shapes(description, setting)
    image = Input(
        min_input_shape=tuple(least),
        optim_input_shape=tuple(most),
        max_input_shape=tuple(most),
        input_data_type=description.input.type,
        input_range=(0, 255) if description.input.type == 'uint8' else (-2.0, 2.0),
        name=description.input.name,
    )
    config = TensorRTConfig(inputs=[image], workspace_size=WORKSPACE)
    config.precision_mode = PrecisionMode[{'float16': 'FP16'}.get(setting.precision, 'FP32')]
    config.save_model_dir = str(cache / 'building')
    paddle.tensorrt.convert(str(description.graph), config)
    os.replace(cache / 'building.pdiparams', cache / 'inference.pdiparams')
    os.replace(cache / 'building.json', cache / 'inference.json')


def _shapes(description: Description, setting: Setting) -> tuple[list[int], list[int]]:
    return [1, *description.input.shape], [setting.batch, *description.input.shape]


class OnnxRuntime:
    """ONNX Runtime, on a CPU or an NVIDIA GPU."""

    @staticmethod
    def missing(description: Description, setting: Setting) -> Optional[str]:
        if setting.kind == 'npu':
            return 'ONNX Runtime has no NPU here'
        if setting.kind == 'gpu' and version('onnxruntime-gpu') is None:
            return 'onnxruntime-gpu is not installed'
        return _onnx_missing(description, setting, 'onnxruntime')

    def __init__(self, description: Description, setting: Setting) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.log_severity_level = 3
        providers: list[Any] = ['CPUExecutionProvider']
        if setting.kind == 'gpu':
            providers = [('CUDAExecutionProvider', {'device_id': setting.number})]
        self._session = onnxruntime.InferenceSession(
            str(description.onnx(setting.precision)), options, providers=providers
        )
        # Without a word it takes the CPU where CUDA's libraries are missing.
        if setting.kind == 'gpu' and 'CUDAExecutionProvider' not in self._session.get_providers():
            raise RuntimeError('onnxruntime-gpu does not find CUDA')
        self._names = [description.output], description.input.name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        outputs, name = self._names
        return np.asarray(self._session.run(outputs, {name: images})[0])


class OpenVino:
    """Intel's OpenVINO, on any x86 or ARM CPU."""

    @staticmethod
    def missing(description: Description, setting: Setting) -> Optional[str]:
        if setting.kind != 'cpu':
            return 'OpenVINO is used on a CPU'
        return _onnx_missing(description, setting, 'openvino')

    def __init__(self, description: Description, setting: Setting) -> None:
        import openvino

        core = openvino.Core()
        options = {
            'INFERENCE_NUM_THREADS': setting.threads,
            'INFERENCE_PRECISION_HINT': 'f32',  # by itself it takes bfloat16 where it is quicker
            'PERFORMANCE_HINT': 'LATENCY',
        }
        model = core.read_model(str(description.onnx(setting.precision)))
        compiled = core.compile_model(model, 'CPU', options)
        self._request = compiled.create_infer_request()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        (logits,) = self._request.infer([images]).values()
        return np.array(logits)  # what it hands out is written again by the next call


ENGINES: dict[str, Any] = {
    'tensorrt': TensorRT,
    'openvino': OpenVino,
    'onnxruntime': OnnxRuntime,
    'paddle': Paddle,
}


def make(name: str, description: Description, setting: Setting) -> Engine:
    """UserError if it cannot be had here."""
    missing = ENGINES[name].missing(description, setting)
    if missing:
        raise UserError(f'engine {name} cannot run here: {missing}')
    try:
        engine: Engine = ENGINES[name](description, setting)
    except Exception as error:  # from C++ anything at all
        reason = in_a_line(error)
        raise UserError(f'engine {name} does not start on {setting.device}: {reason}') from error
    return engine


def in_a_line(error: Exception) -> str:
    """What an engine says, without the headings, rules and C++ frames around it."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if not re.fullmatch(r'.*:|\d+ .*|[^a-zA-Z]*', line)]
    return said[0] if said else type(error).__name__


def find_device(wanted: str) -> str:
    """What is wanted, with a number; 'auto': gpu:0, npu:0 or cpu, whatever is there first."""
    kind, _, number = wanted.partition(':')
    if kind not in ('auto', 'cpu', 'gpu', 'npu') or (number and not number.isdecimal()):
        raise UserError(f'--device {wanted}: auto, cpu, gpu, gpu:1, npu and npu:1 are known')
    if kind == 'cpu':
        return kind
    hints = version('paddlepaddle-gpu'), version('paddle-custom-npu')
    # Importing paddle takes seconds: by itself, ask it only where it may know of a card.
    maybe = any(hints) or bool(os.environ.get('CUSTOM_DEVICE_ROOT')) or kind != 'auto'
    cards = _cards() if maybe else {}
    if kind == 'auto':
        return next((f'{name}:0' for name, count in cards.items() if count), 'cpu')
    if int(number or 0) >= cards[kind]:
        raise UserError(f'--device {wanted} is not here: {cards["gpu"]} GPUs, {cards["npu"]} NPUs')
    return f'{kind}:{number or 0}'


def _cards() -> dict[str, int]:
    """How many there are. Without paddle, ONNX Runtime for GPUs is taken at its word."""
    if not installed('paddle'):
        return {'gpu': 8 if version('onnxruntime-gpu') else 0, 'npu': 0}
    paddle = _paddle()
    gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    npus = [name for name in paddle.device.get_available_custom_device() if name.startswith('npu')]
    return {'gpu': gpus, 'npu': len(npus)}


def _paddle() -> Any:
    # To be set before paddle is imported. MKL takes a slow path on AMD otherwise.
    os.environ.setdefault('GLOG_minloglevel', '2')
    os.environ.setdefault('MKL_DEBUG_CPU_TYPE', '5')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a missing ccache, with which it compiles plug-ins
        import paddle
        import paddle.inference
    return paddle


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Paddle's C++ prints on standard output, where a command's own answers go."""
    with _SILENCE:
        sys.stdout.flush()
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 1)
            yield
        finally:
            ctypes.CDLL(None).fflush(None)  # what C has written there may be in its buffer still
            os.dup2(kept, 1)
            os.close(kept)
            os.close(nowhere)


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def version(*packages: str) -> Optional[str]:
    """Of the first that is installed."""
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def _paddle_missing(description: Description, setting: Setting) -> Optional[str]:
    if setting.precision == 'int8':
        return 'int8 runs through ONNX Runtime or OpenVINO'
    if not installed('paddle'):
        return 'paddlepaddle is not installed'
    found = version('paddlepaddle', 'paddlepaddle-gpu') or '3'
    if description.graph.suffix == '.json' and found.startswith('2.'):
        return f'inference.json needs Paddle 3, and {found} is installed (export: --format pdmodel)'
    return None


def _onnx_missing(description: Description, setting: Setting, module: str) -> Optional[str]:
    if setting.precision == 'float16':
        return 'there is no float16 model.onnx'
    if description.onnx(setting.precision) is None:
        option = '--int8' if setting.precision == 'int8' else '--onnx'
        return f'the folder has no {ONNX[setting.precision]} (export.py writes it with {option})'
    return None if installed(module) else f'{module} is not installed'
