"""Losses and correct predictions of the steps, fetched from the device every few steps only.

So a step never waits for the device, except in float16, where Paddle asks at each step whether the
scaled gradients overflowed, and on an npu, where each copy from the host waits for the queue.
"""

from __future__ import annotations

import time

import numpy as np
import paddle

from engine.errors import Diverged
from engine.machine import collectives
from engine.training.progress import Sums
from engine.training.schedule import LrAt


class Results:
    """Of the steps from `first_step` on that have not been collected yet."""

    def __init__(self, lr_at: LrAt, first_step: int = 0) -> None:
        self._lr_at, self._clock = lr_at, time.perf_counter()
        self._begin(first_step)

    def _begin(self, first_step: int) -> None:
        self._first_step = first_step
        self._losses: list[paddle.Tensor] = []
        self._correct: list[paddle.Tensor] = []
        self._images: list[int] = []

    def add(self, loss: paddle.Tensor, correct: paddle.Tensor, images: int) -> None:
        """One step: mean loss and correct predictions of this process's images, on the device."""
        self._losses.append(loss)
        self._correct.append(correct)
        self._images.append(images)

    def collect(self, sums: Sums) -> list[float]:
        """Add the results of all processes to the epoch's sums; returns the loss of each step.

        Raises Diverged, naming step and learning rate, for a loss that is not finite.
        """
        if not self._losses:
            return []
        losses = paddle.stack(self._losses).numpy().reshape(-1).astype(np.float64)
        correct = paddle.stack(self._correct).numpy().reshape(-1)
        images = np.array(self._images)
        summed, correct, images = collectives.sum_over_ranks(
            np.stack([losses * images, correct, images])
        )
        losses = summed / images
        self._require_finite(losses)
        for loss in summed:  # one by one: the sum must not depend on how often it is collected
            sums.loss += float(loss)
        sums.correct += int(correct.sum())
        sums.images += int(images.sum())
        now = time.perf_counter()
        sums.seconds += now - self._clock
        self._clock = now
        self._begin(self._first_step + len(losses))
        return [float(loss) for loss in losses]

    def _require_finite(self, losses: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            step = self._first_step + int(bad[0])
            raise Diverged(
                f'the loss became {losses[bad[0]]} at step {step} (learning rate '
                f'{self._lr_at(step):.6g}). A lower optimizer.lr, schedule.warmup_epochs or '
                'optimizer.clip_norm usually helps'
            )
