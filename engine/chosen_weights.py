"""The weights that -w names, for the commands that take them as they are: eval.py and export.py.

They are a weight file, a checkpoint, a run folder or official weights; without -w, the newest
checkpoint of the run in output.dir. Nothing here imports paddle.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from engine import cli
from engine.checkpoint import EMA, MODEL
from engine.config import Config
from engine.errors import UserError
from engine.run_folder import (
    RunFolder,
    find_run,
    load_run_config,
    read_classes,
    read_records,
    read_snapshot,
)
from engine.weights import OFFICIAL, Converted, read_weights, resolve

if TYPE_CHECKING:
    from engine.data import DataSet

CHUNK = 1 << 20


@dataclass(frozen=True)
class Weights:
    """Arrays, where they come from, and the classes if they are recorded."""

    content: Converted
    path: Path  # of the checkpoint or the file
    kind: str
    classes: Optional[list[str]]
    file: Path  # the one that holds the arrays
    measured: Optional[tuple[int, int]] = None  # of a checkpoint: step and epoch in the records


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '-w',
        '--weights',
        type=Path,
        metavar='PATH',
        help="anybody's weight file, a checkpoint, a run folder, or the name of official weights "
        'such as resnext50_32x4d (default: the newest checkpoint of the run in output.dir)',
    )


def settle(args: argparse.Namespace) -> tuple[Config, Path]:
    """The config to work with, and where the weights are.

    Weights that lie in a run are taken with that run's own config, unless -c names another.
    """
    if args.weights is not None:
        if not args.weights.exists() and str(args.weights) not in OFFICIAL:
            raise UserError(f'-w {args.weights}: there is nothing')
        return cli.load_settled(args, find_run(args.weights)), args.weights
    run = Path(cli.load_settled(args, None).output.dir)
    if not RunFolder(run).config_file.is_file():
        raise UserError(f'{run} holds no run yet; train first, or name the weights with -w PATH')
    return load_run_config(run, args.override), run


def find_weights(path: Path) -> Weights:
    """Arrays of a file, of a checkpoint, or of a run's newest checkpoint that is sound."""
    if not path.is_dir():
        path, run = resolve(path), find_run(path)
        classes = read_classes(run) if run is not None else None
        return Weights(read_weights(path), path, 'as they are in the file', classes, path)
    snapshot = read_snapshot(path, print)
    if snapshot is None:
        raise UserError(f'{path}: no checkpoint there; -w takes a weight file, checkpoint or run')
    where = snapshot.path or path
    arrays, kind, name = snapshot.model, 'of the last step', MODEL
    if snapshot.ema is not None:
        arrays, kind, name = snapshot.ema, 'averaged (EMA)', EMA
    classes, progress = snapshot.state['classes'], snapshot.state['progress']
    measured = snapshot.state['step'], progress['epoch'] - (progress['batch'] == 0)
    return Weights(Converted(arrays, ''), where, kind, classes, where / name, measured)


def recorded_accuracy(weights: Weights) -> Optional[dict[str, Any]]:
    """What the run measured with exactly these weights; None where that is not known."""
    run = find_run(weights.path)
    if run is None:
        return None
    try:
        config = load_run_config(run, [])
    except UserError:  # -c has named another; what this one measured, nobody knows
        return None
    records = [record for record in read_records(run) if 'eval_accuracy' in record]
    if weights.path.resolve() == RunFolder(run).best_file.resolve():
        records = [record for record in records if record['best_epoch'] == record['epoch']]
    else:
        records = [r for r in records if (r['step'], r['epoch']) == weights.measured]
    if not records:
        return None
    return {
        'top1': records[-1]['eval_accuracy'],
        'top5': records[-1]['eval_top5'],
        'epoch': records[-1]['epoch'],
        'data': config.data.name,
        'holdout': config.data.holdout,  # the share of the training images, if it is of these
        'views': config.eval.views,
    }


def require_classes(weights: Weights, dataset: DataSet) -> None:
    """UserError if the data set has other classes than those that are recorded with the weights."""
    from engine.data.folder import differing

    if weights.classes is not None and weights.classes != dataset.classes:
        raise UserError(
            f'{weights.path} was trained on other classes than {dataset.origin} has: '
            f'{differing(weights.classes, dataset.classes)}'
        )


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open('rb') as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    except OSError as error:  # such as an old checkpoint, of which a run in progress keeps two
        raise UserError(f'{file} is gone: {error.strerror}') from None
    return digest.hexdigest()
