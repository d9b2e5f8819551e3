"""What the processes of tests/test_distributed.py run, where train.py alone does not do.

distributed_driver.py train HOOKS ARGUMENTS   train.py with the arguments, but changed
distributed_driver.py eval HOOKS ARGUMENTS    eval.py likewise
distributed_driver.py compare FOLDER COURSES  these one after another, each into a file
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from engine import cli  # noqa: E402
from engine.machine import collectives, cpu, devices, processes, start, support  # noqa: E402

HELD_UP_S = 40.0  # gloo gives up after 30

SMALL = (
    *('data.name=synthetic', 'data.image_size=8', 'data.crop_padding=0', 'data.flip=false'),
    *('schedule.name=cosine', 'optimizer.lr=0.05', 'train.log_every=1'),
)
# Five steps an epoch, four epochs: batches of 16, and a last one of 15, for two processes 8 and 7.
TWENTY = ('data.num_images=79', 'train.epochs=4', 'data.batch_size=16')
THREE = ('data.num_images=79', 'train.epochs=3', 'data.batch_size=15')  # the last: 2, 1 and 1
LARGE = ('data.num_images=1272', 'train.epochs=4', 'data.batch_size=256')
ACCUMULATED = ('data.num_images=291', 'train.epochs=2', 'data.batch_size=64')  # the last is of 35


def course(*settings: str, frozen: bool, kind: str = 'Trainer') -> dict[str, Any]:
    """Train as train.py does, and keep every loss, every row, and the weights at the end.

    The batch size is that of all processes together; `frozen` keeps the batch norms at the
    statistics that they start with.
    """
    from paddle import nn

    from engine import data, models
    from engine.config import load_config

    config = load_config(REPOSITORY / 'configs' / 'quickstart.yaml', [*SMALL, *settings])
    devices.seed_weights(config.seed)
    dataset = data.load_data(config)
    batches = data.train_batches(dataset, config)
    model = models.build(config.model.name, num_classes=len(dataset.classes))
    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm2D) and frozen:
            layer._use_global_stats = True
    trainer = recording(trainers()[kind])(model, config, batches=batches, classes=dataset.classes)
    losses: list[float] = []
    images: list[int] = []
    while trainer.step < trainer.steps:
        trainer.train_one_epoch(after_step=lambda step: losses.append(step.measured.loss))
        images.append(trainer.progress.sums.images)
        trainer.end_epoch(None)
    snapshot = trainer.snapshot()
    return {
        'losses': np.array(losses),
        'images': np.array(images),
        'rows': np.array(json.dumps([rows for *_, rows in trainer.seen])),
        **{f'weights {name}': array for name, array in snapshot.model.items()},
    }


def trainers() -> dict[str, Any]:
    """The trainer, and the trainers with a fault each that a comparison must notice."""
    from engine.training.trainer import Trainer

    class Summing(Trainer):
        """The sum of the processes' gradients instead of their mean."""

        def _forward_backward(self, batch, weight, *, last):
            return super()._forward_backward(batch, weight * processes.WORLD_SIZE, last=last)

    class Sharing(Trainer):
        """Every process's mean counts alike, however many images it is of."""

        def _forward_backward(self, batch, weight, *, last):
            return super()._forward_backward(batch, 1.0, last=last)

    class Lonely(Trainer):
        """Every process takes its own gradients."""

        def _forward_backward(self, batch, weight, *, last):
            with collectives.without_averaging(self._forward):
                return super()._forward_backward(batch, weight, last=last)

    class Doubling(Trainer):
        """Every process takes the first one's images."""

        def __init__(self, model, config, *, batches, **others):
            batches.options = dataclasses.replace(batches.options, rank=0)
            super().__init__(model, config, batches=batches, **others)

    kinds = (Trainer, Summing, Sharing, Lonely, Doubling)
    return {kind.__name__: kind for kind in kinds}


def recording(kind: Any) -> Any:
    """A trainer that keeps (epoch, batch, rows) of each step."""

    class Recording(kind):
        seen: list[tuple[int, int, list[int]]]

        def _train_step(self, batch):
            self.__dict__.setdefault('seen', [])
            self.seen.append((self.progress.epoch, self.progress.batch, batch.rows.tolist()))
            super()._train_step(batch)

    return Recording


