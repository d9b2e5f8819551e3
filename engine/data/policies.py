"""Augmentation of one training image, uint8 RGB [H, W, 3]: colour jitter and learned policies.

- `color_jitter`: as torchvision and paddle.vision do it to a Pillow image.
- AutoAugment: Cubuk et al. 2018, arXiv:1805.09501. Operations and their ranges are those of its
  table 6, the policies those of its tables 7 (CIFAR-10) and 9 (ImageNet).
- RandAugment: Cubuk et al. 2019, arXiv:1909.13719, with the operations and the scale of the
  authors' program (tensorflow/tpu, models/official/efficientnet/autoaugment.py).

Level 10 is the strongest that the AutoAugment search knew; RandAugment extrapolates above it.
torchvision's RandAugment divides the same ranges into 30: its default of 9 is about level 3 here.
It also has an identity in place of invert, cutout and solarize-add, and its colour operations get
stronger with the level in either direction, while the authors' go from 0.1 (level 0) through 1 (no
change, level 5) to 1.9 (level 10).

Where the sources differ, this follows the authors: colour factors as above, pixels from nearest
neighbours, grey (128) where the picture was moved away. Posterize and solarize get stronger with
the level in their CIFAR-10 program (tensorflow/models, research/autoaugment) and weaker in the
paper's wording ("magnitude bits", "threshold of magnitude") and their ImageNet program, so each
policy does as its own. AutoAugment keeps table 6's 4 to 8 bits although both programs keep 0 to 4.
The programs' other lists, 95 sub-policies for CIFAR-10 and "v0" for ImageNet, are not the paper's.
Lengths in pixels became parts of the image, of the sizes that the authors trained with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]
SubPolicy = tuple[tuple[str, float, int], ...]  # (operation, probability, level), in their order

MAX_LEVEL = 10
GREY = (128, 128, 128)


@dataclass(frozen=True)
class Scale:
    """The meaning of the levels 0 and 10, where policies differ."""

    bits: tuple[int, int]  # that posterize keeps
    threshold: tuple[int, int]  # from which solarize inverts
    translate: float  # part of the side, at level 10


CIFAR10_SCALE = Scale(bits=(8, 4), threshold=(256, 0), translate=10 / 32)
IMAGENET_SCALE = Scale(bits=(4, 8), threshold=(0, 256), translate=150 / 331)
RANDAUGMENT_SCALE = Scale(bits=(0, 4), threshold=(0, 256), translate=100 / 224)

CUTOUT = 40 / 224  # half the square's side at level 10, as part of the image's shorter side
SOLARIZE_ADD = 110  # at level 10

# The levels of AutoContrast, Equalize and Invert have no effect; they are as published.
CIFAR10_POLICY: tuple[SubPolicy, ...] = (
    (('Invert', 0.1, 7), ('Contrast', 0.2, 6)),
    (('Rotate', 0.7, 2), ('TranslateX', 0.3, 9)),
    (('Sharpness', 0.8, 1), ('Sharpness', 0.9, 3)),
    (('ShearY', 0.5, 8), ('TranslateY', 0.7, 9)),
    (('AutoContrast', 0.5, 8), ('Equalize', 0.9, 2)),
    (('ShearY', 0.2, 7), ('Posterize', 0.3, 7)),
    (('Color', 0.4, 3), ('Brightness', 0.6, 7)),
    (('Sharpness', 0.3, 9), ('Brightness', 0.7, 9)),
    (('Equalize', 0.6, 5), ('Equalize', 0.5, 1)),
    (('Contrast', 0.6, 7), ('Sharpness', 0.6, 5)),
    (('Color', 0.7, 7), ('TranslateX', 0.5, 8)),
    (('Equalize', 0.3, 7), ('AutoContrast', 0.4, 8)),
    (('TranslateY', 0.4, 3), ('Sharpness', 0.2, 6)),
    (('Brightness', 0.9, 6), ('Color', 0.2, 8)),
    (('Solarize', 0.5, 2), ('Invert', 0.0, 3)),
    (('Equalize', 0.2, 0), ('AutoContrast', 0.6, 0)),
    (('Equalize', 0.2, 8), ('Equalize', 0.6, 4)),
    (('Color', 0.9, 9), ('Equalize', 0.6, 6)),
    (('AutoContrast', 0.8, 4), ('Solarize', 0.2, 8)),
    (('Brightness', 0.1, 3), ('Color', 0.7, 0)),
    (('Solarize', 0.4, 5), ('AutoContrast', 0.9, 3)),
    (('TranslateY', 0.9, 9), ('TranslateY', 0.7, 9)),
    (('AutoContrast', 0.9, 2), ('Solarize', 0.8, 3)),
    (('Equalize', 0.8, 8), ('Invert', 0.1, 3)),
    (('TranslateY', 0.7, 9), ('AutoContrast', 0.9, 1)),
)

# Five sub-policies occur twice in the published table too.
IMAGENET_POLICY: tuple[SubPolicy, ...] = (
    (('Posterize', 0.4, 8), ('Rotate', 0.6, 9)),
    (('Solarize', 0.6, 5), ('AutoContrast', 0.6, 5)),
    (('Equalize', 0.8, 8), ('Equalize', 0.6, 3)),
    (('Posterize', 0.6, 7), ('Posterize', 0.6, 6)),
    (('Equalize', 0.4, 7), ('Solarize', 0.2, 4)),
    (('Equalize', 0.4, 4), ('Rotate', 0.8, 8)),
    (('Solarize', 0.6, 3), ('Equalize', 0.6, 7)),
    (('Posterize', 0.8, 5), ('Equalize', 1.0, 2)),
    (('Rotate', 0.2, 3), ('Solarize', 0.6, 8)),
    (('Equalize', 0.6, 8), ('Posterize', 0.4, 6)),
    (('Rotate', 0.8, 8), ('Color', 0.4, 0)),
    (('Rotate', 0.4, 9), ('Equalize', 0.6, 2)),
    (('Equalize', 0.0, 7), ('Equalize', 0.8, 8)),
    (('Invert', 0.6, 4), ('Equalize', 1.0, 8)),
    (('Color', 0.6, 4), ('Contrast', 1.0, 8)),
    (('Rotate', 0.8, 8), ('Color', 1.0, 2)),
    (('Color', 0.8, 8), ('Solarize', 0.8, 7)),
    (('Sharpness', 0.4, 7), ('Invert', 0.6, 8)),
    (('ShearX', 0.6, 5), ('Equalize', 1.0, 9)),
    (('Color', 0.4, 0), ('Equalize', 0.6, 3)),
    (('Equalize', 0.4, 7), ('Solarize', 0.2, 4)),
    (('Solarize', 0.6, 5), ('AutoContrast', 0.6, 5)),
    (('Invert', 0.6, 4), ('Equalize', 1.0, 8)),
    (('Color', 0.6, 4), ('Contrast', 1.0, 8)),
    (('Equalize', 0.8, 8), ('Equalize', 0.6, 3)),
)

RANDAUGMENT_OPERATIONS = (
    'AutoContrast',
    'Equalize',
    'Invert',
    'Rotate',
    'Posterize',
    'Solarize',
    'Color',
    'Contrast',
    'Brightness',
    'Sharpness',
    'ShearX',
    'ShearY',
    'TranslateX',
    'TranslateY',
    'Cutout',
    'SolarizeAdd',
)

_AUTOAUGMENT = {
    'autoaugment_imagenet': (IMAGENET_POLICY, IMAGENET_SCALE),
    'autoaugment_cifar10': (CIFAR10_POLICY, CIFAR10_SCALE),
}
POLICY_NAMES = (*_AUTOAUGMENT, 'randaugment')

_WITHOUT_LEVEL: dict[str, Callable[[Image.Image], Image.Image]] = {
    'AutoContrast': ImageOps.autocontrast,
    'Equalize': ImageOps.equalize,
    'Invert': ImageOps.invert,
}
_ENHANCERS = {
    'Brightness': ImageEnhance.Brightness,
    'Contrast': ImageEnhance.Contrast,
    'Color': ImageEnhance.Color,
    'Sharpness': ImageEnhance.Sharpness,
}
_JITTER = ('Brightness', 'Contrast', 'Color', 'Hue')


def make_policy(name: str, *, operations: int = 2, magnitude: float = 9.0) -> Policy:
    """One of POLICY_NAMES, as a function of an image and a generator.

    The function has no state, so that several threads may call it. It returns a new array, or its
    argument if it changes nothing. `operations` (the paper's N) and `magnitude` (its M, a level)
    are for RandAugment.
    """
    if name in _AUTOAUGMENT:
        table, scale = _AUTOAUGMENT[name]
        return partial(_autoaugment, table=table, scale=scale)
    if name != 'randaugment':
        raise ValueError(f'unknown policy {name!r}; choose from {", ".join(POLICY_NAMES)}')
    if operations < 0 or not 0 <= magnitude < math.inf:
        raise ValueError(f'randaugment needs {operations=} and {magnitude=} of at least 0')
    return partial(_randaugment, operations=operations, magnitude=magnitude)


def color_jitter(
    image: np.ndarray, strengths: tuple[float, float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Change (brightness, contrast, saturation, hue) at random, in random order.

    A strength s draws a factor from [max(0, 1 - s), 1 + s], that of hue (at most 0.5) a shift from
    [-s, s] of the colour circle. Strength 0 is left out, and draws nothing.
    """
    if min(strengths) < 0 or strengths[3] > 0.5:
        raise ValueError(f'strengths must be at least 0, and that of hue at most 0.5: {strengths}')
    changes: list[tuple[str, float]] = []
    for kind, strength in zip(_JITTER, strengths):
        if strength:
            low = -strength if kind == 'Hue' else max(0.0, 1.0 - strength)
            high = strength if kind == 'Hue' else 1.0 + strength
            changes.append((kind, rng.uniform(low, high)))
    if not changes:
        return image
    picture = Image.fromarray(image)
    for number in rng.permutation(len(changes)):
        kind, amount = changes[number]
        picture = turn_hue(picture, amount) if kind == 'Hue' else enhance(picture, kind, amount)
    return np.array(picture)


def enhance(picture: Image.Image, kind: str, factor: float) -> Image.Image:
    return _ENHANCERS[kind](picture).enhance(factor)


def turn_hue(picture: Image.Image, turn: float) -> Image.Image:
    """Shift the hue by a part of the colour circle."""
    # Pillow's circle has 255 steps; torchvision and paddle.vision go around modulo 256, and so are
    # one step off where the hue passes red.
    shift = round(turn * 255)
    same = list(range(256))
    table = [(hue + shift) % 255 for hue in same]
    # One look-up in all three bands is faster than splitting and merging them.
    return picture.convert('HSV').point(table + same + same).convert('RGB')


def apply_operation(
    picture: Image.Image, name: str, level: float, scale: Scale, rng: np.random.Generator
) -> Image.Image:
    """One operation at one level; the direction or the place is random."""
    if name in _WITHOUT_LEVEL:
        return _WITHOUT_LEVEL[name](picture)
    if name in _ENHANCERS:
        return enhance(picture, name, 0.1 + 1.8 * level / MAX_LEVEL)
    if name == 'Posterize':
        # The authors' program keeps no bits at small levels, which gives a black image.
        return ImageOps.posterize(picture, min(max(_between(scale.bits, level), 1), 8))
    if name == 'Solarize':
        return ImageOps.solarize(picture, _between(scale.threshold, level))
    if name == 'SolarizeAdd':
        add = _between((0, SOLARIZE_ADD), level)
        return picture.point([min(i + add, 255) if i < 128 else i for i in range(256)] * 3)
    if name == 'Cutout':
        return _cutout(picture, int(CUTOUT * min(picture.size) * level / MAX_LEVEL), rng)
    return _warp(picture, name, level if rng.random() < 0.5 else -level, scale)


def _between(ends: tuple[int, int], level: float) -> int:
    return ends[0] + int((ends[1] - ends[0]) * level / MAX_LEVEL)


def _cutout(picture: Image.Image, half: int, rng: np.random.Generator) -> Image.Image:
    """A grey square of side 2 half, its centre anywhere, so that it may lie partly outside."""
    x, y = (int(rng.integers(side)) for side in picture.size)
    picture = picture.copy()
    picture.paste(GREY, (x - half, y - half, x + half, y + half))
    return picture


def _warp(picture: Image.Image, name: str, level: float, scale: Scale) -> Image.Image:
    """Move the pixels, in the direction that the sign of `level` gives."""
    if name == 'Rotate':
        return picture.rotate(30.0 * level / MAX_LEVEL, fillcolor=GREY)
    width, height = picture.size
    shear = 0.3 * level / MAX_LEVEL
    # Whole pixels, so that no rounding of coordinates decides.
    right, down = (round(scale.translate * side * level / MAX_LEVEL) for side in (width, height))
    # From the place in the result to the place in the picture: x' = a x + b y + c, y' = d x + ...
    matrices: dict[str, tuple[float, ...]] = {
        'ShearX': (1, shear, 0, 0, 1, 0),
        'ShearY': (1, 0, 0, shear, 1, 0),
        'TranslateX': (1, 0, right, 0, 1, 0),
        'TranslateY': (1, 0, 0, 0, 1, down),
    }
    affine = Image.Transform.AFFINE
    return picture.transform(picture.size, affine, matrices[name], fillcolor=GREY)


def _autoaugment(
    image: np.ndarray, rng: np.random.Generator, *, table: Sequence[SubPolicy], scale: Scale
) -> np.ndarray:
    sub_policy = table[int(rng.integers(len(table)))]
    steps = [(name, level) for name, chance, level in sub_policy if rng.random() < chance]
    return _apply_all(image, steps, scale, rng)


def _randaugment(
    image: np.ndarray, rng: np.random.Generator, *, operations: int, magnitude: float
) -> np.ndarray:
    chosen = rng.integers(len(RANDAUGMENT_OPERATIONS), size=operations)
    steps = [(RANDAUGMENT_OPERATIONS[number], magnitude) for number in chosen]
    return _apply_all(image, steps, RANDAUGMENT_SCALE, rng)


def _apply_all(
    image: np.ndarray,
    steps: Sequence[tuple[str, float]],
    scale: Scale,
    rng: np.random.Generator,
) -> np.ndarray:
    if not steps:
        return image
    picture = Image.fromarray(image)
    for name, level in steps:
        picture = apply_operation(picture, name, level, scale, rng)
    return np.array(picture)
