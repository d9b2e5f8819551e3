"""Export a network: python3 export.py [-c ...] [-o key=value ...] [-w WEIGHTS] [--output DIR]

Further forms: --onnx, --int8, --uint8, --format {json,pdmodel}, --triton DIR.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Optional

from engine import cli
from engine.config import Config
from engine.errors import UserError
from engine.export import exported_folder, int8, onnx_model, triton
from engine.export.forms import Forms, add_options
from engine.machine import cpu, processes
from engine.machine.start import start_paddle
from engine.run import chosen_weights
from engine.run.chosen_weights import Weights
from engine.run.reading import find_run


def main() -> None:
    args = parse_arguments()
    if processes.WORLD_SIZE > 1:
        raise UserError('one process exports: start export.py without paddle.distributed.launch')
    config, path = chosen_weights.resolve_weights(args)
    output = args.output or default_output(config, path)
    triton_model = args.triton / config.model.name if args.triton else None
    exported_folder.require_new(output)
    if triton_model is not None:
        triton.require_new_model(triton_model, output)
    forms = Forms.of(args)
    forms.prepare()
    weights = chosen_weights.read_chosen(path)
    config = chosen_weights.with_their_normalisation(config, weights.content, print)

    os.environ.setdefault('GLOG_minloglevel', '2')  # paddle.jit.save logs harmless warnings
    cpu.prepare_cpu()
    device = start_paddle(config.device)
    print(cpu.describe_cpu(), device, sep='\n')
    export(config, weights, output, forms, triton_model=triton_model)


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
    add_options(parser)
    return parser.parse_args()


def default_output(config: Config, weights: Path) -> Path:
    """In the run of the weights; for a file outside any run, in inference/ beside the runs."""
    run = find_run(weights)
    if run is not None:
        return run / 'inference'
    return Path(config.output.dir).parent / 'inference' / weights.stem


def export(
    config: Config,
    weights: Weights,
    output: Path,
    forms: Forms,
    triton_model: Optional[Path] = None,
) -> None:
    """Write the graph, its description and Triton's folder: all of it, verified, or nothing."""
    from engine import data
    from engine.export import static_model, verification

    # The training images give the ranges of 8 bits, the test images the loss of accuracy.
    images = data.load_data(config) if forms.int8 else None
    if images is not None:
        chosen_weights.require_classes(weights, images)
    image = exported_folder.graph_input(data.preparation(config), uint8=forms.uint8)
    classes = exported_folder.class_names(config.model.num_classes, weights)
    name = config.model.name
    model, notes = chosen_weights.build_network(name, weights, len(classes))
    print(f'{name}, weights {weights.kind}: {weights.path}', *notes, sep='\n')
    print(f'{image.type} [batch, {str(image.shape)[1:-1]}] -> {len(classes):,} logits')
    with exported_folder.new_folder(output) as folder:
        static_model.save(model, folder, image)
        if forms.onnx:
            onnx_model.write(static_model.graph_file(folder), name=name)
        print(*verification.verify(model, folder, image), sep='\n')
        if images is not None:
            print(int8.write(folder, images, image))
        exported_folder.write_description(folder, name, image, classes, weights)
        if triton_model is not None:
            exported_folder.require_new(output)  # or Triton's folder would stay without this one
            triton.add(triton_model, folder, image, classes)
    for target in filter(None, (output, triton_model)):
        files = (str(path.relative_to(target)) for path in target.rglob('*') if path.is_file())
        print(f'wrote {target}/: {", ".join(sorted(files))}')


if __name__ == '__main__':
    cli.run(main)
