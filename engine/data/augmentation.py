"""Augmentation of a whole batch at once.

Gather, crop, flip and colours stay in uint8, where a pixel is one byte; normalising makes the
float32 batch, in which squares are erased and images mixed.

The random numbers come from the `draw_...` functions, which on_device.py uses as well.
"""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from engine.data.policies import Policy, color_jitter

Pixels = np.ndarray


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, in this order; normalising comes between jitter and cutout.

    `crop_padding` and `padding_mode` are for sets in memory; for pictures on disk see
    pictures.TrainView. Last, images of a set in memory are scaled to the side of the epoch.
    """

    crop_padding: int = 0
    padding_mode: str = 'zero'  # or 'reflect' or 'mean'
    flip: bool = False
    policy: Optional[Policy] = None
    jitter: tuple[float, ...] = ()  # strengths of brightness, contrast, saturation (and hue)
    cutout: int = 0  # side in pixels
    random_erasing: float = 0.0  # probability
    mixup: float = 0.0  # alpha of its Beta distribution
    cutmix: float = 0.0
    sides: tuple[int, ...] = ()  # of the images, each for an equal part of the epochs
    epochs: int = 1

    def side(self, epoch: int) -> Optional[int]:
        """What the images of an epoch are scaled to; None leaves them as they are."""
        return self.sides[bisect(self._starts, epoch) - 1] if self.sides else None

    @property
    def _starts(self) -> list[int]:
        """The first epoch of each side."""
        count = len(self.sides)
        return [-(-place * self.epochs // count) for place in range(count)]

    def work(self, first: float, last: float, *, like: int) -> float:
        """Pixels from epoch `first` to epoch `last`, in units of the pixels of epoch `like`."""
        if not self.sides:
            return last - first
        edges = [*(min(max(start, first), last) for start in self._starts), last]
        pixels = [(end - begin) * side**2 for begin, end, side in zip(edges, edges[1:], self.sides)]
        return sum(pixels) / (self.side(like) or 1) ** 2

    @property
    def image_by_image(self) -> bool:
        """Whether some of it is done image by image, which only the host does."""
        return self.policy is not None or bool(self.jitter) or self.random_erasing > 0

    @property
    def of_normalised(self) -> bool:
        """Whether some of it is done to normalised images."""
        return bool(self.cutout or self.random_erasing or self.mixup or self.cutmix or self.sides)


NONE = Augmentation()


class Crops(NamedTuple):
    """Where each image of a batch starts inside its padding, and whether it is mirrored."""

    tops: np.ndarray  # int64 [N]
    lefts: np.ndarray  # int64 [N]
    mirrored: np.ndarray  # bool [N]


class Mix(NamedTuple):
    """How mixup or CutMix mixes a batch."""

    own_weight: float  # of each image itself
    partners: np.ndarray  # int64 [N], places in the batch: where the rest comes from
    box: Optional[tuple[int, int, int, int]]  # top, bottom, left, right of CutMix; mixup has none


def pad(images: Pixels, padding: int, mode: str, mean: np.ndarray) -> Pixels:
    """uint8 [N, C, H, W] -> [N, C, H + 2 padding, W + 2 padding]; done once, before training.

    'zero' is black; 'mean' becomes 0 by normalising (to half a grey level); 'reflect' mirrors.
    """
    if not padding:
        return images
    widths = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(images, widths, mode='reflect' if mode == 'reflect' else 'constant')
    if mode == 'mean':
        height, width = images.shape[2:]
        inside = padded[..., padding : padding + height, padding : padding + width]
        padded[:] = np.round(mean).astype(np.uint8)[:, None, None]
        inside[:] = images
    return padded


def draw_crops(count: int, *, padding: int, flip: bool, rng: np.random.Generator) -> Crops:
    """For `count` images that were padded by `padding`."""
    tops, lefts = np.zeros((2, count), np.int64)
    if padding:
        tops, lefts = rng.integers(0, 2 * padding + 1, size=(2, count))
    mirrored = rng.random(count) < 0.5 if flip else np.zeros(count, bool)
    return Crops(tops, lefts, mirrored)


def crop_and_flip(
    padded: Pixels, rows: np.ndarray, *, padding: int, flip: bool, rng: np.random.Generator
) -> Pixels:
    """The images `rows` of `padded`, each cropped at a random place; `flip` mirrors half of them.

    Returns a new uint8 [len(rows), C, H, W].
    """
    tops, lefts, mirrored = draw_crops(len(rows), padding=padding, flip=flip, rng=rng)
    if padding:
        height, width = (side - 2 * padding for side in padded.shape[2:])
        windows = sliding_window_view(padded, (1, 1, height, width))[..., 0, 0, :, :]
        out = windows[rows, :, tops, lefts]
    else:
        out = padded[rows]
    if flip:
        out[mirrored] = out[mirrored, :, :, ::-1]
    return out


def recolour(
    image: np.ndarray,
    policy: Optional[Policy],
    jitter: tuple[float, ...],
    rng: np.random.Generator,
) -> np.ndarray:
    """One uint8 image [H, W, 3] after AutoAugment or RandAugment and after colour jitter."""
    if policy is not None:
        image = policy(image, rng)
    if jitter:
        brightness, contrast, saturation, hue = (*jitter, 0.0)[:4]
        image = color_jitter(image, (brightness, contrast, saturation, hue), rng)
    return image


def recolour_batch(images: Pixels, augmentation: Augmentation, rng: np.random.Generator) -> Pixels:
    """`recolour` of each image of uint8 [N, 3, H, W], which may be changed in place."""
    policy, jitter = augmentation.policy, augmentation.jitter
    if policy is not None or jitter:
        for image in images:
            upright = np.ascontiguousarray(image.transpose(1, 2, 0))
            image[:] = recolour(upright, policy, jitter, rng).transpose(2, 0, 1)
    return images


def normalise(images: Pixels, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """uint8 -> float32 (x - mean) / std, with mean and std in 0-255, one value a channel."""
    scale, shift = scale_and_shift(mean, std)
    out = images.astype(np.float32)
    out *= scale
    out += shift
    return out


def scale_and_shift(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalising is x * scale + shift: float32 [C, 1, 1] each."""
    scale, shift = (x.astype(np.float32).reshape(-1, 1, 1) for x in (1.0 / std, -mean / std))
    return scale, shift


