"""The learning rate as a pure function of the step: a resumed run needs no scheduler's state.

Each form equals the paddle.optimizer.lr class of its name (tests/test_schedule.py compares them).
This module does without paddle.
"""

from __future__ import annotations

import bisect
import math
from typing import Callable

from engine import config as configs

LrAt = Callable[[int], float]

# What the console calls them: paddle's class names.
PADDLE_NAMES = {
    'piecewise': 'PiecewiseDecay',
    'step': 'StepDecay',
    'cosine': 'CosineAnnealingDecay',
    'exponential': 'ExponentialDecay',
    'one_cycle': 'OneCycleLR',
    'constant': 'LRScheduler',
}


def peak_lr(optimizer: configs.Optimizer, global_batch_size: int) -> float:
    """The rate that a schedule starts from or rises to: optimizer.lr, or scaled by the images of a
    step if optimizer.lr_scaling is linear (Goyal et al. 2017, arXiv:1706.02677, section 2.1)."""
    if optimizer.lr_scaling == 'none':
        return optimizer.lr
    assert optimizer.reference_batch is not None
    return optimizer.lr * (global_batch_size / optimizer.reference_batch)


def make_schedule(
    schedule: configs.Schedule, *, lr: float, epochs: int, steps_per_epoch: int
) -> LrAt:
    """step (0, 1, ...) -> learning rate.

    `lr` comes from `peak_lr`. The values of piecewise are scaled so that the first equals `lr`;
    end_lr and warmup_start_lr are not scaled. The boundaries of piecewise count epochs of the whole
    training; every other form starts when the warm-up ends and fits into the steps that remain.
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    steps = max(1, epochs * steps_per_epoch - warmup)
    after = _FORMS[schedule.name](schedule, lr, steps, steps_per_epoch, warmup)
    first, rise = schedule.warmup_start_lr, after(0) - schedule.warmup_start_lr

    def lr_at(step: int) -> float:
        return first + rise * step / warmup if step < warmup else after(step - warmup)

    return lr_at


def _piecewise(s: configs.Schedule, lr: float, steps: int, per_epoch: int, warmup: int) -> LrAt:
    boundaries = [round(epoch * per_epoch) - warmup for epoch in s.boundaries]
    values = [lr * value / s.values[0] for value in s.values]
    values = values or [lr * s.gamma**i for i in range(len(boundaries) + 1)]
    return lambda step: values[bisect.bisect_right(boundaries, step)]


def _step(s: configs.Schedule, lr: float, steps: int, per_epoch: int, warmup: int) -> LrAt:
    size = max(1, round(s.step_size * per_epoch))
    return lambda step: lr * s.gamma ** (step // size)


def _cosine(s: configs.Schedule, lr: float, steps: int, per_epoch: int, warmup: int) -> LrAt:
    return lambda step: s.end_lr + (lr - s.end_lr) * (1 + math.cos(math.pi * step / steps)) / 2


def _exponential(s: configs.Schedule, lr: float, steps: int, per_epoch: int, warmup: int) -> LrAt:
    return lambda step: lr * s.gamma ** (step // per_epoch)


def _one_cycle(s: configs.Schedule, lr: float, steps: int, per_epoch: int, warmup: int) -> LrAt:
    """Smith & Topin 2018 (arXiv:1708.07120), in two phases, as OneCycleLR has it."""
    first = lr / s.divide_factor
    top, last = s.phase_pct * steps - 1, steps - 1

    def between(start: float, end: float, share: float) -> float:
        if s.anneal_strategy == 'linear':
            return start + (end - start) * share
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    def lr_at(step: int) -> float:
        if step <= top:
            return between(first, lr, step / top) if top > 0 else lr
        return between(lr, s.end_lr, (step - top) / (last - top)) if last > top else s.end_lr

    return lr_at


def _constant(s: configs.Schedule, lr: float, steps: int, per_epoch: int, warmup: int) -> LrAt:
    return lambda step: lr


_FORMS = {
    'piecewise': _piecewise,
    'step': _step,
    'cosine': _cosine,
    'exponential': _exponential,
    'one_cycle': _one_cycle,
    'constant': _constant,
}
