"""Whole training steps: ours, with Paddle's own convolutions, an older Paddle port, PyTorch.

Claim: on two cores, a step (forward, loss, backward, Nesterov update, clearing the gradients) of
the same network on the same batch is at least as fast as in PyTorch, taking the better of one
process and two here and of its two memory layouts there (in bfloat16, on a CPU that has it, against
channels last alone), and several times as fast as in an older Paddle port (convolutions with
biases, no thread settings).
Falsified by: python3 -m benchmarks train_step. The variants of a network are all alive at once and
take turns; each figure is the median of its rounds. `of 2048³` is the share of the speed of a large
matrix product in float32, measured in the same process with the same library.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Optional

from benchmarks.processes import Worker, on_cores
from benchmarks.report import Claim, Result, table
from engine.models import parse

CORES = 2
MATMUL_SIZE = 2048
OURS, TWO, OLDER = 'ours', f'ours, {CORES} processes of 1 thread', 'older Paddle port'
OURS_16, TWO_16 = f'{OURS}, bfloat16', f'{TWO}, bfloat16'
TORCH_16 = 'PyTorch, channels last, bfloat16'


@dataclass(frozen=True)
class Network:
    """A network in training on a batch of images of the size that it was designed for."""

    model: str
    batch: int
    dropout: float = 0.0

    @property
    def name(self) -> str:
        """As the papers have it: WRN-28-10, ResNeXt-29 8x64d."""
        return (
            self.model.replace('wide_resnet', 'WRN-')
            .replace('resnext', 'ResNeXt-')
            .replace('_', '-' if parse(self.model).family == 'wide_resnet' else ' ')
        )


@dataclass(frozen=True)
class Variant:
    name: str
    module: str
    settings: dict[str, Any]
    processes: int = 1


@dataclass(frozen=True)
class Race:
    """A network, how long it is measured, and the target of ours: the ratios of images/s."""

    network: Network
    rounds: int
    turn_s: float
    over_older: Optional[float] = None
    over_torch: float = 1.0


VARIANTS = (
    Variant(OURS, 'paddle_step', {}),
    Variant(TWO, 'paddle_step', {}, CORES),
    Variant("ours, with Paddle's convolutions", 'paddle_step', {'conv': 'paddle'}),
    Variant(OLDER, 'paddle_step', {'conv': 'older port'}),
    Variant('PyTorch', 'torch_step', {'channels_last': False, 'dtype': 'float32'}),
    Variant('PyTorch, channels last', 'torch_step', {'channels_last': True, 'dtype': 'float32'}),
    Variant(OURS_16, 'paddle_step', {'dtype': 'bfloat16'}),
    Variant(TWO_16, 'paddle_step', {'dtype': 'bfloat16'}, CORES),
    Variant(TORCH_16, 'torch_step', {'channels_last': True, 'dtype': 'bfloat16'}),
)
RACES = (
    Race(Network('wide_resnet16_2', batch=64), rounds=7, turn_s=3.0, over_older=3.6),
    Race(Network('wide_resnet16_4', batch=64), rounds=5, turn_s=3.0, over_older=4.6),
    Race(Network('wide_resnet28_10', batch=16, dropout=0.3), rounds=3, turn_s=4.0, over_older=4.7),
    Race(Network('resnext29_8x64d', batch=16), rounds=3, turn_s=4.0),
    Race(Network('resnext50_32x4d', batch=8), rounds=3, turn_s=4.0),
)


def has_bfloat16() -> bool:
    flags = Path('/proc/cpuinfo').read_text().split()
    return 'avx512_bf16' in flags or 'amx_bf16' in flags


def run(quick: bool) -> Result:
    result = Result(figures={})
    for race in RACES:
        if quick:
            network = Network(race.network.model, CORES)
            race = Race(network, 1, 0.0, race.over_older, race.over_torch)
        with on_cores(CORES):
            measured = measure(race)
        judge(race, measured, result)
    return result


def measure(race: Race) -> dict[str, dict[str, Any]]:
    """Variant -> images/s of each round; GFLOP/s of its median and of a large matrix product."""
    network = race.network
    variants = [v for v in VARIANTS if has_bfloat16() or v.settings.get('dtype') != 'bfloat16']
    speeds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    products: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        entries = []
        for variant in variants:
            settings = {**asdict(network), **variant.settings}
            worker = Worker(variant.module, settings, processes=variant.processes)
            stack.enter_context(worker)
            warm_up_s = slowest(worker.ask('steps', times=2)) / 2
            entries.append((variant, worker, max(1, round(race.turn_s / warm_up_s))))
        for _ in range(race.rounds):
            for variant, worker, times in entries:
                taken_s = slowest(worker.ask('steps', times=times))
                speeds[variant.name].append(network.batch * times / taken_s)
        for variant, worker, _ in entries:
            times = 3 if race.turn_s else 1
            taken_s = slowest(worker.ask('matmul', size=MATMUL_SIZE, times=times))
            flops = 2 * MATMUL_SIZE**3 * times * variant.processes
            products[variant.name] = flops / 1e9 / taken_s
        gflop = step_flops(entries[0][1]) / 1e9
    return {
        name: {
            'rounds': rounds,
            'gflops': gflop * median(rounds),
            'matmul_gflops': products[name],
        }
        for name, rounds in speeds.items()
    }


def judge(race: Race, measured: dict[str, dict[str, Any]], result: Result) -> None:
    """Add the network's table, figures and claims to the result."""
    network = race.network
    speed = {name: median(entry['rounds']) for name, entry in measured.items()}
    torch = max(speed['PyTorch'], speed['PyTorch, channels last'])
    rows, figures = [], []
    for name, entry in measured.items():
        low, high = min(entry['rounds']), max(entry['rounds'])
        rows.append(
            [
                name,
                f'{speed[name]:.1f}',
                f'{low:.1f} - {high:.1f}',
                f'{speed[name] / speed[OLDER]:.2f}',
                f'{speed[name] / torch:.2f}',
                f'{entry["gflops"]:.0f}',
                f'{100 * entry["gflops"] / entry["matmul_gflops"]:.0f} %',
            ]
        )
        figures.append(
            {
                'variant': name,
                'images_per_second': round(speed[name], 2),
                'rounds': [round(value, 2) for value in entry['rounds']],
                'gflops': round(entry['gflops'], 1),
                'matmul_gflops': round(entry['matmul_gflops'], 1),
            }
        )
    title = f'{network.name}, batch {network.batch}'
    header = [title, 'images/s', 'range', 'x older', 'x PyTorch', 'GFLOP/s', f'of {MATMUL_SIZE}³']
    result.tables.append(table(header, rows))
    result.figures[network.name] = {'batch': network.batch, 'variants': figures}
    best = max(speed[OURS], speed[TWO])
    if race.over_older is not None:
        what = f'{network.name}: {OURS} / {OLDER}'
        result.claims.append(Claim(what, speed[OURS] / speed[OLDER], race.over_older, 'x'))
    what = f'{network.name}: the better of ours / of PyTorch'
    result.claims.append(Claim(what, best / torch, race.over_torch, 'x'))
    if TORCH_16 not in speed:
        return
    what = f'{network.name}: the same, in bfloat16'
    best = max(speed[OURS_16], speed[TWO_16])
    result.claims.append(Claim(what, best / speed[TORCH_16], race.over_torch, 'x'))


def slowest(answers: list[dict[str, Any]]) -> float:
    return max(answer['seconds'] for answer in answers)


def step_flops(worker: Worker) -> float:
    """Of a training step on one image: three times the forward pass, as gradients of the inputs
    and of the weights cost as much."""
    [answer, *_] = worker.ask('multiply_adds')
    return 3.0 * 2 * int(answer['count'])


def our_worker(network: Network) -> Worker:
    """Our training step in a process of its own, warmed up."""
    worker = Worker('paddle_step', asdict(network))
    worker.ask('steps', times=1)
    return worker
