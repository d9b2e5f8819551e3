"""The weights that the user has chosen: with -w to measure or export, or to start training from.

-w names a weight file, a checkpoint, a run folder or official weights; without it, eval.py and
export.py take the newest checkpoint of the run in output.dir. Nothing here imports paddle.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from engine.config import Config
from engine.errors import UserError
from engine.run.checkpoint import EMA, MODEL
from engine.run.reading import (
    find_run,
    is_run,
    load_run_config,
    read_classes,
    read_records,
    read_snapshot,
    resolve_config,
)
from engine.training.snapshot import Snapshot
from engine.weights import OFFICIAL, Converted, read_weights, resolve
from engine.weights.formats.shards import file_in
from engine.weights.official import on_disk

if TYPE_CHECKING:
    from paddle import nn

    from engine.data import DataSet


@dataclass(frozen=True)
class Weights:
    """Arrays, where they come from, and the classes if they are recorded."""

    content: Converted
    path: Path  # of the checkpoint or the file
    kind: str
    classes: Optional[list[str]]
    file: Path  # the one that holds the arrays
    sha256: str  # of that file, as it was read


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '-w',
        '--weights',
        type=Path,
        metavar='PATH',
        help='a weight file of any project, a checkpoint, a run folder, or the name of official '
        'weights such as resnext50_32x4d (default: the newest checkpoint of the run in output.dir)',
    )


def resolve_weights(args: argparse.Namespace) -> tuple[Config, Path]:
    """The config, and the path of the weights.

    Weights inside a run come with the config of that run, unless -c names another.
    """
    if args.weights is not None:
        path = on_disk(args.weights)
        if not path.exists() and str(path) not in OFFICIAL:
            raise UserError(f'-w {path}: no such file or folder')
        return resolve_config(args, path), path
    run = Path(resolve_config(args, None).output.dir)
    if not is_run(run):
        raise UserError(f'{run} is not a run yet; {_runs_beside(run)}')
    return load_run_config(run, args.override), run


def _runs_beside(run: Path) -> str:
    """What to write instead of a run that does not exist: the newest of those that do."""
    folders = run.parent.iterdir() if run.parent.is_dir() else ()
    runs = [folder for folder in folders if (folder / 'config.yaml').is_file()]
    if not runs:
        return 'train first, or name the weights with -w PATH'
    runs.sort(key=lambda folder: (folder / 'config.yaml').stat().st_mtime, reverse=True)
    named = ', '.join(f'-w {shlex.quote(str(folder))}' for folder in runs[:5])
    more = f' and {len(runs) - 5} more' if len(runs) > 5 else ''
    return f'there are {named}{more}'


def read_chosen(path: Path) -> Weights:
    """Read a file, a checkpoint, or the newest sound checkpoint of a run."""
    path = file_in(path) or path if path.is_dir() else resolve(path)
    if not path.is_dir():
        run = find_run(path)
        classes = read_classes(run) if run is not None else None
        content = read_weights(path)
        return Weights(content, path, 'as they are in the file', classes, path, content.sha256)
    snapshot = read_snapshot(path, print)
    if snapshot is None:
        raise UserError(f'{path}: no checkpoint found; -w takes a weight file, checkpoint or run')
    snapshot.require_current()
    where = snapshot.path or path
    arrays, kind, name = snapshot.model, 'of the last step', MODEL
    if snapshot.ema is not None:
        arrays, kind, name = snapshot.ema, 'averaged (EMA)', EMA
    classes, sha256 = snapshot.state['classes'], snapshot.sha256[name]
    return Weights(Converted(arrays, ''), where, kind, classes, where / name, sha256)


def with_their_normalisation(
    config: Config, content: Converted, report: Callable[[str], None]
) -> Config:
    """The config with the mean and std that the weights were trained with, if these are known and
    the config gives none."""
    known, data = content.normalisation, config.data
    if known is None or known.data != data.name or data.mean is not None:
        return config
    report(f'{known.as_keys()}, as these weights were trained')
    data = dataclasses.replace(data, mean=known.mean, std=known.std)
    return dataclasses.replace(config, data=data)


def build_network(name: str, weights: Weights, num_classes: int) -> tuple[nn.Layer, list[str]]:
    """The network with these weights, and lines about them if another project wrote the file."""
    from engine import models
    from engine.weights import fit_weights

    model = models.build(name, num_classes=num_classes)
    report = fit_weights(model, weights.content, str(weights.path))
    return model, report.lines() if weights.content.source else []


def initial_weights(
    config: Config, snapshot: Optional[Snapshot], report: Callable[[str], None]
) -> tuple[Config, Optional[Converted]]:
    """The weights of model.pretrained, None where a checkpoint brings its own; and the config, with
    the mean and std of those weights if they are known to differ from the data set's."""
    if config.model.pretrained is None:
        return config, None
    if snapshot is None:
        content = read_weights(config.model.pretrained)
        return with_their_normalisation(config, content, report), content
    before, data = snapshot.state.get('config', {}).get('data', {}), config.data
    if data.mean is None and before.get('mean') and before.get('std'):
        data = dataclasses.replace(data, mean=tuple(before['mean']), std=tuple(before['std']))
    return dataclasses.replace(config, data=data), None


def recorded_accuracy(weights: Weights) -> Optional[dict[str, Any]]:
    """What the run measured with exactly these weights (by SHA-256); None if it did not."""
    run = find_run(weights.path)
    for record in read_records(run) if run is not None else []:
        if record.get('weights_sha256') == weights.sha256:
            return {
                'top1': record['eval_accuracy'],
                'top5': record['eval_top5'],
                'epoch': record['epoch'] + 1,
                'data': record['eval_data'],
                'holdout': record['eval_holdout'],  # the share of the training images, if of these
                'views': record['eval_views'],
            }
    return None


def require_classes(weights: Weights, dataset: DataSet) -> None:
    """UserError if the data set has other classes than those that are recorded with the weights."""
    from engine.data.class_names import differing

    if weights.classes is not None and weights.classes != dataset.classes:
        raise UserError(
            f'{weights.path} was trained on other classes than {dataset.origin} has: '
            f'{differing(weights.classes, dataset.classes)}'
        )
