"""Worker: training steps of our network, set up as by train.py or as in an older port."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable, Iterator, Optional
from unittest import mock

from benchmarks.processes import Answer, memory_bytes, seconds, serve, steps
from engine import models
from engine.config import Optimizer
from engine.machine import collectives, cpu, devices, processes
from engine.machine.start import start_paddle
from engine.models import parse

OLDER_PORT = 'older port'
KERNEL = ' kernel launch'  # the profiler calls a kernel's run 'conv2d_grad kernel launch[9.87 ms]'
ONEDNN = 'oneDNN '


def main() -> None:
    settings = json.loads(sys.argv[1])
    if settings.get('conv') != OLDER_PORT:
        cpu.prepare_cpu()
    start_paddle('cpu')
    step = make_step(**settings)
    before = memory_bytes('VmRSS')
    serve(
        {
            'steps': lambda times: {'seconds': seconds(step, times)},
            'each_step': lambda for_s, at_least: {'seconds': steps(step, for_s, at_least)},
            'peak': lambda: {'bytes': memory_bytes('VmHWM') - before},
            'matmul': matmul,
            'profile': lambda times: profile(step, times),
            'multiply_adds': lambda: {'count': count(settings['model'], settings.get('side'))},
        }
    )


def make_step(
    *,
    model: str,
    batch: int,
    side: Optional[int] = None,
    dropout: float = 0.0,
    conv: str = 'onednn',
    dtype: str = 'float32',
    averaging: bool = True,
) -> Callable[[], None]:
    """A training step on this process's part of the batch, with Nesterov's momentum.

    `conv`: as train.cpu_conv, or OLDER_PORT; `dtype`: of oneDNN's convolutions. Without
    `averaging`, several processes leave out only the averaging of their gradients.
    """
    import paddle

    from engine import cpu_conv
    from engine.training.loss import cross_entropy
    from engine.training.optimizers import make_optimizer

    devices.seed_weights(0)
    layout = 'NHWC' if conv == 'onednn' else 'NCHW'
    network = build(model, dropout=dropout, data_format=layout)
    if conv == 'onednn':
        assert cpu_conv.unavailable() is None, cpu_conv.unavailable()
        cpu_conv.accelerate(network, dtype)
    elif conv == OLDER_PORT:
        give_convolutions_biases(network)
    forward = collectives.distribute(network)
    optimizer = make_optimizer(network, Optimizer(nesterov=True))
    side = side or parse(model).image_size
    images = paddle.randn([batch // processes.WORLD_SIZE, 3, side, side])
    labels = paddle.randint(0, 10, [batch // processes.WORLD_SIZE])

    def step() -> None:
        with contextlib.nullcontext() if averaging else collectives.without_averaging(forward):
            cross_entropy(forward(images), labels).backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


def build(model: str, **options: Any) -> Any:
    return models.build(model, num_classes=1000 if parse(model).for_photos else 10, **options)


def count(model: str, side: Optional[int] = None) -> int:
    """Multiply-adds for one image, of a network of its own: that of the steps stays as it is."""
    return models.multiply_adds(build(model), side or parse(model).image_size)


def give_convolutions_biases(model: Any) -> None:
    """As Contrib's port has them, although a batch norm follows and takes them out again."""
    from paddle import nn

    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D):
            layer.bias = layer.create_parameter([layer.weight.shape[0]], is_bias=True)


def matmul(size: int, times: int) -> Answer:
    import paddle

    a, b = paddle.randn([size, size]), paddle.randn([size, size])
    paddle.matmul(a, b)
    return {'seconds': seconds(lambda: paddle.matmul(a, b), times)}


def profile(step: Callable[[], None], times: int) -> Answer:
    """Seconds of the steps, and of every kernel in them."""
    from paddle.profiler import Profiler, ProfilerTarget

    with tempfile.TemporaryDirectory() as folder, named_onednn():
        trace = Path(folder) / 'trace.json'
        profiler = Profiler(
            targets=[ProfilerTarget.CPU],
            on_trace_ready=lambda finished: finished.export(str(trace), 'json'),
        )
        with profiler:
            total = seconds(step, times)
        events = json.loads(trace.read_text())['traceEvents']
    return {'seconds': total, 'kernels': seconds_by_kernel(events)}


def seconds_by_kernel(events: list[dict[str, Any]]) -> dict[str, float]:
    """Of oneDNN's kernels, and of Paddle's own that do not run for one of oneDNN's."""
    taken: defaultdict[str, float] = defaultdict(float)
    end = 0.0  # of the latest of oneDNN's
    for event in sorted((e for e in events if 'dur' in e), key=lambda e: float(e['ts'])):
        name = event['name'].partition('[')[0]  # without its time, '[9.87 ms]'
        if name.startswith(ONEDNN):
            end = event['ts'] + event['dur']
            taken[name[len(ONEDNN) :]] += event['dur'] / 1e6
        elif name.endswith(KERNEL) and event['ts'] >= end:
            taken[name[: -len(KERNEL)]] += event['dur'] / 1e6
    return taken


@contextlib.contextmanager
def named_onednn() -> Iterator[None]:
    """Tell Paddle's profiler of oneDNN's kernels, of which it knows nothing."""
    from paddle.profiler import RecordEvent

    from engine.cpu_conv import layers

    def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with RecordEvent(ONEDNN + name):
                return function(*arguments)

        return call

    with contextlib.ExitStack() as stack:
        for kind, layer in (
            ('convolution', layers._Convolve),
            ('batch norm', layers._Normalise),
        ):
            for direction in ('forward', 'backward'):
                function = named(f'{kind} {direction}', getattr(layer, direction))
                stack.enter_context(mock.patch.object(layer, direction, staticmethod(function)))
        yield


if __name__ == '__main__':
    main()
