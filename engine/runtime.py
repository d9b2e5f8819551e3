"""The machine: CPU settings, device, processes, seeds.

The only file that knows cpu, gpu and npu apart, and the only one that talks between processes. A
world of one process needs no special case elsewhere: every function here is then the identity.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable

import numpy as np

from engine.errors import UserError

if TYPE_CHECKING:
    from paddle import Tensor, nn

# What paddle.distributed.launch tells each process.
RANK = int(os.environ.get('PADDLE_TRAINER_ID', '0'))
WORLD = int(os.environ.get('PADDLE_TRAINERS_NUM', '1'))


def prepare_cpu() -> str:
    """Set what Paddle's CPU kernels need, before paddle is imported; returns one line about it.

    The wheel's MKL takes a slow path on AMD unless told otherwise, and Paddle uses one thread
    unless told otherwise: together a factor of 3 to 5 in training. What the user has set stays.
    """
    assert 'paddle' not in sys.modules, 'too late: these variables are read when paddle is imported'
    threads = cores_per_process()
    wanted = {'OMP_NUM_THREADS': (str(threads), 'the cores of this process')}
    if threads > 1:  # by default they spin for 200 ms, which slows the serial half of a convolution
        wanted['KMP_BLOCKTIME'] = ('1', 'idle threads sleep')
    if _is_amd():
        wanted['MKL_DEBUG_CPU_TYPE'] = ('5', 'fast kernels on AMD')
    told = []
    for name, (value, reason) in wanted.items():
        if name in os.environ:
            reason = 'your setting'
        told.append(f'{name}={os.environ.setdefault(name, value)} ({reason})')
    return 'CPU: ' + ', '.join(told)


def cores_per_process() -> int:
    """The cores that this process may use, when all processes of this machine share them."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(1, cores // int(os.environ.get('PADDLE_LOCAL_SIZE', WORLD)))


def start_paddle(device: str) -> str:
    """Import paddle and choose the device ('auto', 'cpu', 'gpu' or 'npu'); returns why that one.

    Raises UserError when the device is not there.
    """
    paddle = _import_quietly()
    present = {'cpu': 'always there'}
    if paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0:
        present['gpu'] = paddle.device.cuda.get_device_name()
    if 'npu' in paddle.device.get_all_custom_device_type():
        present['npu'] = 'paddle-custom-npu'
    chosen = device
    if device == 'auto':
        chosen = next(kind for kind in ('gpu', 'npu', 'cpu') if kind in present)
        missing = [kind for kind in ('gpu', 'npu') if kind not in present]
        why = present[chosen] if chosen != 'cpu' else f'auto: no {" and no ".join(missing)} here'
    elif device in present:
        why = 'as asked'
    else:
        have = ' and '.join(present)
        wheel = 'paddlepaddle-gpu and a driver' if device == 'gpu' else 'paddle-custom-npu'
        raise UserError(f'device: {device} is not here ({have} is); it needs {wheel}')
    paddle.set_device(chosen)
    if WORLD > 1:
        paddle.distributed.fleet.init(is_collective=True)
        why += f', {WORLD} processes'
    return f'device: {chosen} ({why}), paddle {paddle.__version__}'


def distribute(model: nn.Layer) -> nn.Layer:
    """The model whose backward pass averages the gradients over the processes."""
    import paddle

    return paddle.distributed.fleet.distributed_model(model) if WORLD > 1 else model


def sum_over_ranks(array: np.ndarray) -> np.ndarray:
    """Elementwise sum over the processes, float64."""
    if WORLD == 1:
        return array
    import paddle

    total = paddle.to_tensor(array.astype(np.float64))
    paddle.distributed.all_reduce(total)
    return np.asarray(total.numpy())


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    if WORLD == 1:
        return
    import paddle

    with paddle.no_grad():
        for tensor in tensors:
            paddle.distributed.all_reduce(tensor)
            tensor.scale_(1.0 / WORLD)


def agreeing_is_cheap() -> bool:
    """Whether processes can talk after each step without holding up a device's queue."""
    import paddle

    return WORLD == 1 or paddle.get_device() == 'cpu'


def seed_everything(seed: int) -> None:
    """Seed what draws the initial weights."""
    import paddle

    paddle.seed(seed)


def seed_step(seed: int, step: int) -> None:
    """Make the device's random numbers (dropout) a function of seed, step and rank alone.

    A run that is resumed at a step then draws what the uninterrupted run drew, and no generator's
    state needs saving. Costs about 20 microseconds.
    """
    import paddle

    paddle.seed(int(np.random.SeedSequence([seed, step, RANK]).generate_state(1)[0]))


def versions() -> dict[str, str]:
    """What a checkpoint says about the software that wrote it."""
    import paddle

    return {
        'python': platform.python_version(),
        'paddle': paddle.__version__,
        'numpy': np.__version__,
    }


def _is_amd() -> bool:
    cpuinfo = Path('/proc/cpuinfo')
    return cpuinfo.exists() and 'AuthenticAMD' in cpuinfo.read_text(errors='replace')


def _import_quietly() -> Any:
    """Import paddle without warnings that concern nobody here (ccache, OMP_NUM_THREADS, BN)."""
    warnings.filterwarnings('ignore', message='When training, we now always track global mean')
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(said):
        warnings.filterwarnings('ignore', message='No ccache found')
        import paddle
    for line in said.getvalue().splitlines():
        if 'OMP_NUM_THREADS' not in line:
            print(line, file=sys.stderr)
    return paddle
