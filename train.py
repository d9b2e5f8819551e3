"""Train a network: python3 train.py [-c configs/....yaml] [-o key=value ...] [--resume [PATH]]"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from engine import cli, console
from engine.config import Config, chosen, differences, to_dict, to_yaml
from engine.errors import Diverged, Stopped, UserError
from engine.files import sha256_of, write_atomically
from engine.machine import collectives, cpu, devices, processes, support
from engine.machine.start import start_paddle
from engine.run.checkpoint import serialised
from engine.run.chosen_weights import with_their_normalisation
from engine.run.folder import RunFolder, read_snapshot, resolve_config
from engine.training.snapshot import Snapshot
from engine.weights import Converted, read_weights

if TYPE_CHECKING:  # these import paddle, which waits until the arguments are known to be good
    from paddle import nn

    from engine.data import DataSet
    from engine.data.batches import Batches
    from engine.machine.signals import StopSignals
    from engine.run.log import Log
    from engine.training.trainer import Trainer


def main() -> None:
    console.outlive()
    args = parse_arguments()
    processes.connect()
    config = resolve_config(args, Path(args.resume) if args.resume else None)
    run = RunFolder(Path(config.output.dir))
    if processes.RANK == 0:
        run.require_free()
        if args.resume is None:
            run.require_new()
    settings = cpu.prepare_cpu()
    device = start_paddle(config.device)
    log = open_log(config, settings, [device, *support.check(config.train, config.model)])
    train(config, run, args.resume, log)


def parse_arguments() -> argparse.Namespace:
    parser = cli.ConfigParser(
        'Train a network.', example='train.py -c quickstart -o train.epochs=2', training=True
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='',
        metavar='PATH',
        help='go on with the run in output.dir, or with the run or checkpoint at PATH',
    )
    return parser.parse_args()


def open_log(config: Config, settings: str, machine: list[str]) -> Log:
    """The log, which begins with what computes."""
    from engine import cpu_conv
    from engine.run.log import Log, Silence

    log = Log() if processes.RANK == 0 else Silence()
    log.line(cpu.describe_cpu(onednn=cpu_conv.choose(config.train)[0] is not None))
    log.note(settings)
    for text in machine:
        log.line(text)
    return log


def train(config: Config, run: RunFolder, resume: Optional[str], log: Log) -> None:
    """Set everything up, train, and say what to do next."""
    from engine import data
    from engine.training import memory
    from engine.training.trainer import Trainer

    devices.seed_everything(config.seed)
    snapshot = find_snapshot(run, resume, log) if resume is not None else None
    config, pretrained = start_from(config, snapshot, log)
    report = (
        log.line if processes.RANK == 0 else print
    )  # bad files are named by the rank that reads them
    dataset = data.load_data(config, report=report)
    batches, tests = data.train_batches(dataset, config), data.test_batches(dataset, config)
    require_same(config, dataset, snapshot)
    model = build_model(config, dataset, log, pretrained)
    log.line(describe_step(config, batches, len(dataset.train or ())))
    trainer = Trainer(model, config, batches=batches, classes=dataset.classes, log=log)
    if snapshot is not None:
        restore(trainer, snapshot, run, log)
    warn_of_rate(trainer, log)
    if trainer.step > trainer.steps:  # or the records of what is done would be dropped
        log.line(f'nothing is left to train: {trainer.step} of {trainer.steps} steps are done')
        return
    images = len(batches.images)
    memory.check(trainer.model, trainer.precision, config, images=images, tell=log.line)
    with contextlib.closing(run):
        if processes.RANK == 0:
            run.open(config, dataset.classes, new=resume is None)
            if trainer.progress.best_epoch is not None:
                bring_back_best(trainer, run, log)
        log.attach(run, step=trainer.step, epoch=trainer.progress.epoch)
        try:
            log.first_batch(batches, dataset.classes)
            fit(trainer, tests, run, log)
            say_what_next(trainer, run, log)
        except (UserError, Diverged, Stopped) as end:
            log.note(str(end))
            raise
        finally:
            log.close()


def require_same(config: Config, dataset: DataSet, snapshot: Optional[Snapshot]) -> None:
    """UserError unless all processes, perhaps on several machines, start from the same."""
    processes.require_same('the config', lambda: describe_config(config))
    processes.require_same('the data set', dataset.describe)
    processes.require_same('the checkpoint', lambda: snapshot.describe() if snapshot else 'none')


def describe_config(config: Config) -> str:
    """What was chosen, and a checksum of the defaults: another version has others."""
    settings = chosen(config, but=('device', 'output.dir', 'data.root'))
    said = [f'{name}={value}' for name, value in settings.items()]
    return ', '.join([*said, f'defaults {zlib.crc32(to_yaml(Config()).encode()):08x}'])


def build_model(
    config: Config, dataset: DataSet, log: Log, pretrained: Optional[Converted]
) -> nn.Layer:
    """The network, with the weights to start from unless a checkpoint will bring its own."""
    from paddle import nn

    from engine import cpu_conv, data, models
    from engine.weights import fit_weights

    assert dataset.train is not None
    settings = config.model
    classes = data.class_count(dataset, settings.num_classes)
    onednn_dtype, about_it = cpu_conv.choose(config.train)
    processes.require_same('what computes convolutions', lambda: str(onednn_dtype))
    model = models.build(
        settings.name,
        num_classes=classes,
        dropout=settings.dropout,
        zero_init_last_bn=settings.zero_init_last_bn,
        init=settings.init,
        data_format='NHWC' if onednn_dtype else support.data_format(config.train, config.model),
    )
    if onednn_dtype:
        cpu_conv.accelerate(model, onednn_dtype)
    if config.train.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    log.line(
        f'data: {config.data.name}, {len(dataset.train):,} training and {len(dataset.test):,} test '
        f'images of {len(dataset.classes):,} classes, from {dataset.origin}'
    )
    log.line(f'model: {settings.name}, {models.parameter_count(model):,} parameters')
    for text in about_it:
        log.line(text)
    if pretrained is not None:
        where, head = str(settings.pretrained), settings.pretrained_head
        report = fit_weights(model, pretrained, where, head=head)
        for text in report.lines():
            log.line(f'pretrained: {text}')
    return model


def describe_step(config: Config, batches: Batches, images: int) -> str:
    """How many of the images make a step, and what that does to the learning rate."""
    from engine.training.schedule import lr_factor

    factors = [(processes.WORLD_SIZE, 'processes'), (config.train.accumulate, 'accumulated')]
    made_of = ''.join(f' x {count} {what}' for count, what in factors if count > 1)
    text = f'step: {batches.global_batch_size} images'
    text += f' ({config.data.batch_size}{made_of})' if made_of else ''
    factor = lr_factor(config.optimizer, batches.global_batch_size)
    text += f', learning rate x {factor:.6g}' if factor != 1.0 else ''
    if batches.global_batch_size > images:
        text += f'; the training set has only {images:,}: each epoch is one step (data.batch_size)'
    return text


def warn_of_rate(trainer: Trainer, log: Log) -> None:
    """A line where no step of the run changes the weights."""
    if not any(map(trainer.lr_at, range(trainer.steps))):
        schedule = trainer.config.schedule.name
        log.line(
            f'the learning rate is 0 in all {trainer.steps:,} steps (schedule.name: {schedule}, '
            f'optimizer.lr: {trainer.config.optimizer.lr:g}): nothing will be learned'
        )


def start_from(
    config: Config, snapshot: Optional[Snapshot], log: Log
) -> tuple[Config, Optional[Converted]]:
    """The weights of model.pretrained, unless a checkpoint brings its own; and the config, with the
    mean and std of those weights where they are known to have others than the data set's."""
    if config.model.pretrained is None:
        return config, None
    if snapshot is None:
        content = read_weights(config.model.pretrained)
        return with_their_normalisation(config, content, log.line), content
    before = snapshot.state.get('config', {}).get('data', {})
    if config.data.mean is None and before.get('mean') and before.get('std'):
        data = replace(config.data, mean=tuple(before['mean']), std=tuple(before['std']))
        config = replace(config, data=data)
    return config, None


