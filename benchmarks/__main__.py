"""python3 -m benchmarks [PART ...] [--output DIR] [--quick], and what some parts need

Measures, prints tables, and keeps the figures in benchmarks/results.json, or in DIR. Run it on a
machine that does nothing else. --quick only shows that everything works: its figures mean nothing,
none is kept.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from benchmarks.report import HERE, keep

PARTS = (
    *('train_step', 'convolutions', 'scaling', 'pipeline', 'photos'),
    *('startup', 'memory', 'growth', 'cost', 'profile_step'),
    *('evaluation', 'serving', 'serving_load', 'device'),
)
OPTIONS = {  # of those parts that have one
    'photos': 'photos',
    'serving': 'exported',
    'serving_load': 'exported',
    'device': 'device',
}


def main() -> None:
    if sys.platform != 'linux':
        sys.exit('The benchmarks bind processes to cores and read /proc: they run on Linux only.')
    parser = argparse.ArgumentParser(
        prog='python3 -m benchmarks',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)}')
    parser.add_argument('--photos', type=Path, metavar='DIR', help='photographs, for photos')
    parser.add_argument(
        '--exported',
        type=Path,
        metavar='DIR',
        help='exported networks (wide_resnet28_10/ ...) for serving and serving_load; otherwise '
        'they are made, with random weights',
    )
    parser.add_argument(
        '--device',
        choices=('auto', 'gpu', 'npu', 'cpu'),
        default='auto',
        help='for device; auto: gpu, else npu, else cpu',
    )
    parser.add_argument(
        '--output',
        type=Path,
        metavar='DIR',
        default=HERE,
        help='for results.json and the pictures; name another folder for another machine',
    )
    parser.add_argument('--quick', action='store_true', help='a few steps of each, nothing kept')
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f'no part is called {unknown[0]}; there are {", ".join(PARTS)}')
    for option in (args.photos, args.exported):
        if option is not None and not option.is_dir():
            parser.error(f'{option} is not a folder')
    for part in args.parts or PARTS:
        start = time.perf_counter()
        module = importlib.import_module(f'benchmarks.{part}')
        print(f'\n## {part}\n\n{(module.__doc__ or "").strip()}', flush=True)
        options = [getattr(args, OPTIONS[part])] if part in OPTIONS else []
        if part == 'photos' and not args.photos and not args.quick:
            print('skipped: name a folder of <class>/*.jpg with --photos DIR')
            continue
        result = module.run(args.quick, *options)
        result.show()
        if not args.quick:
            keep(part, result, args.output)
        print(f'\n({time.perf_counter() - start:.0f} s)', flush=True)
    if not args.quick:
        print(f'\nThe figures are in {args.output}')


if __name__ == '__main__':
    main()
