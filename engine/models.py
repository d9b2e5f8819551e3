"""Names of networks, and the networks: build('wide_resnet28_10', num_classes=10, dropout=0.3)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:  # the names are checked before paddle is imported
    from paddle import nn

_WIDE_RESNET = re.compile(r'wide_resnet(\d+)_(\d+)')


def check_name(name: str) -> Optional[str]:
    """None if `build` knows the name, else what is wrong with it."""
    match = _WIDE_RESNET.fullmatch(name)
    if match is None:
        return f'must be like wide_resnet28_10 (depth 28, widen factor 10), not {name!r}'
    depth, widen_factor = map(int, match.groups())
    if depth < 10 or (depth - 4) % 6:
        below = max(10, depth - (depth - 4) % 6)
        return f'has depth {depth}, which must be 6n + 4: {below} or {below + 6}'
    return None if widen_factor else 'has widen factor 0, which must be 1 or more'


def build(name: str, *, num_classes: int, dropout: float = 0.0) -> nn.Layer:
    """The network of that name with fresh weights; ValueError if there is none."""
    problem = check_name(name)
    if problem:
        raise ValueError(f'model name {problem}')
    from wide_resnet import WideResNet

    depth, widen_factor = map(int, _WIDE_RESNET.fullmatch(name).groups())  # type: ignore[union-attr]
    return WideResNet(
        depth=depth, widen_factor=widen_factor, num_classes=num_classes, dropout=dropout
    )


def parameter_count(model: nn.Layer) -> int:
    """Trainable parameters (the running statistics of batch norms are none)."""
    return sum(p.size for p in model.parameters() if not p.stop_gradient)
