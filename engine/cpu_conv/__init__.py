"""Training on a CPU with the kernels of oneDNN, which Paddle's wheel carries but does not use.

    dtype, lines = choose(config.train)    # None where Paddle's own kernels compute
    accelerate(model, dtype)               # a model of data_format NHWC; the weights stay

Replaced, in training: nn.Conv2D without bias, nn.BatchNorm2D, and the papers' NormReLU, which is
then one kernel with its batch norm (layers.py; the kernels are in kernels.py). Results are equal
to rounding, except that dropout draws in the layout of what it drops. Paddle computes everything
else (pooling, sums, dropout, the last layer), other kinds of these layers (bias, dilation, NCHW,
SyncBatchNorm), and a network that is compiled (train.to_static) or on another device. oneDNN is
used only after a self-check (self_check.py). No compiler is needed, and a saved model knows
nothing of it.
"""

from __future__ import annotations

from typing import Optional

from engine.config import Train
from engine.cpu_conv import onednn
from engine.cpu_conv.layers import accelerate, computed_by
from engine.cpu_conv.self_check import unavailable
from engine.errors import UserError
from engine.machine import devices

__all__ = ['accelerate', 'choose', 'computed_by', 'unavailable']


def choose(train: Train) -> tuple[Optional[str], list[str]]:
    """The precision of oneDNN, 'float32' or 'bfloat16', or None if Paddle computes; and log lines.

    Both are empty on an accelerator. UserError if oneDNN is requested and not available.
    """
    if devices.is_accelerator():
        return None, []
    reason = 'as requested' if train.cpu_conv == 'paddle' else unavailable()
    if reason is None and train.to_static:
        reason = 'train.to_static compiles the network'
    if reason is not None and train.cpu_conv == 'onednn':
        advice = '-o train.cpu_conv=auto'
        raise UserError(f'train.cpu_conv: onednn is not available: {reason}; {advice}')
    float32 = _why_not_bfloat16(train) if reason is None else 'on a cpu, only oneDNN has it'
    mixed = train.amp != 'none'
    off = [f'mixed precision: off: {float32}'] if mixed and float32 is not None else []
    if reason is not None:
        return None, [f"convolutions: Paddle's own ({reason})", *off]
    dtype = 'bfloat16' if mixed and not off else 'float32'
    version = onednn.library().version
    return dtype, [f'convolutions: oneDNN {version} in {dtype} ({train.cpu_conv})', *off]


def _why_not_bfloat16(train: Train) -> Optional[str]:
    if train.amp_dtype == 'float16':
        return 'on a cpu, it needs train.amp_dtype: bfloat16'
    if not onednn.library().has_bfloat16:
        return 'this cpu has no bfloat16'
    return unavailable('bfloat16')
