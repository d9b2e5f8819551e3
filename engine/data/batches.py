"""Batches: which images of a set come when, on which process; and the batches of sets in memory.

The order and every random choice follow from seed, epoch, and place: a run that is resumed in the
middle of an epoch sees the batches that the uninterrupted run saw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple, Optional, Protocol, Union

import numpy as np

from engine.data.augmentation import (
    Augmentation,
    crop_and_flip,
    erase,
    mix,
    normalise,
    pad,
    recolour_batch,
    shrink,
)

if TYPE_CHECKING:  # on the host, engine.data works without paddle
    from paddle import Tensor

Array = Union[np.ndarray, 'Tensor']


class Batch(NamedTuple):
    """Images with their labels, and of a mixed batch, how much of which other labels.

    All but the rows may be on the device.
    """

    images: Array  # float32 [B * views, 3, H, W], the views of an image one after another
    labels: Array  # int64 [B]
    rows: np.ndarray  # int64 [B], their places in the set
    partners: Optional[Array] = None  # int64 [B], the labels that were mixed in
    own_weight: float = 1.0  # of `labels`; the rest is of `partners`

    def moved(self, move: Callable[[Array], Any]) -> Batch:
        """The batch elsewhere: to_device takes it to the device, np.asarray to the host."""
        partners = None if self.partners is None else move(self.partners)
        return self._replace(images=move(self.images), labels=move(self.labels), partners=partners)

    def parts(self, count: int) -> list[Batch]:
        """The batch (of one view) in `count` parts of about the same size.

        A batch of fewer images, as most of it could not be read, gives some of them more than once:
        in a step, each process has to have as many parts.
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


class ImageSet(Protocol):
    """What a loop, a report and a plot need to know of a set, wherever its images are."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""

    def __len__(self) -> int: ...

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [N, 3, H, W] of these rows, as evaluation sees them."""


@dataclass(frozen=True)
class Images:
    """An ImageSet in memory: uint8 [N, 3, H, W] and int64 [N]."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.pixels[rows])


class Batches(ABC):
    """The batches of an epoch, one process's part of each.

    Batch b of epoch e draws from a generator of its own, seeded by (seed, e, b, rank). With several
    processes, each takes its part of every batch of batch_size * world images; a last batch of
    fewer images than processes is left out of training.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        mean: np.ndarray,
        std: np.ndarray,
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.images, self.batch_size, self.mean, self.std = images, batch_size, mean, std
        self.augmentation = augmentation or Augmentation()
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world = rank, world
        self.global_batch_size = batch_size * world
        self.set_epoch(0)

    def set_epoch(self, epoch: int, *, done: int = 0) -> None:
        """Choose the epoch, and leave out the first `done` images of its order.

        They may have been done by another number of processes, so that `done` lies inside a batch.
        What is left of that batch comes first, or with the next where it is less than an image
        for each process.
        """
        self.epoch, self._done = epoch, done
        self.first = done // self.global_batch_size
        left = min((self.first + 1) * self.global_batch_size, len(self.images)) - done
        if self.shuffle and left < self.world:
            self.first += 1
        self.first = min(self.first, len(self))

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.global_batch_size)
        return whole + (rest >= (self.world if self.shuffle else 1))

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...

    def start(self, number: int) -> int:
        """The place in the epoch's order where a batch begins."""
        if number <= self.first:
            return self._done
        return min(number * self.global_batch_size, len(self.images))

    def size(self, number: int) -> int:
        """Images of one batch, over all processes."""
        return self.start(number + 1) - self.start(number)

    def rows(self) -> list[np.ndarray]:
        """For each batch that is still to come, the images that this process takes."""
        order = np.arange(len(self.images))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        numbers = range(self.first, len(self))
        batches = (order[self.start(number) : self.start(number + 1)] for number in numbers)
        return [np.array_split(batch, self.world)[self.rank] for batch in batches]

    def remaining(self) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
        """The rows of each batch that is still to come, and the batch's generator."""
        for number, rows in enumerate(self.rows(), self.first):
            yield rows, np.random.default_rng([self.seed, self.epoch, number, self.rank])

    def finish(self, images: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """The batch of these normalised images, after what is done to whole batches."""
        erase(images, self.augmentation, rng)
        labels = self.images.labels[rows]
        partner_of, share = mix(images, self.augmentation, rng)
        partners = labels[partner_of] if share < 1.0 else None
        side = self.augmentation.side(self.epoch)
        images = images if side is None else shrink(images, side)
        return Batch(images, labels, rows, partners, share)


class ArrayBatches(Batches):
    """Batches of an in-memory set, each gathered, augmented and normalised as a whole: about a
    hundred times as fast as image by image."""

    images: Images

    def __init__(self, images: Images, **options: Any) -> None:
        super().__init__(images, **options)
        padding, mode = self.augmentation.crop_padding, self.augmentation.padding_mode
        self._padded = pad(images.pixels, padding, mode, self.mean)

    def __iter__(self) -> Iterator[Batch]:
        augmentation = self.augmentation
        for rows, rng in self.remaining():
            pixels = crop_and_flip(
                self._padded,
                rows,
                padding=augmentation.crop_padding,
                flip=augmentation.flip,
                rng=rng,
            )
            pixels = recolour_batch(pixels, augmentation, rng)
            yield self.finish(normalise(pixels, self.mean, self.std), rows, rng)
