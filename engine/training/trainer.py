"""The trainer: the loop over an epoch's steps, and what a checkpoint takes from it."""

from __future__ import annotations

import contextlib
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any, Callable, Generator, Iterable, Iterator, Optional

import paddle
from paddle import nn

from engine import cpu_conv, evaluation
from engine.config import Config, to_dict
from engine.data.batches import Batch, Batches
from engine.errors import Diverged
from engine.evaluation import Evaluation
from engine.machine import collectives, devices, processes
from engine.training.averaging import AveragedWeights
from engine.training.loss import loss_of
from engine.training.network import compiled
from engine.training.optimizers import load_optimizer_arrays, make_optimizer, optimizer_arrays
from engine.training.precision import Precision, full_precision
from engine.training.progress import Measured, Progress, StepRecord, Sums
from engine.training.results import Results
from engine.training.schedule import PADDLE_NAMES, make_schedule, peak_lr
from engine.training.snapshot import Snapshot
from engine.weights import Arrays, first_not_finite, fit_weights, float32_arrays


class Trainer:
    """A model in training: optimizer, schedule, averaged weights, and progress."""

    def __init__(
        self, model: nn.Layer, config: Config, *, batches: Batches, classes: list[str]
    ) -> None:
        self.model, self.config, self.batches, self.classes = model, config, batches, classes
        self.progress = Progress()
        self.optimizer = make_optimizer(model, config.optimizer)
        self.precision = Precision(config.train)
        self.precision.prepare(model, self.optimizer)
        self._forward = collectives.distribute(compiled(model, config.train.to_static))
        self.lr_at = make_schedule(
            config.schedule,
            lr=peak_lr(config.optimizer, batches.global_batch_size),
            epochs=config.train.epochs,
            steps_per_epoch=len(batches),
        )
        whole = config.train.epochs * len(batches)
        self.steps = min(whole, config.train.max_steps or whole)
        ema = config.train.ema
        self.ema = AveragedWeights(model, self._model_state, decay=ema) if ema else None
        self.last_loss = 0.0
        self._synchronised: Optional[int] = None  # the step after which batch norms were averaged
        self._results = Results(self.lr_at)
        self._reported = Sums()  # as they were in the last record that has measurements

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

    def describe_rate(self) -> str:
        """The line at the start of an epoch that scripts grep for."""
        name, lr = PADDLE_NAMES[self.config.schedule.name], self.lr_at(self.step)
        return f'Epoch {self.progress.epoch}: {name} set learning rate to {lr:.6g}.'

    def describe_step(self) -> list[str]:
        """The images of a step, and the learning rate where these scale it or where it is 0."""
        config, images = self.config, len(self.batches.images)
        size, lr = self.batches.global_batch_size, config.optimizer.lr
        factors = [(processes.WORLD_SIZE, 'processes'), (config.train.accumulate, 'accumulated')]
        made_of = ''.join(f' x {count} {what}' for count, what in factors if count > 1)
        line = f'step: {size} images'
        line += f' ({config.data.batch_size}{made_of})' if made_of else ''
        peak = peak_lr(config.optimizer, size)
        line += f', learning rate x {peak / lr:.6g}' if peak != lr else ''
        if size > images:
            line += (
                f'; the training set has only {images:,}: each epoch is one step (data.batch_size)'
            )
        lines = [line]
        if not any(map(self.lr_at, range(self.steps))):
            lines.append(
                f'the learning rate is 0 in all {self.steps:,} steps (schedule.name: '
                f'{config.schedule.name}, optimizer.lr: {lr:g}): nothing will be learned'
            )
        return lines

    def train_one_epoch(self, *, after_step: Callable[[StepRecord], None]) -> None:
        """Train the rest of the epoch; `after_step` may raise, and the state is consistent then.

        Raises Diverged, naming step and learning rate, when the loss is no longer finite.
        """
        progress = self.progress
        self.model.train()
        self.batches.set_epoch(progress.epoch, done=progress.images)
        self._results = Results(self.lr_at, self.step)
        self._reported = replace(progress.sums)
        # Closed on the way out, so that no thread reads on while a stopped run is being saved.
        with contextlib.closing(self._timed(self.batches)) as batches:
            for batch in batches:
                if self.step >= self.steps:
                    break
                self._train_step(batch)
                collected = progress.batch % self.config.train.log_every == 0
                progress.batch += 1
                progress.images = self.batches.start(progress.batch)
                if collected:
                    self.collect()
                after_step(self._record(collected=collected))
        self.collect()
        self._require_finite_weights()

    def _train_step(self, batch: Batch) -> None:
        devices.seed_step(self.config.seed, self.step)
        self.optimizer.set_lr(self.lr_at(self.step))
        global_size = self.batches.size(self.progress.batch)  # over all processes
        # The same number of parts in every process: in each, SyncBatchNorm waits for all processes.
        # A compiled network loses the gradients of a part when the next one has another size.
        count = math.ceil(global_size // processes.WORLD_SIZE / self.config.data.batch_size)
        parts = batch.parts(1 if self.config.train.to_static else count)
        local_size = sum(len(part.labels) for part in parts)
        loss, correct = 0.0, 0
        for part in parts:
            last = part is parts[-1]
            # Gradients are summed over the parts and averaged over the processes. The weight makes
            # this the mean over all images (but for those that data.on_bad_file: skip has left out,
            # which the other processes don't know of).
            weight = len(part.labels) * processes.WORLD_SIZE / global_size
            with nullcontext() if last else collectives.without_averaging(self._forward):
                part_loss, part_correct = self._forward_backward(part, weight, last=last)
            loss = loss + part_loss * (len(part.labels) / local_size)
            correct = correct + part_correct
        self.precision.step(self.optimizer)
        self.optimizer.clear_grad()
        if self.ema is not None:
            self.ema.update(self.step)
        self._results.add(loss, correct, local_size)

    def _forward_backward(
        self, batch: Batch, weight: float, *, last: bool
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Add `weight` times the gradient of the batch's mean loss; returns loss and correct."""
        batch = batch.moved(devices.to_device)
        with self.precision.autocast():
            logits = self._forward(batch.images)
        loss = loss_of(logits, batch, smoothing=self.config.train.label_smoothing)
        if last:
            collectives.barrier_before_collective()
        self.precision.scale(loss if weight == 1 else loss * weight).backward()
        labels = batch.labels
        if batch.partners is not None and batch.own_weight < 0.5:
            labels = batch.partners
        return loss.detach(), (logits.argmax(-1) == labels).sum()

    def collect(self) -> None:
        """Fetch the results of the steps since the last time. Raises Diverged."""
        losses = self._results.collect(self.progress.sums)
        self.last_loss = losses[-1] if losses else self.last_loss

    def _record(self, *, collected: bool) -> StepRecord:
        """The step that is done, with measurements if its results have just been collected."""
        step, epoch, sums = self.step - 1, self.progress.epoch, self.progress.sums
        per_epoch, augmentation = len(self.batches), self.batches.options.augmentation
        done, whole = self.step / per_epoch, self.steps / per_epoch  # in epochs
        steps_left = augmentation.work(done, whole, like=epoch) * per_epoch
        record = StepRecord(step, epoch, self.progress.batch - 1, self.lr_at(step), steps_left)
        if not collected:
            return record
        images, seconds = sums.images - self._reported.images, sums.seconds - self._reported.seconds
        self._reported = replace(sums)
        seconds_left = steps_left * self.batches.global_batch_size * seconds / images
        measured = Measured(self.last_loss, images / seconds, sums.data_wait, seconds_left)
        return replace(record, measured=measured)

    def _require_finite_weights(self) -> None:
        """Check what no loss has shown: the last step's loss is that of the weights before it."""
        bad = first_not_finite(float32_arrays(self._model_state()))
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

    def evaluate(self, tests: Batches, *, after_batch: Callable[[], None]) -> Evaluation:
        """Measure the weights of `evaluated_weights`; `after_batch` may raise."""
        with self.evaluated_weights() as model:
            mirror = self.config.eval.mirror
            return evaluation.evaluate(model, tests, mirror=mirror, after_batch=after_batch)

    def is_best(self, result: Evaluation) -> bool:
        """Of the evaluations so far; the first of equals stays."""
        return self.progress.best_epoch is None or result.top1 > self.progress.best

    def end_epoch(self, result: Optional[Evaluation], sha256: str = '') -> dict[str, Any]:
        """Move on to the next epoch; returns the record of the one that ended.

        The result is of the weights of that SHA-256, as they are saved.
        """
        progress, sums = self.progress, self.progress.sums
        record: dict[str, Any] = {
            'epoch': progress.epoch,
            'step': self.step,
            'lr': self.lr_at(self.step - 1),
            'train_loss': sums.mean_loss,
            'train_accuracy': sums.accuracy,
            'seconds': sums.seconds,
            'images_per_second': sums.images_per_second,
            'data_wait': sums.data_wait,
        }
        if result is not None:
            record.update(
                eval_loss=result.loss,
                eval_accuracy=result.top1,
                eval_top5=result.top5,
                eval_data=self.config.data.name,
                eval_holdout=self.config.data.holdout,
                eval_views=self.config.eval.views,
                weights_sha256=sha256,
            )
            if self.is_best(result):
                progress.best, progress.best_epoch = result.top1, progress.epoch
                progress.best_sha256 = sha256
        record.update(best_accuracy=progress.best, best_epoch=progress.best_epoch)
        progress.epoch, progress.batch, progress.images = progress.epoch + 1, 0, 0
        progress.sums = Sums()
        return record

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[nn.Layer]:
        """Within, the model has the weights to evaluate: the averaged ones, if there are any."""
        self._synchronise()
        averaged = self.ema.in_place() if self.ema is not None else nullcontext()
        with averaged, self.precision.autocast():
            yield self.model

    def weights(self) -> Arrays:
        """The weights that are evaluated, for best.pdparams."""
        return self.ema.arrays() if self.ema is not None else float32_arrays(self._model_state())

    def _model_state(self) -> dict[str, paddle.Tensor]:
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
        """Everything that the run needs to continue; all processes call it at the same step."""
        self.collect()
        self._synchronise()
        return Snapshot(
            model=float32_arrays(self._model_state()),
            optimizer=optimizer_arrays(self.optimizer, self.model),
            ema=self.ema.arrays() if self.ema is not None else None,
            state=self._run_state(),
        )

    def _run_state(self) -> dict[str, Any]:
        """state.json of a checkpoint."""
        return {
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

    def restore(self, snapshot: Snapshot) -> list[str]:
        """Continue where the snapshot was taken; returns lines about what is different now.

        UserError if it is of another model or data set.
        """
        snapshot.require_current()
        now = self._run_state()
        snapshot.require_fitting(now)
        fit_weights(self.model, snapshot.model, str(snapshot.path))
        load_optimizer_arrays(self.optimizer, self.model, snapshot.optimizer, snapshot.model)
        self.precision.load_state(snapshot.state['loss_scale'])
        if self.ema is not None:
            self.ema.load_arrays(snapshot.ema if snapshot.ema is not None else snapshot.model)
        self.progress = snapshot.progress()
        self.batches.set_epoch(self.progress.epoch, done=self.progress.images)
        self.progress.batch = self.batches.first
        return snapshot.differences(now)
