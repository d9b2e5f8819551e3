"""Data sets -> batches.

`load_data` reads the data set that the config names (engine/data/sources/, a module each).
`train_batches` and `test_batches` give what training and evaluation iterate over.

    python3 -m engine.data --check DIR       names every picture below DIR that cannot be read
    python3 -m engine.data --pack DIR OUT    the same pictures, the short side 256, quick to read
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Optional, Sequence

import numpy as np

from engine.config import Config, Data
from engine.data.augmentation import Augmentation
from engine.data.batches import ArrayBatches, Batches, BatchOptions
from engine.data.dataset import DataSet, Images, ImageSet, Preparation, Request, hold_out
from engine.data.sources import find_source
from engine.errors import UserError
from engine.machine import devices, processes

__all__ = [
    'ArrayBatches',
    'Batches',
    'DataSet',
    'Images',
    'Preparation',
    'class_count',
    'load_data',
    'preparation',
    'test_batches',
    'train_batches',
]

RESIZE_RATIO = 256 / 224  # what ImageNet networks are evaluated with


def load_data(
    config: Config,
    *,
    train: bool = True,
    classes: Optional[Sequence[str]] = None,
    report: Callable[[str], None] = print,
) -> DataSet:
    """The data set that the config names. UserError if it is missing or damaged.

    Without `train`, the training images may be missing; `classes`, those of the weights, then say
    which classes have no test images. `report` gets a line for each bad file.
    """
    request = Request(preparation(config), train, classes, report)
    data = find_source(config.data.name).load(config.data, request)
    if config.data.holdout and isinstance(data.train, Images):
        data = hold_out(data, data.train, config.data.holdout)
    return data


def preparation(config: Config) -> Preparation:
    """How evaluation resizes, crops and normalises the images of this config. Reads no images."""
    data, source = config.data, find_source(config.data.name)
    size = resize = data.image_size or source.SIZE
    if data.name == 'folder':
        resize = config.eval.resize or round(size * RESIZE_RATIO)
        if resize < size:
            raise UserError(f'eval.resize is {resize}, smaller than data.image_size ({size})')
    given = data.mean is not None and data.std is not None
    mean, std = (data.mean, data.std) if given else (source.MEAN, source.STD)
    return Preparation(resize, size, np.array(mean), np.array(std))


def train_batches(data: DataSet, config: Config) -> Batches:
    """The shuffled, augmented batches of the training images, this process's part of each."""
    assert data.train is not None
    augmentation = _augmentation(config.data, config.train.epochs)
    options = replace(
        _options(data, config.data.batch_size * config.train.accumulate),
        augmentation=augmentation,
        shuffle=True,
        seed=config.seed,
    )
    if isinstance(data.train, Images):
        _check_sizes(augmentation, min(data.train.pixels.shape[2:]))
        batches = _batches_in_memory(data.train, options, config.data.on_device)
    else:
        batches = _photo_batches(data.train, options, config.data)
    if not len(batches):
        raise UserError(
            f'{len(data.train)} training images are fewer than {processes.WORLD_SIZE} processes'
        )
    return batches


def test_batches(data: DataSet, config: Config) -> Batches:
    """The test images in their order, this process's part of each batch."""
    options = _options(data, config.eval.batch_size)
    if isinstance(data.test, Images):
        return _batches_in_memory(data.test, options, config.data.on_device)
    from engine.data.photo_batches import PhotoBatches, Photos

    assert isinstance(data.test, Photos)
    view = data.test.view
    if config.eval.views == 'ten_crop':  # five crops at once, then their mirror images
        view = replace(view, five_crops=True)
        options = replace(options, batch_size=max(1, config.eval.batch_size // 5))
    on_device = devices.device_kind() == 'gpu'
    return PhotoBatches(data.test, options, view=view, on_device=on_device)


def class_count(data: DataSet, expected: Optional[int]) -> int:
    """model.num_classes, or the set's own number of classes; UserError if the labels don't fit."""
    if expected is not None and expected < len(data.classes):
        raise UserError(
            f'model.num_classes is {expected}, but the labels of {data.origin} go up to '
            f'{len(data.classes) - 1}; leave it out, or set {len(data.classes)} or more'
        )
    return expected or len(data.classes)


def _options(data: DataSet, batch_size: int) -> BatchOptions:
    return BatchOptions(
        batch_size=batch_size,
        mean=data.mean,
        std=data.std,
        rank=processes.RANK,
        world_size=processes.WORLD_SIZE,
    )


def _augmentation(data: Data, epochs: int) -> Augmentation:
    from engine.data.policies import make_policy

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
        epochs=epochs,
    )


def _check_sizes(augmentation: Augmentation, side: int) -> None:
    if augmentation.crop_padding >= side or augmentation.cutout > 2 * side:
        raise UserError(f'data.crop_padding and data.cutout must suit images of {side} pixels')
    if max(augmentation.sides, default=0) > side:
        raise UserError(f'data.progressive must be sides of at most {side} pixels')


def _batches_in_memory(images: Images, options: BatchOptions, on_device: Optional[bool]) -> Batches:
    """On the device, if the config or an accelerator asks for it and all can be done there."""
    if on_device is None:
        on_device = devices.is_accelerator()
    if on_device and not options.augmentation.image_by_image:
        from engine.data.on_device import DeviceBatches

        return DeviceBatches(images, options)
    return ArrayBatches(images, options)


def _photo_batches(images: ImageSet, options: BatchOptions, data: Data) -> Batches:
    from engine.data.photo_batches import PhotoBatches, Photos
    from engine.data.pictures import TrainView

    assert isinstance(images, Photos)
    augmentation, size = options.augmentation, images.view.size
    if augmentation.cutout > 2 * size:
        raise UserError(f'data.cutout must suit images of {size} pixels')
    view = TrainView(
        size=size,
        scale=(data.scale[0], data.scale[1]),
        ratio=(data.ratio[0], data.ratio[1]),
        flip=augmentation.flip,
        policy=augmentation.policy,
        jitter=augmentation.jitter,
        max_pixels=images.view.max_pixels,
    )
    return PhotoBatches(images, options, view=view, on_device=devices.device_kind() == 'gpu')
