"""Prefixes that wrappers of a network give to all its names (`module.`, `backbone.`, `ema.`)."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import UserError
from engine.weights.arrays import Arrays
from engine.weights.converted import some
from engine.weights.names.head import is_of_head
from engine.weights.names.state_dict import AVERAGED

_WRAPPERS = re.compile(
    r'(?:(?:module|model|_orig_mod|_layers|net|network|backbone|encoder|Student|student|timm_model|'
    rf'feature_extractor|base_model|{"|".join(AVERAGED)})\.)*'
)
_STEMS = ('conv1.weight', 'conv._conv.weight', 'conv.weight')


def strip(arrays: Arrays, dropped: list[str], path: Path) -> tuple[Arrays, list[str]]:
    """The names without the prefix, and text that says so.

    If only a part has it (the student of a distillation, the backbone of a classifier), the part
    with the network's first convolution is taken, averaged weights before others, with the last
    layer that may be beside it. `dropped` grows by the rest.
    """
    ends = {name: _WRAPPERS.match(name).end() for name in arrays}  # type: ignore[union-attr]
    prefix, text = _choose(ends, path)
    inside = {name: name[len(prefix) :] for name in arrays if name.startswith(prefix)}
    if not any(map(is_of_head, inside.values())) and not any('neck.' in name for name in arrays):
        inside.update(
            (name, name[end:])
            for name, end in ends.items()
            if name not in inside and is_of_head(name[end:]) and prefix.startswith(name[:end])
        )
    dropped += [f'{name} (beside the network)' for name in arrays if name not in inside]
    return {inside[name]: array for name, array in arrays.items() if name in inside}, text


def _choose(ends: dict[str, int], path: Path) -> tuple[str, list[str]]:
    """The prefix of the network; `ends` has the length of each name's prefix."""
    prefixes = {name[:end] for name, end in ends.items() if name[end:] in _STEMS}
    if not prefixes:  # not one of our networks: a prefix of all names, or none
        common = {name[:end] for name, end in ends.items()}
        prefixes = common if len(common) == 1 else {''}
    averaged = {prefix for prefix in prefixes if {*prefix.split('.')} & {*AVERAGED}}
    chosen, others = averaged or prefixes, sorted(prefixes - averaged)
    if len(chosen) > 1:
        raise UserError(f'{path} holds several networks: {some(sorted(chosen))}')
    (prefix,) = chosen
    text = f'without {prefix}'
    if averaged:
        text += ' (averaged weights' + (f', rather than {others[0]})' if others else ')')
    return prefix, [text] if prefix else []
