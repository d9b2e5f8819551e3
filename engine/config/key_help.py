"""The table of config keys that ends --help."""

from __future__ import annotations

import textwrap
from dataclasses import Field
from typing import Any

from engine.config.keys import all_keys
from engine.config.values import as_yaml, choices

WIDTH = 80  # columns

# What the commands that do not train ignore: sections, keys, and first letters of keys.
_OF_TRAINING = (
    *('optimizer.', 'schedule.', 'train.', 'model.dropout', 'model.init', 'model.zero_init'),
    *('model.data_format', 'model.pretrained', 'data.batch_size', 'data.scale', 'data.ratio'),
    *('data.crop_padding', 'data.padding_mode', 'data.flip', 'data.auto_augment'),
    *('data.randaugment_', 'data.color_jitter', 'data.cutout', 'data.random_erasing', 'data.mixup'),
    *('data.cutmix', 'data.progressive', 'eval.every', 'eval.start'),
)


def is_read(name: str, *, training: bool) -> bool:
    """Whether a command that trains, or one that does not, reads this key."""
    return training or name == 'train.cpu_conv' or not name.startswith(_OF_TRAINING)


def describe_keys(*, training: bool) -> str:
    """The keys that a command reads, each with its default, meaning and choices."""
    lines = ['config keys (default): meaning']
    for name, field in all_keys().items():
        if is_read(name, training=training):
            text = f'{name} {_describe(field)}'.rstrip(': ')
            lines += textwrap.wrap(text, WIDTH, initial_indent='  ', subsequent_indent=6 * ' ')
    return '\n'.join(lines)


def _describe(field: Field[Any]) -> str:
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    meaning = [field.metadata['doc'], ' | '.join(choices(field.type))]
    return f'({as_yaml(default)}): {"; ".join(filter(None, meaning))}'
