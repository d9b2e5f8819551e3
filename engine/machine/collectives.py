"""Sums, averages and broadcasts of tensors over the processes of a job.

In a job of one process they return what they are given.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from typing import TYPE_CHECKING, Any, ContextManager, Iterable, Iterator, Optional

import numpy as np

from engine.errors import EXIT_STOPPED, Stopped, UserError
from engine.machine import devices, processes

if TYPE_CHECKING:
    from paddle import Tensor, nn

# fleet sets the device again, according to the backend.
BACKENDS = {'cpu': 'gloo', 'gpu': 'nccl', 'npu': 'xccl'}


def start(kind: str) -> None:
    """Connect the processes for collectives on this kind of device. Raises Stopped."""
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
        processes.announce_exit(EXIT_STOPPED, text)
        raise Stopped(f'{text} ({" ".join(str(error).split())})') from None
    actual = devices.device_kind()
    if actual != kind:
        raise UserError(
            f'device: {kind} was chosen, and paddle.distributed has taken {actual}; start '
            f'one process, or take -o device={actual}'
        )


@contextlib.contextmanager
def _one_gloo_group() -> Iterator[None]:
    """Within, a new group of all processes is the existing one.

    fleet would make a second one. Gloo groups connect through addresses that Paddle stores under
    the same names for every group: a process that reads them before the others have written gets
    those of the first group, which are closed.
    """
    from paddle import distributed

    new_group = distributed.new_group

    def group(ranks: Optional[list[int]] = None, *arguments: Any, **options: Any) -> Any:
        if ranks is None or len(ranks) == processes.WORLD_SIZE:
            return distributed.get_group(0)
        return new_group(ranks, *arguments, **options)

    distributed.new_group = group
    try:
        yield
    finally:
        distributed.new_group = new_group


def distribute(model: nn.Layer) -> nn.Layer:
    """The model whose backward pass averages the gradients over the processes."""
    if processes.WORLD_SIZE == 1:
        return model
    import paddle

    barrier_before_collective()
    return paddle.distributed.fleet.distributed_model(model)


def without_averaging(model: nn.Layer) -> ContextManager[None]:
    """Within, the backward pass of a model from `distribute` only adds to its own gradients."""
    context: ContextManager[None] = (
        model.no_sync() if processes.WORLD_SIZE > 1 else contextlib.nullcontext()
    )
    return context


def sum_over_ranks(array: np.ndarray) -> np.ndarray:
    """Elementwise sum over the processes, float64."""
    if processes.WORLD_SIZE == 1:
        return array
    import paddle

    barrier_before_collective()
    wide = array.astype(np.float64)
    # hccl has no float64: sum the nearest float32 of each number, and the remainder.
    near = wide.astype(np.float32)
    parts = [near, (wide - near).astype(np.float32)] if devices.device_kind() == 'npu' else [wide]
    totals = [paddle.to_tensor(part) for part in parts]
    for total in totals:
        paddle.distributed.all_reduce(total)
    return np.asarray(sum(total.numpy().astype(np.float64) for total in totals))


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give each tensor the value that it has in process 0."""
    if processes.WORLD_SIZE == 1:
        return
    import paddle

    barrier_before_collective()
    for tensor in tensors:
        paddle.distributed.broadcast(tensor, src=0)


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    if processes.WORLD_SIZE == 1:
        return
    import paddle

    barrier_before_collective()
    with paddle.no_grad():
        for tensor in tensors:
            paddle.distributed.all_reduce(tensor)
            tensor.scale_(1.0 / processes.WORLD_SIZE)


_connected = False  # by an earlier collective


def barrier_before_collective() -> None:
    """Wait for all processes if the backend has a time limit.

    gloo gives up after 30 seconds, which a slow disk or a busy machine can cost; hccl after 120 in
    the first collective, which connects all; nccl waits without a limit.
    """
    global _connected
    kind = devices.device_kind()
    if processes.WORLD_SIZE > 1 and (kind == 'cpu' or (kind == 'npu' and not _connected)):
        processes.barrier()
        _connected = True


def agreeing_is_cheap() -> bool:
    """Whether processes can agree after each step without a stall of the device's queue."""
    return processes.WORLD_SIZE == 1 or devices.device_kind() == 'cpu'
