"""The engines by name. An engine maps the graph's input to float32 logits [N, classes].

Each class has `missing`: one line that says why the engine cannot run here, or None.
"""

from __future__ import annotations

from typing import Any

from predictor.errors import UserError, in_a_line
from predictor.exported_folder import Description
from predictor.onnx_engines import OnnxRuntime, OpenVino
from predictor.paddle_engine import Paddle
from predictor.setting import Engine, Setting
from predictor.tensorrt_engine import TensorRT

ENGINES: dict[str, Any] = {
    'tensorrt': TensorRT,
    'openvino': OpenVino,
    'onnxruntime': OnnxRuntime,
    'paddle': Paddle,
}


def make(name: str, description: Description, setting: Setting) -> Engine:
    """UserError if it cannot run here."""
    missing = ENGINES[name].missing(description, setting)
    if missing:
        raise UserError(f'engine {name} cannot run here: {missing}')
    try:
        engine: Engine = ENGINES[name](description, setting)
    except Exception as error:  # from C++ anything at all
        reason = in_a_line(error)
        raise UserError(f'engine {name} does not start on {setting.device}: {reason}') from error
    return engine


def none_of(lacks: dict[str, str]) -> UserError:
    """No engine can run here: why, for each one."""
    each = '; '.join(f'{name}: {lack}' for name, lack in lacks.items())
    return UserError(f'no engine can run here ({each}); see deploy/requirements.txt')
