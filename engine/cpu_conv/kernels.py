"""Convolution, batch norm and rounding by oneDNN.

Images are N, H, W, C in memory. Their dimensions are given to oneDNN as N, C, H, W; the strides say
how they lie in memory.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_void_p
from dataclasses import dataclass
from typing import Optional, Sequence

from engine.cpu_conv.onednn import (
    BFLOAT16,
    DIFF,
    DIFF_SCALE,
    DIFF_SHIFT,
    DST,
    FLOAT32,
    MEAN,
    QUERY_WORKSPACE,
    SCALE,
    SHIFT,
    SRC,
    VARIANCE,
    WEIGHTS,
    WORKSPACE,
    Primitive,
    Shape,
    dims,
    library,
)

# Values of dnnl_types.h.
FORWARD_TRAINING, BACKWARD = 64, 128
CONVOLUTION_DIRECT = 1
USE_SCALE, USE_SHIFT, FUSE_RELU = 2, 4, 8
NO_BIAS = None


def _nhwc(shape: Shape, dtype: int = FLOAT32) -> c_void_p:
    return library().layout(shape, 'acdb', dtype)


@dataclass(frozen=True)
class Convolution:
    """The primitives of a convolution without bias.

    Args:
        images: N, C, H, W of the input.
        filters: of the weights, [out, in / groups, height, width] in this memory order.
        dtype: FLOAT32 or BFLOAT16, of the images and of the gradient of the result. Everything else
            is float32: weights, sums, the result, and the gradients of images and weights.
    """

    images: Shape
    filters: Shape
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int = 1
    dtype: int = FLOAT32

    @property
    def result(self) -> Shape:
        """N, C, H, W of the output."""
        sides = zip(self.images[2:], self.filters[2:], self.stride, self.padding)
        return (
            self.images[0],
            self.filters[0],
            *((side + 2 * pad - kernel) // stride + 1 for side, kernel, stride, pad in sides),
        )

    @functools.cached_property
    def forward(self) -> Primitive:
        """images, filters -> result"""
        return Primitive(
            self._forward_description,
            {SRC: _nhwc(self.images, self.dtype), WEIGHTS: self._filters},
            {DST: _nhwc(self.result)},
        )

    @functools.cached_property
    def backward_images(self) -> Primitive:
        """filters, gradient of the result -> gradient of the images"""
        return Primitive(
            self._describe(
                'backward_data',
                _nhwc(self.images),
                self._any_filters(self.dtype),
                _nhwc(self.result, self.dtype),
                hint=self._forward_description,
            ),
            {WEIGHTS: self._filters, DST + DIFF: _nhwc(self.result, self.dtype)},
            {SRC + DIFF: _nhwc(self.images)},
        )

    @functools.cached_property
    def backward_filters(self) -> Primitive:
        """images, gradient of the result -> gradient of the filters"""
        images, result = _nhwc(self.images, self.dtype), _nhwc(self.result, self.dtype)
        return Primitive(
            self._describe(
                'backward_weights',
                *(images, self._any_filters(FLOAT32), NO_BIAS, result),
                hint=self._forward_description,
            ),
            {SRC: images, DST + DIFF: result},
            {WEIGHTS + DIFF: self._filters},
        )

    @functools.cached_property
    def _forward_description(self) -> c_void_p:
        images, filters = _nhwc(self.images, self.dtype), self._any_filters(self.dtype)
        return self._describe(
            'forward', images, filters, NO_BIAS, _nhwc(self.result), first=[FORWARD_TRAINING]
        )

    def _describe(
        self,
        kind: str,
        *layouts: Optional[c_void_p],
        first: Sequence[int] = (),
        hint: Optional[c_void_p] = None,
    ) -> c_void_p:
        padding = dims(self.padding)
        return library().make(
            f'convolution_{kind}_primitive_desc_create',
            library().engine,
            *first,
            CONVOLUTION_DIRECT,
            *layouts,
            *(dims(self.stride), dims((0, 0)), padding, padding),
            *([] if hint is None else [hint]),
            library().attributes,
        )

    @property
    def _shape(self) -> Shape:
        """Of the filters, as oneDNN expects it."""
        out, *rest = self.filters
        return (self.groups, out // self.groups, *rest) if self.groups > 1 else self.filters

    @property
    def _filters(self) -> c_void_p:
        return library().layout(self._shape, 'abcde'[: len(self._shape)])

    def _any_filters(self, dtype: int) -> c_void_p:
        return library().layout(self._shape, dtype=dtype)


@dataclass(frozen=True)
class BatchNorm:
    """The primitives of a batch norm with scale and shift, optionally followed by a ReLU.

    `images` is N, C, H, W.
    """

    images: Shape
    epsilon: float
    relu: bool = False

    @functools.cached_property
    def forward(self) -> Primitive:
        """images, scale, shift -> result, mean, variance (biased), and the marks of the ReLU"""
        inputs = {SRC: self._layout, SCALE: self._channels, SHIFT: self._channels}
        outputs = {DST: self._layout, MEAN: self._channels, VARIANCE: self._channels}
        return Primitive(self._forward_description, inputs, {**outputs, **self._marks})

    @functools.cached_property
    def backward(self) -> Primitive:
        """images, gradient of the result, scale, mean, variance (and marks) -> gradients of the
        images, of scale and of shift"""
        description = self._describe('backward', BACKWARD, 3, self._forward_description)
        images, channels = self._layout, self._channels
        inputs = {SRC: images, DST + DIFF: images, SCALE: channels, MEAN: channels}
        outputs = {SRC + DIFF: images, DIFF_SCALE: channels, DIFF_SHIFT: channels}
        return Primitive(description, {**inputs, VARIANCE: channels, **self._marks}, outputs)

    @property
    def marks_size(self) -> int:
        """Bytes of the marks."""
        return sum(library().size(layout) for layout in self._marks.values())

    @functools.cached_property
    def _forward_description(self) -> c_void_p:
        return self._describe('forward', FORWARD_TRAINING, 2)

    def _describe(self, kind: str, propagation: int, tensors: int, *hint: c_void_p) -> c_void_p:
        """Prefer the implementation whose threads don't wait for each other in a busy loop, which
        is twenty times as slow if another program uses one of the cores."""

        def describe() -> c_void_p:
            return library().make(
                f'batch_normalization_{kind}_primitive_desc_create',
                library().engine,
                propagation,
                *[self._layout] * tensors,
                ctypes.c_float(self.epsilon),
                self._flags,
                *hint,
                library().attributes,
            )

        description = describe()
        while 'tbb' not in library().implementation(description):
            if not library().has_next_implementation(description):
                return describe()
        return description

    @property
    def _flags(self) -> int:
        return USE_SCALE | USE_SHIFT | (FUSE_RELU if self.relu else 0)

    @functools.cached_property
    def _marks(self) -> dict[int, c_void_p]:
        """Which results the ReLU has let pass."""
        if not self.relu:
            return {}
        return {WORKSPACE: library().chosen_layout(self._forward_description, QUERY_WORKSPACE)}

    @functools.cached_property
    def _layout(self) -> c_void_p:
        return _nhwc(self.images)

    @functools.cached_property
    def _channels(self) -> c_void_p:
        return library().layout(self.images[1:2], 'a')


def _rounding(size: int) -> Primitive:
    """`size` numbers of float32 -> bfloat16"""
    source, target = (library().layout((size,), 'a', dtype) for dtype in (FLOAT32, BFLOAT16))
    return Primitive(library().conversion(source, target), {SRC: source}, {DST: target})


# Creating a primitive compiles it, once for each shape: a few milliseconds, 0.3 MB.
convolution = functools.cache(Convolution)
batch_norm = functools.cache(BatchNorm)
rounding = functools.cache(_rounding)
