"""The table of networks: python3 -m engine.models [NAME ...]"""

from __future__ import annotations

from engine import cli
from engine.errors import UserError
from engine.machine import cpu, start
from engine.models import MODELS, build, multiply_adds, parameter_count, parse


def main() -> None:
    parser = cli.Parser(
        'Sizes and costs of networks.',
        prog='python3 -m engine.models',
        example='python3 -m engine.models wide_resnet28_10',
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help='(default: those of the papers)')
    names = parser.parse_args().names or list(MODELS)
    try:
        specs = [parse(name) for name in names]
    except ValueError as error:
        raise UserError(f'NAME {error}') from None
    cpu.prepare_cpu()
    start.start_paddle('cpu')
    print('model              parameters  multiply-adds  input    classes  reported in')
    for name, spec in zip(names, specs):
        classes = 1000 if spec.for_photos else 10
        model = build(name, num_classes=classes)
        cost = multiply_adds(model, spec.image_size) / 1e9
        side = f'{spec.image_size}x{spec.image_size}'
        row = f'{name:17} {parameter_count(model):11,}  {cost:11.2f} G  {side:8} {classes:6}'
        print(f'{row}  {MODELS.get(name, "")}'.rstrip(), flush=True)


if __name__ == '__main__':
    cli.run(main)
