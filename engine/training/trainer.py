"""Training: the loop over an epoch's steps, and the state that a run carries through it."""

from __future__ import annotations

import contextlib
import math
import time
from contextlib import nullcontext as nothing
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Generator, Iterable, Iterator, Optional, Union

import numpy as np
import paddle
from paddle import nn

from engine import cpu_conv
from engine.config import Config, to_dict
from engine.data.batches import Batch, Batches
from engine.data.class_names import differing
from engine.errors import Diverged, UserError
from engine.evaluation import Evaluation
from engine.machine import collectives, devices, processes
from engine.run.log import Log
from engine.training.averaging import AveragedWeights
from engine.training.loss import loss_of
from engine.training.optimizers import load_optimizer_arrays, make_optimizer, optimizer_arrays
from engine.training.precision import Precision, full_precision
from engine.training.schedule import PADDLE_NAMES, lr_factor, make_schedule
from engine.training.snapshot import Snapshot
from engine.weights import Arrays, first_not_finite, fit_weights, float32_arrays


@dataclass
class Sums:
    """What an epoch has added up so far (saved with a checkpoint inside an epoch)."""

    loss: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0  # seconds of these in which the loop waited for data


@dataclass
class Progress:
    """Where a run is: whole epochs, how much of the next one, and the best evaluation so far."""

    epoch: int = 0
    batch: int = 0
    images: int = 0  # of the epoch's order, in those batches
    sums: Sums = field(default_factory=Sums)
    best: float = 0.0
    best_epoch: Optional[int] = None
    best_sha256: Optional[str] = None  # of best.pdparams

    def forget_best(self) -> None:
        """Have the next evaluation be the best so far."""
        self.best, self.best_epoch, self.best_sha256 = 0.0, None, None

    @property
    def name(self) -> str:
        inside = f'_batch_{self.batch:05d}' if self.batch else ''
        return f'epoch_{self.epoch:04d}{inside}'


@dataclass
class _Pending:
    """Steps whose results are still on the device, so that a step never waits for it.

    (Except in float16, where Paddle asks at each step whether the scaled gradients overflowed, and
    on an npu for what comes from the host: each copy waits for the device's queue.)
    """

    first_step: int
    losses: list[paddle.Tensor] = field(default_factory=list)
    correct: list[paddle.Tensor] = field(default_factory=list)
    images: list[int] = field(default_factory=list)


