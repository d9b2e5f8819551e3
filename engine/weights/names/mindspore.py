"""MindSpore's names of its ResNeXts -> ours; its Wide ResNets are refused by name.

The zoo's resnext50, 101 and 152 (research/cv/ResNeXt, resnext152_64x4d) and MindCV's are read; on
an Ascend, the zoo's have one convolution for each group. Its two Wide ResNets, WRN-40-10
(research/cv/wideresnet) and RP2K's WRN-50-2, are not the papers' networks, and are refused.
"""

from __future__ import annotations

import re
from typing import Mapping, Optional

import numpy as np

from engine.weights.arrays import Arrays

NOTE = (
    'its max pooling pads at the bottom and right only (pad_mode same), here it pads on all sides: '
    'logits differ slightly, as for pictures shifted by two pixels'
)

_ENTRIES = {
    'gamma': 'weight',
    'beta': 'bias',
    'moving_mean': '_mean',
    'moving_variance': '_variance',
}
_STATE = re.compile(r'(moments|moment[12]|accum|stat)\..*|[^.]*')  # of optimizer and training loop
_GROUP = re.compile(r'(.*\.conv2)\.convs\.(\d+)\.weight')
_SHORTCUT = re.compile(r'\.(?:down_sample|downsample)\.(0|1|conv|bn)$')
_WIDE_BLOCK = re.compile(r'conv2\.(\d+)\.conv1\.weight')


def are_theirs(names: Mapping[str, object]) -> bool:
    return any(name.endswith(('.moving_mean', '.moving_variance')) for name in names)


def without_state(arrays: Arrays, dropped: list[str]) -> Arrays:
    """The arrays of the network; `dropped` grows by those of its training."""
    dropped += [f'{name} (of its training)' for name in arrays if _STATE.fullmatch(name)]
    return {name: array for name, array in arrays.items() if not _STATE.fullmatch(name)}


def refusal(arrays: Arrays) -> Optional[str]:
    """Why none of our networks computes what theirs does, or None."""
    blocks = [int(match[1]) for name in arrays if (match := _WIDE_BLOCK.fullmatch(name))]
    kernel = arrays.get('conv2.0.conv1.weight')
    if blocks and kernel is not None and kernel.ndim == 4 and 'bn1.gamma' in arrays:
        return (
            f"is MindSpore's WRN-{6 * (max(blocks) + 1) + 4}-{kernel.shape[0] // 16}, another "
            "network than the paper's: it has a batch norm after its first convolution, its "
            'shortcuts read the input before the batch norm, and dropout comes before the first '
            'convolution of a block'
        )
    if 'layer1.0.shortcut.0.weight' in arrays:
        count = sum(name.startswith('layer3.') and 'conv2' in name for name in arrays)
        return (
            "is of MindSpore's WRN-50-2 for RP2K, another network than the paper's: it has no ReLU "
            f'after its first batch norm, and its third stage has {count} blocks (here: 6)'
        )
    return None


def ours(arrays: Arrays) -> Arrays:
    """The same under our names; linear weights become [in, out].

    ValueError if two arrays have one name of ours, or if groups do not fit together.
    """
    renamed: Arrays = {}
    groups: dict[str, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        if match := _GROUP.fullmatch(name):
            groups.setdefault(f'{match[1]}.weight', {})[int(match[2])] = array
        elif renamed.setdefault(_our_name(name), array) is not array:
            raise ValueError(f'it has two arrays for {_our_name(name)}')
    renamed = {name: array.T if array.ndim == 2 else array for name, array in renamed.items()}
    for name, parts in groups.items():
        if name in renamed or [*sorted(parts)] != [*range(len(parts))]:
            raise ValueError(f'it lacks an array for each group of {name}')
        renamed[name] = np.concatenate([parts[number] for number in sorted(parts)])
    return renamed


def _our_name(name: str) -> str:
    module, dot, entry = name.rpartition('.')
    module = {'conv': 'conv1', 'bn': 'bn1'}.get(module, module)
    if match := _SHORTCUT.search(module):
        module = f'{module[: match.start()]}.downsample.{"0" if match[1] in ("0", "conv") else "1"}'
    return module + dot + _ENTRIES.get(entry, entry)
