"""DataSet: what each source in engine/data/sources/ returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Callable, Optional, Protocol, Sequence

import numpy as np

from engine.errors import UserError


class ImageSet(Protocol):
    """Labelled images, in memory (`Images`) or on disk (`photo_batches.Photos`)."""

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


@dataclass(frozen=True)
class Files:
    """Paths of pictures, and a label each."""

    paths: list[str]
    labels: np.ndarray  # int64 [N]

    def __len__(self) -> int:
        return len(self.paths)

    def only(self, rows: np.ndarray) -> Files:
        return Files([self.paths[row] for row in rows], self.labels[rows])


@dataclass(frozen=True)
class Preparation:
    """What evaluation does to a picture: the short side resized, the centre cropped, normalised.

    Images of a set in memory have that size already.
    """

    resize: int
    size: int
    mean: np.ndarray  # float64 [3], of 0-255
    std: np.ndarray


@dataclass(frozen=True)
class Request:
    """What a command needs of a data set."""

    preparation: Preparation
    train: bool = True  # False: only the test images; the training images may be missing
    classes: Optional[Sequence[str]] = None  # those of the weights
    report: Callable[[str], None] = print  # gets a line for each bad file


@dataclass(frozen=True)
class DataSet:
    train: Optional[ImageSet]  # None where only evaluation was asked for
    test: ImageSet
    classes: list[str]
    mean: np.ndarray  # float64 [3], of 0-255
    std: np.ndarray
    origin: str  # where it was found

    @property
    def summary(self) -> str:
        """A line for the console."""
        return (
            f'{len(self.train or ()):,} training and {len(self.test):,} test images of '
            f'{len(self.classes):,} classes, from {self.origin}'
        )

    def describe(self) -> str:
        """A text that is equal for copies, and differs for almost all other data sets."""
        texts = []
        for images in (self.train, self.test):
            if images is not None:
                labels = hashlib.sha256(images.labels.tobytes()).hexdigest()
                texts.append(f'{len(images):,} images with labels {labels[:16]}')
        return f'{" and ".join(texts)} of {len(self.classes):,} classes'


def count_held_out(count: int, fraction: float) -> int:
    """Test images among `count` of a class: at least one, but not all; 0 if there is only one."""
    return min(max(1, round(fraction * count)), count - 1)


def hold_out(data: DataSet, images: Images, fraction: float) -> DataSet:
    """Test with that fraction of each class of the training images: random, but always the same."""
    order = np.random.default_rng(0).permutation(len(images))
    held_out = np.zeros(len(images), bool)
    for label in np.unique(images.labels):
        rows = order[images.labels[order] == label]
        count = count_held_out(len(rows), fraction)
        if count < 1:
            name = data.classes[label]
            raise UserError(f'{data.origin} has one image of {name}: data.holdout needs two')
        held_out[rows[:count]] = True
    train, test = (
        Images(images.pixels[rows], images.labels[rows]) for rows in (~held_out, held_out)
    )
    origin = f'{data.origin}, {100 * fraction:g} % of its training images held out'
    return replace(data, train=train, test=test, origin=origin)
