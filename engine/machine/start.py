"""Import paddle, choose the device and connect the processes' collectives.

cpu.prepare_cpu()       before paddle is imported
start_paddle('auto')
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Any

from engine.errors import UserError
from engine.machine import collectives, failures, home, processes
from installation import unused_card
from predictor.paddle_engine import quiet
from predictor.paddle_import import without_thread_warning


def start_paddle(device: str) -> str:
    """Import paddle and choose the device ('auto', 'cpu', 'gpu' or 'npu').

    Returns a line for the log with the device and the reason. UserError if it is not available or
    cannot be used.
    """
    paddle = _import_quietly()
    count = {'cpu': 1, 'gpu': 0}
    if paddle.device.is_compiled_with_cuda():
        count['gpu'] = paddle.device.cuda.device_count()
    cards = paddle.device.get_available_custom_device()
    count['npu'] = sum(card.partition(':')[0] == 'npu' for card in cards)
    chosen = device
    if device == 'auto':
        chosen = next(kind for kind in ('gpu', 'npu', 'cpu') if count[kind])
        missing = [kind for kind in ('gpu', 'npu') if not count[kind]]
        unavailable = unused_card() or f'no {" and no ".join(missing)} available'
        why = f'auto: {unavailable}' if chosen == 'cpu' else _name(chosen)
    elif count[device]:
        why = 'as requested'
    else:
        have = ' and '.join(kind for kind in count if count[kind])
        wheel = 'paddlepaddle-gpu and a driver' if device == 'gpu' else 'paddle-custom-npu'
        why = unused_card() or f'it needs {wheel}'
        raise UserError(f'device: {device} is not available ({have} is); {why}')
    if processes.WORLD_SIZE > 1 and chosen != 'cpu':
        _take_a_card(chosen, count[chosen])
    paddle.set_device(chosen)
    if chosen == 'gpu':
        _require_working_gpu()
    elif paddle.device.is_compiled_with_cuda() and not count['gpu']:
        why += ', though this paddle was built for gpus'
        _has_cudnn()  # Paddle looks for it once: now, without its complaint
    if processes.WORLD_SIZE > 1:
        processes.barrier()  # connecting would hang if another process had ended
        collectives.start(chosen)
        why += f', {processes.WORLD_SIZE} processes'
    return f'device: {chosen} ({why}), paddle {paddle.__version__}'


def _name(kind: str) -> str:
    """The name of this process's card."""
    import paddle

    if kind == 'npu':
        return 'paddle-custom-npu'
    number = int(os.environ.get(f'FLAGS_selected_{kind}s', '0').split(',')[0])
    return str(paddle.device.cuda.get_device_name(number))


def _take_a_card(kind: str, count: int) -> None:
    """Set this process's card, where the launcher has not: before Paddle 3.3, without
    PADDLE_XCCL_BACKEND, it finds no npu."""
    name, number = f'FLAGS_selected_{kind}s', os.environ.get('PADDLE_LOCAL_RANK', '0')
    if name not in os.environ and int(number) >= count:
        raise UserError(
            f'device: {kind}: more processes than cards ({count}); start one process for each'
        )
    os.environ.setdefault(name, number)


def _require_working_gpu() -> None:
    """UserError if convolutions or kernels of this paddle do not run on the card."""
    import paddle

    if not _has_cudnn():
        raise UserError(
            'device: gpu: cuDNN cannot be loaded; docs/gpu.md says what paddlepaddle-gpu needs; '
            '-o device=cpu works without it'
        )
    with failures.translated():
        (paddle.ones([2]) + 1).numpy()


def _has_cudnn() -> bool:
    """Whether cuDNN loads, without the lines that paddlepaddle-gpu prints from C++ if not."""
    import paddle

    with quiet(2):
        version = paddle.get_cudnn_version()
    return version is not None and version > 0  # None the first time, then -1


def _import_quietly() -> Any:
    """Import paddle without warnings that do not apply here (ccache, OMP_NUM_THREADS, BN)."""
    warnings.filterwarnings('ignore', message='When training, we now always track global mean')
    with warnings.catch_warnings(), without_thread_warning():
        warnings.filterwarnings('ignore', message='No ccache found')
        warnings.filterwarnings('ignore', message='You are using GPU version Paddle')
        try:
            with home.elsewhere():
                import paddle
        except ImportError as error:  # of the system's libraries, or NumPy
            problem = str(error).strip().splitlines()[0]
            raise UserError(f'{sys.executable} cannot import its Paddle: {problem}') from None
    home.keep_to_static_out()
    signal.signal(signal.SIGTERM, processes.handle_sigterm)  # Paddle's prints a stack
    return paddle
