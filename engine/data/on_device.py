"""Batches of a set in memory that lives on the device and is augmented there.

The host draws what ArrayBatches draws, from the same generators; a few integers an image go up, in
one copy for many batches. The images are those of ArrayBatches, to the rounding of float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any, Iterator, Optional, Union

import numpy as np
import paddle

from engine.data.augmentation import (
    Mix,
    averaging,
    draw_crops,
    draw_mix,
    draw_squares,
    pad,
    scale_and_shift,
)
from engine.data.batches import Batch, Batches, Images
from engine.machine import devices

TOGETHER = 32  # batches that are drawn, and whose integers go up, at once

# The integers of an image: the place of its first pixel in the flat set, and the step from there
# along a line (-1: mirrored); its label; the corner of its cutout; its partner in the batch.
FIRST, STEP, LABEL, TOP, LEFT, PARTNER, PARTNER_LABEL = range(7)


@dataclass(frozen=True)
class _Drawn:
    """What the host knows of a batch."""

    rows: np.ndarray  # int64 [B]
    integers: np.ndarray  # int [7, B], as above; zeros where something is off
    mix: Optional[Mix]


class Normaliser:
    """(x - mean) / std on the device, with mean and std in 0-255, one value a channel."""

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        self._scale, self._shift = map(devices.to_device, scale_and_shift(mean, std))

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, C, H, W] -> the same"""
        return images * self._scale + self._shift

    def upload(self, pixels: np.ndarray) -> paddle.Tensor:
        """uint8 [N, C, H, W] of the host, a quarter of the bytes -> float32 on the device"""
        with paddle.no_grad(), paddle.amp.auto_cast(enable=False):
            return self(devices.to_device(pixels).astype('float32'))


