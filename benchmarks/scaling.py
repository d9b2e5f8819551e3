"""One process with two threads against two processes with one each, and what averaging costs.

Claim: on a CPU, neither is much quicker, and averaging the gradients (gloo, on one machine) takes a
small share of a step. Falsified by: python3 -m benchmarks scaling. The variants take turns with the
same global batch; the share of averaging is what two processes gain when they leave it out, and so
includes that they wait for each other.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from statistics import median

from benchmarks.processes import Worker, on_cores
from benchmarks.report import Result, table
from benchmarks.train_step import CORES, Network, slowest

ONE, TWO, APART = 'one process, two threads', 'two processes', 'two processes, without averaging'
VARIANTS = {ONE: (1, True), TWO: (CORES, True), APART: (CORES, False)}
NETWORKS = (
    Network('wide_resnet16_2', batch=64),
    Network('wide_resnet28_10', batch=16, dropout=0.3),
)
ROUNDS, TURN_S = 7, 6.0


def run(quick: bool) -> Result:
    result, rows = Result(figures={}), []
    for network in NETWORKS:
        if quick:
            network = Network(network.model, CORES)
        with on_cores(CORES):
            rounds = measure(network, rounds=1 if quick else ROUNDS, turn_s=0 if quick else TURN_S)
        speed = {name: median(values) for name, values in rounds.items()}
        # Of each round's own neighbours in time: the machine's speed drifts.
        ratio = median(two / one for one, two in zip(rounds[ONE], rounds[TWO]))
        share = median(1 - two / apart for two, apart in zip(rounds[TWO], rounds[APART]))
        rows.append(
            [
                f'{network.name}, batch {network.batch}',
                *(f'{speed[name]:.1f}' for name in VARIANTS),
                f'{ratio:.2f}',
                f'{100 * share:.1f} %',
            ]
        )
        result.figures[network.name] = {
            'batch': network.batch,
            'images_per_second': {name: round(value, 2) for name, value in speed.items()},
            'rounds': {name: [round(v, 2) for v in values] for name, values in rounds.items()},
            'two_over_one': round(ratio, 3),
            'averaging_share': round(share, 4),
        }
    header = ['images/s', ONE, TWO, APART, 'two / one', 'averaging']
    result.tables.append(table(header, rows))
    return result


def measure(network: Network, *, rounds: int, turn_s: float) -> dict[str, list[float]]:
    """Variant -> images/s of each round."""
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with contextlib.ExitStack() as stack:
        entries = []
        for name, (processes, averaging) in VARIANTS.items():
            settings = {**asdict(network), 'averaging': averaging}
            worker = stack.enter_context(Worker('paddle_step', settings, processes=processes))
            warm_up_s = slowest(worker.ask('steps', times=1))
            entries.append((name, worker, max(1, round(turn_s / warm_up_s))))
        for _ in range(rounds):
            for name, worker, times in entries:
                taken_s = slowest(worker.ask('steps', times=times))
                speeds[name].append(network.batch * times / taken_s)
    return speeds
