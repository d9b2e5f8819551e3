"""Where a run is: what the epochs carry on, and what the trainer reports of each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass
class Sums:
    """What an epoch has added up so far (saved with a checkpoint inside an epoch)."""

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0  # seconds of these in which the loop waited for data

    @property
    def mean_loss(self) -> float:
        return self.loss / self.images

    @property
    def accuracy(self) -> float:
        return self.correct / self.images

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def data_wait(self) -> float:
        return self.waited / self.seconds


@dataclass
class Progress:
    """Whole epochs, how much of the next one, and the best evaluation so far."""

    epoch: int = 0
    batch: int = 0
    images: int = 0  # of the epoch's order, in those batches
    sums: Sums = field(default_factory=Sums)
    best: float = 0.0
    best_epoch: Optional[int] = None
    best_sha256: Optional[str] = None  # of best.pdparams

    def forget_best(self) -> None:
        """Let the next evaluation be the best so far."""
        self.best, self.best_epoch, self.best_sha256 = 0.0, None, None

    @property
    def name(self) -> str:
        """Of the checkpoint: epoch_0010, or epoch_0010_batch_00200."""
        inside = f'_batch_{self.batch:05d}' if self.batch else ''
        return f'epoch_{self.epoch:04d}{inside}'


@dataclass(frozen=True)
class Measured:
    """What is known once results have been fetched from the device, on all processes at once."""

    loss: float  # of this step
    images_per_second: float  # since the last ones were fetched
    data_wait: float  # share of the epoch's time
    seconds_left: float  # of training


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step that is done. Epochs, batches and steps count from 0."""

    step: int
    epoch: int
    batch: int
    lr: float
    steps_left: float  # of the run, in steps of this epoch: those on larger images take longer
    measured: Optional[Measured] = None  # every train.log_every steps


def is_due(epoch: int, *, every: int, start: int = 0, last: int) -> bool:
    """Whether the epoch is the last, or completes `every` epochs from `start` on."""
    return epoch == last or (epoch >= start and (epoch - start + 1) % every == 0)