class DeviceBatches(Batches):
    """As ArrayBatches, with all but the draws done on the device, without waiting for it."""

    images: Images

    def __init__(self, images: Images, **options: Any) -> None:
        super().__init__(images, **options)
        assert not self.augmentation.image_by_image, 'that is the work of ArrayBatches'
        padding, mode = self.augmentation.crop_padding, self.augmentation.padding_mode
        padded = pad(images.pixels, padding, mode, self.mean)
        _, channels, self._height, self._width = images.pixels.shape
        self._dtype = np.int32 if padded.size < 2**31 else np.int64
        # From an image, a channel, and a line to the next one in the flat set.
        self._image, plane, self._line = (int(np.prod(padded.shape[axis:])) for axis in (1, 2, 3))
        starts = np.add.outer(plane * np.arange(channels), self._line * np.arange(self._height))
        self._starts = self._integers(starts[..., None])  # of an image's lines, [C, H, 1]
        self._y = self._integers(np.arange(self._height)[:, None])  # [H, 1]
        self._x = self._integers(np.arange(self._width))  # [W]
        flat = padded.reshape(-1).astype(devices.pixel_dtype(), copy=False)
        self._pixels = devices.to_device(flat)
        self._averaging: dict[int, list[paddle.Tensor]] = {}  # of the sides so far, the matrices
        self._normaliser = Normaliser(self.mean, self.std)

    def __iter__(self) -> Iterator[Batch]:
        remaining = (self._draw(rows, rng) for rows, rng in self.remaining())
        while several := list(islice(remaining, TOGETHER)):
            integers = self._integers(np.concatenate([drawn.integers for drawn in several], axis=1))
            start = 0
            for drawn in several:
                end = start + len(drawn.rows)
                yield self._batch(drawn, integers[:, start:end]) if end > start else self._none()
                start = end

    def _integers(self, array: np.ndarray) -> paddle.Tensor:
        return devices.to_device(array.astype(self._dtype))

    def _draw(self, rows: np.ndarray, rng: np.random.Generator) -> _Drawn:
        augmentation, count, labels = self.augmentation, len(rows), self.images.labels[rows]
        padding, flip, cutout = augmentation.crop_padding, augmentation.flip, augmentation.cutout
        tops, lefts, mirrored = draw_crops(count, padding=padding, flip=flip, rng=rng)
        integers = np.zeros((7, count), np.int64)
        integers[FIRST] = rows * self._image + tops * self._line + lefts
        integers[FIRST] += mirrored * (self._width - 1)
        integers[STEP] = 1 - 2 * mirrored
        integers[LABEL] = labels
        size = self._height, self._width
        if cutout:
            integers[TOP], integers[LEFT] = draw_squares(count, *size, size=cutout, rng=rng)
        mix = draw_mix(count, *size, augmentation, rng)
        if mix is not None:
            integers[PARTNER], integers[PARTNER_LABEL] = mix.partners, labels[mix.partners]
        return _Drawn(rows, integers, mix)

    def _batch(self, drawn: _Drawn, integers: paddle.Tensor) -> Batch:
        """The batch that was drawn; `integers` are its own, on the device."""
        # Where an evaluation runs in 16 bits, the network's input still comes in 32.
        with paddle.no_grad(), paddle.amp.auto_cast(enable=False):
            images = self._crop(_per_image(integers[FIRST]), _per_image(integers[STEP]))
            images = self._normaliser(images)
            if self.augmentation.cutout:
                top, left = _per_image(integers[TOP]), _per_image(integers[LEFT])
                size = self.augmentation.cutout
                images = images * (1.0 - self._inside(top, top + size, left, left + size))
            if drawn.mix is not None:
                images = self._mix(images, integers[PARTNER], drawn.mix)
            images = self._shrink(images, self.augmentation.side(self.epoch))
            labels, partners, share = integers[LABEL].astype('int64'), None, 1.0
            if drawn.mix is not None and drawn.mix.share < 1.0:
                partners, share = integers[PARTNER_LABEL].astype('int64'), drawn.mix.share
        return Batch(images, labels, drawn.rows, partners, share)

    def _none(self) -> Batch:
        """What an evaluation has for a process where images are fewer than these."""
        nothing = np.zeros(0, np.int64)
        return Batch(np.zeros((0, 3, self._height, self._width), np.float32), nothing, nothing)

    def _crop(self, first: paddle.Tensor, step: paddle.Tensor) -> paddle.Tensor:
        """float32 [B, C, H, W]: the lines that begin there, of pixels at that step."""
        places = first + self._starts + step * self._x
        pixels = paddle.gather(self._pixels, places.reshape([-1]))
        return pixels.reshape(places.shape).astype('float32')

    def _inside(
        self,
        top: Union[int, paddle.Tensor],
        bottom: Union[int, paddle.Tensor],
        left: Union[int, paddle.Tensor],
        right: Union[int, paddle.Tensor],
    ) -> paddle.Tensor:
        """float32, to be broadcast with a batch: 1 inside the box (or each image's own), else 0."""
        across = paddle.logical_and(self._y >= top, self._y < bottom)
        along = paddle.logical_and(self._x >= left, self._x < right)
        return paddle.logical_and(across, along).astype('float32')

    def _mix(self, images: paddle.Tensor, partners: paddle.Tensor, mix: Mix) -> paddle.Tensor:
        kept = mix.share if mix.box is None else 1.0 - self._inside(*mix.box)
        return images * kept + paddle.gather(images, partners) * (1.0 - kept)

    def _shrink(self, images: paddle.Tensor, side: Optional[int]) -> paddle.Tensor:
        if side is None or side == self._height == self._width:
            return images
        if side not in self._averaging:
            sizes = self._height, self._width
            self._averaging[side] = [devices.to_device(averaging(size, side)) for size in sizes]
        down, across = self._averaging[side]
        return paddle.matmul(paddle.matmul(down, images), across, transpose_y=True)


def _per_image(integers: paddle.Tensor) -> paddle.Tensor:
    """[B] -> [B, 1, 1, 1]"""
    return integers.reshape([-1, 1, 1, 1])
