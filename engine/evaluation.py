"""Measuring a model: every image once, whatever the batch size and the number of processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from engine import runtime
from engine.data import Batches


@dataclass(frozen=True)
class Evaluation:
    """Per-image results, in the order of the set; every figure is derived from them."""

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
    model: nn.Layer, batches: Batches, *, after_batch: Callable[[], None] = lambda: None
) -> Evaluation:
    """Measure the model on every image once, the processes sharing the work."""
    model.eval()
    parts, start = [np.zeros((5, 0))], time.perf_counter()
    with paddle.no_grad():
        for images, labels in batches:
            if len(labels):  # none is left for this process where images are fewer than processes
                logits = model(paddle.to_tensor(images)).astype('float32')
                parts.append(_judge(F.log_softmax(logits).numpy(), labels))
            after_batch()
    table = np.zeros((5, len(batches.images)))
    table[:, np.concatenate(batches.rows())] = np.concatenate(parts, axis=1)
    labels, predictions, in_top5, losses, probabilities = runtime.sum_over_ranks(table)
    return Evaluation(
        labels=labels.astype(np.int64),
        predictions=predictions.astype(np.int64),
        in_top5=in_top5.astype(bool),
        losses=losses,
        probabilities=probabilities,
        seconds=time.perf_counter() - start,
    )


def _judge(log_p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [5, N]: the columns of an Evaluation, from log probabilities [N, C]."""
    rows = np.arange(len(labels))
    predictions = log_p.argmax(1)
    in_top5 = (np.argsort(-log_p, axis=1)[:, :5] == labels[:, None]).any(1)
    losses, probabilities = -log_p[rows, labels], np.exp(log_p[rows, predictions])
    return np.stack([labels, predictions, in_top5, losses, probabilities])