def find_snapshot(run: RunFolder, resume: str, log: Log) -> Optional[Snapshot]:
    """The checkpoint to go on from; None where this run has not saved one yet."""
    path = Path(resume) if resume else run.path
    snapshot = read_snapshot(path, log.line)
    if snapshot is not None:
        return snapshot
    if resume:
        raise UserError(f'--resume {path}: neither a checkpoint nor a run folder with a sound one')
    if processes.RANK == 0 and not run.config_file.exists():
        run.require_new()
    log.line(f'resume: no checkpoint in {run.path}; starting from the beginning')
    return None


def restore(trainer: Trainer, snapshot: Snapshot, run: RunFolder, log: Log) -> None:
    """Put the trainer where the checkpoint left off."""
    assert snapshot.path is not None
    trainer.restore(snapshot)
    for line in differences(snapshot.state['config'], to_dict(trainer.config)):
        log.line(f'resume: the config has changed: {line}')
    if run.path.resolve() not in snapshot.path.resolve().parents:  # the beginning of another run
        if processes.RANK == 0:
            run.require_new()
        trainer.progress.forget_best()
    log.line(f'resume: going on from {snapshot.path}, step {trainer.step}')


def bring_back_best(trainer: Trainer, run: RunFolder, log: Log) -> None:
    """Have best.pdparams hold what the checkpoint calls best, not an epoch that runs again."""
    progress = trainer.progress
    if run.best_file.is_file() and sha256_of(run.best_file) == progress.best_sha256:
        return
    content, sha256 = serialised(trainer.weights())
    if sha256 == progress.best_sha256:
        write_atomically(run.best_file, lambda file: file.write(content))
        log.line(f'resume: {run.best_file} was of an epoch that runs again; written anew')
        return
    progress.forget_best()
    log.line(f'resume: {run.best_file} is not of the epochs before this; the best is chosen anew')