def of_each(*settings: str) -> tuple[str, ...]:
    """The same settings with data.batch_size shared out among the processes and the parts."""
    values = dict(text.split('=') for text in settings)
    parts = int(values.get('train.accumulate', '1')) * processes.WORLD_SIZE
    values['data.batch_size'] = str(int(values['data.batch_size']) // parts)
    return tuple(f'{key}={value}' for key, value in values.items())


COURSES: dict[str, Callable[[], dict[str, Any]]] = {
    'frozen': lambda: course(*of_each(*TWENTY), frozen=True),
    'frozen Summing': lambda: course(*of_each(*TWENTY), frozen=True, kind='Summing'),
    'frozen Sharing': lambda: course(*of_each(*TWENTY), frozen=True, kind='Sharing'),
    'frozen Lonely': lambda: course(*of_each(*TWENTY), frozen=True, kind='Lonely'),
    'frozen in three': lambda: course(*of_each(*THREE), frozen=True),
    'live in three': lambda: course(*of_each(*THREE), frozen=False),
    'live': lambda: course(*of_each(*TWENTY), frozen=False),
    'live Sharing': lambda: course(*of_each(*TWENTY), frozen=False, kind='Sharing'),
    'live in halves': lambda: course(*of_each(*TWENTY, 'train.accumulate=2'), frozen=False),
    'large': lambda: course(*of_each(*LARGE), frozen=False),
    'large Summing': lambda: course(*of_each(*LARGE), frozen=False, kind='Summing'),
    'large Lonely': lambda: course(*of_each(*LARGE), frozen=False, kind='Lonely'),
    'large Doubling': lambda: course(*of_each(*LARGE), frozen=False, kind='Doubling'),
    'at once': lambda: course(*of_each(*ACCUMULATED), frozen=True),
    'in four': lambda: course(*of_each(*ACCUMULATED, 'train.accumulate=4'), frozen=True),
    'in two': lambda: course(*of_each(*ACCUMULATED, 'train.accumulate=2'), frozen=True),
    'in two Sharing': lambda: course(
        *of_each(*ACCUMULATED, 'train.accumulate=2'), frozen=True, kind='Sharing'
    ),
}


def compare(folder: Path, names: list[str]) -> None:
    processes.connect()
    cpu.prepare_cpu()
    start.start_paddle('cpu')
    from paddle.distributed import fleet

    group = fleet.get_hybrid_communicate_group().get_data_parallel_group()
    for name in names:
        np.savez(folder / f'{name}.{processes.RANK}.npz', group=group.id, **COURSES[name]())


def hold_up(rank: int, why: str) -> None:
    """Make one process late."""
    if rank == processes.RANK:
        print(f'held up: {why}', flush=True)
        time.sleep(HELD_UP_S)


def before(owner: Any, name: str, first: Callable[[], None]) -> None:
    """Have a function do something else first, the first time it is called."""
    function, done = getattr(owner, name), []

    def both(*args: Any, **options: Any) -> Any:
        if not done:
            done.append(True)
            first()
        return function(*args, **options)

    setattr(owner, name, both)


def record_rows() -> None:
    """Each process records what it trained on: [epoch, batch, rows], a line a step."""
    from engine.training import trainer

    kind, file = trainer.Trainer, Path(os.environ['ROWS'])

    class Recording(kind):
        def _train_step(self, batch):
            super()._train_step(batch)
            line = json.dumps([self.progress.epoch, self.progress.batch, batch.rows.tolist()])
            with file.with_name(f'{file.name}.{processes.RANK}').open('a') as lines:
                lines.write(f'{line}\n')

    trainer.Trainer = Recording


def late_at_start() -> None:
    """One process imports paddle late, as from a slow network disk."""
    before(start, 'start_paddle', lambda: hold_up(1, 'start'))


def late_data() -> None:
    """One process takes long to look at its data."""
    from engine import data

    before(data, 'load_data', lambda: hold_up(0, 'data'))


def late_save() -> None:
    """The disk is slow."""
    from engine.run.checkpoint import Checkpoints

    before(Checkpoints, 'save', lambda: hold_up(0, 'save'))


def late_step() -> None:
    """One process takes long for a step, and comes late to the average of the gradients."""
    from engine.training import trainer

    before(trainer.Trainer, '_train_step', lambda: hold_up(1, 'step'))


def late_snapshot() -> None:
    """One process comes late to the snapshot, whose sums and averages are collectives."""
    from engine.training import trainer

    before(trainer.Trainer, 'snapshot', lambda: hold_up(0, 'snapshot'))


def late_evaluation() -> None:
    from engine import evaluation

    before(evaluation, 'evaluate', lambda: hold_up(1, 'evaluation'))


def other_root() -> None:
    """The data lie elsewhere on this machine."""
    if processes.RANK == 1:
        sys.argv += ['-o', 'data.root=nowhere']


def other_root_seen_late() -> None:
    """The same on a slow disk: the other process already waits."""

    def search() -> None:
        from engine import data

        before(data, 'load_data', lambda: time.sleep(6.0 * processes.RANK))

    other_root()
    before(support, 'check', search)


def bug() -> None:
    """One process meets a bug, in the middle of an epoch."""
    from engine.training import trainer

    class Faulty(trainer.Trainer):
        def _train_step(self, batch):
            if processes.RANK == 1 and self.step == 2:
                raise RuntimeError('a bug of ours')
            super()._train_step(batch)

    trainer.Trainer = Faulty


def stopped_in_evaluation() -> None:
    """A signal comes when an epoch is trained, and not yet evaluated."""
    from engine import evaluation

    before(evaluation, 'evaluate', lambda: os.kill(os.getpid(), signal.SIGTERM))


def slowly() -> None:
    """Steps of a fifth of a second, so that there is time to act in the middle of an epoch."""
    from engine.training import trainer

    class Slow(trainer.Trainer):
        def _train_step(self, batch):
            time.sleep(0.2)
            super()._train_step(batch)

    trainer.Trainer = Slow


# Those in the first group act before paddle is imported, the others when it has started.
AT_ONCE = {hook.__name__: hook for hook in (late_at_start, other_root, other_root_seen_late)}
LATER = {
    hook.__name__: hook
    for hook in (
        *(record_rows, slowly, bug, stopped_in_evaluation),
        *(late_data, late_save, late_step, late_snapshot, late_evaluation),
    )
}


def run_changed(what: str, names: list[str], arguments: list[str]) -> None:
    command = importlib.import_module(what)
    sys.argv = [str(REPOSITORY / f'{what}.py'), *arguments]
    for name in names:
        if name in AT_ONCE:
            AT_ONCE[name]()
        else:
            before(command, {'train': 'train', 'eval': 'evaluate'}[what], LATER[name])
    command.main()


if __name__ == '__main__':
    what, where, *rest = sys.argv[1:]
    if what == 'compare':
        cli.run(lambda: compare(Path(where), rest))
    else:
        cli.run(lambda: run_changed(what, where.split(','), rest))
