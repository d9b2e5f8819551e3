"""Measure a model: every image once, for any batch size and any number of processes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Callable

import numpy as np
import paddle
from paddle import nn

from engine.data.batches import Batches
from engine.machine import collectives, devices

# What is measured of an image. All are float64, so that one sum collects those of all processes.
FIELDS = ('measured', 'label', 'prediction', 'in_top5', 'loss', 'probability')
RESULT = np.dtype([(name, np.float64) for name in FIELDS])


@dataclass(frozen=True)
class Evaluation:
    """Results of each image, in the order of the set; every figure is derived from them."""

    rows: np.ndarray  # int [N], indices in the set
    labels: np.ndarray  # int [N]
    predictions: np.ndarray  # int [N], the most likely class
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
    """Measure the model on every image once; the processes share the work.

    Where a batch has several views of an image, their probabilities are averaged; with `mirror`
    those of the mirror images, too. Images that cannot be read are left out.
    """
    model.eval()
    table, start = np.zeros(len(batches.images), RESULT), time.perf_counter()
    with paddle.no_grad():
        for batch in batches:
            if len(batch.rows):  # a process has no image left where images are fewer than processes
                images = devices.to_device(batch.images)
                log_p = _log_probabilities(model, images, len(batch.rows), mirror)
                table[batch.rows] = _results(log_p, batches.images.labels[batch.rows])
            after_batch()
    table = collectives.sum_over_ranks(table.view(np.float64)).view(RESULT)
    rows = np.flatnonzero(table['measured'])
    measured = table[rows]
    return Evaluation(
        rows=rows,
        labels=measured['label'].astype(np.int64),
        predictions=measured['prediction'].astype(np.int64),
        in_top5=measured['in_top5'].astype(bool),
        losses=measured['loss'],
        probabilities=measured['probability'],
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
    """Paddle's own stops at -64 on a CPU, which would limit the loss of an unlikely class."""
    shifted = logits - logits.max(-1, keepdim=True)
    return shifted - shifted.logsumexp(-1, keepdim=True)


def _results(log_p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """RESULT [N] of log probabilities [N, C]."""
    rows = np.arange(len(labels))
    results = np.zeros(len(labels), RESULT)
    results['measured'] = 1
    results['label'] = labels
    results['prediction'] = predictions = log_p.argmax(1)
    results['in_top5'] = (np.argsort(-log_p, axis=1)[:, :5] == labels[:, None]).any(1)
    results['loss'] = -log_p[rows, labels]
    results['probability'] = np.exp(log_p[rows, predictions])
    return results
