"""python3 -m engine.weights convert IN OUT: write a weight file of another project as one of ours.

Needs neither a model nor Paddle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine import cli
from engine.errors import UserError
from engine.files import write_atomically
from engine.weights import read_weights, write_arrays
from engine.weights.formats import safetensors as safetensors_file
from engine.weights.names.networks import looks_like

_DESCRIPTION = """convert: write a weight file of another project (paddle.vision, PaddleClas,
Paddle Contrib, torchvision, timm, mmpretrain, xternalz/WideResNet-pytorch or
MindSpore's ResNeXts) under the names of this repository, and report what
became of every array. train.py's model.pretrained and eval.py's -w read the
same files directly."""

_INPUT = """a .pdparams, .pth, .pth.tar, .pt, .bin, .ckpt or .safetensors (by content, not by
suffix), or the name of paddle.vision's weights, e.g. resnext50_32x4d"""


def main() -> None:
    args = parse_arguments()
    convert(Path(args.input), Path(args.output))


def parse_arguments() -> argparse.Namespace:
    example = 'python3 -m engine.weights convert resnext50.pth resnext50.pdparams'
    parser = cli.Parser(_DESCRIPTION, prog='python3 -m engine.weights', example=example)
    parser.add_argument('convert', choices=['convert'], metavar='convert')
    parser.add_argument('input', metavar='IN', help=_INPUT)
    parser.add_argument('output', metavar='OUT', help='a new .pdparams or .safetensors')
    return parser.parse_args()


def convert(source: Path, target: Path) -> None:
    """Read, write, and print the report. UserError if OUT exists or IN can't be read."""
    if target.suffix not in ('.pdparams', '.safetensors'):
        raise UserError(f'{target}: OUT must end with .pdparams or .safetensors')
    if target.exists():
        raise UserError(f'{target} exists already; it was not overwritten')
    if not target.parent.is_dir():
        raise UserError(f'{target}: the folder {target.parent} does not exist')
    converted = read_weights(source)
    arrays = converted.arrays
    write = safetensors_file.write if target.suffix == '.safetensors' else write_arrays
    try:
        write_atomically(target, lambda file: write(file, arrays))
    except ValueError as error:
        raise UserError(f'{target}: safetensors cannot hold this: {error}') from None
    network = looks_like({name: array.shape for name, array in arrays.items()})
    print(f'read {source}' + (f', which looks like {network}' if network else ''))
    print(*(f'  {line}' for line in converted.lines()), sep='\n')
    if theirs := converted.normalisation:
        print(f'  trained on {theirs.data} with {theirs.as_keys()}; OUT does not say so: set these')
    print(f'wrote {target}, {target.stat().st_size:,} bytes')


if __name__ == '__main__':
    cli.run(main)
