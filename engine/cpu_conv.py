"""Convolutions and batch norms of a network in training on a CPU: by oneDNN, or Paddle's own.

    reason = unavailable()    # None where oneDNN can be called and gives right results
    accelerate(model, dtype)  # of data_format NHWC; same weights, same results to rounding (but
                              # dropout, which draws in the layout of what it drops)

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
from resnext import norm_relu

COLOURS = 4  # channels of images: the first convolution's factors are never rounded
CHECK_LIMIT = 1e-4  # of the self-check, relative: rounding gives about 1e-6


def choose(config: Config) -> tuple[Optional[str], list[str]]:
    """What oneDNN is to compute in, 'float32' or 'bfloat16', or None if Paddle computes; and what
    there is to say about that on a CPU. UserError where it is asked for and cannot be had."""
    if runtime.is_accelerator():
        return None, []
    train = config.train
    reason = 'as asked' if train.cpu_conv == 'paddle' else unavailable()
    if reason is None and train.to_static:
        reason = 'train.to_static compiles the network'
    if reason is not None and train.cpu_conv == 'onednn':
        raise UserError(f'train.cpu_conv: onednn cannot be had: {reason}; auto takes what there is')
    lacks = _lack_of_bfloat16(config) if reason is None else 'on a cpu, only oneDNN has it'
    off = [f'mixed precision: off: {lacks}'] if train.amp != 'none' and lacks is not None else []
    if reason is not None:
        return None, [f"convolutions: Paddle's own ({reason})", *off]
    dtype = 'float32' if train.amp == 'none' or off else 'bfloat16'
    version = onednn.library().version
    return dtype, [f'convolutions: oneDNN {version} in {dtype} ({train.cpu_conv})', *off]


def _lack_of_bfloat16(config: Config) -> Optional[str]:
    if config.train.amp_dtype != 'bfloat16':
        return 'on a cpu, it needs train.amp_dtype: bfloat16'
    if not onednn.library().has_bfloat16:
        return 'this cpu has no bfloat16'
    return unavailable('bfloat16')


def accelerate(model: nn.Layer, dtype: str = 'float32') -> nn.Layer:
    """Let oneDNN compute the convolutions and batch norms of a network of data_format NHWC.

    With bfloat16, training rounds the factors of a convolution's products to it, but for the first
    convolution's, and sums in float32; everything else, and evaluation, is in float32. There is no
    double gradient, no retain_graph, and paddle.grad must ask for the gradients of all weights.
    """
    for layer in model.sublayers(include_self=True):
        if type(layer) is nn.Conv2D and _is_plain(layer):
            layer.__class__ = _Conv2D
            of_colours = layer._in_channels <= COLOURS
            layer.trains_in = onednn.FLOAT32 if of_colours else onednn.DTYPES[dtype]
        elif type(layer) is nn.BatchNorm2D and _has_all(layer):
            layer.__class__ = _BatchNorm2D
    return model


def computed_by(model: nn.Layer) -> str:
    """Who computes the convolutions of a network in training, and in what."""
    ours = [layer for layer in model.sublayers() if isinstance(layer, _Conv2D)]
    rounds = any(layer.trains_in == onednn.BFLOAT16 for layer in ours)
    return f'oneDNN in {"bfloat16" if rounds else "float32"}' if ours else 'Paddle'


@functools.cache
def unavailable(dtype: str = 'float32') -> Optional[str]:
    """Why oneDNN cannot be used here: it is not there, of another version, or computes wrongly."""
    try:
        onednn.library()
        errors = [_error_of_convolution(groups, dtype) for groups in (1, 2)]
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


class _Conv2D(nn.Conv2D):
    trains_in: int

    def forward(self, x: Tensor) -> Tensor:
        stride, padding = _pair(self._stride), _pair(self._padding)
        reaches = [
            side + 2 * pad >= kernel
            for side, pad, kernel in zip(x.shape[1:3], padding, self.weight.shape[2:])
        ]
        if not _is_float32_of(self._in_channels, x, self.weight) or not all(reaches):
            return super().forward(x)
        dtype = self.trains_in if self.training else onednn.FLOAT32
        return _Convolve.apply(x, self.weight, stride, padding, self._groups, dtype)


class _BatchNorm2D(nn.BatchNorm2D):
    """In training; where running statistics are used, Paddle computes."""

    def forward(self, x: Tensor) -> Tensor:
        return self._normalise(x, relu=False)

    def with_relu(self, x: Tensor) -> Tensor:
        """Both in one pass over memory (resnext.norm_relu calls this)."""
        return self._normalise(x, relu=True)

    def _normalise(self, x: Tensor, *, relu: bool) -> Tensor:
        by_batch = self.training and not self._use_global_stats
        ours = _is_float32_of(self._num_features, x, self.weight, self.bias)
        if not by_batch or not ours or x.size <= self._num_features:
            result = super().forward(x)
            return F.relu(result) if relu else result
        return _Normalise.apply(x, self.weight, self.bias, self, relu)


def _is_float32_of(channels: int, images: Tensor, *weights: Tensor) -> bool:
    """Of anything else, Paddle's own layer knows what to do, or what to say."""
    right = images.ndim == 4 and images.shape[-1] == channels and images.place.is_cpu_place()
    return right and all(tensor.dtype == paddle.float32 for tensor in (images, *weights))


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
        dtype: int,
    ) -> Tensor:
        ctx.wanted = _trained(images, weight)
        images, weight = _rounded(images.contiguous(), dtype), weight.contiguous()
        kernel = onednn.convolution(
            _nchw(images), tuple(weight.shape), stride, padding, groups, dtype
        )
        batch, channels, height, width = kernel.result
        result = paddle.empty([batch, height, width, channels])
        kernel.forward(*_addresses(images, weight, result))
        ctx.save_for_backward(images, weight)
        ctx.kernel = kernel
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Optional[Tensor], ...]:
        gradient = _rounded(gradient.contiguous(), ctx.kernel.dtype)
        images, weight = _take_saved(ctx)
        of_images = of_weight = None
        if ctx.wanted[0]:
            of_images = paddle.empty_like(images, 'float32')
            ctx.kernel.backward_images(*_addresses(weight, gradient, of_images))
        if ctx.wanted[1]:
            of_weight = paddle.empty_like(weight)
            ctx.kernel.backward_filters(*_addresses(images, gradient, of_weight))
        return of_images, of_weight


