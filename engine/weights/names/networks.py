"""The network that a state dict is of, for messages."""

from __future__ import annotations

import re
from typing import Mapping, Optional


def looks_like(shapes: Mapping[str, tuple[int, ...]]) -> Optional[str]:
    """The name of the network that has these shapes, as far as names and widths show."""

    def blocks(pattern: str, stages: int) -> list[int]:
        """Of each stage, counted by one of their convolutions."""
        ones = [re.compile(pattern.format(stage + 1)) for stage in range(stages)]
        return [sum(one.fullmatch(name) is not None for name in shapes) for one in ones]

    counts = blocks(r'block{}\.layer\.(\d+)\.conv1\.weight', 3)
    if all(counts):
        width = shapes['block1.layer.0.conv1.weight'][0]
        return f'wide_resnet{2 * sum(counts) + 4}_{width // 16}'
    counts = blocks(r'layer{}\.(\d+)\.conv2\.weight', 4)
    kernel = shapes.get('layer1.0.conv2.weight', ())
    if not all(counts[:3]) or len(kernel) != 4 or 0 in kernel:
        return None
    depth, width, cardinality = 3 * sum(counts) + 2, kernel[0], kernel[0] // kernel[1]
    if 'layer1.0.conv3.weight' not in shapes:
        return f'a ResNet of {2 * sum(counts) + 2} layers without bottlenecks'
    if cardinality > 1 or not counts[3]:
        return f'resnext{depth}_{cardinality}x{width // cardinality}d'
    return f'wide_resnet{depth}_{width // 64}' if width > 64 else f'resnet{depth}'
