"""Data sets -> batches.

`load_data` gives a DataSet by name; `train_batches` and `test_batches` give what the loop
iterates. Sets that fit in memory are one uint8 array, of which a batch is gathered, augmented and
normalised as a batch: about a hundred times as fast as image by image. A set that streams from
disk only has to offer the same three things as `Batches`: len(), set_epoch() and iteration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator

import numpy as np

from engine import runtime
from engine.augment import Augmentation, crop_and_flip, cutout, normalise, pad
from engine.cifar import VARIANTS, load_cifar
from engine.config import Config, Data
from engine.errors import UserError

Batch = tuple[np.ndarray, np.ndarray]  # float32 [B, 3, H, W], int64 [B]


@dataclass(frozen=True)
class Images:
    """uint8 [N, 3, H, W] and int64 [N]."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    train: Images
    test: Images
    classes: list[str]
    mean: np.ndarray  # of 0-255, a value a channel
    std: np.ndarray
    origin: str


class Batches:
    """Batches of an in-memory set; the order and every random choice follow from the arguments.

    Batch b of epoch e draws from a generator of its own, seeded by (seed, e, b, rank): a run that
    is resumed at b sees the batches that the uninterrupted run saw. With several processes, each
    takes its part of every batch of batch_size * world images; a last batch of fewer images than
    processes is left out of training.
    """

    def __init__(
        self,
        images: Images,
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
        self._together = batch_size * world
        padding, mode = self.augmentation.crop_padding, self.augmentation.padding_mode
        self._padded = pad(images.pixels, padding, mode)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Choose the epoch and leave out its first `skip` batches (they are done already)."""
        self._epoch, self._skip = epoch, skip

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self._together)
        return whole + (rest >= (self.world if self.shuffle else 1))

    def __iter__(self) -> Iterator[Batch]:
        for number, rows in enumerate(self.rows()):
            if number >= self._skip:
                seeds = [self.seed, self._epoch, number, self.rank]
                yield self._batch(rows, np.random.default_rng(seeds))

    def size(self, number: int) -> int:
        """Images of one batch, over all processes."""
        return min(self._together, len(self.images) - number * self._together)

    def rows(self) -> list[np.ndarray]:
        """For each batch of the epoch, the images that this process takes."""
        order = np.arange(len(self.images))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self._epoch]).permutation(order)
        starts = range(0, len(self) * self._together, self._together)
        batches = (order[start : start + self._together] for start in starts)
        return [np.array_split(batch, self.world)[self.rank] for batch in batches]

    def _batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        augmentation = self.augmentation
        pixels = crop_and_flip(
            self._padded,
            rows,
            padding=augmentation.crop_padding,
            flip=augmentation.flip,
            rng=rng,
        )
        batch = normalise(pixels, self.mean, self.std)
        if augmentation.cutout:
            cutout(batch, augmentation.cutout, rng)
        return batch, self.images.labels[rows]


def load_data(config: Data) -> DataSet:
    """The data set that the config names, whole. UserError if it is missing or damaged."""
    if config.name in VARIANTS:
        data = _cifar(config)
    elif config.name == 'digits':
        data = _digits()
    else:
        data = _synthetic(config)
    if config.mean is None or config.std is None:
        return data
    return replace(data, mean=np.array(config.mean), std=np.array(config.std))


def train_batches(data: DataSet, config: Config) -> Batches:
    augmentation = Augmentation(
        crop_padding=config.data.crop_padding,
        padding_mode=config.data.padding_mode,
        flip=config.data.flip,
        cutout=config.data.cutout,
    )
    side = min(data.train.pixels.shape[2:])
    if augmentation.crop_padding >= side or augmentation.cutout > 2 * side:
        raise UserError(f'data.crop_padding and data.cutout must suit images of {side} pixels')
    batches = Batches(
        data.train,
        batch_size=config.data.batch_size,
        mean=data.mean,
        std=data.std,
        augmentation=augmentation,
        shuffle=True,
        seed=config.seed,
        rank=runtime.RANK,
        world=runtime.WORLD,
    )
    if not len(batches):
        raise UserError(
            f'{len(data.train)} training images are fewer than {runtime.WORLD} processes'
        )
    return batches


def test_batches(data: DataSet, config: Config) -> Batches:
    return Batches(
        data.test,
        batch_size=config.eval.batch_size,
        mean=data.mean,
        std=data.std,
        rank=runtime.RANK,
        world=runtime.WORLD,
    )


def class_count(data: DataSet, wanted: int | None) -> int:
    """model.num_classes, or the set's own number of classes; UserError if the labels don't fit."""
    if wanted is not None and wanted < len(data.classes):
        raise UserError(
            f'model.num_classes is {wanted}, but the labels of {data.origin} go up to '
            f'{len(data.classes) - 1}; leave it out, or set {len(data.classes)} or more'
        )
    return wanted or len(data.classes)


def _cifar(config: Data) -> DataSet:
    variant = VARIANTS[config.name]
    train, test, classes, where = load_cifar(
        config.name, Path(config.root).expanduser(), fetch=config.download
    )
    mean, std = np.array(variant.mean), np.array(variant.std)
    return DataSet(Images(*train), Images(*test), classes, mean, std, where)


def _digits() -> DataSet:
    """scikit-learn's 1,797 handwritten digits (UCI): 8x8 grey, here 32x32 RGB; a fifth for testing.

    The set is ordered by writer in runs, so the split is drawn at random, from a fixed seed.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = digits.images.astype(np.float64) * (255.0 / 16.0)
    grow = _bilinear(8, 32)
    grey = np.rint(grow @ small @ grow.T).astype(np.uint8)
    pixels = np.repeat(grey[:, None], 3, axis=1)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    mean, std = np.full(3, pixels[train].mean()), np.full(3, pixels[train].std())
    return DataSet(
        Images(pixels[train], labels[train]),
        Images(pixels[test], labels[test]),
        [str(digit) for digit in range(10)],
        mean,
        std,
        "scikit-learn's digits",
    )


def _bilinear(small: int, large: int) -> np.ndarray:
    """Matrix [large, small] that resizes one axis, pixel centres aligned."""
    at = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    left = np.minimum(at.astype(int), small - 2)
    matrix = np.zeros((large, small))
    matrix[np.arange(large), left] = 1 - (at - left)
    matrix[np.arange(large), left + 1] = at - left
    return matrix


def _synthetic(config: Data) -> DataSet:
    """Random pixels and labels of ten classes, for benchmarks."""
    rng = np.random.default_rng(0)
    shape = (config.num_images, 3, config.image_size, config.image_size)

    def images() -> Images:
        return Images(rng.integers(0, 256, shape, np.uint8), rng.integers(0, 10, shape[0]))

    half = np.full(3, 127.5)
    return DataSet(images(), images(), [str(i) for i in range(10)], half, half, 'random images')
