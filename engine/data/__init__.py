"""Data sets -> batches.

`load_data` gives a DataSet by name, `train_batches` and `test_batches` what the loop iterates.

    python3 -m engine.data --check DIR       names every picture below DIR that cannot be read
    python3 -m engine.data --pack DIR OUT    the same pictures, the short side 256, quick to read
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import numpy as np

from engine.config import Config
from engine.data.augmentation import Augmentation
from engine.data.batches import ArrayBatches, Batches, Images, ImageSet
from engine.data.sources.cifar import load_cifar
from engine.data.sources.cifar_layouts import VARIANTS
from engine.errors import UserError
from engine.machine import cpu, devices, processes

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
PHOTO_SIZE, RESIZE_RATIO = 224, 256 / 224  # what ImageNet networks are evaluated with
SMALL_SIZE = 32  # of the sets in memory
MIDDLE_GREY = 127.5


@dataclass(frozen=True)
class DataSet:
    train: Optional[ImageSet]  # None where only evaluation was asked for
    test: ImageSet
    classes: list[str]
    mean: np.ndarray  # of 0-255, a value a channel
    std: np.ndarray
    origin: str

    def describe(self) -> str:
        """The same for copies, different for almost everything else."""
        texts = []
        for images in (self.train, self.test):
            if images is not None:
                labels = hashlib.sha256(images.labels.tobytes()).hexdigest()
                texts.append(f'{len(images):,} images with labels {labels[:16]}')
        return f'{" and ".join(texts)} of {len(self.classes):,} classes'


def load_data(
    config: Config,
    *,
    train: bool = True,
    classes: Optional[Sequence[str]] = None,
    report: Callable[[str], None] = print,
) -> DataSet:
    """The data set that the config names. UserError if it is missing or damaged.

    Without `train`, the training images need not be there; `classes`, of the weights, then say
    which ones the test images lack. `report` gets a line for each bad file.
    """
    name = config.data.name
    if name in VARIANTS:
        data = _cifar(config)
    elif name == 'folder':
        data = _folder(config, train, classes, report)
    elif name == 'digits':
        data = _digits()
    else:
        data = _synthetic(config)
    if config.data.holdout and isinstance(data.train, Images):
        data = _hold_out(data, data.train, config.data.holdout)
    if config.data.mean is None or config.data.std is None:
        return data
    return replace(data, mean=np.array(config.data.mean), std=np.array(config.data.std))


@dataclass(frozen=True)
class Preparation:
    """What evaluation makes of a picture: the short side resized, the centre cropped, normalised.

    Images of a set in memory have that size already.
    """

    resize: int
    size: int
    mean: np.ndarray  # of 0-255, a value a channel
    std: np.ndarray


def preparation(config: Config) -> Preparation:
    """As `load_data` has it, without the data set (scikit-learn's digits excepted)."""
    name, size = config.data.name, config.data.image_size or SMALL_SIZE
    resize = size
    if name in VARIANTS:
        mean, std = np.array(VARIANTS[name].mean), np.array(VARIANTS[name].std)
    elif name == 'folder':
        size, resize = _photo_sizes(config)
        mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    elif name == 'digits':
        digits = _digits()
        mean, std = digits.mean, digits.std
    else:
        mean = std = np.full(3, MIDDLE_GREY)
    if config.data.mean is not None and config.data.std is not None:
        mean, std = np.array(config.data.mean), np.array(config.data.std)
    return Preparation(resize, size, mean, std)


def train_batches(data: DataSet, config: Config) -> Batches:
    """The shuffled, augmented batches of the training images, this process's part of each."""
    assert data.train is not None
    augmentation = _augmentation(config)
    options = {
        'batch_size': config.data.batch_size * config.train.accumulate,
        'shuffle': True,
        'seed': config.seed,
        **_common(data),
    }
    if isinstance(data.train, Images):
        side = min(data.train.pixels.shape[2:])
        if augmentation.crop_padding >= side or augmentation.cutout > 2 * side:
            raise UserError(f'data.crop_padding and data.cutout must suit images of {side} pixels')
        if max(augmentation.sides, default=0) > side:
            raise UserError(f'data.progressive must be sides of at most {side} pixels')
        batches = _batches_in_memory(data.train, config, augmentation, options)
    else:
        batches = _photo_batches(data.train, config, augmentation, options)
    if not len(batches):
        raise UserError(
            f'{len(data.train)} training images are fewer than {processes.WORLD_SIZE} processes'
        )
    return batches


def test_batches(data: DataSet, config: Config) -> Batches:
    """The test images in their order, this process's part of each batch."""
    options = {'batch_size': config.eval.batch_size, **_common(data)}
    if isinstance(data.test, Images):
        return _batches_in_memory(data.test, config, Augmentation(), options)
    from engine.data.photos import PhotoBatches, Photos

    assert isinstance(data.test, Photos)
    crops = 5 if config.eval.views == 'ten_crop' else 1  # at once; then their mirror images
    options['batch_size'] = max(1, config.eval.batch_size // crops)
    on_device = devices.device_kind() == 'gpu'
    return PhotoBatches(data.test, view=data.test.view, on_device=on_device, **options)


def class_count(data: DataSet, wanted: int | None) -> int:
    """model.num_classes, or the set's own number of classes; UserError if the labels don't fit."""
    if wanted is not None and wanted < len(data.classes):
        raise UserError(
            f'model.num_classes is {wanted}, but the labels of {data.origin} go up to '
            f'{len(data.classes) - 1}; leave it out, or set {len(data.classes)} or more'
        )
    return wanted or len(data.classes)


def _common(data: DataSet) -> dict[str, Any]:
    return {
        'mean': data.mean,
        'std': data.std,
        'rank': processes.RANK,
        'world': processes.WORLD_SIZE,
    }


def _augmentation(config: Config) -> Augmentation:
    from engine.data.policies import make_policy

    data = config.data
    policy = None
    if data.auto_augment != 'none':
        operations, magnitude = data.randaugment_operations, data.randaugment_magnitude
        policy = make_policy(data.auto_augment, operations=operations, magnitude=magnitude)
    return Augmentation(
        crop_padding=data.crop_padding,
        padding_mode=data.padding_mode,
        flip=data.flip,
        policy=policy,
        jitter=data.color_jitter,
        cutout=data.cutout,
        random_erasing=data.random_erasing,
        mixup=data.mixup,
        cutmix=data.cutmix,
        sides=data.progressive,
        epochs=config.train.epochs,
    )


def _batches_in_memory(
    images: Images, config: Config, augmentation: Augmentation, options: dict[str, Any]
) -> Batches:
    """On the device where that is wanted and its kernels can do all that is to be done."""
    wanted = config.data.on_device
    if wanted is None:
        wanted = devices.is_accelerator()
    if wanted and not augmentation.image_by_image:
        from engine.data.on_device import DeviceBatches

        return DeviceBatches(images, augmentation=augmentation, **options)
    return ArrayBatches(images, augmentation=augmentation, **options)


def _photo_batches(
    images: Any, config: Config, augmentation: Augmentation, options: dict[str, Any]
) -> Batches:
    from engine.data.photos import PhotoBatches
    from engine.data.pictures import TrainView

    if augmentation.cutout > 2 * images.view.size:
        raise UserError(f'data.cutout must suit images of {images.view.size} pixels')
    view = TrainView(
        size=images.view.size,
        scale=(config.data.scale[0], config.data.scale[1]),
        ratio=(config.data.ratio[0], config.data.ratio[1]),
        flip=augmentation.flip,
        policy=augmentation.policy,
        jitter=augmentation.jitter,
        max_pixels=images.view.max_pixels,
    )
    options = {**options, 'augmentation': augmentation, 'on_device': devices.device_kind() == 'gpu'}
    return PhotoBatches(images, view=view, **options)


def _cifar(config: Config) -> DataSet:
    variant = VARIANTS[config.data.name]
    train, test, classes, where = load_cifar(
        config.data.name, Path(config.data.root).expanduser(), fetch=config.data.download
    )
    mean, std = np.array(variant.mean), np.array(variant.std)
    return DataSet(Images(*train), Images(*test), classes, mean, std, where)


def _folder(
    config: Config, train: bool, classes: Optional[Sequence[str]], report: Callable[[str], None]
) -> DataSet:
    from engine.data.photos import Photos, without_bad_files
    from engine.data.pictures import EvalView
    from engine.data.sources.folder import Files, find_folder

    data = config.data
    found = find_folder(
        Path(data.root),
        train=train,
        train_folder=data.train_folder,
        test_folder=data.test_folder,
        holdout=data.holdout,
        known=classes,
    )
    for note in found.notes if processes.RANK == 0 else ():
        report(note)
    size, resize = _photo_sizes(config)
    max_pixels = data.max_pixels_million * 1_000_000
    five_crops = config.eval.views == 'ten_crop'
    view = EvalView(size=size, resize=resize, five_crops=five_crops, max_pixels=max_pixels)
    workers = data.workers or cpu.cores_per_process()
    skip = data.on_bad_file == 'skip'

    def photos(files: Files) -> Photos:
        processes.require_same('the data set', lambda: f'{len(files):,} files')
        good = without_bad_files(
            files, skip=skip, workers=workers, report=report, max_pixels=max_pixels
        )
        return Photos(good, view, workers=workers, skip_bad=skip, report=report)

    return DataSet(
        photos(found.train) if train else None,
        photos(found.test),
        found.classes,
        np.array(IMAGENET_MEAN),
        np.array(IMAGENET_STD),
        data.root,
    )


def _hold_out(data: DataSet, images: Images, share: float) -> DataSet:
    """Test with that share of each class of the training images: random, and the same each time."""
    from engine.data.sources.folder import held_out

    order = np.random.default_rng(0).permutation(len(images))
    held = np.zeros(len(images), bool)
    for label in np.unique(images.labels):
        rows = order[images.labels[order] == label]
        count = held_out(len(rows), share)
        if count < 1:
            name = data.classes[label]
            raise UserError(f'{data.origin} has one image of {name}: data.holdout needs two')
        held[rows[:count]] = True
    kept, test = (Images(images.pixels[rows], images.labels[rows]) for rows in (~held, held))
    origin = f'{data.origin}, {100 * share:g} % of its training images held out'
    return replace(data, train=kept, test=test, origin=origin)


def _photo_sizes(config: Config) -> tuple[int, int]:
    """What the network sees, and the short side before that is cropped."""
    size = config.data.image_size or PHOTO_SIZE
    resize = config.eval.resize or round(size * RESIZE_RATIO)
    if resize < size:
        raise UserError(f'eval.resize is {resize}, smaller than data.image_size ({size})')
    return size, resize


def _digits() -> DataSet:
    from engine.data.sources.digits import load_digits_32

    pixels, labels, test_pixels, test_labels = load_digits_32()
    return DataSet(
        Images(pixels, labels),
        Images(test_pixels, test_labels),
        [str(digit) for digit in range(10)],
        np.full(3, pixels.mean()),
        np.full(3, pixels.std()),
        "scikit-learn's digits",
    )


def _synthetic(config: Config) -> DataSet:
    """Random pixels and labels of ten classes, for benchmarks."""
    rng = np.random.default_rng(0)
    size = config.data.image_size or SMALL_SIZE
    shape = (config.data.num_images, 3, size, size)

    def images() -> Images:
        return Images(rng.integers(0, 256, shape, np.uint8), rng.integers(0, 10, shape[0]))

    half = np.full(3, MIDDLE_GREY)
    return DataSet(images(), images(), [str(i) for i in range(10)], half, half, 'random images')
