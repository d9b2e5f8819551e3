"""Export a network: python3 export.py [-c ...] [-o key=value ...] [-w WEIGHTS] [--output DIR]

Further forms: --onnx, --int8, --uint8, --format {json,pdmodel}, --triton DIR.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from engine import cli
from engine.config import Config
from engine.errors import UserError
from engine.export import int8, onnx_model, triton
from engine.export.exported_folder import (
    DESCRIPTION,
    FORMATS,
    ONNX,
    describe,
    input_shape,
    require_new,
    written_aside,
)
from engine.machine import cpu, processes
from engine.machine.start import start_paddle
from engine.run import chosen_weights
from engine.run.chosen_weights import Weights
from engine.run.folder import find_run

if TYPE_CHECKING:  # these import paddle, or are missing, which is checked first
    import numpy as np

    from engine.data import DataSet, Preparation


def main() -> None:
    args = parse_arguments()
    if processes.WORLD_SIZE > 1:
        raise UserError('one process exports: start export.py without paddle.distributed.launch')
    config, path = chosen_weights.resolve_weights(args)
    output = args.output or default_output(config, path)
    repository = args.triton / config.model.name if args.triton else None
    require_new(output)
    if repository is not None:
        require_apart(output, repository)
        require_new(repository)
    onnx = args.onnx or args.int8 or repository is not None
    choose_forms(onnx=onnx, graph=args.format)
    if args.int8:
        int8.require_quantiser()
    weights = chosen_weights.read_chosen(path)
    config = chosen_weights.with_their_normalisation(config, weights.content, print)
    os.environ.setdefault('GLOG_minloglevel', '2')  # paddle.jit.save warns of what is no harm
    cpu.prepare_cpu()
    device = start_paddle(config.device)
    print(cpu.describe_cpu(), device, sep='\n')
    calibration = load_calibration(config, weights) if args.int8 else None
    export(
        config,
        weights,
        output,
        onnx=onnx,
        uint8=args.uint8,
        calibration=calibration,
        repository=repository,
    )


def parse_arguments() -> argparse.Namespace:
    parser = cli.ConfigParser(
        'Export a network as a static graph, with all that its users must know.',
        example='export.py -w output/quickstart --onnx',
        training=False,
    )
    chosen_weights.add_option(parser)
    parser.add_argument(
        '--output',
        type=Path,
        metavar='DIR',
        help="a new folder (default: inference/ in the weights' run; for a file that lies in none, "
        'inference/<its name>/ next to the runs)',
    )
    parser.add_argument('--onnx', action='store_true', help='write model.onnx, too')
    parser.add_argument(
        '--int8',
        action='store_true',
        help='write model.int8.onnx, too: 8 bits, calibrated on training images; with --onnx',
    )
    parser.add_argument(
        '--uint8',
        action='store_true',
        help='the network takes raw pixels, uint8 [batch, size, size, 3], and normalises them',
    )
    parser.add_argument(
        '--format',
        choices=FORMATS,
        help="the graph's format (default: this Paddle's own). pdmodel is read by Paddle 2.6, too; "
        'paddle.jit.load of Paddle 3 then wants FLAGS_enable_pir_api=0',
    )
    parser.add_argument(
        '--triton',
        type=Path,
        metavar='DIR',
        help="a model repository of NVIDIA Triton's, to which the network is added; with --onnx",
    )
    return parser.parse_args()


def require_apart(output: Path, repository: Path) -> None:
    """UserError if one is within the other, or they are the same."""
    one, other = output.resolve(), repository.resolve()
    if one in (other, *other.parents) or other in one.parents:
        raise UserError(f'{output} and {repository} must lie apart (--output, --triton)')


def choose_forms(*, onnx: bool, graph: Optional[str]) -> None:
    """Set the graph's format, before paddle is imported. UserError if it cannot be written."""
    from installation import paddle_version

    paddle = int(paddle_version().partition('.')[0]) or 3
    if graph == 'json' and paddle == 2:
        raise UserError('--format json needs Paddle 3; this one writes pdmodel')
    if graph is not None:
        os.environ.update(FLAGS_enable_pir_api='0' if graph == 'pdmodel' else '1')
    if onnx:
        onnx_model.require_converter(paddle)


