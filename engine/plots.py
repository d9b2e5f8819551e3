"""Pictures: training curves, confusion matrix, grids of images."""

from __future__ import annotations

import unicodedata
import warnings
from pathlib import Path
from typing import Any, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from engine.data.batches import Batch
from engine.files import write_atomically

DPI = 110
FIRST = 32  # images of the first batch that are shown
MANY_CLASSES = 120  # more names than that would not be legible
CAPTION, TICK = 16, 28  # columns of a class's name above a picture, and beside a matrix
# Names of classes may be Chinese; the first of these that is installed draws them.
CHINESE = ('Noto Sans CJK SC', 'Source Han Sans SC', 'WenQuanYi Zen Hei', 'SimHei', 'PingFang SC')

_installed = {font.name for font in fontManager.ttflist}
matplotlib.rcParams['font.family'] = ['DejaVu Sans', *[f for f in CHINESE if f in _installed][:1]]


def curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss, accuracy and learning rate over the epochs of metrics.jsonl."""
    figure = Figure(figsize=(11, 3.4), layout='constrained')
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [record['epoch'] for record in records]
    evaluated = [record for record in records if 'eval_loss' in record]
    at = [record['epoch'] for record in evaluated]
    style = {'marker': 'o', 'markersize': 3} if len(records) < 40 else {}

    loss.plot(epochs, [r['train_loss'] for r in records], label='training', **style)
    loss.plot(at, [r['eval_loss'] for r in evaluated], label='test', **style)
    loss.set(title='loss', xlabel='epoch')
    accuracy.plot(epochs, [100 * r['train_accuracy'] for r in records], label='training', **style)
    percent = [100 * r['eval_accuracy'] for r in evaluated]
    label = f'test, at last {percent[-1]:.2f} %' if percent else 'test'
    accuracy.plot(at, percent, label=label, **style)
    accuracy.set(title='accuracy (%)', xlabel='epoch')
    rate.plot(epochs, [r['lr'] for r in records], color='tab:gray', **style)
    rate.set(title="learning rate at the epoch's end", xlabel='epoch')
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    loss.legend()
    accuracy.legend()
    _save(figure, path)


def confusion(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Rows are true classes, columns predictions; numbers are written where they can be read."""
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
    axes.set(xlabel='predicted', ylabel='true', title='colour: share of the true class')
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
    """uint8 [N, 3, H, W] with a caption each."""
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    side = max(1.5, pixels.shape[-1] / DPI)  # inches: large enough to show every pixel
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
        own, other = f'{100 * batch.share:.0f} %', f'{100 * (1 - batch.share):.0f} %'
        partners = [shortened(classes[label], CAPTION) for label in batch.partners[:FIRST]]
        titles = [f'{own} {a}\n{other} {b}' for a, b in zip(titles, partners)]
    picture_grid(pixels, titles, path)


def unnormalise(images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """uint8 [N, 3, H, W] of a normalised batch."""
    shown = images * std.reshape(-1, 1, 1) + mean.reshape(-1, 1, 1)
    return np.asarray(np.clip(np.rint(shown), 0, 255).astype(np.uint8))


def shortened(name: str, columns: int) -> str:
    """At most so many columns wide, the middle left out; a Chinese character takes two."""
    if text_width(name) <= columns:
        return name
    start, end = '', ''
    while text_width(start + end) < columns - 2:
        if len(start) <= len(end):
            start, name = start + name[0], name[1:]
        else:
            end, name = name[-1] + end, name[:-1]
    return f'{start}\u2026{end}'


def text_width(text: str) -> int:
    """Columns that a terminal takes for it."""
    return sum(2 if unicodedata.east_asian_width(letter) in 'WF' else 1 for letter in text)


def _plain(text: str) -> str:
    """Names of classes as they are: matplotlib takes what is between two $ for a formula."""
    return text.replace('$', r'\$')


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():  # a class's name in letters that no font here has
        warnings.filterwarnings('ignore', message=r'Glyph .* missing')
        write_atomically(path, lambda file: figure.savefig(file, format='png', dpi=DPI))
