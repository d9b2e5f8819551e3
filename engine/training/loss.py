"""Cross entropy with label smoothing, also of mixed images."""

from __future__ import annotations

import paddle
from paddle.nn import functional as F

from engine.data.batches import Batch
from engine.machine import devices


def loss_of(logits: paddle.Tensor, batch: Batch, *, smoothing: float) -> paddle.Tensor:
    """Of mixed images (mixup, CutMix), both labels' losses, weighted as the images are."""
    loss = cross_entropy(logits, batch.labels, smoothing)
    if batch.partners is None:
        return loss
    other = cross_entropy(logits, batch.partners, smoothing)
    return batch.own_weight * loss + (1 - batch.own_weight) * other


def cross_entropy(
    logits: paddle.Tensor, labels: paddle.Tensor, smoothing: float = 0.0
) -> paddle.Tensor:
    """Mean cross entropy with label smoothing (Szegedy et al. 2016); logits [N, C], labels [N].

    Computed in float32 at least.
    """
    if logits.dtype in (paddle.float16, paddle.bfloat16):
        logits = logits.astype('float32')
    if devices.device_kind() == 'npu':
        # paddle-custom-npu's cross entropy fetches a bool from the device, and waits.
        log_p = F.log_softmax(logits)
        targets = F.one_hot(labels, logits.shape[-1])
        loss = -(log_p * targets).sum(-1).mean()
        uniform = -log_p.mean() if smoothing else None
    else:
        # Not its own mean, for which Paddle 2 asks the device whether all labels count, and waits.
        loss = F.cross_entropy(logits, labels, reduction='none').mean()
        uniform = -F.log_softmax(logits).mean() if smoothing else None
    return loss if uniform is None else (1 - smoothing) * loss + smoothing * uniform