def fit(trainer: Trainer, tests: Batches, run: RunFolder, log: Log) -> None:
    """The epochs that remain. A signal saves and raises Stopped."""
    from engine.machine.signals import StopSignals

    with StopSignals() as stop:
        try:
            for _ in range(trainer.progress.epoch, trainer.last_epoch + 1):
                one_epoch(trainer, tests, run, stop, log)
        except Stopped as signal:
            save(trainer, run)
            raise Stopped(
                f'{signal}: saved in {run.path}; the same command with --resume goes on'
            ) from None
        except Diverged as error:
            raise Diverged(f'{error}. {run.checkpoints().describe_last()}') from None


def one_epoch(
    trainer: Trainer, tests: Batches, run: RunFolder, stop: StopSignals, log: Log
) -> None:
    """Train, evaluate, record, save: in an order in which a kill loses nothing."""
    from engine.evaluation import evaluate
    from engine.training.trainer import is_due

    config, epoch, last = trainer.config, trainer.progress.epoch, trainer.last_epoch

    def after_step(collected: bool) -> None:
        every = config.train.save_every_steps
        if every and trainer.step % every == 0 and trainer.inside_epoch:
            save(trainer, run)
        if collected or collectives.agreeing_is_cheap():
            stop.check()

    log.epoch_starts(trainer)
    trainer.train_one_epoch(after_step=after_step)
    log.training_ends(trainer)
    cut_short = trainer.inside_epoch  # by train.max_steps; more steps would go on from here
    if cut_short:
        save(trainer, run)
    evaluation, sha256 = None, ''
    if is_due(epoch, every=config.eval.every, start=config.eval.start, last=last):
        with trainer.evaluated_weights() as model:
            evaluation = evaluate(model, tests, mirror=config.eval.mirror, after_batch=stop.check)
        log.line(evaluation.summary)
        if processes.RANK == 0:  # which alone saves them
            weights, sha256 = serialised(trainer.weights())
    record = trainer.end_epoch(evaluation, sha256)
    if processes.RANK == 0:
        run.require_ours()
        if record['best_epoch'] == epoch:
            write_atomically(run.best_file, lambda file: file.write(weights))
    log.epoch_ends(record, last=epoch == last)
    if not cut_short and is_due(epoch, every=config.train.save_every, last=last):
        save(trainer, run)


def save(trainer: Trainer, run: RunFolder) -> None:
    """All processes take the snapshot, and the first one writes it while the others wait."""
    snapshot = trainer.snapshot()
    if processes.RANK == 0:
        run.require_ours()
        trainer.log.flush()
        run.checkpoints(keep=trainer.config.train.keep).save(trainer.progress.name, snapshot)
    processes.barrier()


def say_what_next(trainer: Trainer, run: RunFolder, log: Log) -> None:
    """The result, and where it lies."""
    record, progress = log.last_record, trainer.progress
    if record is None or 'eval_accuracy' not in record:
        log.line(f'nothing is left to train after epoch {progress.epoch}')
        return
    log.line(
        f'finished after epoch {record["epoch"] + 1}: '
        f'accuracy {100 * record["eval_accuracy"]:.2f} % '
        f'(best: {100 * progress.best:.2f} % after epoch {record["best_epoch"] + 1})'
    )
    log.line(f'  curves:            {run.curves_file}')
    folder = shlex.quote(str(run.path))
    log.line(f'  what it mistakes:  python3 eval.py -w {folder}')
    log.line(f'  export it:         python3 export.py -w {folder}')
    log.line(f'  live, in VisualDL: visualdl --logdir {shlex.quote(str(run.vdl_folder))}')


if __name__ == '__main__':
    cli.run(main)
