"""Exported networks on two cores: our Predictor's own choice, and the engines as one finds them.

Claim: what `Predictor` chooses by itself is at most 5 % slower than the best of plain ONNX Runtime,
OpenVINO, Paddle with oneDNN, and PyTorch, each with two threads, for one image and for sixteen.
Falsified by: python3 -m benchmarks serving. The variants of a network and a batch size are all
alive at once and take turns; a round's figure is that of its median call, each cell the median of
the rounds, with their range; `ours / best` is the median of the rounds' own ratios.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Optional

from benchmarks.exported import RESNEXT_50, WRN_16_2, WRN_28_10, WRN_50_2, Network, folder_of
from benchmarks.processes import Worker, on_cores
from benchmarks.report import Claim, Result, table

CORES = 2
OURS = 'ours'
VARIANTS = {
    OURS: 'ours',
    'onnxruntime': 'ONNX Runtime',
    'openvino': 'OpenVINO',
    'paddle': 'Paddle, oneDNN',
    'torch': 'PyTorch',
    'torch_last': 'PyTorch, channels last',
}
NETWORKS = {WRN_28_10: 32, RESNEXT_50: 224, WRN_50_2: 224}  # side of a picture
ROUNDS = {1: 5, 16: 3}  # by batch size
TURN_S = 0.6
TARGET = 0.95


def run(quick: bool, exported: Optional[Path]) -> Result:
    result, rows = Result(figures={}), []
    networks = {WRN_16_2: 32} if quick else NETWORKS
    for network, side in networks.items():
        with tempfile.TemporaryDirectory() as scratch, on_cores(CORES):
            folder = folder_of(network, Path(scratch), exported).resolve()
            for batch, rounds in ROUNDS.items():
                settings = {'model': network.name, 'side': side, 'batch': batch}
                settings |= {'folder': str(folder), 'threads': CORES}
                times, turn_s = (1, 0.0) if quick else (rounds, TURN_S)
                speeds, about = measure(settings, times, turn_s)
                rows.append(judge(network, batch, speeds, about, result))
    header = ['images/s', *VARIANTS.values(), 'chosen', 'best', 'ours / best']
    result.tables.append(table(header, rows))
    return result


def measure(
    settings: dict[str, Any], rounds: int, turn_s: float
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Variant -> images/s of each round; and what ours has chosen, and why."""
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in VARIANTS:
            worker = Worker('serving_worker', {**settings, 'variant': name})
            workers[name] = stack.enter_context(worker)
            worker.ask('calls', seconds=0)
        order = list(VARIANTS)
        for _ in range(rounds):
            order.append(order.pop(0))  # no variant always follows the same one
            for name in order:
                [answer] = workers[name].ask('calls', seconds=turn_s)
                speeds[name].append(settings['batch'] / answer['seconds'])
        [about] = workers[OURS].ask('about')
    return speeds, about


def judge(
    network: Network,
    batch: int,
    rounds: dict[str, list[float]],
    about: dict[str, str],
    result: Result,
) -> list[str]:
    """Add figures and a claim to the result; the table's row."""
    speed = {name: median(values) for name, values in rounds.items()}
    best = max((name for name in VARIANTS if name != OURS), key=lambda name: speed[name])
    # Of each round's own neighbours in time: the machine's speed drifts.
    ratio = median(mine / theirs for mine, theirs in zip(rounds[OURS], rounds[best]))
    title = f'{network.title}, batch {batch}'
    result.figures[title] = {
        'images_per_second': {VARIANTS[name]: round(value, 2) for name, value in speed.items()},
        'rounds': {VARIANTS[n]: [round(v, 2) for v in values] for n, values in rounds.items()},
        'best': VARIANTS[best],
        'ours_over_best': round(ratio, 3),
        'chosen': about,
    }
    result.claims.append(Claim(f'{title}: ours / {VARIANTS[best]}', ratio, TARGET, 'x'))
    cells = (f'{speed[n]:.1f} ({min(rounds[n]):.1f}-{max(rounds[n]):.1f})' for n in VARIANTS)
    return [title, *cells, about['engine'], VARIANTS[best], f'{ratio:.2f}']
