"""Convolutions and batch norms of a network in training on a CPU: by oneDNN, or Paddle's own.

    reason = unavailable()    # None where oneDNN can be called and gives right results
    accelerate(model, dtype)  # of data_format NHWC; same weights, same results to rounding (but
                              # dropout, which draws in the layout of what it drops)

Paddle's own CPU kernels unfold each image and multiply matrices; its wheel carries oneDNN, whose
kernels are several times as fast, but in training nothing calls them. No compiler is needed here.
The rest of the network (pooling, sums, dropout, the last layer) stays Paddle's. A network that is
saved knows nothing of this.
"""

from __future__ import annotations

import functools
from typing import Optional

import numpy as np
import paddle
from paddle import Tensor, nn

from engine.config import Config
from engine.cpu_conv import onednn
from engine.cpu_conv.layers import accelerate, computed_by
from engine.errors import UserError
from engine.machine import devices
from resnext import norm_relu

__all__ = ['accelerate', 'choose', 'computed_by', 'unavailable']

CHECK_LIMIT = 1e-4  # of the self-check, relative: rounding gives about 1e-6
# Side of the filters, channels, groups, stride: for each kind of convolution in our networks, which
# oneDNN may compute in different ways. The first has the colours of an image.
CHECKED = (3, 3, 1, 1), (1, 16, 1, 1), (3, 16, 1, 2), (3, 32, 8, 1)


def choose(config: Config) -> tuple[Optional[str], list[str]]:
    """The precision of oneDNN, 'float32' or 'bfloat16', or None if Paddle computes; and, on a CPU,
    lines about it. UserError where oneDNN is asked for and not available."""
    if devices.is_accelerator():
        return None, []
    train = config.train
    reason = 'as asked' if train.cpu_conv == 'paddle' else unavailable()
    if reason is None and train.to_static:
        reason = 'train.to_static compiles the network'
    if reason is not None and train.cpu_conv == 'onednn':
        advice = '-o train.cpu_conv=auto'
        raise UserError(f'train.cpu_conv: onednn is not available: {reason}; {advice}')
    lacks = _lack_of_bfloat16(config) if reason is None else 'on a cpu, only oneDNN has it'
    off = [f'mixed precision: off: {lacks}'] if train.amp != 'none' and lacks is not None else []
    if reason is not None:
        return None, [f"convolutions: Paddle's own ({reason})", *off]
    dtype = 'float32' if train.amp == 'none' or off else 'bfloat16'
    version = onednn.library().version
    return dtype, [f'convolutions: oneDNN {version} in {dtype} ({train.cpu_conv})', *off]


def _lack_of_bfloat16(config: Config) -> Optional[str]:
    if config.train.amp_dtype == 'float16':
        return 'on a cpu, it needs train.amp_dtype: bfloat16'
    if not onednn.library().has_bfloat16:
        return 'this cpu has no bfloat16'
    return unavailable('bfloat16')


@functools.cache
def unavailable(dtype: str = 'float32') -> Optional[str]:
    """Why oneDNN cannot be used here: it is not there, of another version, or computes wrongly."""
    try:
        onednn.library()
        errors = [_error_of_convolution(*sizes, dtype) for sizes in CHECKED]
        if dtype == 'float32':  # as all batch norms
            errors += [_error_of_batch_norm(relu) for relu in (False, True)]
    except onednn.Unavailable as problem:
        return str(problem)
    except Exception as problem:  # of a backward pass, Paddle makes an OSError with many lines
        lines = [line.strip() for line in str(problem).splitlines() if 'dnnl' in line]
        return f'oneDNN fails in a self-check: {(lines or [type(problem).__name__])[-1]}'
    error = float(np.max(errors))
    right = error < CHECK_LIMIT
    return None if right else f'oneDNN is off by {error:.1e} in a self-check in {dtype}'


def _error_of_convolution(side: int, inputs: int, groups: int, stride: int, dtype: str) -> float:
    weight = nn.initializer.Assign(_waves(32, inputs // groups, side, side, dtype=dtype))
    settings = {'stride': stride, 'padding': side // 2, 'groups': groups, 'bias_attr': False}
    layer = nn.Conv2D(inputs, 32, side, data_format='NHWC', weight_attr=weight, **settings)
    return _error(layer, inputs, dtype=dtype)


def _error_of_batch_norm(relu: bool) -> float:
    return _error(nn.BatchNorm2D(16, data_format='NHWC'), 16, relu=relu)


def _waves(*shape: int, pace: float = 1.0, dtype: str = 'float32') -> np.ndarray:
    """For bfloat16, numbers that it can hold, so that results must be right to float32."""
    waves = np.sin(pace * np.arange(np.prod(shape))).reshape(shape)
    return np.asarray(np.round(64 * waves) / 64 if dtype == 'bfloat16' else waves, np.float32)


def _error(layer: nn.Layer, channels: int, *, dtype: str = 'float32', relu: bool = False) -> float:
    """The largest difference to Paddle's own, in the result and the gradients, relative."""
    x = paddle.to_tensor(_waves(2, 9, 9, channels, dtype=dtype), stop_gradient=False)
    own = _results(layer, x, relu, dtype)
    both = zip(_results(accelerate(layer, dtype), x, relu, dtype), own)
    return float(
        np.max([np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in both])
    )


def _results(layer: nn.Layer, x: Tensor, relu: bool, dtype: str) -> list[np.ndarray]:
    """The output, and the gradients of its weighted sum."""
    output = norm_relu(layer, x) if relu else layer(x)
    weights = paddle.to_tensor(_waves(*output.shape, pace=0.7, dtype=dtype))
    gradients = paddle.grad((output * weights).sum(), [x, *layer.parameters()[:2]])
    return [output.numpy(), *(gradient.numpy() for gradient in gradients)]
