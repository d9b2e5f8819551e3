"""The device that computes: its kind, arrays on it, seeds, versions.

Only this file, start.py and collectives.py distinguish cpu, gpu and npu.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import numpy as np

from engine.machine import processes

if TYPE_CHECKING:
    from paddle import Tensor


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
