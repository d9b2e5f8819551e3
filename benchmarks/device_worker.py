"""Worker: runs train.py's main in its process, and measures the memory of that process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from typing import Optional

import train
from benchmarks.processes import Answer, memory_bytes, seconds, serve
from engine import cli, models
from engine.machine import cpu
from engine.machine.start import start_paddle

TURN_S, TURNS = 1.0, 3


def main() -> None:
    os.environ.update(json.loads(sys.argv[1])['environment'])  # before paddle, which reads it
    serve({'start': start, 'train': run_training, 'product': product, 'network': network})


def start(device: str) -> Answer:
    """Choose the device as train.py does, and describe it."""
    cpu.prepare_cpu()
    start_paddle(device)
    import paddle

    kind = paddle.get_device().partition(':')[0]
    name = paddle.device.cuda.get_device_name() if kind == 'gpu' else npu_name() or kind.upper()
    return {'kind': kind, 'name': name, 'paddle': paddle.__version__, 'cuda': paddle.version.cuda()}


def npu_name() -> str:
    """910B3 or the like, by CANN's tool, where that is."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ['npu-smi', 'info']
        output = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
        if found := re.search(r'\b(910\w*|310\w*)\b', output):
            return f'Ascend {found[1]}'
    return ''


def run_training(arguments: list[str]) -> Answer:
    """A run, from arguments to end. One that fails ends this process, as it would its own."""
    sys.argv = ['train.py', *arguments]
    cli.run(train.main)
    return {'peak_bytes': peak_bytes()}


def peak_bytes() -> Optional[int]:
    """The most that tensors have had of the device; on a cpu, the largest resident set."""
    import paddle

    kind, _, number = paddle.get_device().partition(':')
    if kind == 'cpu':
        return memory_bytes('VmHWM')
    try:
        return int(paddle.device.cuda.max_memory_allocated(int(number)))  # of an npu, too
    except ValueError:  # but not before Paddle 3.1
        return None


def product(size: int, dtype: str) -> Answer:
    """FLOP/s of a large matrix product, in the best of its turns."""
    import paddle

    a, b = (paddle.randn([size, size]).astype(dtype) for _ in range(2))

    def multiply(times: int) -> None:
        for _ in range(times):
            result = paddle.matmul(a, b)
        float(result[0, 0].astype('float32'))  # which waits for the device

    multiply(2)
    times = max(1, round(TURN_S / seconds(lambda: multiply(1))))
    best_s = min(seconds(lambda: multiply(times)) for _ in range(TURNS))
    return {'flops': 2 * size**3 * times / best_s}


def network(model: str, side: int, classes: int) -> Answer:
    return {'multiply_adds': models.multiply_adds(models.build(model, num_classes=classes), side)}


if __name__ == '__main__':
    main()
