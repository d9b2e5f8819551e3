"""Measuring a model: every image once, whatever the batch size and the number of processes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Callable

import numpy as np
import paddle
from paddle import nn

from engine.data.batches import Batches
from engine.machine import devices


@dataclass(frozen=True)
class Evaluation:
    """Per-image results, in the order of the set; every figure is derived from them."""

    rows: np.ndarray  # int [N], places in the set
    labels: np.ndarray  # int [N]
    predictions: np.ndarray  # int [N], the likeliest class
    in_top5: np.ndarray  # bool [N]
    losses: np.ndarray  # float [N], cross entropy in nats
    probabilities: np.ndarray  # float [N], of the predicted class
    seconds: float

    @property
    def correct(self) -> int:
        return int((self.predictions == self.labels).sum())

    @property
    def top1(self) -> float:
        return self.correct / len(self.labels)

    @property
    def top5(self) -> float:
        return float(self.in_top5.mean())

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    @property
    def summary(self) -> str:
        """The line that scripts grep for."""
        return f'acc:{self.correct} total:{len(self.labels)} ratio:{self.top1:.6g}'


def evaluate(
    model: nn.Layer,
    batches: Batches,
    *,
    mirror: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measure the model on every image once, the processes sharing the work.

    Where a batch has several views of an image, their probabilities are averaged; with `mirror`
    those of the mirror images, too. Images that cannot be read are left out.
    """
    model.eval()
    table, start = np.zeros((6, len(batches.images))), time.perf_counter()
    with paddle.no_grad():
        for batch in batches:
            if len(batch.rows):  # none is left for a process where images are fewer than these
                images = devices.to_device(batch.images)
                log_p = _log_probabilities(model, images, len(batch.rows), mirror)
                table[:, batch.rows] = _judge(log_p, batches.images.labels[batch.rows])
            after_batch()
    table = devices.sum_over_ranks(table)
    rows = np.flatnonzero(table[0])
    _, labels, predictions, in_top5, losses, probabilities = table[:, rows]
    return Evaluation(
        rows=rows,
        labels=labels.astype(np.int64),
        predictions=predictions.astype(np.int64),
        in_top5=in_top5.astype(bool),
        losses=losses,
        probabilities=probabilities,
        seconds=time.perf_counter() - start,
    )


def _log_probabilities(
    model: nn.Layer, images: paddle.Tensor, count: int, mirror: bool
) -> np.ndarray:
    """float32 [count, C], averaged over each image's views."""
    pictures = [images, images.flip(-1)] if mirror else [images]
    log_p = paddle.stack([_log_softmax(model(p).astype('float32')) for p in pictures])
    log_p = log_p.reshape([len(pictures), count, -1, log_p.shape[-1]])
    views = len(pictures) * log_p.shape[2]
    return np.asarray((log_p.logsumexp([0, 2]) - math.log(views)).numpy())


def _log_softmax(logits: paddle.Tensor) -> paddle.Tensor:
    """Paddle's own ends at -64 on a CPU, and so would the loss of a class that is less likely."""
    shifted = logits - logits.max(-1, keepdim=True)
    return shifted - shifted.logsumexp(-1, keepdim=True)


def _judge(log_p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [6, N]: a mark, and the columns of an Evaluation, from log probabilities [N, C]."""
    rows = np.arange(len(labels))
    predictions = log_p.argmax(1)
    in_top5 = (np.argsort(-log_p, axis=1)[:, :5] == labels[:, None]).any(1)
    losses, probabilities = -log_p[rows, labels], np.exp(log_p[rows, predictions])
    seen = np.ones(len(labels))
    return np.stack([seen, labels, predictions, in_top5, losses, probabilities])
