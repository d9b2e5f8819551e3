"""python3 -m engine.data: check or re-encode the pictures below a folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

from engine import cli
from engine.data import packing
from engine.machine import cpu


def main() -> None:
    parser = cli.Parser(
        'Check or re-encode a folder of pictures.',
        prog='python3 -m engine.data',
        example='python3 -m engine.data --check my_pictures',
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        '--check', type=Path, metavar='DIR', help='decode every picture and name the bad ones'
    )
    what.add_argument(
        '--pack',
        type=Path,
        nargs=2,
        metavar=('DIR', 'OUT'),
        help='write every picture again as a JPEG whose short side is --size',
    )
    parser.add_argument(
        '--size', type=_from(1, 65500), default=256, help='short side of --pack (256)'
    )
    parser.add_argument(
        '--quality', type=_from(1, 100), default=90, help='JPEG quality of --pack (90)'
    )
    parser.add_argument(
        '--workers',
        type=_from(1, 1000),
        default=cpu.cores_per_process(),
        help='threads (the cores)',
    )
    parser.add_argument(
        '--max-pixels-million',
        type=_from(1, 10_000),
        default=134,
        help='a larger picture counts as bad (134)',
    )
    args = parser.parse_args()
    options = {'workers': args.workers, 'max_pixels': args.max_pixels_million * 1_000_000}
    if args.check is not None:
        packing.check(args.check, **options)
    else:
        source, target = args.pack
        packing.pack(source, target, size=args.size, quality=args.quality, **options)


def _from(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f'{text} is not between {low} and {high}')
        return int(text)

    return number


cli.run(main)
