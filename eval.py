"""Measure a network: python3 eval.py [-c configs/....yaml] [-o key=value ...] [-w WEIGHTS] [...]"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from engine import cli
from engine.config import Config
from engine.errors import UserError
from engine.files import can_be_written
from engine.machine import cpu, devices, processes
from engine.machine.start import start_paddle
from engine.run import chosen_weights
from engine.run.chosen_weights import Weights
from engine.run.folder import find_run

if TYPE_CHECKING:  # these import paddle, which waits until the arguments are known to be good
    from engine.data import DataSet
    from engine.evaluation import Evaluation


def main() -> None:
    args = parse_arguments()
    processes.connect()
    config, path = chosen_weights.resolve_weights(args)
    if args.output is not None:
        require_writable(args.output)
    weights = chosen_weights.read_chosen(path)
    cpu.prepare_cpu()
    machine = [cpu.describe_cpu(), start_paddle(config.device)]
    config = chosen_weights.with_their_normalisation(config, weights.content, machine.append)
    if processes.RANK == 0:
        print(*machine, sep='\n')
    evaluate(config, weights, args.output)


def parse_arguments() -> argparse.Namespace:
    parser = cli.ConfigParser(
        'Measure a network on the test images.',
        example='eval.py -w output/quickstart',
        training=False,
    )
    chosen_weights.add_option(parser)
    parser.add_argument(
        '--output',
        type=Path,
        metavar='DIR',
        help="where the report goes (default: eval/ in the weights' run, or next to the runs)",
    )
    return parser.parse_args()


def require_writable(folder: Path) -> None:
    """UserError, before anything slow, where no report can be written."""
    if not can_be_written(folder):
        raise UserError(f'--output {folder}: nothing can be written there')


def evaluate(config: Config, weights: Weights, output: Optional[Path]) -> None:
    """Measure, print, and write the report."""
    from engine import data, evaluation, models
    from engine.evaluation import cpu_inference
    from engine.weights import fit_weights

    dataset = data.load_data(config, train=False, classes=weights.classes)
    chosen_weights.require_classes(weights, dataset)
    processes.require_same('the data set', dataset.describe)
    processes.require_same('the weights', lambda: weights.sha256)
    classes = data.class_count(dataset, config.model.num_classes)
    model = models.build(config.model.name, num_classes=classes)
    account = fit_weights(model, weights.content, str(weights.path)).lines()
    batches = data.test_batches(dataset, config)
    computed_by = ''
    if not devices.is_accelerator() and config.train.cpu_conv != 'paddle':
        model, computed_by = cpu_inference.compiled(model, data.preparation(config))
    result = evaluation.evaluate(model, batches, mirror=config.eval.mirror)
    if processes.RANK:
        return
    if computed_by:
        print(f'network: {computed_by}')
    print(f'{config.model.name} on {config.data.name}, weights {weights.kind}: {weights.path}')
    if weights.content.source:  # it was not one of our own checkpoints
        print(*account, sep='\n')
    print(result.summary)
    views = '' if config.eval.views == 'one' else f'eval.views {config.eval.views}: averaged, '
    top5 = f'top-5 {100 * result.top5:.2f} %, ' if classes > 5 else ''
    speed = f'{len(result.labels) / result.seconds:.0f} images/s'
    print(f'{views}{top5}loss {result.loss:.4f}, {speed}')
    folder = output or report_folder(config, weights.path)
    write_report(config, weights, dataset, result, classes, folder)


def write_report(
    config: Config,
    weights: Weights,
    dataset: DataSet,
    result: Evaluation,
    classes: int,
    folder: Path,
) -> None:
    """The table of classes on the console, everything else in a folder."""
    from engine.evaluation import report
    from engine.plots import fonts

    matrix = report.confusion_matrix(result, classes)
    names = dataset.classes + [str(i) for i in range(len(dataset.classes), classes)]
    print(report.class_table(matrix, names))
    about = {
        'weights': str(weights.path),
        'kind': weights.kind,
        'model': config.model.name,
        'views': config.eval.views,
    }
    if not can_be_written(folder):  # of a run on a read-only disk, the figures are enough
        print(f'no report: nothing can be written in {folder}; --output DIR puts it elsewhere')
        return
    run = find_run(weights.path)
    of = f'{run.resolve().name}, {weights.path.stem}' if run else weights.path.name
    boxes = fonts.choose([of, *names])
    if boxes:
        print(boxes)
    written = report.write_report(
        folder, result, matrix, images=dataset.test, classes=names, of=of, about=about
    )
    print(f'wrote {folder}/: {", ".join(written)}')


def report_folder(config: Config, weights: Path) -> Path:
    """Beside the weights' run; for a lone file next to the runs, as it may belong to none."""
    run = find_run(weights)
    base = run if run is not None else Path(config.output.dir).parent
    views = '' if config.eval.views == 'one' else f'_{config.eval.views}'
    return base / 'eval' / f'{weights.stem}{views}'


if __name__ == '__main__':
    cli.run(main)
