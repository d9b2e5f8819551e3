"""Batches of a set in memory that lives on the device and is augmented there.

The host draws what ArrayBatches draws, from the same generators; a few integers an image are
uploaded, in one copy for many batches. The images are those of ArrayBatches, to the rounding of
float32.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Iterator, NamedTuple, Optional, Union

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
from engine.data.batches import Batch, Batches, BatchOptions
from engine.data.dataset import Images
from engine.machine import devices

BATCHES_PER_UPLOAD = 32


class ImageDraws(NamedTuple):
    """The integers of each image of a batch: arrays [B], or the same as tensors on the device."""

    first: Any  # the place of its first pixel in the flat set
    step: Any  # from pixel to pixel along a line; -1: mirrored
    label: Any
    top: Any = 0  # the corner of its cutout
    left: Any = 0
    partner: Any = 0  # the place in the batch of the image that is mixed in
    partner_label: Any = 0


class Drawn(NamedTuple):
    """What the host draws for a batch."""

    rows: np.ndarray  # int64 [B]
    integers: np.ndarray  # int64 [7, B], the rows of ImageDraws
    mix: Optional[Mix]


class Normaliser:
    """(x - mean) / std on the device, with mean and std in 0-255, one value a channel."""

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        self._scale, self._shift = map(devices.to_device, scale_and_shift(mean, std))

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, C, H, W] -> the same"""
        return images * self._scale + self._shift

    def upload(self, pixels: np.ndarray) -> paddle.Tensor:
        """uint8 [N, C, H, W] on the host -> float32 on the device, with a quarter of the bytes"""
        with paddle.no_grad(), paddle.amp.auto_cast(enable=False):
            return self(devices.to_device(pixels).astype('float32'))


class DeviceBatches(Batches):
    """As ArrayBatches, but only random numbers are drawn on the host, which never waits."""

    images: Images

    def __init__(self, images: Images, options: BatchOptions) -> None:
        super().__init__(images, options)
        self._augmentation = options.augmentation
        assert not self._augmentation.image_by_image, 'that is the work of ArrayBatches'
        padding, mode = self._augmentation.crop_padding, self._augmentation.padding_mode
        padded = pad(images.pixels, padding, mode, options.mean)
        _, channels, self._height, self._width = images.pixels.shape
        self._dtype = np.int32 if padded.size < 2**31 else np.int64
        # Distances in the flat set from an image, a channel and a line to the next.
        self._image, plane, self._line = (int(np.prod(padded.shape[axis:])) for axis in (1, 2, 3))
        starts = np.add.outer(plane * np.arange(channels), self._line * np.arange(self._height))
        self._starts = self._integers(starts[..., None])  # of the lines of an image, [C, H, 1]
        self._y = self._integers(np.arange(self._height)[:, None])  # [H, 1]
        self._x = self._integers(np.arange(self._width))  # [W]
        flat = padded.reshape(-1).astype(devices.pixel_dtype(), copy=False)
        self._pixels = devices.to_device(flat)
        self._averaging: dict[int, list[paddle.Tensor]] = {}  # side -> matrices
        self._normaliser = Normaliser(options.mean, options.std)

    def __iter__(self) -> Iterator[Batch]:
        draws = (self._draw(rows, rng) for rows, rng in self.remaining())
        while several := list(islice(draws, BATCHES_PER_UPLOAD)):
            integers = self._integers(np.concatenate([drawn.integers for drawn in several], axis=1))
            start = 0
            for drawn in several:
                end = start + len(drawn.rows)
                yield self._batch(drawn, integers[:, start:end]) if end > start else self._none()
                start = end

    def _integers(self, array: np.ndarray) -> paddle.Tensor:
        return devices.to_device(array.astype(self._dtype))

    def _draw(self, rows: np.ndarray, rng: np.random.Generator) -> Drawn:
        augmentation, count, labels = self._augmentation, len(rows), self.images.labels[rows]
        size = self._height, self._width
        crops = draw_crops(
            count, padding=augmentation.crop_padding, flip=augmentation.flip, rng=rng
        )
        first = rows * self._image + crops.tops * self._line + crops.lefts
        drawn = ImageDraws(
            first=first + crops.mirrored * (self._width - 1),
            step=1 - 2 * crops.mirrored,
            label=labels,
        )
        if augmentation.cutout:
            top, left = draw_squares(count, *size, size=augmentation.cutout, rng=rng)
            drawn = drawn._replace(top=top, left=left)
        mix = draw_mix(count, *size, augmentation, rng)
        if mix is not None:
            drawn = drawn._replace(partner=mix.partners, partner_label=labels[mix.partners])
        return Drawn(rows, np.stack([np.broadcast_to(row, count) for row in drawn]), mix)

    def _batch(self, drawn: Drawn, integers: paddle.Tensor) -> Batch:
        """The batch that was drawn; `integers` are its own, on the device."""
        mix = drawn.mix
        # The input of the network has 32 bits, also in an evaluation in 16 bits.
        with paddle.no_grad(), paddle.amp.auto_cast(enable=False):
            of = ImageDraws(*paddle.unbind(integers))
            images = self._normaliser(self._crop(_per_image(of.first), _per_image(of.step)))
            if self._augmentation.cutout:
                top, left = _per_image(of.top), _per_image(of.left)
                size = self._augmentation.cutout
                images = images * (1.0 - self._inside(top, top + size, left, left + size))
            if mix is not None:
                images = self._mix(images, of.partner, mix)
            images = self._shrink(images, self._augmentation.side(self.epoch))
            labels, partners, own_weight = of.label.astype('int64'), None, 1.0
            if mix is not None and mix.own_weight < 1.0:
                partners, own_weight = of.partner_label.astype('int64'), mix.own_weight
        return Batch(images, labels, drawn.rows, partners, own_weight)

    def _none(self) -> Batch:
        """For a process without an image of the last batch of an evaluation."""
        nothing = np.zeros(0, np.int64)
        return Batch(np.zeros((0, 3, self._height, self._width), np.float32), nothing, nothing)

    def _crop(self, first: paddle.Tensor, step: paddle.Tensor) -> paddle.Tensor:
        """float32 [B, C, H, W]: the lines that start at `first`, pixels `step` apart."""
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
        """float32, to be broadcast: 1 inside the box (one, or one per image), else 0."""
        across = paddle.logical_and(self._y >= top, self._y < bottom)
        along = paddle.logical_and(self._x >= left, self._x < right)
        return paddle.logical_and(across, along).astype('float32')

    def _mix(self, images: paddle.Tensor, partners: paddle.Tensor, mix: Mix) -> paddle.Tensor:
        kept = mix.own_weight if mix.box is None else 1.0 - self._inside(*mix.box)
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
