"""The layers that replace Paddle's and the papers' in training, with their backward passes."""

from __future__ import annotations

from typing import Any, Optional

import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from engine.cpu_conv import kernels, onednn
from resnext import NormReLU

COLOURS = 4  # channels of images: the inputs of the first convolution are never rounded


def accelerate(model: nn.Layer, dtype: str = 'float32') -> nn.Layer:
    """Let oneDNN compute the convolutions and batch norms of a network of data_format NHWC.

    With bfloat16, training rounds the inputs of all convolutions but the first to it and sums in
    float32; everything else, and evaluation, is in float32. Double gradients and retain_graph are
    not supported, and paddle.grad must ask for the gradients of all weights.
    """
    for layer in model.sublayers(include_self=True):
        if type(layer) is nn.Conv2D and _is_plain(layer):
            layer.__class__ = _Conv2D
            of_colours = layer._in_channels <= COLOURS
            layer.trains_in = onednn.FLOAT32 if of_colours else onednn.DTYPES[dtype]
        elif type(layer) is nn.BatchNorm2D and _has_all(layer):
            layer.__class__ = _BatchNorm2D
        elif type(layer) is NormReLU:
            layer.__class__ = _NormReLU
    return model


def computed_by(model: nn.Layer) -> str:
    """What computes the convolutions of a network in training, and in which precision."""
    ours = [layer for layer in model.sublayers() if isinstance(layer, _Conv2D)]
    rounds = any(layer.trains_in == onednn.BFLOAT16 for layer in ours)
    return f'oneDNN in {"bfloat16" if rounds else "float32"}' if ours else 'Paddle'


class _Conv2D(nn.Conv2D):
    trains_in: int

    def forward(self, x: Tensor) -> Tensor:
        if not _is_float32_of(self._in_channels, x, self.weight):
            return super().forward(x)
        dtype = self.trains_in if self.training else onednn.FLOAT32
        padding = self._padding, self._padding
        return _Convolve.apply(x, self.weight, _pair(self._stride), padding, self._groups, dtype)


class _BatchNorm2D(nn.BatchNorm2D):
    """Uses oneDNN in training; Paddle computes with running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.can_normalise(x):
            return super().forward(x)
        return _Normalise.apply(x, self.weight, self.bias, self, False)

    def can_normalise(self, x: Tensor) -> bool:
        by_batch = self.training and not self._use_global_stats
        ours = _is_float32_of(self._num_features, x, self.weight, self.bias)
        return by_batch and ours and x.size > self._num_features


class _NormReLU(NormReLU):
    """Batch norm and ReLU in one pass over memory, unless the batch norm has hooks to call."""

    def forward(self, norm: nn.Layer, x: Tensor) -> Tensor:
        hooks = norm._forward_pre_hooks or norm._forward_post_hooks
        if not isinstance(norm, _BatchNorm2D) or hooks or not norm.can_normalise(x):
            return super().forward(norm, x)
        return _Normalise.apply(x, norm.weight, norm.bias, norm, True)


def _is_float32_of(channels: int, images: Tensor, *weights: Tensor) -> bool:
    """Paddle's own layer takes anything else, or raises its error."""
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
        ctx.needed = _trained(images, weight)
        images, weight = _rounded(images.contiguous(), dtype), weight.contiguous()
        kernel = kernels.convolution(
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
        if ctx.needed[0]:
            of_images = paddle.empty_like(images, 'float32')
            ctx.kernel.backward_images(*_addresses(weight, gradient, of_images))
        if ctx.needed[1]:
            of_weight = paddle.empty_like(weight)
            ctx.kernel.backward_filters(*_addresses(images, gradient, of_weight))
        return of_images, of_weight


class _Normalise(PyLayer):
    """[N, H, W, C] -> [N, H, W, C], by the statistics of the batch, which the layer records."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, scale: Tensor, shift: Tensor, layer: Any, relu: bool
    ) -> Tensor:
        ctx.needed = _trained(images, scale, shift)
        images = images.contiguous()
        kernel = kernels.batch_norm(_nchw(images), layer._epsilon, relu)
        result, mean, variance = map(paddle.empty_like, (images, scale, scale))
        # Which values the ReLU lets pass, for the backward kernel.
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
        return tuple(result if needed else None for result, needed in zip(results, ctx.needed))


def _take_saved(ctx: Any) -> tuple[Tensor, ...]:
    """What was saved for the backward pass. Paddle would keep all of it until the whole pass is
    done; here it is freed as soon as it is used."""
    saved = ctx.saved_tensor()
    if saved is None:
        raise RuntimeError('oneDNN allows one backward pass after a forward pass: no retain_graph')
    ctx.container = None
    return tuple(saved)


def _trained(*inputs: Tensor) -> list[bool]:
    """Which of the inputs need a gradient: for the others, Paddle requires None."""
    return [not tensor.stop_gradient for tensor in inputs]


def _rounded(tensor: Tensor, dtype: int) -> Tensor:
    """float32 as it is, or rounded to bfloat16."""
    if dtype == onednn.FLOAT32:
        return tensor
    result = paddle.empty_like(tensor, 'bfloat16')
    kernels.rounding(tensor.size)(*_addresses(tensor, result))
    return result


def _is_plain(layer: nn.Conv2D) -> bool:
    """Whether it is a convolution as our networks have them."""
    return (
        layer._data_format == 'NHWC'
        and layer._padding_mode == 'zeros'
        and isinstance(layer._padding, int)
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
