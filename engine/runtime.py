"""The machine: device, collectives, seeds.

The only file that knows cpu, gpu and npu apart. A job of one process (engine/job.py) needs no
special case elsewhere: its collectives are the identity.

    environment.prepare_cpu()   before paddle is imported
    start_paddle(...)           device and collectives
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

from engine import job
from engine.errors import EXIT_STOPPED, Stopped, UserError

if TYPE_CHECKING:
    from paddle import Tensor, nn

    from engine.config import Config


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
    if paddle.device.is_compiled_with_cuda() and 'gpu' not in present:
        why += ', though this paddle was built for gpus'
        _load_cudnn_quietly()
    if job.WORLD > 1:
        job.wait_for_all()  # in there, nobody hears that another process has ended
        _start_collectives()
        why += f', {job.WORLD} processes'
    return f'device: {chosen} ({why}), paddle {paddle.__version__}'


def check_support(config: Config) -> list[str]:
    """Lines about what has no effect on the device. UserError for what it cannot do."""
    import paddle

    device = _device_kind()
    if config.train.sync_bn and device != 'gpu':
        raise UserError(
            f'train.sync_bn: Paddle has no SyncBatchNorm kernel for {device}; '
            '-o train.sync_bn=false gives each process batch norms of its own'
        )
    if config.model.data_format == 'NHWC' and device == 'npu':
        raise UserError(
            "model.data_format: NHWC fails in npu's batch norm; -o model.data_format=NCHW"
        )
    if config.train.amp == 'none' or device == 'cpu':  # where engine.cpu_conv sees to it
        return []
    mode = f'{config.train.amp} {config.train.amp_dtype}'
    if device == 'gpu':
        if config.train.amp_dtype == 'bfloat16' and not paddle.amp.is_bfloat16_supported():
            raise UserError('train.amp_dtype: this gpu has no bfloat16; -o train.amp_dtype=float16')
        # Otherwise cuDNN's batch norm turns a 16-bit NHWC tensor about, and back.
        paddle.set_flags({'FLAGS_cudnn_batchnorm_spatial_persistent': 1})
    elif mode != 'O1 float16':  # by the sources of paddle-custom-npu; none of it was run here
        return [
            f'mixed precision: {mode}; on npu, O1 with float16 is the safe choice: bfloat16 lacks '
            'kernels, and Momentum may not use the master weights of O2'
        ]
    return [f'mixed precision: {mode}']


def is_accelerator() -> bool:
    """Whether the device computes by itself, with memory of its own, while the host goes on."""
    return _device_kind() != 'cpu'


def pixel_dtype() -> str:
    """How images are best kept on the device: as bytes, where it can gather bytes.

    paddle-custom-npu has no such kernel, so that Paddle would fetch the whole set to the CPU for
    each batch (by its sources: floats and, of late, whole numbers of 32 and 64 bits).
    """
    return 'float32' if _device_kind() == 'npu' else 'uint8'


def to_device(array: np.ndarray | Tensor) -> Tensor:
    """The array on the device; a tensor is there already.

    A GPU fetches it while the host goes on, from page-locked memory, which Paddle keeps until that
    is done. (Fetching it from anywhere else would wait for all that the GPU still has to do.)
    """
    import paddle

    if isinstance(array, paddle.Tensor):
        return array
    if _device_kind() == 'gpu':
        return paddle.to_tensor(array, place=paddle.CUDAPinnedPlace()).cuda(blocking=False)
    return paddle.to_tensor(array)


def distribute(model: nn.Layer) -> nn.Layer:
    """The model whose backward pass averages the gradients over the processes."""
    if job.WORLD == 1:
        return model
    import paddle

    before_collective()
    return paddle.distributed.fleet.distributed_model(model)


def without_averaging(model: nn.Layer) -> ContextManager[None]:
    """Within, the backward pass of a model from `distribute` only adds to its own gradients."""
    context: ContextManager[None] = model.no_sync() if job.WORLD > 1 else contextlib.nullcontext()
    return context


def sum_over_ranks(array: np.ndarray) -> np.ndarray:
    """Elementwise sum over the processes, float64."""
    if job.WORLD == 1:
        return array
    import paddle

    before_collective()
    wide = array.astype(np.float64)
    # hccl has no float64: there, the float32 next to each number, and what it lacks.
    near = wide.astype(np.float32)
    parts = [near, (wide - near).astype(np.float32)] if _device_kind() == 'npu' else [wide]
    totals = [paddle.to_tensor(part) for part in parts]
    for total in totals:
        paddle.distributed.all_reduce(total)
    return np.asarray(sum(total.numpy().astype(np.float64) for total in totals))


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    if job.WORLD == 1:
        return
    import paddle

    before_collective()
    with paddle.no_grad():
        for tensor in tensors:
            paddle.distributed.all_reduce(tensor)
            tensor.scale_(1.0 / job.WORLD)


def before_collective() -> None:
    """On a CPU, wait for all: gloo gives up after 30 seconds, which a slow disk or a busy machine
    can cost one process. The other collectives are more patient."""
    if job.WORLD > 1 and _device_kind() == 'cpu':
        job.wait_for_all()


def agreeing_is_cheap() -> bool:
    """Whether processes can talk after each step without holding up a device's queue."""
    return job.WORLD == 1 or _device_kind() == 'cpu'


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

    paddle.seed(int(np.random.SeedSequence([seed, step, job.RANK]).generate_state(1)[0]))


