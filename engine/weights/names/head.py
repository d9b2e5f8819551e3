"""The last layer, which other projects call by other names."""

from __future__ import annotations

import re

from engine.weights.arrays import Arrays

_HEAD = re.compile(
    r'((?:head\.fc|head|fc|classifier|last_linear|linear|output)(?:\.\d+)?)\.(weight|bias)'
)


def is_of_head(name: str) -> bool:
    """Whether an array belongs to a last layer, or to one of several."""
    return _HEAD.fullmatch(name) is not None


def with_our_head(arrays: Arrays) -> Arrays:
    """The last layer as fc, if there is only one: after a dropout it is fc.1 in PyTorch."""
    heads = {match[1] for name in arrays if (match := _HEAD.fullmatch(name))}
    if len(heads) != 1:
        return arrays
    (head,) = heads
    return {
        f'fc{name[len(head) :]}' if is_of_head(name) else name: array
        for name, array in arrays.items()
    }
