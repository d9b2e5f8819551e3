"""Paddle Inference."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from typing import Any, Iterator, Optional

import numpy as np

import installation
from predictor import paddle_import
from predictor.exported_folder import Description
from predictor.paddle_import import import_paddle
from predictor.setting import Setting

GPU_MEMORY_MB = 256  # at first; it grows
_LOCK = threading.Lock()  # a second thread would save the first one's /dev/null as the stream


class Paddle:
    """Paddle Inference: a CPU, with oneDNN or without, a GPU, or an Ascend NPU."""

    @staticmethod
    def missing(description: Description, setting: Setting) -> Optional[str]:
        if setting.precision == 'int8':
            return 'int8 runs through ONNX Runtime or OpenVINO'
        if not installation.installed('paddle'):
            return 'paddlepaddle is not installed'
        if problem := installation.paddle_problem() or paddle_import.failure:
            return problem
        version, half = installation.paddle_version(), setting.precision == 'float16'
        if half and setting.kind == 'cpu':
            return 'float16 needs a GPU or an NPU'
        if half and setting.kind == 'npu' and not version.startswith('2.'):
            return 'Paddle 3 computes in float32 on an NPU, even if float16 is asked for'
        if setting.kind == 'gpu' and not installation.built_for('gpu'):
            return 'the installed Paddle is for CPUs'
        if description.graph.suffix == '.json' and version.startswith('2.'):
            return (
                f'inference.json needs Paddle 3, and {version} is installed '
                '(export: --format pdmodel)'
            )
        return None

    def __init__(self, description: Description, setting: Setting) -> None:
        inference = import_paddle().inference
        config = self._config(inference, description, setting)
        config.disable_glog_info()
        self._open(inference.create_predictor(config))

    def another(self) -> Paddle:
        """For another thread, with the same weights."""
        twin = object.__new__(type(self))
        with quiet(1):
            twin._open(self._predictor.clone())
        return twin

    def _open(self, predictor: Any) -> None:
        self._predictor = predictor
        self._input = predictor.get_input_handle(predictor.get_input_names()[0])
        self._output = predictor.get_output_handle(predictor.get_output_names()[0])

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


@contextlib.contextmanager
def quiet(*streams: int) -> Iterator[None]:
    """Within, nothing is printed, not even by C++, on standard output (1) or standard error (2)."""
    with _LOCK:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = {stream: os.dup(stream) for stream in streams}
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            for stream in streams:
                os.dup2(nowhere, stream)
            yield
        finally:
            with contextlib.suppress(OSError, TypeError):  # Windows
                ctypes.CDLL(None).fflush(None)  # C's own buffer may not be empty
            for stream, descriptor in kept.items():
                os.dup2(descriptor, stream)
                os.close(descriptor)
            os.close(nowhere)
