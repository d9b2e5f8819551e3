"""TensorRT, inside Paddle Inference.

Building takes minutes; the cache keeps the result for the same model, card and setting. For a
.pdmodel, Paddle builds and caches by itself. For a .json (Paddle 3), paddle.tensorrt.convert writes
a graph that holds what was built.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import installation
from predictor import machine
from predictor.errors import in_a_line
from predictor.exported_folder import PARAMETERS, Description
from predictor.paddle_engine import Paddle
from predictor.paddle_import import import_paddle
from predictor.setting import Setting

WORKSPACE = 1 << 30  # bytes that TensorRT may use while it builds


class TensorRT(Paddle):
    """TensorRT inside Paddle Inference, on an NVIDIA GPU: batches of 1 to `setting.batch`."""

    @staticmethod
    def missing(description: Description, setting: Setting) -> Optional[str]:
        old = description.graph.suffix == '.pdmodel'
        if setting.kind != 'gpu':
            return f'TensorRT needs an NVIDIA GPU, and the device is {setting.device}'
        if problem := Paddle.missing(description, setting):
            return problem
        if description.input.type == 'uint8':
            return 'it takes no uint8: export the model without --uint8'
        if problem := _tensorrt_missing(old):
            return problem
        if setting.number and not old:  # paddle.tensorrt.convert knows no other
            return 'it builds on gpu:0 alone; choose the card with CUDA_VISIBLE_DEVICES'
        return None

    def _config(self, inference: Any, description: Description, setting: Setting) -> Any:
        cache = _cache(description, setting)
        float32 = replace(setting, precision='float32')
        if description.graph.suffix == '.json':
            if not (cache / 'inference.json').exists():
                _convert(description, setting, cache)
            files = {'inference.json': '', PARAMETERS: ''}
            built = replace(description, folder=cache, files=files)
            return super()._config(inference, built, float32)
        config = super()._config(inference, description, float32)
        types = inference.PrecisionType
        config.set_optim_cache_dir(str(cache))
        config.enable_tensorrt_engine(
            workspace_size=WORKSPACE,
            max_batch_size=setting.batch,
            min_subgraph_size=3,
            precision_mode=types.Half if setting.precision == 'float16' else types.Float32,
            use_static=True,
            use_calib_mode=False,
        )
        least, most = ({description.input.name: shape} for shape in _shapes(description, setting))
        config.set_trt_dynamic_shape_info(least, most, most)
        return config


def _tensorrt_missing(old: bool) -> Optional[str]:
    """Whether the TensorRT that this paddle was built with is available. `old`: for .pdmodel."""
    expected = import_paddle().inference.get_trt_compile_version()
    if not any(expected):
        return 'this paddle was built without TensorRT'
    text = '.'.join(map(str, expected))
    try:
        found = _version(old)
    except Exception as error:  # from C++, without the library
        return f'TensorRT {text} is not found ({in_a_line(error)})'
    if found[0] != expected[0]:
        return f'this paddle needs TensorRT {text}, and {".".join(map(str, found))} is installed'
    if not old and not installation.installed('paddle.tensorrt'):
        return 'this paddle has no paddle.tensorrt'
    return None


def _version(old: bool) -> list[int]:
    """Of the TensorRT that is used: of the library, or of the Python package."""
    if old:
        return list(import_paddle().inference.get_trt_runtime_version())
    text = installation.version('tensorrt', 'tensorrt-cu11', 'tensorrt-cu12', 'tensorrt-cu13')
    if text is None:
        raise RuntimeError('the package tensorrt is not installed')
    return [int(number) for number in re.findall(r'\d+', text)[:3]]  # 10.0.0b6, too


def _cache(description: Description, setting: Setting) -> Path:
    """The folder for this model, card, versions and setting."""
    paddle = import_paddle()
    card = paddle.device.cuda.get_device_name(setting.number).replace(' ', '_')
    tensorrt = '.'.join(map(str, _version(description.graph.suffix == '.pdmodel')))
    name = f'{description.identity}-{card}-{paddle.__version__}-{tensorrt}'
    folder = machine.CACHE / 'tensorrt' / f'{name}-{setting.precision}-{setting.batch}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # no home; building at each start would take minutes
        reason = f'{folder}: {error.strerror}; XDG_CACHE_HOME names another folder'
        raise RuntimeError(reason) from None
    return folder


def _convert(description: Description, setting: Setting, cache: Path) -> None:
    """For .json: a graph that holds the built engine, complete or not at all."""
    import paddle
    from paddle.tensorrt.export import Input, PrecisionMode, TensorRTConfig

    least, most = map(tuple, _shapes(description, setting))
    image = Input(
        min_input_shape=least,
        optim_input_shape=most,
        max_input_shape=most,
        input_data_type='float32',
        input_range=(-2.0, 2.0),
        name=description.input.name,
    )
    config = TensorRTConfig(inputs=[image], workspace_size=WORKSPACE)
    config.precision_mode = PrecisionMode['FP16' if setting.precision == 'float16' else 'FP32']
    with tempfile.TemporaryDirectory(prefix='building-', dir=cache) as folder:
        config.save_model_dir = f'{folder}/inference'
        # Without its suffix: convert passes it to a loader that appends one.
        paddle.tensorrt.convert(str(description.graph.with_suffix('')), config)
        for name in (PARAMETERS, 'inference.json'):  # the file whose existence is tested comes last
            os.replace(Path(folder) / name, cache / name)


def _shapes(description: Description, setting: Setting) -> tuple[list[int], list[int]]:
    return [1, *description.input.shape], [setting.batch, *description.input.shape]
