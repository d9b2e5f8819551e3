"""Measure a network: python3 eval.py [-c configs/....yaml] [-o key=value ...] [-w WEIGHTS]"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from engine import cli, runtime
from engine.config import Config
from engine.errors import UserError
from engine.run_folder import RunFolder, find_run, load_run_config, read_snapshot
from engine.weights import Arrays, read_arrays


@dataclass(frozen=True)
class Weights:
    """What is measured: arrays, where they come from, and the classes if they are recorded."""

    arrays: Arrays
    path: Path
    kind: str
    classes: Optional[list[str]]


def main() -> None:
    args = parse_arguments()
    config, path = settle(args)
    weights = read_weights(path)
    machine = [runtime.prepare_cpu(), runtime.start_paddle(config.device)]
    if runtime.RANK == 0:
        print(*machine, sep='\n')
    evaluate(config, weights)


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser('Measure a network on the test images.')
    parser.add_argument(
        '-w',
        '--weights',
        type=Path,
        metavar='PATH',
        help='weight file, checkpoint or run folder (default: the newest checkpoint of the run in '
        'output.dir)',
    )
    return parser.parse_args()


def settle(args: argparse.Namespace) -> tuple[Config, Path]:
    """The config to measure with, and where the weights are.

    Weights that lie in a run are measured with that run's own config, unless -c names another.
    """
    if args.weights is not None:
        if not args.weights.exists():
            raise UserError(f'-w {args.weights}: there is nothing')
        return cli.load_settled(args, find_run(args.weights)), args.weights
    run = Path(cli.load_settled(args, None).output.dir)
    if not RunFolder(run).config_file.is_file():
        raise UserError(f'{run} holds no run yet; train first, or name the weights with -w PATH')
    return load_run_config(run, args.override), run


def read_weights(path: Path) -> Weights:
    """Arrays of a file, of a checkpoint, or of a run's newest checkpoint that is sound."""
    if path.is_file():
        return Weights(read_arrays(path), path, 'as they are in the file', None)
    snapshot = read_snapshot(path, print)
    if snapshot is None:
        raise UserError(f'{path}: no checkpoint there; -w takes a weight file, checkpoint or run')
    classes = snapshot.state['classes']
    where = snapshot.path or path
    if snapshot.ema is not None:
        return Weights(snapshot.ema, where, 'averaged (EMA)', classes)
    return Weights(snapshot.model, where, 'of the last step', classes)


def evaluate(config: Config, weights: Weights) -> None:
    """Measure, print, and write the report."""
    from engine import data, evaluation, models, report
    from engine.weights import fit_weights

    dataset = data.load_data(config.data)
    if weights.classes is not None and weights.classes != dataset.classes:
        raise UserError(f'{weights.path} was trained on other classes than {dataset.origin} has')
    classes = data.class_count(dataset, config.model.num_classes)
    model = models.build(config.model.name, num_classes=classes, dropout=config.model.dropout)
    fit_weights(model, weights.arrays, str(weights.path))
    result = evaluation.evaluate(model, data.test_batches(dataset, config))
    if runtime.RANK:
        return
    matrix = report.confusion_matrix(result, classes)
    names = dataset.classes + [str(i) for i in range(len(dataset.classes), classes)]
    print(f'{config.model.name} on {config.data.name}, weights {weights.kind}: {weights.path}')
    print(result.summary)
    print(
        f'top-5 {100 * result.top5:.2f} %, loss {result.loss:.4f}, '
        f'{len(result.labels) / result.seconds:.0f} images/s'
    )
    print(report.class_table(matrix, names))
    about = {'weights': str(weights.path), 'kind': weights.kind, 'model': config.model.name}
    folder = report_folder(config, weights.path)
    written = report.write_report(
        folder, result, matrix, images=dataset.test, classes=names, about=about
    )
    print(f'wrote {folder}/: {", ".join(written)}')


def report_folder(config: Config, weights: Path) -> Path:
    """Beside the weights' run; for a lone file next to the runs, as it may belong to none."""
    run = find_run(weights)
    base = run if run is not None else Path(config.output.dir).parent
    return base / 'eval' / weights.stem


if __name__ == '__main__':
    cli.run(main)