class Trainer:
    """A model in training: optimizer, schedule, averaged weights, and progress."""

    def __init__(
        self, model: nn.Layer, config: Config, *, batches: Batches, classes: list[str], log: Log
    ) -> None:
        self.model, self.config, self.batches, self.log = model, config, batches, log
        self.classes = classes
        self.progress = Progress()
        self.optimizer = make_optimizer(model, config.optimizer)
        self.precision = Precision(config.train)
        self.precision.prepare(model, self.optimizer)
        self._forward = collectives.distribute(_compiled(model, config.train.to_static))
        self.schedule_name = PADDLE_NAMES[config.schedule.name]
        self.lr_at = make_schedule(
            config.schedule,
            lr=config.optimizer.lr * lr_factor(config.optimizer, batches.global_batch_size),
            epochs=config.train.epochs,
            steps_per_epoch=len(batches),
        )
        self.last_loss = 0.0
        self._synchronised: Optional[int] = None  # the step at which the processes were
        self._pending, self._clock = _Pending(0), time.perf_counter()
        ema = config.train.ema
        self.ema = AveragedWeights(model, self._state, decay=ema) if ema else None
        self.steps = min(config.train.epochs * len(batches), config.train.max_steps or 10**18)

    @property
    def last_epoch(self) -> int:
        return (self.steps - 1) // len(self.batches)

    @property
    def inside_epoch(self) -> bool:
        """Whether the epoch still has batches to come."""
        return 0 < self.progress.batch < len(self.batches)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.epoch * len(self.batches) + self.progress.batch

    @property
    def work_left(self) -> float:
        """Optimizer steps to do, in steps of this epoch: those on larger images take longer."""
        epochs = (steps / len(self.batches) for steps in (self.step, self.steps))
        work = self.batches.augmentation.work(*epochs, like=self.progress.epoch)
        return work * len(self.batches)

    def train_one_epoch(self, *, after_step: Callable[[bool], None]) -> None:
        """Train the rest of the epoch; `after_step` may raise, and the state is consistent then.

        Its argument is whether the results of the steps have just been collected, which all
        processes do at once. Raises Diverged, naming step and learning rate, when the loss is no
        longer finite.
        """
        progress, log_every = self.progress, self.config.train.log_every
        self.model.train()
        self.batches.set_epoch(progress.epoch, done=progress.images)
        self._pending = _Pending(self.step)
        self._clock = time.perf_counter()
        # Closed on the way out, so that no thread reads on while a stopped run is being saved.
        with contextlib.closing(self._timed(self.batches)) as batches:
            for batch in batches:
                if self.step >= self.steps:
                    break
                self._train_step(batch)
                progress.batch += 1
                progress.images = self.batches.start(progress.batch)
                iteration = progress.batch - 1
                collected = iteration % log_every == 0
                if collected:
                    self.collect()
                self.log.advance(self, iteration, show=collected)
                after_step(collected)
        self.collect()
        self._require_finite_weights()

    def _train_step(self, batch: Batch) -> None:
        devices.seed_step(self.config.seed, self.step)
        self.optimizer.set_lr(self.lr_at(self.step))
        together = self.batches.size(self.progress.batch)
        # As many in every process: a SyncBatchNorm waits for all in each. A compiled network loses
        # the gradients of a part when the next one has another size.
        count = math.ceil(together // processes.WORLD_SIZE / self.config.data.batch_size)
        parts = batch.parts(1 if self.config.train.to_static else count)
        images = sum(len(part.labels) for part in parts)
        loss, correct = 0.0, 0
        for part in parts:
            last = part is parts[-1]
            # Gradients add up over the parts and are averaged over the processes; this makes it the
            # mean over the images of all (but for those that data.on_bad_file: skip has left out,
            # which the other processes don't know of).
            share = len(part.labels) * processes.WORLD_SIZE / together
            with nothing() if last else collectives.without_averaging(self._forward):
                part_loss, part_correct = self._forward_backward(part, share, last=last)
            loss = loss + part_loss * (len(part.labels) / images)
            correct = correct + part_correct
        self.precision.step(self.optimizer)
        self.optimizer.clear_grad()
        if self.ema is not None:
            self.ema.update(self.step)
        self._pending.losses.append(loss)
        self._pending.correct.append(correct)
        self._pending.images.append(images)

    def _forward_backward(
        self, batch: Batch, share: float, *, last: bool
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Add `share` times the gradient of the batch's mean loss; returns loss and correct."""
        batch = batch.moved(devices.to_device)
        with self.precision.autocast():
            logits = self._forward(batch.images)
        loss = loss_of(logits, batch, smoothing=self.config.train.label_smoothing)
        if last:
            collectives.barrier_before_collective()
        self.precision.scale(loss if share == 1 else loss * share).backward()
        labels = batch.labels
        if batch.partners is not None and batch.own_weight < 0.5:
            labels = batch.partners
        return loss.detach(), (logits.argmax(-1) == labels).sum()

    def collect(self) -> None:
        """Fetch the pending results, check them, and add them to the epoch's sums."""
        pending, sums = self._pending, self.progress.sums
        if not pending.losses:
            return
        losses = paddle.stack(pending.losses).numpy().reshape(-1).astype(np.float64)
        correct = paddle.stack(pending.correct).numpy().reshape(-1)
        images = np.array(pending.images)
        summed, correct, images = collectives.sum_over_ranks(
            np.stack([losses * images, correct, images])
        )
        losses = summed / images
        self._require_finite(losses, pending.first_step)
        self.last_loss = float(losses[-1])
        for loss in summed:  # one by one: the sum must not depend on how often it is collected
            sums.loss += float(loss)
        sums.correct += int(correct.sum())
        sums.images += int(images.sum())
        now = time.perf_counter()
        sums.seconds += now - self._clock
        self._clock, self._pending = now, _Pending(self.step)

    def _require_finite(self, losses: np.ndarray, first_step: int) -> None:
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            step = first_step + int(bad[0])
            raise Diverged(
                f'the loss became {losses[bad[0]]} at step {step} (learning rate '
                f'{self.lr_at(step):.6g}). A lower optimizer.lr, schedule.warmup_epochs or '
                'optimizer.clip_norm usually helps'
            )

    def _require_finite_weights(self) -> None:
        """The last step's loss was that of the weights before it."""
        bad = first_not_finite(float32_arrays(self._state()))
        if bad is not None:
            raise Diverged(
                f'{bad} is no longer finite after step {self.step - 1} (learning rate '
                f'{self.lr_at(self.step - 1):.6g})'
            )

    def _timed(self, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
        """The batches, with the time that each was waited for."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self.progress.sums.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def end_epoch(self, evaluation: Optional[Evaluation], sha256: str = '') -> dict[str, Any]:
        """Move on to the next epoch; returns the record of the one that ended.

        The evaluation is of the weights of that SHA-256, as they are saved.
        """
        progress, sums = self.progress, self.progress.sums
        record: dict[str, Any] = {
            'epoch': progress.epoch,
            'step': self.step,
            'lr': self.lr_at(self.step - 1),
            'train_loss': sums.loss / sums.images,
            'train_accuracy': sums.correct / sums.images,
            'seconds': sums.seconds,
            'images_per_second': sums.images / sums.seconds,
            'data_wait': sums.waited / sums.seconds,
        }
        if evaluation is not None:
            record.update(
                eval_loss=evaluation.loss,
                eval_accuracy=evaluation.top1,
                eval_top5=evaluation.top5,
                eval_data=self.config.data.name,
                eval_holdout=self.config.data.holdout,
                eval_views=self.config.eval.views,
                weights_sha256=sha256,
            )
            if progress.best_epoch is None or evaluation.top1 > progress.best:
                progress.best, progress.best_epoch = evaluation.top1, progress.epoch
                progress.best_sha256 = sha256
        record.update(best_accuracy=progress.best, best_epoch=progress.best_epoch)
        progress.epoch, progress.batch, progress.images = progress.epoch + 1, 0, 0
        progress.sums = Sums()
        return record

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[nn.Layer]:
        """The model with the weights that count: the averaged ones when there are any."""
        self._synchronise()
        with self.ema.in_place() if self.ema is not None else nothing(), self.precision.autocast():
            yield self.model

    def weights(self) -> Arrays:
        """The weights that count, for best.pdparams."""
        return self.ema.arrays() if self.ema is not None else float32_arrays(self._state())

    def _state(self) -> dict[str, paddle.Tensor]:
        """The model's state dict, in full precision."""
        return full_precision(self.model, self.optimizer)

    def _synchronise(self) -> None:
        """Average what the batch norms of each process have recorded of their parts of a batch.

        Once a step: the mean of what is equal already may differ in the last bit.
        """
        if self._synchronised == self.step:
            return
        own = self.model.state_dict()
        statistics = [name for name, tensor in own.items() if tensor.stop_gradient]
        for state in (own, self.ema.average) if self.ema is not None else (own,):
            collectives.average_over_ranks(state[name] for name in statistics)
        self._synchronised = self.step

    def snapshot(self) -> Snapshot:
        """Everything that the run needs to go on; all processes call it at the same step."""
        self.collect()
        self._synchronise()
        state = {
            'epoch': self.progress.epoch,
            'progress': asdict(self.progress),
            'step': self.step,
            'images': len(self.batches.images),
            'images_per_step': self.batches.global_batch_size,
            'loss_scale': self.precision.state(),
            'convolutions': cpu_conv.computed_by(self.model),
            'classes': self.classes,
            'config': to_dict(self.config),
            'versions': devices.versions(),
        }
        return Snapshot(
            model=float32_arrays(self._state()),
            optimizer=optimizer_arrays(self.optimizer, self.model),
            ema=self.ema.arrays() if self.ema is not None else None,
            state=state,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where the snapshot was taken. UserError if it is of another model or data set."""
        where, state = str(snapshot.path), snapshot.state
        snapshot.require_current()
        self._require_fitting(where, state)
        fit_weights(self.model, snapshot.model, where)
        progress = Progress(**{**state['progress'], 'sums': Sums(**state['progress']['sums'])})
        load_optimizer_arrays(self.optimizer, self.model, snapshot.optimizer, snapshot.model)
        self.precision.load_state(state['loss_scale'])
        if self.ema is not None:
            self.ema.load_arrays(snapshot.ema if snapshot.ema is not None else snapshot.model)
        if state['images_per_step'] != self.batches.global_batch_size:
            self.log.line(
                f'resume: {self.batches.global_batch_size} images a step now, not '
                f'{state["images_per_step"]}; the order of the images stays'
            )
        then, by = state.get('convolutions', 'Paddle'), cpu_conv.computed_by(self.model)
        if then != by:
            self.log.line(
                f'resume: convolutions are computed by {by} now, not by {then}: '
                'as right, but not the same to the bit'
            )
        self.batches.set_epoch(progress.epoch, done=progress.images)
        progress.batch = self.batches.first
        self.progress = progress

    def _require_fitting(self, where: str, state: dict[str, Any]) -> None:
        """UserError unless the data go with the snapshot."""
        if state['classes'] != self.classes:
            how = differing(state['classes'], self.classes)
            raise UserError(
                f'{where} was trained on other classes: {how}; '
                'model.pretrained and model.pretrained_head: drop begin a new run with its weights'
            )
        before, now = state['config']['data'].get('holdout', 0.0), self.config.data.holdout
        if now not in (0.0, before):
            raise UserError(
                f'{where} was trained with data.holdout={before:g}: with {now:g}, images would be '
                f'held out that it has seen; keep {before:g}'
            )
        trained_on = state['images'], state['config']['seed']
        given = len(self.batches.images), self.config.seed
        if state['progress']['images'] and trained_on != given:
            raise UserError(
                f'{where} lies inside an epoch of {trained_on[0]:,} images and seed '
                f'{trained_on[1]}; now they are {given[0]:,} and {given[1]}: keep them, or resume '
                'from the end of an epoch'
            )


def _compiled(model: nn.Layer, how: Union[bool, str]) -> nn.Layer:
    if not how:
        return model
    # Paddle 3 has another default: a compiler for GPUs that gives up by the clock, without a word.
    return paddle.jit.to_static(model, backend='CINN' if how == 'cinn' else None)


def is_due(epoch: int, *, every: int, start: int = 0, last: int) -> bool:
    """Whether the epoch is the last, or completes `every` epochs from `start` on."""
    return epoch == last or (epoch >= start and (epoch - start + 1) % every == 0)