def normalised_levels(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The values 0 to 255 of a pixel, normalised: float32 [C, 256], exactly rounded."""
    return np.asarray((np.arange(256) - mean[:, None]) / std[:, None], np.float32)


def erase(batch: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> None:
    """Cutout and random erasing of a normalised batch, in place, if they are on."""
    if augmentation.cutout:
        cutout(batch, augmentation.cutout, rng)
    if augmentation.random_erasing:
        random_erasing(batch, augmentation.random_erasing, rng)


def cutout(batch: np.ndarray, size: int, rng: np.random.Generator) -> None:
    """Set one square of each image to 0, the mean (DeVries & Taylor 2017, arXiv:1708.04552).

    Its centre is anywhere in the image, so it may lie partly outside.
    """
    height, width = batch.shape[2:]
    tops, lefts = draw_squares(len(batch), height, width, size=size, rng=rng)
    for image, top, left in zip(batch, tops, lefts):
        image[:, max(top, 0) : top + size, max(left, 0) : left + size] = 0.0


def draw_squares(
    count: int, height: int, width: int, *, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [count] each: top and left of squares whose centres are in the image."""
    tops = rng.integers(0, height, count) - size // 2
    return tops, rng.integers(0, width, count) - size // 2


def random_erasing(batch: np.ndarray, probability: float, rng: np.random.Generator) -> None:
    """Fill a rectangle of some images with noise (Zhong et al. 2017, arXiv:1708.04896).

    Area 2 to 33 % of the image, aspect 0.3 to 3.3, as torchvision and timm have it; the noise is
    normal with the mean and deviation that normalised pixels have.
    """
    height, width = batch.shape[2:]
    for image in batch:
        if rng.random() >= probability:
            continue
        for _ in range(10):
            area = height * width * rng.uniform(0.02, 0.33)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                top, left = rng.integers(0, (height - h + 1, width - w + 1))
                noise = rng.standard_normal((len(image), h, w), dtype=np.float32)
                image[:, top : top + h, left : left + w] = noise
                break


def mix(
    batch: np.ndarray, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Mixup or CutMix of a normalised batch, in place; if both are on, one at random.

    Returns each image's partner, and the weight of the image itself (1 where both are off).
    """
    height, width = batch.shape[2:]
    drawn = draw_mix(len(batch), height, width, augmentation, rng)
    if drawn is None:
        return np.arange(len(batch)), 1.0
    own_weight, partners, box = drawn
    if box is None:
        batch[:] = own_weight * batch + (1 - own_weight) * batch[partners]
    else:
        top, bottom, left, right = box
        batch[:, :, top:bottom, left:right] = batch[partners, :, top:bottom, left:right]
    return partners, own_weight


def draw_mix(
    count: int, height: int, width: int, augmentation: Augmentation, rng: np.random.Generator
) -> Optional[Mix]:
    """For a batch of `count` images of that size; None if mixup and CutMix are off."""
    alphas = augmentation.mixup, augmentation.cutmix
    if not any(alphas):
        return None
    chosen = int(rng.integers(2)) if all(alphas) else int(alphas[0] == 0)
    own_weight = float(rng.beta(alphas[chosen], alphas[chosen]))
    partners = rng.permutation(count)
    if chosen == 0:  # mixup, Zhang et al. 2017, arXiv:1710.09412
        return Mix(own_weight, partners, None)
    # CutMix, Yun et al. 2019, arXiv:1905.04899: the box may lie partly outside.
    side = math.sqrt(1 - own_weight)
    y, x = rng.integers(height), rng.integers(width)
    top, bottom = (int(np.clip(y + s * side * height / 2, 0, height)) for s in (-1, 1))
    left, right = (int(np.clip(x + s * side * width / 2, 0, width)) for s in (-1, 1))
    own_weight = 1 - (bottom - top) * (right - left) / (height * width)
    return Mix(own_weight, partners, (top, bottom, left, right))


def averaging(size: int, side: int) -> np.ndarray:
    """float32 [side, size]: scales a line of `size` pixels to `side` by averaging."""
    ends = np.arange(side + 1) * size / side
    first, last = ends[:-1, None], ends[1:, None]
    pixels = np.arange(size)
    covered = np.clip(np.minimum(last, pixels + 1) - np.maximum(first, pixels), 0.0, 1.0)
    return np.asarray(covered * side / size, np.float32)


def shrink(batch: np.ndarray, side: int) -> np.ndarray:
    """float32 [N, C, H, W] -> [N, C, side, side]"""
    if batch.shape[2:] == (side, side):
        return batch
    down, across = (averaging(size, side) for size in batch.shape[2:])
    return np.asarray(down @ batch @ across.T)
