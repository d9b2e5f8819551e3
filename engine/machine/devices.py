"""The machine: device, collectives, seeds.

The only file that knows cpu, gpu and npu apart. A job of one process (see processes.py) needs no
special case elsewhere: its collectives are the identity.

    cpu.prepare_cpu()   before paddle is imported
    start_paddle(...)   device and collectives
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any, ContextManager, Iterable, Iterator, Optional

import numpy as np

from engine.errors import EXIT_STOPPED, Stopped, UserError
from engine.machine import failures, home, processes
from installation import unused_card

if TYPE_CHECKING:
    from paddle import Tensor, nn


def start_paddle(device: str) -> str:
    """Import paddle and choose the device ('auto', 'cpu', 'gpu' or 'npu'); returns why that one.

    Raises UserError when the device is not there, or cannot be used.
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
        nothing = unused_card() or f'no {" and no ".join(missing)} here'
        why = f'auto: {nothing}' if chosen == 'cpu' else _name(chosen)
    elif count[device]:
        why = 'as asked'
    else:
        have = ' and '.join(kind for kind in count if count[kind])
        wheel = 'paddlepaddle-gpu and a driver' if device == 'gpu' else 'paddle-custom-npu'
        why = unused_card() or f'it needs {wheel}'
        raise UserError(f'device: {device} is not here ({have} is); {why}')
    if processes.WORLD > 1 and chosen != 'cpu':
        _take_a_card(chosen, count[chosen])
    paddle.set_device(chosen)
    if chosen == 'gpu':
        _require_working_gpu()
    elif paddle.device.is_compiled_with_cuda() and not count['gpu']:
        why += ', though this paddle was built for gpus'
        _has_cudnn()  # Paddle looks for it once: now, without its complaint
    if processes.WORLD > 1:
        processes.wait_for_all()  # connecting would hang if another process had ended
        _start_collectives(chosen)
        why += f', {processes.WORLD} processes'
    return f'device: {chosen} ({why}), paddle {paddle.__version__}'


def _name(kind: str) -> str:
    """Of this process's card."""
    import paddle

    if kind == 'npu':
        return 'paddle-custom-npu'
    number = int(os.environ.get(f'FLAGS_selected_{kind}s', '0').split(',')[0])
    return str(paddle.device.cuda.get_device_name(number))


def _take_a_card(kind: str, count: int) -> None:
    """The launcher names each process's card, unless it takes the machine for one without cards
    (before Paddle 3.3, where PADDLE_XCCL_BACKEND is not set)."""
    name, number = f'FLAGS_selected_{kind}s', os.environ.get('PADDLE_LOCAL_RANK', '0')
    if name not in os.environ and int(number) >= count:
        raise UserError(
            f'device: {kind}: more processes than cards, of which there are {count}; start one '
            'process for each'
        )
    os.environ.setdefault(name, number)


def _require_working_gpu() -> None:
    """UserError where convolutions or kernels of this paddle do not run on the card."""
    import paddle

    if not _has_cudnn():
        raise UserError(
            'device: gpu: cuDNN cannot be loaded; docs/gpu.md says what paddlepaddle-gpu needs; '
            '-o device=cpu does without it'
        )
    with failures.translated():
        (paddle.ones([2]) + 1).numpy()


def device_kind() -> str:
    """cpu, gpu or npu."""
    import paddle

    return str(paddle.get_device()).partition(':')[0]


def is_accelerator() -> bool:
    """Whether the device has memory of its own, and computes while the host goes on."""
    return device_kind() != 'cpu'


def pixel_dtype() -> str:
    """How images are best kept on the device: as bytes, where it can gather bytes.

    paddle-custom-npu has no such kernel, so that Paddle would fetch the whole set to the CPU for
    each batch (by its sources: floats and, of late, whole numbers of 32 and 64 bits).
    """
    return 'float32' if device_kind() == 'npu' else 'uint8'


def to_device(array: np.ndarray | Tensor) -> Tensor:
    """The array on the device; a tensor is there already.

    A GPU fetches it while the host goes on, from page-locked memory, which Paddle keeps until that
    is done. (Fetching it from anywhere else would wait for all that the GPU still has to do.)
    """
    import paddle

    if isinstance(array, paddle.Tensor):
        return array
    if device_kind() == 'gpu':
        return paddle.to_tensor(array, place=paddle.CUDAPinnedPlace()).cuda(blocking=False)
    return paddle.to_tensor(array)


def distribute(model: nn.Layer) -> nn.Layer:
    """The model whose backward pass averages the gradients over the processes."""
    if processes.WORLD == 1:
        return model
    import paddle

    before_collective()
    return paddle.distributed.fleet.distributed_model(model)


def without_averaging(model: nn.Layer) -> ContextManager[None]:
    """Within, the backward pass of a model from `distribute` only adds to its own gradients."""
    context: ContextManager[None] = (
        model.no_sync() if processes.WORLD > 1 else contextlib.nullcontext()
    )
    return context


