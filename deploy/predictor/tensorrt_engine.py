"""TensorRT, inside Paddle Inference."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import installation
from predictor import machine
from predictor.errors import in_a_line
from predictor.exported_folder import PARAMETERS, Description
from predictor.paddle_engine import Paddle, paddle_missing
from predictor.paddle_import import import_paddle
from predictor.setting import Setting

DAY_S = 86400.0
WORKSPACE = 1 << 30  # bytes that TensorRT may use while it builds


class TensorRT(Paddle):
    """TensorRT inside Paddle Inference, on an NVIDIA GPU: batches of 1 to `setting.batch`.

    Building takes minutes; the cache keeps the result for the same model, card and setting.
    """

    @staticmethod
    def missing(description: Description, setting: Setting) -> Optional[str]:
        if setting.kind != 'gpu':
            return f'TensorRT needs an NVIDIA GPU, and the device is {setting.device}'
        if lack := paddle_missing(description, setting):
            return lack
        if description.input.type == 'uint8':
            return 'it takes no uint8: export the model without --uint8'
        lack = _tensorrt_missing(description.graph.suffix == '.pdmodel')
        if lack or description.graph.suffix == '.pdmodel':
            return lack
        if setting.number:  # paddle.tensorrt.convert knows no other
            return 'it builds on gpu:0 alone; choose the card with CUDA_VISIBLE_DEVICES'
        return None

    def _config(self, inference: Any, description: Description, setting: Setting) -> Any:
        paddle = import_paddle()
        card = paddle.device.cuda.get_device_name(setting.number).replace(' ', '_')
        tensorrt = '.'.join(map(str, _found(description.graph.suffix == '.pdmodel')))
        name = f'{description.identity}-{card}-{paddle.__version__}-{tensorrt}'
        cache = machine.CACHE / 'tensorrt' / f'{name}-{setting.precision}-{setting.batch}'
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # no home; building at each start would take minutes
            reason = f'{cache}: {error.strerror}; XDG_CACHE_HOME names another folder'
            raise RuntimeError(reason) from None
        if description.graph.suffix == '.pdmodel':
            return self._inside_paddle(inference, description, setting, cache)
        built = cache / 'inference.json'
        if not built.exists():
            _convert(description, setting, cache)
        files = {built.name: '', PARAMETERS: ''}
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


def _tensorrt_missing(old: bool) -> Optional[str]:
    """Whether there is the TensorRT that this paddle was built with. `old`: for .pdmodel."""
    wanted = import_paddle().inference.get_trt_compile_version()
    if not any(wanted):
        return 'this paddle was built without TensorRT'
    text = '.'.join(map(str, wanted))
    try:
        found = _found(old)
    except Exception as error:  # from C++, where there is no library
        return f'TensorRT {text} is not found ({in_a_line(error)})'
    if found[0] != wanted[0]:
        return f'this paddle needs TensorRT {text}, and {".".join(map(str, found))} is installed'
    if not old and not installation.installed('paddle.tensorrt'):
        return 'this paddle has no paddle.tensorrt'
    return None


def _found(old: bool) -> list[int]:
    """The version of TensorRT that is used: of the library, or of the Python package."""
    if old:
        return list(import_paddle().inference.get_trt_runtime_version())
    version = installation.version('tensorrt', 'tensorrt-cu11', 'tensorrt-cu12', 'tensorrt-cu13')
    if version is None:
        raise RuntimeError('the package tensorrt is not installed')
    return [int(number) for number in re.findall(r'\d+', version)[:3]]  # 10.0.0b6, too


def _convert(description: Description, setting: Setting, cache: Path) -> None:
    """For .json: a graph that holds the built engine, whole or not there."""
    import paddle
    from paddle.tensorrt.export import Input, PrecisionMode, TensorRTConfig

    least, most = _shapes(description, setting)
    image = Input(
        min_input_shape=tuple(least),
        optim_input_shape=tuple(most),
        max_input_shape=tuple(most),
        input_data_type='float32',
        input_range=(-2.0, 2.0),
        name=description.input.name,
    )
    config = TensorRTConfig(inputs=[image], workspace_size=WORKSPACE)
    config.precision_mode = PrecisionMode[{'float16': 'FP16'}.get(setting.precision, 'FP32')]
    for left in cache.glob('building-*'):  # by a build that was interrupted
        with contextlib.suppress(OSError):  # another process deletes it, too
            if left.stat().st_mtime < time.time() - DAY_S:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    building = cache / f'building-{os.getpid()}'
    config.save_model_dir = str(building)
    # Without its suffix: convert passes it to a loader that appends one.
    paddle.tensorrt.convert(str(description.graph.with_suffix('')), config)
    for name in (PARAMETERS, 'inference.json'):  # the file whose existence is tested comes last
        os.replace(building.with_suffix(Path(name).suffix), cache / name)


def _shapes(description: Description, setting: Setting) -> tuple[list[int], list[int]]:
    return [1, *description.input.shape], [setting.batch, *description.input.shape]
