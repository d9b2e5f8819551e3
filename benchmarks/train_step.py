"""Whole training steps: ours, an older Paddle port, PyTorch.

Claim: on two cores, a step (forward, loss, backward, Nesterov update, clearing the gradients) of
the same network on the same batch is several times as fast as in an older Paddle port (convolutions
with biases, no thread settings), and not far behind PyTorch in its better memory layout.
Falsified by: python3 -m benchmarks train_step. The variants of a network are all alive at once and
take turns; each figure is the median of its rounds. `of 2048³` is the share of the speed of a large
matrix product, measured in the same process with the same library.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.processes import Worker, on_cores
from benchmarks.report import Claim, Result, table

CORES = 2
MATMUL_SIZE = 2048
OURS, OLDER = 'ours', 'older Paddle port'


@dataclass(frozen=True)
class Network:
    depth: int
    widen_factor: int
    batch: int
    dropout: float = 0.0

    @property
    def name(self) -> str:
        return f'WRN-{self.depth}-{self.widen_factor}'

    def step_flops(self) -> float:
        """Three times the forward pass: gradients of the inputs and of the weights cost as much."""
        return 3 * 2 * multiply_adds(self.depth, self.widen_factor) * self.batch


@dataclass(frozen=True)
class Variant:
    name: str
    module: str
    settings: dict[str, bool]
    processes: int = 1


@dataclass(frozen=True)
class Race:
    """A network, how long it is measured, and what is wanted of ours: the ratios of images/s."""

    network: Network
    rounds: int
    turn_s: float
    over_older: float
    over_torch: float


VARIANTS = (
    Variant(OURS, 'paddle_step', {'older_port': False}),
    Variant(f'{OURS}, {CORES} processes of 1 thread', 'paddle_step', {'older_port': False}, CORES),
    Variant(OLDER, 'paddle_step', {'older_port': True}),
    Variant('PyTorch', 'torch_step', {'channels_last': False}),
    Variant('PyTorch, channels last', 'torch_step', {'channels_last': True}),
)
RACES = (
    Race(Network(16, 2, batch=64), rounds=5, turn_s=2.0, over_older=3.6, over_torch=0.53),
    Race(Network(16, 4, batch=64), rounds=3, turn_s=3.0, over_older=4.6, over_torch=0.71),
    Race(
        Network(28, 10, batch=16, dropout=0.3),
        rounds=3,
        turn_s=4.0,
        over_older=4.7,
        over_torch=0.83,
    ),
)


def run(quick: bool) -> Result:
    result = Result(figures={})
    for race in RACES:
        if quick:
            network = Network(race.network.depth, race.network.widen_factor, CORES)
            race = Race(network, 1, 0.0, race.over_older, race.over_torch)
        with on_cores(CORES):
            measured = measure(race)
        judge(race, measured, result)
    return result


def measure(race: Race) -> dict[str, dict[str, Any]]:
    """Variant -> images/s of each round, and GFLOP/s of a large matrix product."""
    network = race.network
    speeds: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    products: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        entries = []
        for variant in VARIANTS:
            settings = {**asdict(network), **variant.settings}
            worker = Worker(variant.module, settings, processes=variant.processes)
            stack.enter_context(worker)
            warm_up_s = slowest(worker.ask('steps', times=1))
            entries.append((variant, worker, max(1, round(race.turn_s / warm_up_s))))
        for _ in range(race.rounds):
            for variant, worker, times in entries:
                taken_s = slowest(worker.ask('steps', times=times))
                speeds[variant.name].append(network.batch * times / taken_s)
        for variant, worker, _ in entries:
            times = 3 if race.turn_s else 1
            taken_s = slowest(worker.ask('matmul', size=MATMUL_SIZE, times=times))
            gflop = 2 * MATMUL_SIZE**3 * times * variant.processes / 1e9
            products[variant.name] = gflop / taken_s
    return {name: {'rounds': speeds[name], 'matmul_gflops': products[name]} for name in speeds}


def judge(race: Race, measured: dict[str, dict[str, Any]], result: Result) -> None:
    """Add the network's table, figures and claims to the result."""
    network = race.network
    speed = {name: median(entry['rounds']) for name, entry in measured.items()}
    torch = max(value for name, value in speed.items() if name.startswith('PyTorch'))
    rows, figures = [], []
    for name, entry in measured.items():
        gflops = network.step_flops() / network.batch * speed[name] / 1e9
        share = gflops / entry['matmul_gflops']
        low, high = min(entry['rounds']), max(entry['rounds'])
        rows.append(
            [
                name,
                f'{speed[name]:.1f}',
                f'{low:.1f} - {high:.1f}',
                f'{speed[name] / speed[OLDER]:.2f}',
                f'{speed[name] / torch:.2f}',
                f'{gflops:.0f}',
                f'{100 * share:.0f} %',
            ]
        )
        figures.append(
            {
                'variant': name,
                'images_per_second': round(speed[name], 2),
                'rounds': [round(value, 2) for value in entry['rounds']],
                'gflops': round(gflops, 1),
                'matmul_gflops': round(entry['matmul_gflops'], 1),
            }
        )
    title = f'{network.name}, batch {network.batch}'
    header = [title, 'images/s', 'range', 'x older', 'x PyTorch', 'GFLOP/s', f'of {MATMUL_SIZE}³']
    result.tables.append(table(header, rows))
    result.figures[network.name] = {'batch': network.batch, 'variants': figures}
    for rival, ratio, wanted in (
        (OLDER, speed[OURS] / speed[OLDER], race.over_older),
        ('the faster PyTorch', speed[OURS] / torch, race.over_torch),
    ):
        result.claims.append(Claim(f'{network.name}: {OURS} / {rival}', ratio, wanted, 'x'))


def slowest(answers: list[dict[str, Any]]) -> float:
    return max(answer['seconds'] for answer in answers)


def multiply_adds(depth: int, widen_factor: int, side: int = 32) -> int:
    """Of one image's forward pass: convolutions and the last layer."""
    total, channels = side**2 * 9 * 3 * 16, 16
    for group, width in enumerate(widen_factor * base for base in (16, 32, 64)):
        pixels = (side >> group) ** 2
        convolutions = (depth - 4) // 6 * 2 - 1  # those from width to width
        total += pixels * 9 * width * (channels + convolutions * width)
        if channels != width:
            total += pixels * channels * width  # the projection of the shortcut
        channels = width
    return total + 10 * channels


def our_worker(network: Network) -> Worker:
    """Our training step in a process of its own, warmed up."""
    worker = Worker('paddle_step', {**asdict(network), **VARIANTS[0].settings})
    worker.ask('steps', times=1)
    return worker
