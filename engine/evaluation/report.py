"""The report of an evaluation: a table of classes, the confusion matrix, the worst mistakes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from engine import plots
from engine.data.dataset import ImageSet
from engine.evaluation import Evaluation
from engine.files import is_writable, write_atomically
from engine.plots import fonts
from predictor.answers import width as text_width

WORST = 40  # misclassified images that are shown
TABLE = 50  # classes that are printed


def confusion_matrix(evaluation: Evaluation, classes: int) -> np.ndarray:
    """int [C, C]: images of true class (row) by predicted class (column)."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (evaluation.labels, evaluation.predictions), 1)
    return matrix


def class_table(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """A line for each class: its images, how many are correct, what it is most often taken for.

    Of many classes only those with the lowest accuracy; the files of the report have all.
    """
    shown = list(range(len(classes)))
    if len(classes) > TABLE:
        tested = np.flatnonzero(matrix.sum(1))
        accuracy = np.diag(matrix)[tested] / matrix[tested].sum(1)
        shown = tested[np.argsort(accuracy, kind='stable')][:TABLE].tolist()
    width = max(5, *(text_width(classes[index]) for index in shown))
    lines = [f'{"class":{width}}  images  correct  accuracy  most often taken for']
    for index in shown:
        images, correct = int(matrix[index].sum()), int(matrix[index, index])
        others = matrix[index].copy()
        others[index] = 0
        taken = f'{classes[others.argmax()]} ({others.max()})' if others.any() else '-'
        share = f'{100 * correct / images:.2f} %' if images else '-'
        name = classes[index] + ' ' * (width - text_width(classes[index]))
        lines.append(f'{name}  {images:6}  {correct:7}  {share:>8}  {taken}')
    if len(classes) > TABLE:
        lines.append(f'(the {len(shown)} least accurate of {len(classes):,} classes)')
    return '\n'.join(lines)


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """The figures of eval.json."""
    return {
        'correct': evaluation.correct,
        'total': len(evaluation.labels),
        'top1': evaluation.top1,
        'top5': evaluation.top5,
        'loss': evaluation.loss,
        'images_per_second': len(evaluation.labels) / evaluation.seconds,
    }


def write_report(
    folder: Path,
    evaluation: Evaluation,
    images: ImageSet,
    classes: Sequence[str],
    *,
    title: str,
    about: dict[str, Any],
) -> list[str]:
    """Write the files of the report; lines for the console: a table of classes, what was written.

    `title` is what was measured, `about` more fields of eval.json.
    """
    matrix = confusion_matrix(evaluation, len(classes))
    lines = [class_table(matrix, classes)]
    if not is_writable(folder):  # of a run on a read-only disk, the figures are enough
        lines.append(
            f'no report: nothing can be written in {folder}; --output DIR puts it elsewhere'
        )
        return lines
    if missing := fonts.choose([title, *classes]):
        lines.append(missing)
    folder.mkdir(parents=True, exist_ok=True)
    accuracy = dict(zip(classes, (np.diag(matrix) / np.maximum(matrix.sum(1), 1)).tolist()))
    content = {**summary(evaluation), **about, 'class_accuracy': accuracy}
    _write_text(folder / 'eval.json', json.dumps(content, indent=1, ensure_ascii=False))
    # Excel takes a file without this mark for one in the system's encoding, such as GBK.
    _write_text(folder / 'confusion.csv', '\ufeff' + _as_csv(matrix, classes))
    plots.confusion(matrix, classes, folder / 'confusion.png', of=title)
    written = ['eval.json', 'confusion.csv', 'confusion.png']
    worst = worst_mistakes(evaluation)
    if len(worst):
        captions = [_caption(evaluation, image, classes) for image in worst]
        pictures = images.pictures(evaluation.rows[worst])
        plots.picture_grid(pictures, captions, folder / 'mistakes.png')
        written.append('mistakes.png')
    return [*lines, f'wrote {folder}/: {", ".join(written)}']


def _caption(evaluation: Evaluation, image: int, classes: Sequence[str]) -> str:
    """'cat, predicted dog (93 %)', on two lines where that is too long for a picture."""
    true, predicted = (
        plots.shortened(classes[labels[image]], plots.CAPTION)
        for labels in (evaluation.labels, evaluation.predictions)
    )
    answer = f'predicted {predicted} ({100 * evaluation.probabilities[image]:.0f} %)'
    gap = ' ' if text_width(true + answer) < plots.LINE else '\n'
    return f'{true},{gap}{answer}'


def worst_mistakes(evaluation: Evaluation) -> np.ndarray:
    """Indices of the misclassified images with the highest loss, worst first."""
    wrong = np.flatnonzero(evaluation.predictions != evaluation.labels)
    return wrong[np.argsort(-evaluation.losses[wrong], kind='stable')][:WORST]


def _as_csv(matrix: np.ndarray, classes: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['true \\ predicted', *classes])
    for name, row in zip(classes, matrix.tolist()):
        writer.writerow([name, *row])
    return text.getvalue()


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
