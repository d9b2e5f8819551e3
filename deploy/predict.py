"""Classify pictures: python3 deploy/predict.py inference/ cat.jpg folder/ 'shots/*.png'"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

from predictor import Predictor, answers, console, inputs, machine
from predictor.answers import Answer
from predictor.errors import UserError
from predictor.exported_folder import open_folder
from predictor.labels import find_labels
from predictor.listing import counted

LOGS = ('acc.log', 'time_result.txt')
MAX_MILLION = 134  # pixels of a picture


def main() -> int:
    args = parse_arguments()
    description = open_folder(args.folder)
    paths = inputs.find_pictures(args.pictures, report=console.report)
    labels = find_labels(args.labels, paths, description.classes) if args.labels else None
    prepare_logs(args.log_dir)
    options = console.engine_options(args)
    predictor = Predictor(description, batch=args.batch_size, report=console.report, **options)
    console.report(f'{description.model} through {predictor.engine} ({predictor.reason})')
    tally = classify(predictor, paths, labels, args)
    console.report(tally.timing)
    if labels is not None:
        stream = sys.stdout if args.format == 'table' else sys.stderr
        print(tally.accuracy(len(description.classes)), file=stream)
    write_logs(args.log_dir, tally, labelled=labels is not None)
    return 2 if tally.unreadable else 0


def parse_arguments() -> argparse.Namespace:
    parser = console.Parser(
        'Classify pictures with what export.py has written.',
        example='predict.py output/quickstart/inference cat.jpg folder/',
    )
    add = parser.add_argument
    add(
        'pictures',
        nargs='+',
        help="files, folders, patterns like 'shots/*.png', and - for a picture on standard input",
    )
    add('--top', type=console.positive, default=5, metavar='N', help='classes shown')
    add('--format', choices=tuple(answers.FORMATS), default='table')
    add(
        '--labels',
        metavar='folder|FILE',
        help="measure accuracy; 'folder': a picture's folder is its class; or a file of lines "
        '`picture class`, the class by number or name',
    )
    add('--log-dir', type=Path, metavar='DIR', help=f'write {" and ".join(LOGS)} there')
    add('--batch-size', type=console.positive, default=16, metavar='N')
    add(
        '--max-pixels-million',
        type=console.positive,
        default=MAX_MILLION,
        metavar='N',
        help=f'of a picture (default: {MAX_MILLION})',
    )
    console.add_engine_options(parser)
    return parser.parse_args()


@dataclass
class Tally:
    """Of the pictures that could be read."""

    images: int = 0
    unreadable: int = 0
    correct: int = 0
    correct5: int = 0  # the label is among the first five
    network_s: float = 0.0
    seconds: float = 0.0

    def accuracy(self, classes: int) -> str:
        """As eval.py prints it; of five classes or fewer, all are among the first five."""
        total = max(1, self.images)
        top5 = f'  top-5 {100 * self.correct5 / total:.2f} %' if classes > 5 else ''
        return f'acc:{self.correct} total:{self.images} ratio:{self.correct / total:.6g}{top5}'

    @property
    def image_ms(self) -> float:
        """In the network."""
        return 1000 * self.network_s / max(1, self.images)

    @property
    def timing(self) -> str:
        text = f'{counted(self.images)} in {self.seconds:.1f} s'
        text += f', {self.image_ms:.2f} ms each in the network'
        return text + (f'; {self.unreadable} could not be read' if self.unreadable else '')


def classify(
    predictor: Predictor,
    paths: Sequence[Path],
    labels: Optional[Sequence[int]],
    args: argparse.Namespace,
) -> Tally:
    """Write an answer for each picture, batch by batch."""
    tally, start = Tally(), time.perf_counter()
    classes = predictor.description.classes
    writer = answers.FORMATS[args.format](classes, min(args.top, len(classes)), paths)
    batches = inputs.read_ahead(
        paths,
        predictor.description.input,
        batch=args.batch_size,
        workers=machine.cores(),
        max_pixels=args.max_pixels_million * 1_000_000,
    )
    every = (answer for batch in batches for answer in run(predictor, batch, args.top, tally))
    for number, answer in enumerate(every):
        if answer.error:
            console.report(f'{answers.legible(answer.path)} {answer.error}')
        elif labels is not None:
            tally.correct += answer.indices[0] == labels[number]
            tally.correct5 += labels[number] in answer.indices[:5]
        writer.write(answer)
    writer.end()
    tally.seconds = time.perf_counter() - start
    return tally


def run(
    predictor: Predictor, pictures: Sequence[inputs.Picture], top: int, tally: Tally
) -> list[Answer]:
    """The answers to a batch; those pictures that could be read go through the network."""
    import numpy as np

    pixels = [picture.pixels for picture in pictures if picture.pixels is not None]
    start = time.perf_counter()
    rows = iter(predictor.probabilities(np.stack(pixels)) if pixels else ())
    tally.network_s += time.perf_counter() - start
    tally.images += len(pixels)
    tally.unreadable += len(pictures) - len(pixels)
    return [
        answers.answer(picture.path, next(rows), max(top, 5))
        if picture.pixels is not None
        else Answer(picture.path, error=picture.error)
        for picture in pictures
    ]


def prepare_logs(folder: Optional[Path]) -> None:
    """UserError before anything is done, if the logs could not be written in the end."""
    if folder is not None:
        for name in LOGS:
            if (folder / name).exists():
                raise UserError(
                    f'{folder / name} already exists; choose another folder with --log-dir'
                )
        folder.mkdir(parents=True, exist_ok=True)


def write_logs(folder: Optional[Path], tally: Tally, *, labelled: bool) -> None:
    """The two files that run_infer_310.sh of MindSpore's model zoo writes, in its words."""
    if folder is None:
        return
    images = max(1, tally.images)
    if labelled:
        top1, top5 = tally.correct / images, tally.correct5 / images
        text = f'Total data: {tally.images}, top1 accuracy: {top1}, top5 accuracy: {top5}.\n'
        (folder / LOGS[0]).write_text(text, encoding='utf-8')
    cost = f'{tally.image_ms:.4f} ms'
    text = f'NN inference cost average time: {cost} of infer_count {tally.images}\n'
    (folder / LOGS[1]).write_text(text, encoding='utf-8')


if __name__ == '__main__':
    console.run(main)
