"""Lines about a training before its first step."""

from __future__ import annotations

from engine.machine import processes
from engine.training.schedule import peak_lr
from engine.training.trainer import Trainer


def describe_step(trainer: Trainer) -> list[str]:
    """The images of a step, and the learning rate where these scale it or where it is 0."""
    config, images = trainer.config, len(trainer.batches.images)
    size, lr = trainer.batches.global_batch_size, config.optimizer.lr
    factors = [(processes.WORLD_SIZE, 'processes'), (config.train.accumulate, 'accumulated')]
    made_of = ''.join(f' x {count} {what}' for count, what in factors if count > 1)
    line = f'step: {size} images'
    line += f' ({config.data.batch_size}{made_of})' if made_of else ''
    peak = peak_lr(config.optimizer, size)
    line += f', learning rate x {peak / lr:.6g}' if peak != lr else ''
    if size > images:
        line += f'; the training set has only {images:,}: each epoch is one step (data.batch_size)'
    if any(map(trainer.lr_at, range(trainer.steps))):
        return [line]
    return [
        line,
        f'the learning rate is 0 in all {trainer.steps:,} steps (schedule.name: '
        f'{config.schedule.name}, optimizer.lr: {lr:g}): nothing will be learned',
    ]
