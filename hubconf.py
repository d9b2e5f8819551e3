"""The networks for paddle.hub, by their names in engine.models.

    paddle.hub.load('path/to/this', 'wide_resnet28_10', source='local', pretrained='best.pdparams')

paddle.hub.list names those of the papers; any wide_resnet{d}_{k} and resnext{d}_{c}x{w}d is found.
paddle.hub takes every public name of this file for a network.
"""

from pathlib import Path as _Path
from typing import Any as _Any
from typing import Callable as _Callable
from typing import Union as _Union

from paddle import nn as _nn

import resnext  # noqa: F401  (later, paddle.hub has taken this folder off sys.path)
import wide_resnet  # noqa: F401
from engine import models as _models

dependencies = ['paddle', 'numpy']


def _network(name: str) -> _Callable[..., _nn.Layer]:
    spec = _models.parse(name)
    classes = 1000 if spec.for_photos else 10  # of ImageNet, of CIFAR-10

    def network(
        *,
        num_classes: int = classes,
        pretrained: _Union[str, _Path, bool, None] = None,
        **options: _Any,
    ) -> _nn.Layer:
        from engine.weights import load_weights

        model = _models.build(name, num_classes=num_classes, **options)
        if pretrained:
            load_weights(model, name if pretrained is True else pretrained)
        return model

    network.__name__ = name
    source = f' ({_models.MODELS[name]})' if name in _models.MODELS else ''
    network.__doc__ = f"""{name}{source}: float32 [N, 3, H, W] to logits [N, num_classes].

    num_classes: {classes} by default
    pretrained: a weight file of any project, a checkpoint, the name of official weights, or True
        for those of this name, which are downloaded once; UserError if they do not fit
    dropout, zero_init_last_bn, init, data_format: as in engine.models.build
    """
    return network


def __getattr__(name: str) -> _Callable[..., _nn.Layer]:
    """Networks beyond those of the papers."""
    try:
        return _network(name)
    except ValueError as error:
        raise AttributeError(f'{name}: the name {error}') from None


globals().update({name: _network(name) for name in _models.MODELS})
