"""An epoch's time grows with the data, and memory does not grow with the epochs.

Claim: the time of an epoch is a straight line in the number of images, and resident memory in the
tenth epoch is what it was in the second, with an evaluation, a checkpoint and curves after each.
The times are those of one thread, which vary less.
Falsified by: python3 -m benchmarks growth, which also draws both: benchmarks/growth.png
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.report import Claim, Result, table
from benchmarks.training_run import TrainingRun

SIZES = (256, 512, 1024, 2048)
EPOCHS = 10
COMMON = ('data.name=synthetic', 'model.name=wide_resnet10_1', 'data.batch_size=64')


def run(quick: bool) -> Result:
    sizes, rounds = (SIZES[:2], 1) if quick else (SIZES, 2)
    points = [point for _ in range(rounds) for n in sizes for point in time_epochs(n)]
    images, seconds = zip(*points)
    slope, start = np.polyfit(images, seconds, 1)
    r_squared = float(np.corrcoef(images, seconds)[0, 1] ** 2)
    resident = watch_memory(epochs=3 if quick else EPOCHS, images=256 if quick else 1024)
    growth = 100 * (resident[-1] / resident[1] - 1)
    picture = draw(np.array(images), np.array(seconds), (slope, start), np.array(resident))
    per_size = {n: [s for i, s in zip(images, seconds) if i == n] for n in sizes}
    rows = [
        [f'{n:,}', f'{np.median(s):.3f}', f'{slope * n + start:.3f}'] for n, s in per_size.items()
    ]
    mib = [f'{value / 2**20:.0f}' for value in resident]
    return Result(
        figures={
            'epoch_seconds': {str(n): np.round(s, 4).tolist() for n, s in per_size.items()},
            'ms_per_image': round(1000 * slope, 4),
            'resident_mib': [round(value / 2**20, 1) for value in resident],
        },
        claims=[
            Claim("an epoch's time against images: R²", r_squared, 0.99, ''),
            Claim('resident memory, second to last epoch', growth, 5, '%', at_most=True),
        ],
        tables=[
            table(['images', 'seconds an epoch', 'on the line'], rows),
            f'Resident memory in each epoch, MiB: {" ".join(mib)}',
        ],
        pictures={'growth.png': picture},
    )


def time_epochs(images: int) -> list[tuple[int, float]]:
    """(images, seconds) of each epoch of a run but the first."""
    settings = (*COMMON, f'data.num_images={images}', 'train.epochs=3', 'eval.every=3')
    with TrainingRun('quickstart.yaml', *settings, OMP_NUM_THREADS='1') as training:
        training.finish()
        return [(images, epoch['seconds']) for epoch in training.epochs()[1:]]


def watch_memory(*, epochs: int, images: int) -> list[int]:
    """Resident bytes at the same step of each epoch."""
    resident = []
    with TrainingRun(
        'quickstart.yaml', *COMMON, f'data.num_images={images}', f'train.epochs={epochs}'
    ) as training:
        for line in training.lines():
            if line.startswith('iter:0 '):
                resident.append(training.resident_bytes())
        training.finish()
    return resident


def draw(images: Any, seconds: Any, line: tuple[float, float], resident: Any) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    time, memory = figure.subplots(1, 2)
    ends = np.array([0, max(images)])
    time.plot(ends, np.polyval(line, ends), color='0.7', label=f'{1000 * line[0]:.2f} ms an image')
    time.plot(images, seconds, 'o', markersize=4, label='epochs after the first')
    time.set(title='WRN-10-1, batch 64', xlabel='training images', ylabel='seconds an epoch')
    time.set(xlim=(0, None), ylim=(0, None))
    time.legend()
    memory.plot(range(1, len(resident) + 1), resident / 2**20, 'o-', markersize=4)
    memory.set(title='resident memory', xlabel='epoch', ylabel='MiB')
    memory.set(ylim=(0, 1.25 * max(resident) / 2**20))
    return figure
