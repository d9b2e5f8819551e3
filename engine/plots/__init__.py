"""Figures: training curves, the confusion matrix, grids of images. fonts.py chooses the fonts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.data.batches import Batch
from engine.files import write_atomically
from predictor.answers import width as text_width

DPI = 110
FIRST = 32  # images of the first batch that are shown
MANY_CLASSES = 120  # of more, the names would not be legible
CAPTION, TICK, TITLE = 16, 28, 100  # columns of a name above a picture, beside a matrix, above all
SIDE, LETTER = 1.5, 0.06  # inches of a picture in a grid, and of a column of its caption
LINE = int(SIDE / LETTER)
BAD_EPOCHS = 0.05  # share of the epochs that the scale of the curves may leave out


def curves(records: Sequence[dict[str, Any]], path: Path, *, run: Path) -> None:
    """Loss, accuracy and learning rate over the epochs of metrics.jsonl, here counted from 1."""
    figure = Figure(figsize=(11, 3.6), layout='constrained')
    figure.suptitle(_plain(shortened(run.resolve().name, TITLE)), fontsize=11)
    loss, accuracy, rate = figure.subplots(1, 3)
    measured = [record for record in records if 'eval_loss' in record]

    for axes in (loss, accuracy, rate):
        axes.set(xlabel='epoch')
    _lines(loss, records, measured, 'loss')
    loss.set(title='loss')
    _lines(accuracy, records, measured, 'accuracy', scale=100)
    accuracy.set(title='accuracy (%)')
    _line(rate, records, 'lr', color='tab:gray')
    rate.set(title="learning rate at the epoch's end")
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    _save(figure, path)


def _lines(
    axes: Axes,
    records: Sequence[dict[str, Any]],
    measured: Sequence[dict[str, Any]],
    what: str,
    *,
    scale: float = 1,
) -> None:
    """The curves of training and test, which can be distinguished without colours."""
    training = _line(axes, records, f'train_{what}', scale=scale, label='training', linestyle='--')
    final = scale * measured[-1][f'eval_{what}'] if measured else 0.0
    text = f'{final:.2f} %' if what == 'accuracy' else f'{final:.4f}'
    label = f'test, final {text}' if measured else 'test'
    test = _line(axes, measured, f'eval_{what}', scale=scale, label=label)
    _leave_out_bad_epochs(axes, training, test)
    axes.legend()


def _line(
    axes: Axes, records: Sequence[dict[str, Any]], key: str, *, scale: float = 1, **style: Any
) -> list[float]:
    """Draw one value of the records over their epochs; returns what is drawn."""
    values = [scale * record[key] for record in records]
    if len(records) < 40:
        style.update(marker='o', markersize=3)
    axes.plot([record['epoch'] + 1 for record in records], values, **style)
    return values


def _leave_out_bad_epochs(axes: Axes, training: list[float], test: list[float]) -> None:
    """Limit the scale where a few values would flatten all others; the label says how far they go.

    The first epoch of a training does not count as bad, however far it is from the rest.
    """
    if len(training) < 4:
        return
    parts = [np.sort(part) for part in (training[1:], test) if len(part) > 2]
    most = [part[: -max(1, int(BAD_EPOCHS * len(part)))] for part in parts]
    least = [part[max(1, int(BAD_EPOCHS * len(part))) :] for part in parts]
    low = min([training[0], *(part[0] for part in least)])
    high = max([training[0], *(part[-1] for part in most)])
    lowest, highest = min(training + test), max(training + test)
    if not 2 * (high - low) > 0 or max(highest - high, low - lowest) < 2 * (high - low):
        return
    room = 0.1 * (high - low)
    axes.set_ylim(low - room, high + room)
    far = f'up to {highest:.4g}' if highest - high > low - lowest else f'down to {lowest:.4g}'
    axes.set_xlabel(f'epoch (beyond the scale: {far})')


def confusion(matrix: np.ndarray, classes: Sequence[str], path: Path, *, of: str) -> None:
    """Rows are true classes, columns predictions. Numbers are written where they are legible.

    `of` is what was measured, for the title.
    """
    count = len(classes)
    side = min(14.0, 2.5 + 0.5 * count)
    figure = Figure(figsize=(side, side), layout='constrained')
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    if count <= MANY_CLASSES:
        size = 9 if count <= 20 else max(3, 500 / count * 0.6)
        names = [_plain(shortened(name, TICK)) for name in classes]
        axes.set_xticks(range(count), names, rotation=90, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
    accuracy = 100 * np.trace(matrix) / max(1, matrix.sum())
    title = f'{_plain(shortened(of, int(8 * side)))}\naccuracy {accuracy:.2f} %'
    axes.set(xlabel='predicted', ylabel='true')
    figure.suptitle(f'{title}\ncolour: share of the true class', fontsize=10)
    if count <= 20:
        for row, column in zip(*np.nonzero(matrix)):
            color = 'white' if shares[row, column] > 0.5 else 'black'
            axes.text(
                column,
                row,
                str(matrix[row, column]),
                ha='center',
                va='center',
                color=color,
                fontsize=8,
            )
    _save(figure, path)


def picture_grid(
    pixels: np.ndarray, titles: Sequence[str], path: Path, *, columns: int = 8
) -> None:
    """Draw uint8 [N, 3, H, W] with a caption each."""
    longest = max(text_width(line) for title in titles for line in title.splitlines())
    # Inches: large enough to show every pixel, and the caption.
    side = max(SIDE, pixels.shape[-1] / DPI, LETTER * longest)
    columns = min(columns, len(pixels), max(1, int(columns * SIDE / side)))
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(side * columns, (side + 0.4) * rows), layout='constrained')
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis('off')
    for axes, image, title in zip(figure.axes, pixels, titles):
        axes.imshow(image.transpose(1, 2, 0))
        axes.set_title(_plain(title), fontsize=7)
    _save(figure, path)


def first_batch(
    batch: Batch, mean: np.ndarray, std: np.ndarray, classes: Sequence[str], path: Path
) -> None:
    """What the network sees: the first images of a normalised batch, their labels above them."""
    pixels = unnormalise(batch.images[:FIRST], mean, std)
    titles = [shortened(classes[label], CAPTION) for label in batch.labels[:FIRST]]
    if batch.partners is not None:
        own, other = f'{100 * batch.own_weight:.0f} %', f'{100 * (1 - batch.own_weight):.0f} %'
        partners = [shortened(classes[label], CAPTION) for label in batch.partners[:FIRST]]
        titles = [f'{own} {a}\n{other} {b}' for a, b in zip(titles, partners)]
    picture_grid(pixels, titles, path)


def unnormalise(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """uint8 [N, 3, H, W] of a normalised batch."""
    shown = images * std.reshape(-1, 1, 1) + mean.reshape(-1, 1, 1)
    return np.asarray(np.clip(np.rint(shown), 0, 255).astype(np.uint8))


def shortened(name: str, columns: int) -> str:
    """At most `columns` wide, without the middle; a Chinese character takes two columns."""
    if text_width(name) <= columns:
        return name
    start, end = '', ''
    while text_width(start + end) < columns - 2:
        if len(start) <= len(end):
            start, name = start + name[0], name[1:]
        else:
            end, name = name[-1] + end, name[:-1]
    return f'{start}\u2026{end}'


def _plain(text: str) -> str:
    """Text as it is: Matplotlib takes what is between two $ for a formula."""
    return text.replace('$', r'\$')


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():  # a class name in characters that no font has
        warnings.filterwarnings('ignore', message=r'Glyph .* missing')
        write_atomically(path, lambda file: figure.savefig(file, format='png', dpi=DPI))
