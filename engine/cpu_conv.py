"""Convolutions and batch norms of a network in training on a CPU: by oneDNN, or Paddle's own.

    reason = unavailable()    # None where oneDNN can be called and gives right results
    accelerate(model)         # of data_format NHWC; same weights, same results to rounding

The rest of the network (pooling, sums, dropout, the last layer) stays Paddle's. A network that is
saved knows nothing of this.
"""

from __future__ import annotations

import functools
from typing import Any, Optional

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from engine import onednn, runtime
from engine.config import Config
from engine.errors import UserError

CHECK_LIMIT = 1e-4  # of the self-check, relative: rounding gives about 1e-6


def choose(config: Config) -> tuple[bool, str]:
    """Whether oneDNN is to compute, as train.cpu_conv has it, and one line about that ('' where the
    device is no CPU). UserError where it is asked for and cannot be had."""
    wanted = config.train.cpu_conv
    if runtime.is_accelerator():
        return False, ''
    if wanted == 'paddle':
        return False, "convolutions: Paddle's own (as asked)"
    reason = unavailable()
    if reason is None and config.train.to_static:
        reason = 'train.to_static compiles the network'
    if reason is None:
        return True, f'convolutions: oneDNN {onednn.library().version} ({wanted})'
    if wanted == 'onednn':
        raise UserError(f'train.cpu_conv: onednn cannot be had: {reason}; auto takes what there is')
    return False, f"convolutions: Paddle's own ({reason})"


def accelerate(model: nn.Layer) -> nn.Layer:
    """Let oneDNN compute the convolutions and batch norms of a network of data_format NHWC."""
    for layer in model.sublayers(include_self=True):
        if type(layer) is nn.Conv2D and _is_plain(layer):
            layer.__class__ = _Conv2D
        elif type(layer) is nn.BatchNorm2D and layer._data_format == 'NHWC':
            layer.__class__ = _BatchNorm2D
    return model


@functools.cache
def unavailable() -> Optional[str]:
    """Why oneDNN cannot be used here: it is not there, of another version, or computes wrongly."""
    try:
        onednn.library()
        error = max(_error_of_convolution(1), _error_of_convolution(2), _error_of_batch_norm())
    except RuntimeError as problem:
        return str(problem)
    return None if error < CHECK_LIMIT else f'oneDNN is off by {error:.1e} in a self-check'


class _Conv2D(nn.Conv2D):
    """Has no double gradient."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != paddle.float32:
            return super().forward(x)
        stride, padding = _pair(self._stride), _pair(self._padding)
        return _Convolve.apply(x, self.weight, stride, padding, self._groups)


class _BatchNorm2D(nn.BatchNorm2D):
    """In training; where running statistics are used, Paddle computes."""

    def forward(self, x: Tensor) -> Tensor:
        return self._normalise(x, relu=False)

    def with_relu(self, x: Tensor) -> Tensor:
        """Both in one pass over memory (resnext.norm_relu calls this)."""
        return self._normalise(x, relu=True)

    def _normalise(self, x: Tensor, *, relu: bool) -> Tensor:
        if not self.training or self._use_global_stats or x.dtype != paddle.float32:
            result = super().forward(x)
            return F.relu(result) if relu else result
        return _Normalise.apply(x, self.weight, self.bias, self, relu)


class _Convolve(PyLayer):
    """[N, H, W, in] -> [N, H, W, out]"""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int,
    ) -> Tensor:
        images, weight = images.contiguous(), weight.contiguous()
        kernel = onednn.convolution(_nchw(images), tuple(weight.shape), stride, padding, groups)
        batch, channels, height, width = kernel.result
        result = paddle.empty([batch, height, width, channels])
        kernel.forward(*_addresses(images, weight, result))
        ctx.save_for_backward(images, weight)
        ctx.kernel, ctx.of_images = kernel, not images.stop_gradient
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Optional[Tensor], Tensor]:
        gradient = gradient.contiguous()
        images, weight = ctx.saved_tensor()
        of_images = None
        if ctx.of_images:
            of_images = paddle.empty_like(images)
            ctx.kernel.backward_images(*_addresses(weight, gradient, of_images))
        of_weight = paddle.empty_like(weight)
        ctx.kernel.backward_filters(*_addresses(images, gradient, of_weight))
        return of_images, of_weight


class _Normalise(PyLayer):
    """[N, H, W, C] -> [N, H, W, C], by the statistics of the batch, which the layer records."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, scale: Tensor, shift: Tensor, layer: Any, relu: bool
    ) -> Tensor:
        images = images.contiguous()
        kernel = onednn.batch_norm(_nchw(images), layer._epsilon, relu)
        result, mean, variance = map(paddle.empty_like, (images, scale, scale))
        # Which values the ReLU lets pass: what the kernel says to itself.
        ctx.marks = [paddle.empty([kernel.marks_size], 'uint8')] if relu else []
        kernel.forward(*_addresses(images, scale, shift, result, mean, variance, *ctx.marks))
        for running, new in ((layer._mean, mean), (layer._variance, variance)):
            running.scale_(layer._momentum)
            running.add_(new * (1 - layer._momentum))
        ctx.save_for_backward(images, scale, mean, variance)
        ctx.kernel = kernel
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        gradient = gradient.contiguous()
        images, scale, mean, variance = ctx.saved_tensor()
        wanted = tuple(map(paddle.empty_like, (images, scale, scale)))
        given = images, gradient, scale, mean, variance, *ctx.marks
        ctx.kernel.backward(*_addresses(*given, *wanted))
        return wanted


def _is_plain(layer: nn.Conv2D) -> bool:
    """What this project's networks have."""
    padding = layer._padding
    return (
        layer._data_format == 'NHWC'
        and layer._padding_mode == 'zeros'
        and not isinstance(padding, str)
        and len(set(_pair(padding))) == 1
        and _pair(layer._dilation) == (1, 1)
        and layer.bias is None
    )


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, (list, tuple)) else (value, value)
    return int(first), int(second)


def _nchw(images: Tensor) -> onednn.Shape:
    batch, height, width, channels = images.shape
    return batch, channels, height, width


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _error_of_convolution(groups: int) -> float:
    settings = {'stride': 2, 'padding': 1, 'groups': groups, 'bias_attr': False}
    return _error(nn.Conv2D(16, 32, 3, data_format='NHWC', **settings))


def _error_of_batch_norm() -> float:
    return _error(nn.BatchNorm2D(16, data_format='NHWC'))


def _error(layer: nn.Layer) -> float:
    """The largest difference to Paddle's own, in the result and the gradients, relative."""
    shape = [2, 9, 9, 16]
    x = paddle.to_tensor(np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape))
    x.stop_gradient = False
    own = _results(layer, x)
    return max(
        float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        for ours, theirs in zip(_results(accelerate(layer), x), own)
    )


def _results(layer: nn.Layer, x: Tensor) -> list[np.ndarray]:
    """The output, and the gradients of its weighted sum."""
    output = layer(x)
    weights = paddle.linspace(-1.0, 1.0, output.size).reshape(output.shape)
    gradients = paddle.grad((output * weights).sum(), [x, *layer.parameters()[:2]])
    return [output.numpy(), *(gradient.numpy() for gradient in gradients)]
