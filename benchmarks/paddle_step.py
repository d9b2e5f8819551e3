"""Worker: training steps of our network, set up as by train.py or as in an older port."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Callable

from benchmarks.processes import Answer, seconds, serve
from engine import runtime
from engine.config import Optimizer

KERNEL = ' kernel launch'  # the profiler calls a kernel's run 'conv2d_grad kernel launch[9.87 ms]'


def main() -> None:
    settings = json.loads(sys.argv[1])
    if not settings['older_port']:
        runtime.prepare_cpu()
    runtime.start_paddle('cpu')
    step = make_step(**settings)
    serve(
        {
            'steps': lambda times: {'seconds': seconds(step, times)},
            'matmul': matmul,
            'profile': lambda times: profile(step, times),
        }
    )


def make_step(
    *,
    depth: int,
    widen_factor: int,
    dropout: float,
    batch: int,
    older_port: bool,
    averaging: bool = True,
) -> Callable[[], None]:
    """A training step on this process's part of the batch, with Nesterov's momentum.

    Without `averaging`, several processes leave out only the averaging of their gradients.
    """
    import paddle
    from paddle.nn import functional as F

    from engine.optim import make_optimizer
    from wide_resnet import WideResNet

    runtime.seed_everything(0)
    model = WideResNet(depth=depth, widen_factor=widen_factor, dropout=dropout)
    if older_port:
        give_convolutions_biases(model)
    forward = runtime.distribute(model)
    optimizer = make_optimizer(model, Optimizer(nesterov=True))
    images = paddle.randn([batch // runtime.WORLD, 3, 32, 32])
    labels = paddle.randint(0, 10, [batch // runtime.WORLD])

    def step() -> None:
        with contextlib.nullcontext() if averaging else runtime.without_averaging(forward):
            F.cross_entropy(forward(images), labels).backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


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

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler = Profiler(
            targets=[ProfilerTarget.CPU],
            on_trace_ready=lambda finished: finished.export(str(trace), 'json'),
        )
        with profiler:
            total = seconds(step, times)
        events = json.loads(trace.read_text())['traceEvents']
    kernels: Counter[str] = Counter()
    for event in events:
        name, found, _ = event.get('name', '').partition(KERNEL)
        if found:
            kernels[name] += event['dur'] / 1e6
    return {'seconds': total, 'kernels': kernels}


if __name__ == '__main__':
    main()
