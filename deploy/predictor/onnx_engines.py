"""The engines that run model.onnx: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import os
import sys
from typing import Any, Optional

import numpy as np

import installation
from predictor.exported_folder import ONNX, Description
from predictor.setting import Setting


class OnnxRuntime:
    """ONNX Runtime, on a CPU or an NVIDIA GPU."""

    @staticmethod
    def missing(description: Description, setting: Setting) -> Optional[str]:
        if setting.kind == 'npu':
            return 'ONNX Runtime is not for NPUs here'
        if setting.kind == 'gpu' and installation.version('onnxruntime-gpu') is None:
            return 'onnxruntime-gpu is not installed'
        return _onnx_missing(description, setting, 'onnxruntime')

    def __init__(self, description: Description, setting: Setting) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.log_severity_level = 3
        providers: list[Any] = ['CPUExecutionProvider']
        if setting.kind == 'gpu':
            # The default tries all algorithms for seconds, at the first batch of each size.
            options_of_cuda = {'device_id': setting.number, 'cudnn_conv_algo_search': 'HEURISTIC'}
            providers = [('CUDAExecutionProvider', options_of_cuda)]
        self._session = onnxruntime.InferenceSession(
            str(description.onnx(setting.precision)), options, providers=providers
        )
        # Without CUDA's libraries it falls back to the CPU silently.
        if setting.kind == 'gpu' and 'CUDAExecutionProvider' not in self._session.get_providers():
            raise RuntimeError('onnxruntime-gpu does not find CUDA')
        self._names = [description.output], description.input.name

    def another(self) -> OnnxRuntime:
        """For another thread: sessions are thread-safe."""
        return self

    def __call__(self, images: np.ndarray) -> np.ndarray:
        outputs, name = self._names
        return np.asarray(self._session.run(outputs, {name: images})[0])


class OpenVino:
    """Intel's OpenVINO, on any x86 or ARM CPU."""

    @staticmethod
    def missing(description: Description, setting: Setting) -> Optional[str]:
        if setting.kind != 'cpu':
            return 'OpenVINO is for CPUs here'
        return _onnx_missing(description, setting, 'openvino')

    def __init__(self, description: Description, setting: Setting) -> None:
        core = import_openvino().Core()
        options = {
            'INFERENCE_NUM_THREADS': setting.threads,
            'INFERENCE_PRECISION_HINT': 'f32',  # the default is bfloat16 where that is faster
            'PERFORMANCE_HINT': 'LATENCY',
        }
        model = core.read_model(str(description.onnx(setting.precision)))
        compiled = core.compile_model(model, 'CPU', options)
        self._request = compiled.create_infer_request()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        (logits,) = self._request.infer([images], share_inputs=True).values()
        return np.array(logits)  # the next call overwrites its output


def import_onnxruntime() -> Any:
    """Without its telemetry: a device id in ~/.cache, and network messages."""
    os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')  # its documented switch
    import onnxruntime

    return onnxruntime


def import_openvino() -> Any:
    """Without its telemetry: files in ~/intel, network messages, and a crash without a home.

    If openvino_telemetry cannot be imported, it uses a stub. The documented switch,
    `opt_in_out --opt_out`, writes into the home and sends a last message.
    """
    if 'openvino' not in sys.modules:
        sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _onnx_missing(description: Description, setting: Setting, module: str) -> Optional[str]:
    if setting.precision == 'float16':
        return 'model.onnx has no float16 form'
    if description.onnx(setting.precision) is None:
        option = '--int8' if setting.precision == 'int8' else '--onnx'
        return f'the folder has no {ONNX[setting.precision]} (export.py writes it with {option})'
    return None if installation.installed(module) else f'{module} is not installed'
