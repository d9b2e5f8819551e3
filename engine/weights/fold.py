"""Convolution biases of other ports, folded exactly into the running means behind them.

No convolution of these networks needs a bias, because all of its ways lead into batch norms: and
what a batch norm subtracts can absorb a constant, mean - b in the place of x + b. Behind each
convolution of a bottleneck is its own batch norm. In a pre-activation Wide ResNet the sums of the
residual stream come in between: the stream then carries one constant a channel, which each batch
norm that reads it subtracts, and which a block adds to (identity) or replaces (projection).
"""

from __future__ import annotations

import re
from typing import Optional

import numpy as np

from engine.weights.arrays import Arrays

_BLOCK = re.compile(r'block([123])\.layer\.(\d+)\.conv1\.weight')
_BOTTLENECK = re.compile(r'(layer\d+\.\d+\.)?(conv(\d)|downsample\.0)\.bias')


def fold_biases(arrays: Arrays) -> int:
    """Take the biases of convolutions out of `arrays`; the number of them.

    `arrays` gets new running means and is otherwise unchanged. ValueError if one can't be folded.
    """
    biases = {
        name
        for name in arrays
        if name.endswith('.bias') and _is_convolution(arrays.get(f'{name[:-5]}.weight'))
    }
    if not biases:
        return 0
    wide = any(_BLOCK.fullmatch(name) for name in arrays)
    changes = _of_wide(arrays, biases) if wide else _of_bottlenecks(arrays, biases)
    arrays.update(changes)
    for name in biases:
        del arrays[name]
    return len(biases)


def _of_bottlenecks(arrays: Arrays, biases: set[str]) -> Arrays:
    changes = {}
    for name in sorted(biases):
        match = _BOTTLENECK.fullmatch(name)
        if match is None:
            raise ValueError(f'{name} is of a convolution that no batch norm is known to follow')
        mean = f'{match[1] or ""}{f"bn{match[3]}" if match[3] else "downsample.1"}._mean'
        changes[mean] = _less(arrays, mean, _bias(arrays, name))
    return changes


def _of_wide(arrays: Arrays, biases: set[str]) -> Arrays:
    changes: Arrays = {}
    known = {'conv1.bias'}
    carried = _bias(arrays, 'conv1.bias')
    blocks = (_BLOCK.fullmatch(name) for name in arrays)
    for group, i in sorted((int(match[1]), int(match[2])) for match in blocks if match):
        block = f'block{group}.layer.{i}.'
        names = [f'{block}{conv}.bias' for conv in ('conv1', 'conv2', 'convShortcut')]
        inner, outer, shortcut = (_bias(arrays, name) for name in names)
        known.update(names)
        changes[f'{block}bn1._mean'] = _less(arrays, f'{block}bn1._mean', carried)
        changes[f'{block}bn2._mean'] = _less(arrays, f'{block}bn2._mean', inner)
        projects = f'{block}convShortcut.weight' in arrays  # and forgets what the stream carried
        carried = _sum(f'{block}conv2.bias', outer, shortcut if projects else carried)
    changes['bn1._mean'] = _less(arrays, 'bn1._mean', carried)
    if unknown := sorted(biases - known):
        raise ValueError(f'{unknown[0]} is of a convolution that no batch norm is known to follow')
    return changes


def _is_convolution(weight: Optional[np.ndarray]) -> bool:
    return weight is not None and weight.ndim == 4


def _bias(arrays: Arrays, name: str) -> Optional[np.ndarray]:
    bias = arrays.get(name)
    return None if bias is None else bias.astype(np.float64)


def _sum(name: str, one: Optional[np.ndarray], other: Optional[np.ndarray]) -> Optional[np.ndarray]:
    if one is None or other is None:
        return other if one is None else one
    if one.shape != other.shape:
        raise ValueError(f'{name} is {list(one.shape)} where {list(other.shape)} channels meet')
    both: np.ndarray = one + other
    return both


def _less(arrays: Arrays, mean: str, bias: Optional[np.ndarray]) -> np.ndarray:
    """The running mean minus the bias, to the mean's precision."""
    if mean not in arrays:
        raise ValueError(f'there is no {mean} to fold convolution biases into')
    if bias is None:
        return arrays[mean]
    if bias.shape != arrays[mean].shape:
        raise ValueError(f'{mean} is {list(arrays[mean].shape)}, its biases {list(bias.shape)}')
    difference: np.ndarray = arrays[mean].astype(np.float64) - bias
    return difference.astype(arrays[mean].dtype)
