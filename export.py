"""Export a network: python3 export.py [-c ...] [-o key=value ...] [-w WEIGHTS] [--output DIR]"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine import chosen_weights, cli, runtime
from engine.chosen_weights import Weights
from engine.config import Config
from engine.errors import UserError
from engine.exported_folder import DESCRIPTION, describe, require_new, written_aside
from engine.run_folder import find_run

if TYPE_CHECKING:  # this imports paddle, which waits until the arguments are known to be good
    from engine.data import Preparation


def main() -> None:
    args = parse_arguments()
    if runtime.WORLD > 1:
        raise UserError('one process exports: start export.py without paddle.distributed.launch')
    config, path = chosen_weights.settle(args)
    output = args.output or default_output(config, path)
    require_new(output)
    weights = chosen_weights.find_weights(path)
    checksum = chosen_weights.sha256_of(weights.file)
    os.environ.setdefault('GLOG_minloglevel', '2')  # paddle.jit.save warns of what is no harm
    print(runtime.prepare_cpu(), runtime.start_paddle(config.device), sep='\n')
    export(config, weights, checksum, output)


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser('Export a network as a static graph, with all that its users must know.')
    chosen_weights.add_option(parser)
    parser.add_argument(
        '--output',
        type=Path,
        metavar='DIR',
        help="a new folder (default: inference/ in the weights' run; for a file that lies in none, "
        'inference/<its name>/ next to the runs)',
    )
    return parser.parse_args()


def default_output(config: Config, weights: Path) -> Path:
    """In the weights' run; for a lone file next to the runs, as it may belong to none."""
    run = find_run(weights)
    if run is not None:
        return run / 'inference'
    return Path(config.output.dir).parent / 'inference' / weights.stem


def export(config: Config, weights: Weights, checksum: str, output: Path) -> None:
    """Write the graph and its description: verified and both, or nothing."""
    from engine import data, models, static_model
    from engine.weights import fit_weights

    view, classes = data.preparation(config), class_names(config, weights)
    model = models.build(config.model.name, num_classes=len(classes))
    account = fit_weights(model, weights.content, str(weights.path)).lines()
    print(f'{config.model.name}, weights {weights.kind}: {weights.path}')
    if weights.content.source:  # it was not one of our own checkpoints
        print(*account, sep='\n')
    accuracy = chosen_weights.recorded_accuracy(weights)
    name = config.model.name
    about = describe(name, view, classes, weights, sha256=checksum, accuracy=accuracy)
    with written_aside(output) as folder:
        static_model.save(model, folder, size=view.size)
        difference, scale = static_model.verify(model, folder, random_images(view))
        (folder / DESCRIPTION).write_text(about, encoding='utf-8')
        files = sorted(path.name for path in folder.iterdir())
    print(f'float32 [batch, 3, {view.size}, {view.size}] -> {len(classes):,} logits')
    print(f'read back, its logits differ by at most {difference:.2g} (the largest is {scale:.3g})')
    print(f'wrote {output}/: {", ".join(files)}')


def class_names(config: Config, weights: Weights) -> list[str]:
    """As recorded with the weights; outputs that have no name are numbered."""
    names, bias = weights.classes or [], weights.content.arrays.get('fc.bias', np.zeros(0))
    # Where nobody knows, 1 will do: such weights are about to be refused, by name.
    count = config.model.num_classes or len(names) or bias.size or 1
    if count < len(names):
        raise UserError(
            f'model.num_classes is {count}, but {weights.path} was trained on {len(names)} classes'
        )
    return names + [str(i) for i in range(len(names), count)]


def random_images(view: Preparation) -> np.ndarray:
    """Noise to compare logits with, as normalised as pictures are."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, view.size, view.size, 3))
    images = (pixels - view.mean) / view.std
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


if __name__ == '__main__':
    cli.run(main)
