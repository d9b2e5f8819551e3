"""The network to train, as the config and the device want it: layout, kernels, batch norms."""

from __future__ import annotations

from typing import Optional, Union

import paddle
from paddle import nn

from engine import config as configs
from engine import cpu_conv, models
from engine.machine import processes, support
from engine.weights import Converted, fit_weights


def build(
    config: configs.Model,
    train: configs.Train,
    num_classes: int,
    pretrained: Optional[Converted] = None,
) -> tuple[nn.Layer, list[str]]:
    """The network, with pretrained weights where they are given, and lines that describe it.

    UserError for kernels that are asked for and not available, and for weights that do not fit.
    """
    onednn_dtype, kernels = cpu_conv.choose(train)
    processes.require_same('what computes convolutions', lambda: str(onednn_dtype))
    model = models.build(
        config.name,
        num_classes=num_classes,
        dropout=config.dropout,
        zero_init_last_bn=config.zero_init_last_bn,
        init=config.init,
        data_format='NHWC' if onednn_dtype else support.data_format(train, config),
    )
    if onednn_dtype:
        cpu_conv.accelerate(model, onednn_dtype)
    if train.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    lines = [f'model: {config.name}, {models.parameter_count(model):,} parameters', *kernels]
    if pretrained is not None:
        report = fit_weights(model, pretrained, str(config.pretrained), head=config.pretrained_head)
        lines += [f'pretrained: {text}' for text in report.lines()]
    return model, lines


def compiled(model: nn.Layer, how: Union[bool, str]) -> nn.Layer:
    """By train.to_static."""
    if not how:
        return model
    # Paddle 3 has another default: a compiler for GPUs that gives up after a time, silently.
    return paddle.jit.to_static(model, backend='CINN' if how == 'cinn' else None)
