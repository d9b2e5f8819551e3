"""Paddle Inference."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import warnings
from typing import Any, Iterator, Optional

import numpy as np

from installation import paddle_problem
from predictor import machine
from predictor.folder import Description
from predictor.setting import Setting

GPU_MEMORY_MB = 256  # to begin with; it grows
_SILENCE = threading.Lock()  # or one thread would take another's silence for standard output


class Paddle:
    """Paddle Inference: a CPU, with oneDNN or without, a GPU, or an Ascend NPU."""

    @staticmethod
    def missing(description: Description, setting: Setting) -> Optional[str]:
        if setting.precision == 'float16' and setting.kind == 'cpu':
            return 'float16 needs a GPU or an NPU'
        return paddle_missing(description, setting)

    def __init__(self, description: Description, setting: Setting) -> None:
        inference = import_paddle().inference
        config = self._config(inference, description, setting)
        config.disable_glog_info()
        with quiet():
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


def paddle_missing(description: Description, setting: Setting) -> Optional[str]:
    if setting.precision == 'int8':
        return 'int8 runs through ONNX Runtime or OpenVINO'
    if not machine.installed('paddle'):
        return 'paddlepaddle is not installed'
    if problem := paddle_problem():
        return problem
    found = machine.version('paddlepaddle', 'paddlepaddle-gpu') or '3'
    if description.graph.suffix == '.json' and found.startswith('2.'):
        return f'inference.json needs Paddle 3, and {found} is installed (export: --format pdmodel)'
    return None


def import_paddle() -> Any:
    # To be set before paddle is imported. MKL takes a slow path on AMD otherwise.
    os.environ.setdefault('GLOG_minloglevel', '2')
    os.environ.setdefault('MKL_DEBUG_CPU_TYPE', '5')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a missing ccache, with which it compiles plug-ins
        import paddle
        import paddle.inference
    return paddle


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
