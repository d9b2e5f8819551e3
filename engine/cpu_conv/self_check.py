"""Whether oneDNN can be called here, and computes what Paddle's own kernels compute."""

from __future__ import annotations

import functools
from typing import Optional

import numpy as np
import paddle
from paddle import Tensor, nn

from engine.cpu_conv import onednn
from engine.cpu_conv.layers import accelerate
from resnext import NormReLU

LIMIT = 1e-4  # of the relative error: rounding gives about 1e-6
# Side of the filters, channels, groups, stride: for each kind of convolution in our networks, which
# oneDNN may compute in different ways. The first has the colours of an image.
CONVOLUTIONS = (3, 3, 1, 1), (1, 16, 1, 1), (3, 16, 1, 2), (3, 32, 8, 1)


@functools.cache
def unavailable(dtype: str = 'float32') -> Optional[str]:
    """Why oneDNN cannot be used here (no library, another version, wrong results), else None."""
    try:
        onednn.library()
        errors = [_error_of_convolution(*sizes, dtype) for sizes in CONVOLUTIONS]
        if dtype == 'float32':  # as all batch norms
            errors += [
                _error(nn.BatchNorm2D(16, data_format='NHWC'), relu=r) for r in (None, NormReLU())
            ]
    except onednn.Unavailable as problem:
        return str(problem)
    except Exception as problem:  # in a backward pass, Paddle makes it an OSError of many lines
        lines = [line.strip() for line in str(problem).splitlines() if 'dnnl' in line]
        return f'oneDNN fails in a self-check: {(lines or [type(problem).__name__])[-1]}'
    error = float(np.max(errors))  # NaN if one is
    return None if error < LIMIT else f'oneDNN is off by {error:.1e} in a self-check in {dtype}'


def _error_of_convolution(side: int, inputs: int, groups: int, stride: int, dtype: str) -> float:
    weight = nn.initializer.Assign(_waves(32, inputs // groups, side, side))
    settings = {'stride': stride, 'padding': side // 2, 'groups': groups, 'bias_attr': False}
    layer = nn.Conv2D(inputs, 32, side, data_format='NHWC', weight_attr=weight, **settings)
    return _error(layer, channels=inputs, dtype=dtype)


def _error(
    layer: nn.Layer,
    *,
    channels: int = 16,
    dtype: str = 'float32',
    relu: Optional[NormReLU] = None,
) -> float:
    """The largest difference to Paddle's own, in the result and the gradients, relative."""
    own = _results(layer, channels, relu)
    accelerate(nn.LayerList([layer, *([relu] if relu else [])]), dtype)
    both = zip(_results(layer, channels, relu), own)
    return float(
        np.max([np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in both])
    )


def _results(layer: nn.Layer, channels: int, relu: Optional[NormReLU]) -> list[np.ndarray]:
    """The output, and the gradients of its weighted sum."""
    x = paddle.to_tensor(_waves(2, 9, 9, channels), stop_gradient=False)
    output: Tensor = relu(layer, x) if relu else layer(x)
    weights = paddle.to_tensor(_waves(*output.shape, pace=0.7))
    gradients = paddle.grad((output * weights).sum(), [x, *layer.parameters()[:2]])
    return [output.numpy(), *(gradient.numpy() for gradient in gradients)]


def _waves(*shape: int, pace: float = 1.0) -> np.ndarray:
    """Numbers that bfloat16 holds exactly, so that its results must be right to float32."""
    waves = np.sin(pace * np.arange(np.prod(shape))).reshape(shape)
    return np.asarray(np.round(64 * waves) / 64, np.float32)