def sum_over_ranks(array: np.ndarray) -> np.ndarray:
    """Elementwise sum over the processes, float64."""
    if processes.WORLD == 1:
        return array
    import paddle

    before_collective()
    wide = array.astype(np.float64)
    # hccl has no float64: there, the float32 next to each number, and what it lacks.
    near = wide.astype(np.float32)
    parts = [near, (wide - near).astype(np.float32)] if device_kind() == 'npu' else [wide]
    totals = [paddle.to_tensor(part) for part in parts]
    for total in totals:
        paddle.distributed.all_reduce(total)
    return np.asarray(sum(total.numpy().astype(np.float64) for total in totals))


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give each tensor the value that it has in process 0."""
    if processes.WORLD == 1:
        return
    import paddle

    before_collective()
    for tensor in tensors:
        paddle.distributed.broadcast(tensor, src=0)


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    if processes.WORLD == 1:
        return
    import paddle

    before_collective()
    with paddle.no_grad():
        for tensor in tensors:
            paddle.distributed.all_reduce(tensor)
            tensor.scale_(1.0 / processes.WORLD)


_met = False  # whether there was a collective before


def before_collective() -> None:
    """Wait for all processes where the backend would give up: gloo after 30 seconds, which a slow
    disk or a busy machine can cost, hccl after 120 in the first collective, which connects all.
    nccl waits without a limit."""
    global _met
    kind = device_kind()
    if processes.WORLD > 1 and (kind == 'cpu' or (kind == 'npu' and not _met)):
        processes.wait_for_all()
        _met = True


def agreeing_is_cheap() -> bool:
    """Whether processes can talk after each step without holding up a device's queue."""
    return processes.WORLD == 1 or device_kind() == 'cpu'


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

    paddle.seed(int(np.random.SeedSequence([seed, step, processes.RANK]).generate_state(1)[0]))


def versions() -> dict[str, str]:
    """What a checkpoint says about the software that wrote it."""
    import paddle

    return {
        'python': platform.python_version(),
        'paddle': paddle.__version__,
        'numpy': np.__version__,
    }


# fleet sets the device once more, by its backend.
BACKENDS = {'cpu': 'gloo', 'gpu': 'nccl', 'npu': 'xccl'}


def _start_collectives(kind: str) -> None:
    import paddle

    os.environ['PADDLE_DISTRI_BACKEND'] = BACKENDS[kind]
    if kind == 'npu':
        os.environ['PADDLE_XCCL_BACKEND'] = kind
    connecting_once = _one_gloo_group() if kind == 'cpu' else contextlib.nullcontext()
    try:
        quiet = contextlib.redirect_stderr(io.StringIO())  # it prints its settings
        with warnings.catch_warnings(), quiet, connecting_once:
            paddle.distributed.fleet.init(is_collective=True, log_level='ERROR')
    except RuntimeError as error:
        if 'gloo' not in str(error):
            raise
        text = (
            'gloo could not connect the processes. On several machines, name the network: export '
            'GLOO_SOCKET_IFNAME=eth0'
        )
        processes.leave(EXIT_STOPPED, text)
        raise Stopped(f'{text} ({" ".join(str(error).split())})') from None
    if device_kind() != kind:
        raise UserError(
            f'device: {kind} was chosen, and paddle.distributed has taken {device_kind()}; start '
            f'one process, or take -o device={device_kind()}'
        )


@contextlib.contextmanager
def _one_gloo_group() -> Iterator[None]:
    """Within, a new group of all processes is the one that they have already.

    fleet would make a second one. Part of a gloo group connects through addresses that Paddle keeps
    under the same names for every group: a process that reads them before the others have written
    gets those of the first group, which are closed.
    """
    from paddle import distributed

    new_group = distributed.new_group

    def group(ranks: Optional[list[int]] = None, *arguments: Any, **options: Any) -> Any:
        if ranks is None or len(ranks) == processes.WORLD:
            return distributed.get_group(0)
        return new_group(ranks, *arguments, **options)

    distributed.new_group = group
    try:
        yield
    finally:
        distributed.new_group = new_group


def _has_cudnn() -> bool:
    """Without what paddlepaddle-gpu prints from C++ where it cannot be loaded."""
    import paddle

    sys.stderr.flush()
    standard_error = os.dup(2)
    try:
        with open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        version = paddle.get_cudnn_version()
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
    return version is not None and version > 0  # None the first time, then -1


def _import_quietly() -> Any:
    """Import paddle without warnings that do not apply here (ccache, OMP_NUM_THREADS, BN)."""
    warnings.filterwarnings('ignore', message='When training, we now always track global mean')
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(said):
        warnings.filterwarnings('ignore', message='No ccache found')
        warnings.filterwarnings('ignore', message='You are using GPU version Paddle')
        try:
            with home.elsewhere():
                import paddle
        except ImportError as error:  # of the system's libraries, or NumPy
            problem = str(error).strip().splitlines()[0]
            raise UserError(f'{sys.executable} cannot import its Paddle: {problem}') from None
    home.keep_to_static_out()
    signal.signal(signal.SIGTERM, processes.on_sigterm)  # Paddle's prints a stack
    for line in said.getvalue().splitlines():
        if 'OMP_NUM_THREADS' not in line:
            print(line, file=sys.stderr)
    return paddle
