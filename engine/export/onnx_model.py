"""model.onnx: paddle2onnx converts Paddle's static graph, onnxruntime runs it.

Nothing here imports paddle into the process that calls it.

    python3 -m engine.export.onnx_model GRAPH PARAMETERS    prints the bytes of an ONNX model
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np

from engine.errors import UserError
from engine.export.exported_folder import GRAPH, INPUT, ONNX, OUTPUT
from engine.machine import cpu, home
from installation import version
from predictor.onnx_engines import import_onnxruntime
from predictor.version import VERSION

OPSET = 17
REPOSITORY = Path(__file__).resolve().parents[2]
COLOURS = re.compile(r'\x1b\[[\d;]*m')
REASON = re.compile(r'\w+Error: .+|\(\w+\) .+')  # as Python and as Paddle begin their messages


def require_converter(paddle: int) -> None:
    """UserError unless the paddle2onnx for this Paddle (2, or 3 and later) is installed.

    paddle2onnx 1 cannot read Paddle 3's graphs, and 2 refuses to be imported with Paddle 2.
    """
    major = 1 if paddle == 2 else 2
    line = f'python3 -m pip install "paddle2onnx>={major},<{major + 1}" "onnx>=1.16.1,<1.18"'
    if sys.version_info >= (3, 13):
        line = 'it has no wheels for Python 3.13 and later, so use 3.12'
    for name in ('paddle2onnx', 'onnx'):
        found = version(name)
        if found is None:
            raise UserError(f'model.onnx needs {name}, which is not installed: {line}')
        if name == 'paddle2onnx' and found.split('.')[0] != str(major):
            raise UserError(f'paddle2onnx {found} does not suit Paddle {paddle}: {line}')


def write(graph: Path, *, name: str) -> None:
    """Write model.onnx next to this graph of Paddle's. UserError if it can't be converted.

    Its input is called `image`, its output `logits`, its batch dimension `batch`.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    content = _converted(graph)
    try:
        model = onnx.load_from_string(content)
        _tidy(model.graph)
        onnx.checker.check_model(model, full_check=True)
    except (
        DecodeError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise _refusal(str(error)) from None
    model.graph.name = name
    model.producer_name, model.producer_version = 'paddle-wide-resnet-resnext', VERSION
    (graph.parent / ONNX).write_bytes(model.SerializeToString())


def _converted(graph: Path) -> bytes:
    """In a process of its own: paddle2onnx prints, ends the process on errors, and can crash."""
    files = [str(graph.resolve()), str(graph.resolve().with_name(f'{GRAPH}.pdiparams'))]
    result = subprocess.run(
        [sys.executable, '-m', 'engine.export.onnx_model', *files],
        cwd=REPOSITORY,
        capture_output=True,
    )
    if result.returncode != 0:
        raise _refusal(_reason(result))
    return result.stdout


def _reason(result: subprocess.CompletedProcess[bytes]) -> str:
    """The error message in the output; a crash may print none."""
    message = REASON.search(COLOURS.sub('', result.stderr.decode(errors='replace')))
    return message.group() if message else f'exit code {result.returncode}'


def _refusal(reason: str) -> UserError:
    text = ' '.join(reason.split())[:200]
    return UserError(f'paddle2onnx gave no sound model ({text}); nothing was exported')


def _tidy(graph: Any) -> None:
    """Give clear names, and remove unused constants: onnxruntime would warn of each."""
    (picture,), (logits,) = graph.input, graph.output
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [OUTPUT if name == logits.name else name for name in names]
    logits.name = OUTPUT
    for value in (picture, logits):
        value.type.tensor_type.shape.dim[0].dim_param = 'batch'
    read = {OUTPUT}.union(*(node.input for node in graph.node))
    for at in reversed(range(len(graph.node))):
        if not read.intersection(graph.node[at].output):
            del graph.node[at]


def load(model: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The model as a function, run by onnxruntime on the CPU. ImportError without onnxruntime."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu.cores_per_process()
    session = onnxruntime.InferenceSession(str(model), options, providers=['CPUExecutionProvider'])

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([OUTPUT], {INPUT: images})[0])

    return run


def _convert(graph: str, parameters: str) -> None:
    with os.fdopen(os.dup(1), 'wb') as answer:
        os.dup2(2, 1)  # what paddle2onnx prints, from Python and from C++
        with home.elsewhere():  # it imports paddle
            import paddle2onnx

        # No file name: with one, paddle2onnx first optimises, with packages that it installs.
        answer.write(paddle2onnx.export(graph, parameters, opset_version=OPSET, verbose=False))


if __name__ == '__main__':
    _convert(*sys.argv[1:])
