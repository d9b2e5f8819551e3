"""The device that computes: its kind, arrays on it, seeds, versions.

start.py chooses it, and support.py has what each kind supports. All other code asks `device_kind`.
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
    """Whether the device has its own memory and computes while the host continues."""
    return device_kind() != 'cpu'


def pixel_dtype() -> str:
    """The type of images that stay on the device: uint8, if it can gather bytes.

    paddle-custom-npu has no such kernel (its sources have floats and integers of 32 and 64 bits):
    Paddle would copy the whole set to the CPU for each batch.
    """
    return 'float32' if device_kind() == 'npu' else 'uint8'


def to_device(array: np.ndarray | Tensor) -> Tensor:
    """The array on the device; a tensor is there already.

    A GPU copies it from page-locked memory while the host continues; from other memory, the copy
    would wait for all queued work of the GPU.
    """
    import paddle

    if isinstance(array, paddle.Tensor):
        return array
    if device_kind() == 'gpu':
        return paddle.to_tensor(array, place=paddle.CUDAPinnedPlace()).cuda(blocking=False)
    return paddle.to_tensor(array)


def seed_weights(seed: int) -> None:
    """Seed the generator of the initial weights."""
    import paddle

    paddle.seed(seed)


def seed_step(seed: int, step: int) -> None:
    """Make the device's random numbers (dropout) a function of seed, step and rank alone.

    A resumed run then draws the same numbers as an uninterrupted one, and no generator's state
    needs saving. Costs about 20 microseconds.
    """
    import paddle

    paddle.seed(int(np.random.SeedSequence([seed, step, processes.RANK]).generate_state(1)[0]))


def versions() -> dict[str, str]:
    """Of the software that writes a checkpoint."""
    import paddle

    return {
        'python': platform.python_version(),
        'paddle': paddle.__version__,
        'numpy': np.__version__,
    }