def load_calibration(config: Config, weights: Weights) -> DataSet:
    """The data set: training images for the ranges, test images for the loss of accuracy."""
    from engine import data

    dataset = data.load_data(config)
    chosen_weights.require_classes(weights, dataset)
    return dataset


def default_output(config: Config, weights: Path) -> Path:
    """In the weights' run; for a lone file next to the runs, as it may belong to none."""
    run = find_run(weights)
    if run is not None:
        return run / 'inference'
    return Path(config.output.dir).parent / 'inference' / weights.stem


def export(
    config: Config,
    weights: Weights,
    output: Path,
    *,
    onnx: bool = False,
    uint8: bool = False,
    calibration: Optional[DataSet] = None,
    repository: Optional[Path] = None,
) -> None:
    """Write the graph, its description and Triton's folder: verified and all, or nothing."""
    from engine import data, models
    from engine.export import static_model
    from engine.export.photographs import photographs
    from engine.weights import fit_weights

    view, classes = data.preparation(config), class_names(config, weights)
    name = config.model.name
    model = models.build(name, num_classes=len(classes))
    account = fit_weights(model, weights.content, str(weights.path)).lines()
    print(f'{name}, weights {weights.kind}: {weights.path}')
    if weights.content.source:  # it was not one of our own checkpoints
        print(*account, sep='\n')
    shape = ', '.join(map(str, input_shape('batch', view.size, uint8=uint8)))
    print(f'{"uint8" if uint8 else "float32"} [{shape}] -> {len(classes):,} logits')
    accuracy = chosen_weights.recorded_accuracy(weights)
    about = partial(describe, name, view, classes, weights, accuracy=accuracy)
    pixels, feed = photographs(view), feeding(view, uint8=uint8)
    images = feeding(view, uint8=False)(pixels)
    targets = [output] if repository is None else [output, repository]
    with written_aside(*targets) as folders:
        folder = folders[0]
        static_model.save(model, folder, view, uint8=uint8)
        if onnx:
            onnx_model.write(static_model.graph_file(folder), name=name)
        print(*static_model.verify(model, folder, images=images, fed=feed(pixels)), sep='\n')
        if calibration is not None:
            print(int8.write(folder, calibration, feed))
        if repository is not None:
            triton.write(
                folders[1], folder / ONNX, name=name, size=view.size, uint8=uint8, classes=classes
            )
        (folder / DESCRIPTION).write_text(about(uint8=uint8, folder=folder), encoding='utf-8')
    for target in targets:
        files = (str(path.relative_to(target)) for path in target.rglob('*') if path.is_file())
        print(f'wrote {target}/: {", ".join(sorted(files))}')


def class_names(config: Config, weights: Weights) -> list[str]:
    """As recorded with the weights; outputs that have no name are numbered."""
    names, bias = weights.classes or [], weights.content.arrays.get('fc.bias')
    # Unknown: 1 will do, as such weights are refused later, by name.
    count = config.model.num_classes or len(names) or (0 if bias is None else bias.size) or 1
    if count < len(names):
        raise UserError(
            f'model.num_classes is {count}, but {weights.path} was trained on {len(names)} classes'
        )
    return names + [str(i) for i in range(len(names), count)]


def feeding(view: Preparation, *, uint8: bool) -> Callable[[np.ndarray], np.ndarray]:
    """From uint8 [N, 3, size, size] to what the graph takes."""
    import numpy as np

    from engine.data.augmentation import normalise

    if uint8:
        return lambda pixels: np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return lambda pixels: normalise(np.ascontiguousarray(pixels), view.mean, view.std)


if __name__ == '__main__':
    cli.run(main)