class _Normalise(PyLayer):
    """[N, H, W, C] -> [N, H, W, C], by the statistics of the batch, which the layer records."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, scale: Tensor, shift: Tensor, layer: Any, relu: bool
    ) -> Tensor:
        ctx.wanted = _trained(images, scale, shift)
        images = images.contiguous()
        kernel = onednn.batch_norm(_nchw(images), layer._epsilon, relu)
        result, mean, variance = map(paddle.empty_like, (images, scale, scale))
        # Which values the ReLU lets pass: what the kernel says to itself.
        marks = [paddle.empty([kernel.marks_size], 'uint8')] if relu else []
        kernel.forward(*_addresses(images, scale, shift, result, mean, variance, *marks))
        for running, new in ((layer._mean, mean), (layer._variance, variance)):
            running.scale_(layer._momentum)
            running.add_(new * (1 - layer._momentum))
        ctx.save_for_backward(images, scale, mean, variance, *marks)
        ctx.kernel = kernel
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Optional[Tensor], ...]:
        gradient = gradient.contiguous()
        images, *statistics = _take_saved(ctx)
        scale = statistics[0]
        results = tuple(map(paddle.empty_like, (images, scale, scale)))
        given = images, gradient, *statistics
        ctx.kernel.backward(*_addresses(*given, *results))
        return tuple(result if wanted else None for result, wanted in zip(results, ctx.wanted))


def _take_saved(ctx: Any) -> tuple[Tensor, ...]:
    """What was saved for the backward pass, freed as soon as it is used; else Paddle would keep all
    of it until the whole pass is done."""
    saved = ctx.saved_tensor()
    if saved is None:
        raise RuntimeError('oneDNN has one backward pass for a forward pass (no retain_graph)')
    ctx.container = None
    return tuple(saved)


def _trained(*inputs: Tensor) -> list[bool]:
    """Which of the inputs have a gradient: for the others, Paddle insists on None."""
    return [not tensor.stop_gradient for tensor in inputs]


def _rounded(tensor: Tensor, dtype: int) -> Tensor:
    """float32 as it is, or rounded to bfloat16."""
    if dtype == onednn.FLOAT32:
        return tensor
    result = paddle.empty_like(tensor, 'bfloat16')
    onednn.rounding(tensor.size)(*_addresses(tensor, result))
    return result


def _is_plain(layer: nn.Conv2D) -> bool:
    """What this project's networks have."""
    padding = layer._padding
    same = isinstance(padding, int) or (
        isinstance(padding, (list, tuple)) and len(padding) == 2 and padding[0] == padding[1]
    )
    return (
        layer._data_format == 'NHWC'
        and layer._padding_mode == 'zeros'
        and same
        and isinstance(padding if isinstance(padding, int) else padding[0], int)
        and _pair(layer._dilation) == (1, 1)
        and layer.bias is None
    )


def _has_all(layer: nn.BatchNorm2D) -> bool:
    with_both = layer.weight is not None and layer.bias is not None
    return with_both and layer._data_format == 'NHWC'


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, (list, tuple)) else (value, value)
    return int(first), int(second)


def _nchw(images: Tensor) -> onednn.Shape:
    batch, height, width, channels = images.shape
    return batch, channels, height, width


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _error_of_convolution(groups: int, dtype: str) -> float:
    weight = nn.initializer.Assign(_waves(32, 16 // groups, 3, 3))  # which draws no random numbers
    settings = {'stride': 2, 'padding': 1, 'groups': groups, 'bias_attr': False}
    layer = nn.Conv2D(16, 32, 3, data_format='NHWC', weight_attr=weight, **settings)
    return _error(layer, dtype=dtype)


def _error_of_batch_norm(relu: bool) -> float:
    return _error(nn.BatchNorm2D(16, data_format='NHWC'), relu=relu)


def _waves(*shape: int, pace: float = 1.0) -> np.ndarray:
    """Of numbers that bfloat16 has: what it makes of them must be as right as in float32."""
    waves = np.sin(pace * np.arange(np.prod(shape))).reshape(shape)
    return np.asarray(np.round(64 * waves) / 64, np.float32)


def _error(layer: nn.Layer, *, dtype: str = 'float32', relu: bool = False) -> float:
    """The largest difference to Paddle's own, in the result and the gradients, relative."""
    x = paddle.to_tensor(_waves(2, 9, 9, 16), stop_gradient=False)
    own = _results(layer, x, relu)
    both = zip(_results(accelerate(layer, dtype), x, relu), own)
    return float(
        np.max([np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in both])
    )


def _results(layer: nn.Layer, x: Tensor, relu: bool) -> list[np.ndarray]:
    """The output, and the gradients of its weighted sum."""
    output = norm_relu(layer, x) if relu else layer(x)
    weights = paddle.to_tensor(_waves(*output.shape, pace=0.7))
    gradients = paddle.grad((output * weights).sum(), [x, *layer.parameters()[:2]])
    return [output.numpy(), *(gradient.numpy() for gradient in gradients)]
