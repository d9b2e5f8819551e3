"""Measure a network: python3 eval.py [-c configs/....yaml] [-o key=value ...] [-w WEIGHTS] [...]"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine import cli
from engine.config import Config
from engine.errors import UserError
from engine.files import is_writable
from engine.machine import cpu, devices, processes
from engine.machine.start import start_paddle
from engine.run import chosen_weights
from engine.run.chosen_weights import Weights
from engine.run.reading import find_run


def main() -> None:
    args = parse_arguments()
    processes.connect()
    config, path = chosen_weights.resolve_weights(args)
    if args.output is not None and not is_writable(args.output):
        raise UserError(f'--output {args.output}: nothing can be written there')
    weights = chosen_weights.read_chosen(path)
    cpu.prepare_cpu()
    machine = [cpu.describe_cpu(), start_paddle(config.device)]
    config = chosen_weights.with_their_normalisation(config, weights.content, machine.append)
    if processes.RANK == 0:
        print(*machine, sep='\n')
    evaluate(config, weights, args.output or report_folder(config, weights.path))


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


def report_folder(config: Config, weights: Path) -> Path:
    """In the run of the weights; for a file outside any run, in eval/ beside the runs."""
    base = find_run(weights) or Path(config.output.dir).parent
    views = '' if config.eval.views == 'one' else f'_{config.eval.views}'
    return base / 'eval' / f'{weights.stem}{views}'


def evaluate(config: Config, weights: Weights, folder: Path) -> None:
    """Measure, print, and write the report."""
    from engine import data, evaluation
    from engine.data.class_names import numbered
    from engine.evaluation.report import write_report
    from engine.export import cpu_inference, exported_folder

    dataset = data.load_data(config, train=False, classes=weights.classes)
    chosen_weights.require_classes(weights, dataset)
    processes.require_same('the data set', dataset.describe)
    processes.require_same('the weights', lambda: weights.sha256)
    classes = numbered(dataset.classes, data.class_count(dataset, config.model.num_classes))
    name, views = config.model.name, config.eval.views
    model, notes = chosen_weights.build_network(name, weights, len(classes))
    lines = [f'{name} on {config.data.name}, weights {weights.kind}: {weights.path}', *notes]
    if not devices.is_accelerator() and config.train.cpu_conv != 'paddle':
        image = exported_folder.graph_input(data.preparation(config))
        model, computed_by = cpu_inference.compiled(model, image)
        lines.insert(0, f'network: {computed_by}')
    batches = data.test_batches(dataset, config)
    result = evaluation.evaluate(model, batches, mirror=config.eval.mirror)
    if processes.RANK:
        return
    details = '' if views == 'one' else f'eval.views {views}: averaged, '
    details += f'top-5 {100 * result.top5:.2f} %, ' if len(classes) > 5 else ''
    details += f'loss {result.loss:.4f}, {len(result.labels) / result.seconds:.0f} images/s'
    print(*lines, result.summary, details, sep='\n')
    run = find_run(weights.path)
    title = f'{run.resolve().name}, {weights.path.stem}' if run else weights.path.name
    about = {'weights': str(weights.path), 'kind': weights.kind, 'model': name, 'views': views}
    print(*write_report(folder, result, dataset.test, classes, title=title, about=about), sep='\n')


if __name__ == '__main__':
    cli.run(main)
