"""Batches: which images come when, on which process; and the batches of sets in memory.

The order and every random choice follow from seed, epoch, and place: a run that is resumed in the
middle of an epoch sees the batches that the uninterrupted run saw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple, Optional, Union

import numpy as np

from engine.data.augmentation import (
    NONE,
    Augmentation,
    crop_and_flip,
    erase,
    mix,
    normalise,
    pad,
    recolour_batch,
    shrink,
)
from engine.data.dataset import Images, ImageSet

if TYPE_CHECKING:  # on the host, engine.data works without paddle
    from paddle import Tensor

Array = Union[np.ndarray, 'Tensor']
# Of one batch: its rows, and the generator of its random numbers; once read, with the images.
RowsToRead = tuple[np.ndarray, np.random.Generator]
ReadImages = tuple[np.ndarray, np.ndarray, np.random.Generator]  # images, rows, generator


class Batch(NamedTuple):
    """Images and their labels; with mixup or CutMix, also the labels that were mixed in.

    All but the rows may be on the device.
    """

    images: Array  # float32 [B * views, 3, H, W], the views of an image one after another
    labels: Array  # int64 [B]
    rows: np.ndarray  # int64 [B], their places in the set
    partners: Optional[Array] = None  # int64 [B], the labels that were mixed in
    own_weight: float = 1.0  # of `labels`; the rest is of `partners`

    def moved(self, move: Callable[[Array], Any]) -> Batch:
        """The batch moved: by to_device to the device, by np.asarray to the host."""
        partners = None if self.partners is None else move(self.partners)
        return self._replace(images=move(self.images), labels=move(self.labels), partners=partners)

    def parts(self, count: int) -> list[Batch]:
        """The batch (of one view) in `count` parts of about the same size.

        Each process of a step needs `count` parts. A batch with fewer images, of which most could
        not be read, repeats some of them.
        """
        places = np.arange(max(len(self.labels), count)) % len(self.labels)
        split = np.array_split(places, count)
        slices = [slice(part[0], part[-1] + 1) for part in split]
        return [
            Batch(
                self.images[part],
                self.labels[part],
                self.rows[part],
                None if self.partners is None else self.partners[part],
                self.own_weight,
            )
            for part in slices
        ]


@dataclass(frozen=True)
class BatchOptions:
    """How a set is cut into batches, and what is done to the images of each."""

    batch_size: int  # images of one process
    mean: np.ndarray  # [3], of 0-255
    std: np.ndarray
    augmentation: Augmentation = NONE
    shuffle: bool = False  # training: each epoch in another order
    seed: int = 0
    rank: int = 0
    world_size: int = 1


class Batches(ABC):
    """The batches of an epoch, one process's part of each.

    Batch b of epoch e draws from a generator of its own, seeded by (seed, e, b, rank). With several
    processes, each takes its part of every global batch of batch_size * world_size images; a last
    batch of fewer images than processes is left out of training.
    """

    def __init__(self, images: ImageSet, options: BatchOptions) -> None:
        self.images, self.options = images, options
        self.global_batch_size = options.batch_size * options.world_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, *, done: int = 0) -> None:
        """Choose the epoch, and leave out the first `done` images of its order.

        If another number of processes has done them, `done` may lie inside a batch. Then the rest
        of that batch comes first; in training, a rest of fewer images than processes is joined to
        the next batch.
        """
        self.epoch, self._done = epoch, done
        self.first = done // self.global_batch_size
        left = min((self.first + 1) * self.global_batch_size, len(self.images)) - done
        if self.options.shuffle and left < self.options.world_size:
            self.first += 1
        self.first = min(self.first, len(self))

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.global_batch_size)
        return whole + (rest >= (self.options.world_size if self.options.shuffle else 1))

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """The batches that are still to come in this epoch."""

    def start(self, number: int) -> int:
        """The place in the epoch's order where a batch starts."""
        if number <= self.first:
            return self._done
        return min(number * self.global_batch_size, len(self.images))

    def size(self, number: int) -> int:
        """Images of one batch, over all processes."""
        return self.start(number + 1) - self.start(number)

    def rows(self) -> list[np.ndarray]:
        """For each batch that is still to come, the images that this process takes."""
        order, options = np.arange(len(self.images)), self.options
        if options.shuffle:
            order = np.random.default_rng([options.seed, self.epoch]).permutation(order)
        numbers = range(self.first, len(self))
        batches = (order[self.start(number) : self.start(number + 1)] for number in numbers)
        return [np.array_split(batch, options.world_size)[options.rank] for batch in batches]

    def remaining(self) -> Iterator[RowsToRead]:
        """The rows of each batch that is still to come, and its random generator."""
        seed, rank = self.options.seed, self.options.rank
        for number, rows in enumerate(self.rows(), self.first):
            yield rows, np.random.default_rng([seed, self.epoch, number, rank])


class HostBatches(Batches):
    """Batches that NumPy augments. A subclass reads the images."""

    def __iter__(self) -> Iterator[Batch]:
        for images, rows, rng in self._read(self.remaining()):
            yield self._finish(images, rows, rng)

    @abstractmethod
    def _read(self, remaining: Iterator[RowsToRead]) -> Iterator[ReadImages]:
        """The images of each of these batches: cropped, recoloured and normalised."""

    def _finish(self, images: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """What is done to normalised images: erase, mix, shrink."""
        augmentation = self.options.augmentation
        erase(images, augmentation, rng)
        labels = self.images.labels[rows]
        partner_of, own_weight = mix(images, augmentation, rng)
        partners = labels[partner_of] if own_weight < 1.0 else None
        side = augmentation.side(self.epoch)
        images = images if side is None else shrink(images, side)
        return Batch(images, labels, rows, partners, own_weight)


class ArrayBatches(HostBatches):
    """Batches of an in-memory set, each gathered, augmented and normalised as a whole: about a
    hundred times as fast as image by image."""

    images: Images

    def __init__(self, images: Images, options: BatchOptions) -> None:
        super().__init__(images, options)
        padding, mode = options.augmentation.crop_padding, options.augmentation.padding_mode
        self._padded = pad(images.pixels, padding, mode, options.mean)

    def _read(self, remaining: Iterator[RowsToRead]) -> Iterator[ReadImages]:
        options, augmentation = self.options, self.options.augmentation
        padding, flip = augmentation.crop_padding, augmentation.flip
        for rows, rng in remaining:
            pixels = crop_and_flip(self._padded, rows, padding=padding, flip=flip, rng=rng)
            pixels = recolour_batch(pixels, augmentation, rng)
            yield normalise(pixels, options.mean, options.std), rows, rng
