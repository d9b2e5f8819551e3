"""From a name to the network with initial weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.models.names import Spec, parse

if TYPE_CHECKING:  # names are checked before paddle is imported
    from paddle import nn


def build(
    name: str,
    *,
    num_classes: int,
    dropout: float = 0.0,
    zero_init_last_bn: bool = False,
    init: str = 'he',
    data_format: str = 'NCHW',
) -> nn.Layer:
    """The network of that name with fresh weights; ValueError if there is none.

    `dropout` is for wide_resnet{6n+4}_{k}, `zero_init_last_bn` for all others. `init` of the
    convolutions is 'he' (normal, over the fan-out), 'he_fan_in' or 'xavier' (uniform, with gain
    sqrt 2).
    `data_format`, 'NCHW' or 'NHWC', is the memory layout between the layers: the network takes
    [N, 3, H, W] and has the same weights in both.
    """
    try:
        spec = parse(name)
    except ValueError as error:
        raise ValueError(f'model name {error}') from None
    if dropout and not spec.preactivated:
        raise ValueError(f'{name} has no dropout')
    if zero_init_last_bn and spec.preactivated:
        raise ValueError(f'{name} has no batch norm at the end of its blocks')
    if init not in ('he', 'he_fan_in', 'xavier'):
        raise ValueError(f'init must be he, he_fan_in or xavier, not {init!r}')
    model = _construct(spec, num_classes, dropout, zero_init_last_bn, data_format)
    if init != 'he':  # which is what the model files do
        _initialise(model, init)
    return model


def _construct(
    spec: Spec, num_classes: int, dropout: float, zero_init: bool, data_format: str
) -> nn.Layer:
    from resnext import CifarResNeXt, ResNeXt
    from wide_resnet import WideResNet

    if spec.preactivated:
        return WideResNet(
            depth=spec.depth,
            widen_factor=spec.width,
            num_classes=num_classes,
            dropout=dropout,
            data_format=data_format,
        )
    wider = 64 if spec.family == 'wide_resnet' else 1  # WRN-50-k widens ResNet-50's 64 channels
    return (ResNeXt if spec.for_photos else CifarResNeXt)(
        depth=spec.depth,
        cardinality=spec.cardinality,
        width=wider * spec.width,
        num_classes=num_classes,
        zero_init_last_bn=zero_init,
        data_format=data_format,
    )


def _initialise(model: nn.Layer, init: str) -> None:
    """Initialise the convolutions again, as other sources do.

    xavier: Glorot & Bengio 2010 with the gain of ReLU, as MindSpore's WRN-40-10. he_fan_in: He et
    al. 2015, as the code of the Wide ResNet paper and Paddle Contrib's; the model files have its
    form over the fan-out.
    """
    from paddle import nn

    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D):
            out_channels, in_channels, *kernel = layer.weight.shape  # in_channels of one group
            area = kernel[0] * kernel[1]
            if init == 'xavier':
                bound = (2.0 * 6.0 / ((out_channels + in_channels) * area)) ** 0.5
                nn.initializer.Uniform(-bound, bound)(layer.weight)
            else:
                nn.initializer.Normal(0.0, (2.0 / (in_channels * area)) ** 0.5)(layer.weight)
