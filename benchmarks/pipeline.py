"""Batches of CIFAR on one core: gather, pad-4 crop, flip, normalise to float32.

Claim: engine.data.ArrayBatches makes a batch at least a hundred times as fast as paddle.vision's
transforms through paddle.io.DataLoader make it image by image, and takes less than 1 % of the time
of training WRN-16-2, so that it needs no worker processes.
Falsified by: python3 -m benchmarks pipeline
"""

from __future__ import annotations

import contextlib
from statistics import median
from typing import Any

from benchmarks.processes import Worker, on_cores
from benchmarks.report import Claim, Result, table
from benchmarks.train_step import CORES, Network, our_worker

BATCHES = (64, 128)
TRAINED = Network('wide_resnet16_2', batch=64)


def run(quick: bool) -> Result:
    rounds, images = (1, 640) if quick else (5, 50_000)
    speeds: dict[str, list[float]] = {}
    training: list[float] = []
    with contextlib.ExitStack() as stack:
        with on_cores(1):
            worker = stack.enter_context(Worker('pipeline_worker', {'images': images}))
            worker.ask('ours', batch_size=BATCHES[0])
        with on_cores(CORES):
            trainer = stack.enter_context(our_worker(TRAINED))
        for _ in range(rounds):
            for batch_size in BATCHES:
                for which in ('ours', 'vision'):
                    [answer] = worker.ask(which, batch_size=batch_size)
                    speed = answer['images'] / answer['seconds']
                    speeds.setdefault(f'{which}_{batch_size}', []).append(speed)
            times = 1 if quick else 3
            [answer] = trainer.ask('steps', times=times)
            training.append(TRAINED.batch * times / answer['seconds'])
    return judge({name: median(values) for name, values in speeds.items()}, median(training))


def judge(speed: dict[str, float], training: float) -> Result:
    figures: dict[str, Any] = {f'images_per_second_{name}': round(v) for name, v in speed.items()}
    figures['images_per_second_training'] = round(training, 1)
    result = Result(figures)
    rows = []
    for size in BATCHES:
        ours, vision = speed[f'ours_{size}'], speed[f'vision_{size}']
        share = 100 / ours / (1 / ours + 1 / training)
        rows.append(
            [str(size), f'{ours:,.0f}', f'{vision:,.0f}', f'{ours / vision:.0f}', f'{share:.3f} %']
        )
        result.claims += [
            Claim(f'batch {size}: ours / paddle.vision', ours / vision, 100, 'x'),
            Claim(f"batch {size}: share of {TRAINED.name}'s training", share, 1, '%', at_most=True),
        ]
    header = ['batch', 'ours, images/s', 'paddle.vision, images/s', 'ratio', 'share of training']
    result.tables.append(table(header, rows))
    return result
