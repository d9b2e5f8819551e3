"""Checks of values that must fit together."""

from __future__ import annotations

from typing import Callable, Optional, get_args, get_type_hints

from engine.config.keys import Config, Data, Model
from engine.errors import UserError
from engine.models.names import parse

Refuse = Callable[[str, str], None]

# The data sets that some keys of data are for. With others, only the default is accepted.
DATA_SETS: tuple[str, ...] = get_args(get_type_hints(Data)['name'])
_FOLDER = ('folder',)
_MEMORY = tuple(name for name in DATA_SETS if name != 'folder')
_APPLIES = {
    'train_folder': _FOLDER,
    'test_folder': _FOLDER,
    'on_bad_file': _FOLDER,
    'max_pixels_million': _FOLDER,
    'scale': _FOLDER,
    'ratio': _FOLDER,
    'image_size': ('folder', 'synthetic'),
    'num_images': ('synthetic',),
    'crop_padding': _MEMORY,
    'padding_mode': _MEMORY,
    'on_device': _MEMORY,
    'progressive': _MEMORY,
}

# Augmentation of one image after another.
_BY_IMAGE = ('auto_augment', 'color_jitter', 'random_erasing')


def check(config: Config, origin: Callable[[str], str]) -> None:
    """UserError with the key and its origin, for values that do not fit together."""

    def refuse(name: str, problem: str) -> None:
        raise UserError(f'{origin(name)}: {name} {problem}')

    _check_model(config.model, refuse)
    _check_data(config.data, refuse)
    _check_augmentation(config.data, refuse)
    _check_schedule(config, refuse)
    if config.train.to_static and config.train.accumulate > 1:
        refuse('train.to_static', 'does not work with train.accumulate: Paddle loses gradients')
    if config.data.name != 'folder':
        if config.eval.views == 'ten_crop':
            refuse('eval.views', 'ten_crop is for data.name: folder; flip averages two views')
        if config.eval.resize is not None:
            refuse('eval.resize', f'has no effect with data.name: {config.data.name}; leave it out')


def _check_model(model: Model, refuse: Refuse) -> None:
    try:
        spec = parse(model.name)
    except ValueError as error:
        refuse('model.name', str(error))
    if model.dropout and not spec.preactivated:
        refuse('model.dropout', f'is for wide_resnet{{6n + 4}}_{{k}}; {model.name} has none')
    if model.zero_init_last_bn and spec.preactivated:
        refuse('model.zero_init_last_bn', f'is not for {model.name}: no batch norm ends its blocks')


def _check_normalisation(
    mean: Optional[tuple[float, ...]], std: Optional[tuple[float, ...]], refuse: Refuse
) -> None:
    if (mean is None) != (std is None):
        refuse('data.mean' if std is None else 'data.std', 'needs the other of mean and std')
    if mean is None or std is None:
        return
    if len(mean) != 3 or len(std) != 3:
        refuse('data.mean', 'and data.std need three values each, red, green and blue')
    if min(std) <= 0:
        refuse('data.std', 'must be above 0')
    small = [max(values) <= 1 for values in (mean, std)]
    if small[1] or (small[0] and max(mean) > 0):
        levels = [
            [round(255 * value, 4) if scaled else value for value in values]
            for scaled, values in zip(small, (mean, std))
        ]
        refuse(
            'data.std' if small[1] else 'data.mean',
            'has fractions of 255, as in other programs; here values are from 0 to 255: '
            f"-o 'data.mean={levels[0]}' 'data.std={levels[1]}'",
        )


def _check_data(data: Data, refuse: Refuse) -> None:
    _check_normalisation(data.mean, data.std, refuse)
    for name, sets in _APPLIES.items():
        if data.name not in sets and getattr(data, name) != getattr(type(data), name):
            refuse(
                f'data.{name}',
                f'has no effect with data.name: {data.name}; leave it out, or give it its default',
            )


def _check_augmentation(data: Data, refuse: Refuse) -> None:
    for name, largest in (('scale', 1.0), ('ratio', 1e3)):
        pair = getattr(data, name)
        if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= largest:
            refuse(f'data.{name}', f'must be two numbers, 0 < low <= high <= {largest:g}')
    jitter = data.color_jitter
    if jitter and (
        len(jitter) not in (3, 4) or min(jitter) < 0 or max(jitter[3:], default=0) > 0.5
    ):
        refuse(
            'data.color_jitter',
            'must be three or four strengths, such as [0.4, 0.4, 0.4, 0.1]; hue is at most 0.5',
        )
    if min(data.progressive, default=8) < 8 or list(data.progressive) != sorted(data.progressive):
        refuse('data.progressive', 'must be growing sides of 8 pixels or more: [20, 26, 32]')
    for name in _BY_IMAGE:
        if data.on_device and getattr(data, name) != getattr(type(data), name):
            refuse(
                'data.on_device',
                f'does not work with data.{name}, which runs on the CPU; leave one of them out',
            )


def _check_schedule(config: Config, refuse: Refuse) -> None:
    schedule, optimizer = config.schedule, config.optimizer
    if optimizer.clip_norm == 0:
        refuse('optimizer.clip_norm', 'must be above 0; null does not clip')
    if optimizer.lr_scaling == 'linear' and optimizer.reference_batch is None:
        refuse('optimizer.lr_scaling', 'linear needs optimizer.reference_batch, such as 256')
    if len(config.data.progressive) > config.train.epochs:
        refuse('data.progressive', f'has more sides than train.epochs ({config.train.epochs})')
    if schedule.warmup_epochs >= config.train.epochs:
        refuse('schedule.warmup_epochs', f'must be less than train.epochs ({config.train.epochs})')
    if schedule.name == 'step' and schedule.step_size <= 0:
        refuse('schedule.step_size', 'must be above 0')
    if schedule.name != 'piecewise':
        return
    boundaries, values = schedule.boundaries, schedule.values
    if list(boundaries) != sorted(set(boundaries)) or min(boundaries, default=1) <= 0:
        refuse('schedule.boundaries', 'must be increasing epochs above 0')
    if values and len(values) != len(boundaries) + 1:
        refuse(
            'schedule.values',
            f'must be one more than schedule.boundaries: {len(boundaries)} boundaries need '
            f'{len(boundaries) + 1} values, not {len(values)}',
        )
    if values and min(values) <= 0:
        refuse('schedule.values', 'must be above 0')