def versions() -> dict[str, str]:
    """What a checkpoint says about the software that wrote it."""
    import paddle

    return {
        'python': platform.python_version(),
        'paddle': paddle.__version__,
        'numpy': np.__version__,
    }


def _device_kind() -> str:
    """cpu, gpu or npu."""
    import paddle

    return str(paddle.get_device()).partition(':')[0]


def _start_collectives() -> None:
    import paddle

    connecting_once = contextlib.nullcontext() if is_accelerator() else _one_gloo_group()
    try:
        quiet = contextlib.redirect_stderr(io.StringIO())  # it says much
        with warnings.catch_warnings(), quiet, connecting_once:
            paddle.distributed.fleet.init(is_collective=True, log_level='ERROR')
    except RuntimeError as error:
        if 'gloo' not in str(error):
            raise
        text = (
            'gloo could not connect the processes. On several machines, name the network: export '
            'GLOO_SOCKET_IFNAME=eth0'
        )
        job.leave(EXIT_STOPPED, text)
        raise Stopped(f'{text} ({" ".join(str(error).split())})') from None


@contextlib.contextmanager
def _one_gloo_group() -> Iterator[None]:
    """Within, a new group of all processes is the one that they have already.

    fleet would make a second one. Part of a gloo group connects through addresses that Paddle keeps
    under the same names for every group: a process that reads them before the others have written
    gets those of the first group, where nobody listens any more.
    """
    from paddle import distributed

    new_group = distributed.new_group

    def group(ranks: Optional[list[int]] = None, *arguments: Any, **options: Any) -> Any:
        if ranks is None or len(ranks) == job.WORLD:
            return distributed.get_group(0)
        return new_group(ranks, *arguments, **options)

    distributed.new_group = group
    try:
        yield
    finally:
        distributed.new_group = new_group


def _load_cudnn_quietly() -> None:
    """paddlepaddle-gpu looks for cuDNN at the first convolution, and without a GPU complains at
    length, from C++."""
    import paddle

    sys.stderr.flush()
    standard_error = os.dup(2)
    try:
        with open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        paddle.get_cudnn_version()
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


def _import_quietly() -> Any:
    """Import paddle without warnings that concern nobody here (ccache, OMP_NUM_THREADS, BN)."""
    warnings.filterwarnings('ignore', message='When training, we now always track global mean')
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(said):
        warnings.filterwarnings('ignore', message='No ccache found')
        warnings.filterwarnings('ignore', message='You are using GPU version Paddle')
        import paddle
    signal.signal(signal.SIGTERM, job.on_sigterm)  # Paddle's prints a dump that concerns nobody
    for line in said.getvalue().splitlines():
        if 'OMP_NUM_THREADS' not in line:
            print(line, file=sys.stderr)
    return paddle
