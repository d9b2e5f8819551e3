"""Classify pictures: python3 deploy/predict.py inference/ cat.jpg folder/ 'shots/*.png'"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Sequence

from predictor import Predictor, answers, console, machine
from predictor.answers import Answer, Writer
from predictor.errors import UserError
from predictor.exported_folder import open_folder
from predictor.listing import counted

if TYPE_CHECKING:  # Pillow waits until the arguments are known to be good
    from predictor.inputs import Picture

LOGS = ('acc.log', 'time_result.txt')
BATCH = 16
MOST_MILLION = 134


def main() -> int:
    args = parse_arguments()
    from predictor import inputs
    from predictor.labels import find_labels

    description = open_folder(args.folder)
    paths = inputs.find_pictures(args.pictures, report=console.report)
    labels = None
    if args.labels:
        labels = find_labels(args.labels, paths, description.classes)
    if args.log_dir:
        require_new_logs(args.log_dir)
    batch = args.batch_size if len(paths) > 1 else 1  # two sizes: for each, engines are tried
    predictor = Predictor(
        description, batch=batch, report=console.report, **console.engine_options(args)
    )
    console.report(f'{description.model} through {predictor.engine} ({predictor.reason})')
    tally = classify(predictor, paths, labels, args)
    console.report(tally.timing)
    if labels is not None:
        print(
            tally.accuracy(len(description.classes)),
            file=sys.stdout if args.format == 'table' else sys.stderr,
        )
    if args.log_dir:
        write_logs(args.log_dir, tally, labelled=labels is not None)
    return 2 if tally.unreadable else 0


def parse_arguments() -> argparse.Namespace:
    parser = console.parser(
        'Classify pictures with what export.py has written.',
        example='predict.py output/quickstart/inference cat.jpg folder/',
    )
    parser.add_argument(
        'pictures',
        nargs='+',
        help="files, folders, patterns like 'shots/*.png', and - for a picture on standard input",
    )
    parser.add_argument(
        '--top', type=console.positive, default=5, metavar='N', help='classes shown'
    )
    parser.add_argument('--format', choices=('table', 'json', 'csv'), default='table')
    parser.add_argument(
        '--labels',
        metavar='folder|FILE',
        help="measure accuracy; 'folder': a picture's folder is its class; or a file of lines "
        '`picture class`, the class by number or name',
    )
    parser.add_argument(
        '--log-dir', type=Path, metavar='DIR', help=f'leave {" and ".join(LOGS)} there'
    )
    parser.add_argument('--batch-size', type=console.positive, default=BATCH, metavar='N')
    parser.add_argument(
        '--max-pixels-million',
        type=console.positive,
        default=MOST_MILLION,
        metavar='N',
        help=f'of a picture (default: {MOST_MILLION})',
    )
    console.add_engine_options(parser)
    return parser.parse_args()


@dataclass
class Tally:
    """Of the pictures that could be read."""

    images: int = 0
    unreadable: int = 0
    right: int = 0
    right5: int = 0  # the label is among the first five
    network_s: float = 0.0
    seconds: float = 0.0

    def accuracy(self, classes: int) -> str:
        """As eval.py prints it; of five classes or fewer, all are among the first five."""
        total = max(1, self.images)
        top5 = f'  top-5 {100 * self.right5 / total:.2f} %' if classes > 5 else ''
        return f'acc:{self.right} total:{self.images} ratio:{self.right / total:.6g}{top5}'

    @property
    def timing(self) -> str:
        each = 1000 * self.network_s / max(1, self.images)
        text = f'{counted(self.images)} in {self.seconds:.1f} s, {each:.2f} ms each in the network'
        return text + (f'; {self.unreadable} could not be read' if self.unreadable else '')


def classify(
    predictor: Predictor,
    paths: Sequence[Path],
    labels: Optional[Sequence[int]],
    args: argparse.Namespace,
) -> Tally:
    """Write an answer for each picture, batch by batch."""
    from predictor import inputs

    tally, start = Tally(), time.perf_counter()
    top = min(args.top, len(predictor.description.classes))
    writer = make_writer(args.format, predictor, paths, top)
    view, batch = predictor.description.input, predictor.setting.batch
    done = 0
    most = args.max_pixels_million * 1_000_000
    reading = inputs.read_ahead(paths, view, batch=batch, workers=machine.cores(), max_pixels=most)
    for pictures in reading:
        for answer in run(predictor, pictures, top=max(top, 5), tally=tally):
            if answer.error:
                console.report(f'{answers.legible(answer.path)} {answer.error}')
            elif labels is not None:
                tally.right += answer.indices[0] == labels[done]
                tally.right5 += labels[done] in answer.indices[:5]
            writer.write(answer.of_the_first(top))
            done += 1
    writer.end()
    tally.seconds = time.perf_counter() - start
    return tally


def run(
    predictor: Predictor, pictures: Sequence[Picture], *, top: int, tally: Tally
) -> list[Answer]:
    """The pictures of a batch that could be read, through the network."""
    import numpy as np

    pixels = [picture.pixels for picture in pictures if picture.pixels is not None]
    start = time.perf_counter()
    rows = iter(predictor.probabilities(np.stack(pixels)) if pixels else ())
    tally.network_s += time.perf_counter() - start
    tally.images += len(pixels)
    tally.unreadable += len(pictures) - len(pixels)
    return [
        answers.best(picture.path, next(rows), top)
        if picture.pixels is not None
        else Answer(picture.path, [], [], picture.error)
        for picture in pictures
    ]


def make_writer(form: str, predictor: Predictor, paths: Sequence[Path], top: int) -> Writer:
    classes = predictor.description.classes
    if form == 'json':
        return answers.Json(classes)
    return answers.Csv(classes, top) if form == 'csv' else answers.Table(classes, paths, top)


def require_new_logs(folder: Path) -> None:
    """UserError before anything is done, if the logs could not be written in the end."""
    taken = [folder / name for name in LOGS if (folder / name).exists()]
    if taken:
        raise UserError(f'{taken[0]} is there already; choose another folder with --log-dir')
    folder.mkdir(parents=True, exist_ok=True)


def write_logs(folder: Path, tally: Tally, *, labelled: bool) -> None:
    """The two files that run_infer_310.sh of MindSpore's model zoo leaves, in its words."""
    images = max(1, tally.images)
    if labelled:
        top1, top5 = tally.right / images, tally.right5 / images
        text = f'Total data: {tally.images}, top1 accuracy: {top1}, top5 accuracy: {top5}.\n'
        (folder / LOGS[0]).write_text(text, encoding='utf-8')
    each = 1000 * tally.network_s / images
    text = f'NN inference cost average time: {each:.4f} ms of infer_count {tally.images}\n'
    (folder / LOGS[1]).write_text(text, encoding='utf-8')


if __name__ == '__main__':
    console.run(main)
