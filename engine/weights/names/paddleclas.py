"""PaddleClas's names of a ResNeXt (its resnext.py) -> ours."""

from __future__ import annotations

import re
from typing import Iterable

_LAYERS = {'_conv': 'conv', '_batch_norm': 'bn'}
_BLOCK = re.compile(r'bb_(\d+)_(\d+)\.(conv[012]|short)\.(_conv|_batch_norm)\.(\w+)')
_STEM = re.compile(r'conv\.(_conv|_batch_norm)\.(\w+)')
_HEAD = re.compile(r'out\.(weight|bias)')


def are_theirs(names: Iterable[str]) -> bool:
    return any(_BLOCK.fullmatch(name) or _STEM.fullmatch(name) for name in names)


def our_name(name: str) -> str:
    """A name that is not PaddleClas's stays; it is then refused by its name."""
    if match := _STEM.fullmatch(name):
        return f'{_LAYERS[match[1]]}1.{match[2]}'
    if match := _HEAD.fullmatch(name):
        return f'fc.{match[1]}'
    if match := _BLOCK.fullmatch(name):
        stage, block, layer, kind, entry = match.groups()
        if layer == 'short':
            inner = 'downsample.' + ('0' if kind == '_conv' else '1')
        else:
            inner = f'{_LAYERS[kind]}{int(layer[-1]) + 1}'
        return f'layer{int(stage) + 1}.{block}.{inner}.{entry}'
    return name
