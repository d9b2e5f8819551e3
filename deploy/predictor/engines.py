"""Which engines exist, and which one runs a model here: the first of the table that starts.

An engine maps the graph's input to float32 logits [N, classes]. Each class has `missing`: one line
that says why the engine cannot run here, or None.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from predictor.errors import UserError, in_a_line
from predictor.exported_folder import Description
from predictor.onnx_engines import OnnxRuntime, OpenVino
from predictor.paddle_engine import Paddle, quiet
from predictor.setting import Engine, Setting
from predictor.tensorrt_engine import TensorRT

# The quickest first, as measured on CPUs (docs/performance.md); on a GPU, by their makers' claims.
ENGINES: dict[str, Any] = {
    'tensorrt': TensorRT,
    'openvino': OpenVino,
    'onnxruntime': OnnxRuntime,
    'paddle': Paddle,
}


class Choice(NamedTuple):
    name: str
    engine: Engine
    reason: str


def choose(description: Description, setting: Setting) -> Choice:
    """UserError, with what each engine lacks, if none can run the model here."""
    names = [name for name in ENGINES if name != 'tensorrt' or setting.kind != 'cpu']
    failures: dict[str, str] = {}
    for name in names:
        failure = ENGINES[name].missing(description, setting)
        if not failure:
            try:
                engine = make(name, description, setting)
            except UserError as error:
                failure = str(error)
            else:
                reason = f'the first of {", ".join(names)} that runs on {setting.device}'
                return Choice(name, engine, '; '.join([reason, *_lines(failures)]))
        failures[name] = failure
    raise none_of(failures)


def make(name: str, description: Description, setting: Setting) -> Engine:
    """UserError if it cannot run here."""
    missing = ENGINES[name].missing(description, setting)
    if missing:
        raise UserError(f'engine {name} cannot run here: {missing}')
    try:
        with quiet(1):  # standard output is for answers
            engine: Engine = ENGINES[name](description, setting)
            engine(np.zeros((1, *description.input.shape), description.input.type))
    except Exception as error:  # C++ may raise anything
        reason = in_a_line(error)
        raise UserError(f'engine {name} does not start on {setting.device}: {reason}') from error
    return engine


def none_of(failures: dict[str, str]) -> UserError:
    """No engine can run here: why, for each one."""
    each = '; '.join(_lines(failures))
    return UserError(f'no engine can run here ({each}); see deploy/requirements.txt')


def _lines(failures: dict[str, str]) -> list[str]:
    return [f'{name}: {failure}' for name, failure in failures.items()]
