"""Train a network: python3 train.py [-c configs/....yaml] [-o key=value ...] [--resume [PATH]]"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from engine import cli, console
from engine.config import Config, fingerprint
from engine.errors import Diverged, Stopped, UserError
from engine.machine import collectives, cpu, devices, processes, start, support
from engine.run.chosen_weights import initial_weights
from engine.run.folder import RunFolder
from engine.run.reading import find_snapshot, resolve_config

if TYPE_CHECKING:  # these import paddle, which waits until the arguments are known to be good
    from engine.data.batches import Batches
    from engine.run.log import AnyLog
    from engine.training.progress import StepRecord
    from engine.training.trainer import Trainer


def main() -> None:
    console.survive_closed_output()
    args = parse_arguments()
    processes.connect()
    config = resolve_config(args, Path(args.resume) if args.resume else None)
    run = RunFolder(Path(config.output.dir))
    if processes.RANK == 0:
        run.lock.require_free()
        if args.resume is None:
            run.require_new()
    settings = cpu.prepare_cpu()
    device = start.start_paddle(config.device)
    log = open_log(config, settings, [device, *support.check(config.train, config.model)])
    train(config, run, args.resume, log)


def parse_arguments() -> argparse.Namespace:
    parser = cli.ConfigParser(
        'Train a network.', example='train.py -c quickstart -o train.epochs=2', training=True
    )
    text = 'continue the run of the same -c and -o, or that of PATH: a run folder or a checkpoint'
    parser.add_argument('--resume', nargs='?', const='', metavar='PATH', help=text)
    return parser.parse_args()


def open_log(config: Config, settings: str, machine: list[str]) -> AnyLog:
    """The log, which begins with what computes."""
    from engine import cpu_conv
    from engine.run.log import Log, NullLog

    log = Log() if processes.RANK == 0 else NullLog()
    log.line(cpu.describe_cpu(onednn=cpu_conv.choose(config.train)[0] is not None))
    log.note(settings)
    log.lines(machine)
    return log


def train(config: Config, run: RunFolder, resume: Optional[str], log: AnyLog) -> None:
    """Set everything up, train, and say what to do next."""
    from engine import data
    from engine.training import memory, network
    from engine.training.trainer import Trainer

    devices.seed_weights(config.seed)
    snapshot = find_snapshot(resume, run, log.line) if resume is not None else None
    config, pretrained = initial_weights(config, snapshot, log.line)
    # Bad files are reported by the process that reads them.
    dataset = data.load_data(config, report=print if processes.RANK else log.line)
    batches, tests = data.train_batches(dataset, config), data.test_batches(dataset, config)
    processes.require_same('the config', lambda: fingerprint(config))
    processes.require_same('the data set', dataset.describe)
    processes.require_same('the checkpoint', lambda: snapshot.describe() if snapshot else 'none')
    log.line(f'data: {config.data.name}, {dataset.summary}')
    classes = data.class_count(dataset, config.model.num_classes)
    model, lines = network.build(config.model, config.train, classes, pretrained)
    trainer = Trainer(model, config, batches=batches, classes=dataset.classes)
    log.lines([*lines, *trainer.describe_step()])
    if snapshot is not None:
        log.lines(trainer.restore(snapshot), prefix='resume: ')
        run.adopt(snapshot, trainer.progress)
        log.line(f'resume: continuing from {snapshot.path}, step {trainer.step}')
    if trainer.step > trainer.steps:  # epochs were lowered: the records of later ones must stay
        log.line(f'nothing is left to train: {trainer.step} of {trainer.steps} steps are done')
        return
    images = len(batches.images)
    log.lines(memory.check(trainer.model, trainer.precision, config, images=images))
    with contextlib.closing(run):
        if processes.RANK == 0:
            run.open(config, dataset.classes, new=resume is None)
            log.lines(run.restore_best(trainer.progress, trainer.weights), prefix='resume: ')
        log.attach(run, step=trainer.step, epoch=trainer.progress.epoch)
        try:
            log.first_batch(batches, dataset.classes)
            train_epochs(trainer, tests, run, log)
            log.run_ends()
        except (UserError, Diverged, Stopped) as end:
            log.note(str(end))
            raise
        finally:
            log.close()


def train_epochs(trainer: Trainer, tests: Batches, run: RunFolder, log: AnyLog) -> None:
    """Train and evaluate the epochs that remain. A signal saves and raises Stopped.

    The order of the steps matters: the run folder can be resumed whenever the process is killed.
    """
    from engine.machine.signals import StopSignals
    from engine.training.progress import is_due

    config, last, epochs = trainer.config, trainer.last_epoch, trainer.config.train.epochs

    def after_step(step: StepRecord) -> None:
        log.step(step)
        every = config.train.save_every_steps
        if every and trainer.step % every == 0 and trainer.inside_epoch:
            save(trainer, run, log)
        if step.measured or collectives.agreeing_is_cheap():
            stop.check()

    with StopSignals() as stop:
        try:
            for epoch in range(trainer.progress.epoch, last + 1):
                log.line(trainer.describe_rate())
                log.epoch_starts(trainer.progress, epochs=epochs, batches=len(trainer.batches))
                trainer.train_one_epoch(after_step=after_step)
                log.training_ends(trainer.progress.sums)
                cut_short = trainer.inside_epoch  # by train.max_steps: a resumed run continues here
                if cut_short:
                    save(trainer, run, log)
                evaluation, sha256 = None, ''
                if is_due(epoch, every=config.eval.every, start=config.eval.start, last=last):
                    evaluation = trainer.evaluate(tests, after_batch=stop.check)
                    log.line(evaluation.summary)
                    sha256 = run.save_if_best(trainer.weights, best=trainer.is_best(evaluation))
                log.epoch_ends(trainer.end_epoch(evaluation, sha256), last=epoch == last)
                if is_due(epoch, every=config.train.save_every, last=last) and not cut_short:
                    save(trainer, run, log)
        except Stopped as signal:
            save(trainer, run, log)
            text = f'{signal}: saved in {run.path}; the same command with --resume continues'
            raise Stopped(text) from None
        except Diverged as error:
            raise Diverged(f'{error}. {run.checkpoints().describe_last()}') from None


def save(trainer: Trainer, run: RunFolder, log: AnyLog) -> None:
    """All processes take the snapshot, and the first one writes it."""
    snapshot = trainer.snapshot()
    log.flush()
    run.save(trainer.progress.name, snapshot, keep=trainer.config.train.keep)


if __name__ == '__main__':
    cli.run(main)
