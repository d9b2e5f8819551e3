"""How a training step's time and memory grow with depth, width, batch, image size, cardinality.

Claim: time grows no faster than the multiply-adds, whatever it is that makes them more: the slope
of log time over log multiply-adds is at most 1.1. Cardinality is the exception: it takes
multiply-adds away, and less of the time.
Falsified by: python3 -m benchmarks cost, which also draws it: benchmarks/cost.png

Multiply-adds are those of the forward pass on the whole batch; a step has three times as many.
Each point is a process of its own, in two rounds; a first step warms up, and times are medians.
Memory is the largest resident set less what was resident before the first step: activations,
gradients, momentum and work space. Cardinality x width is 128 in all ResNeXt-29: their other layers
are the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.processes import Worker, on_cores
from benchmarks.report import Claim, Result, table
from benchmarks.train_step import CORES

ROUNDS, TURN_S, LEAST_STEPS = 2, 3.0, 2
STEEPEST = 1.1
INNER = 128  # cardinality x width of every ResNeXt-29


@dataclass(frozen=True)
class Point:
    """What a worker trains."""

    model: str
    batch: int
    side: int = 32


@dataclass(frozen=True)
class Sweep:
    """Points that differ in one thing, by its values."""

    what: str
    fixed: str
    points: dict[str, Point]
    proportional: bool = True  # whether time is claimed to grow no faster than multiply-adds

    @property
    def title(self) -> str:
        return f'{self.what}: {self.fixed}'


@dataclass
class Cost:
    """What was measured of a point."""

    multiply_adds: int = 0
    step_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def seconds(self) -> float:
        return median(self.step_s)


SWEEPS = (
    Sweep(
        'depth',
        'WRN-d-2, batch 64',
        {f'{d}': Point(f'wide_resnet{d}_2', 64) for d in (10, 16, 22, 28, 40)},
    ),
    Sweep(
        'width',
        'WRN-16-k, batch 64',
        {f'{k}': Point(f'wide_resnet16_{k}', 64) for k in (1, 2, 4, 8)},
    ),
    Sweep(
        'batch',
        'WRN-16-2',
        {f'{n}': Point('wide_resnet16_2', n) for n in (8, 16, 32, 64, 128, 256)},
    ),
    Sweep(
        'image side',
        'WRN-16-2, batch 16',
        {f'{s}': Point('wide_resnet16_2', 16, s) for s in (32, 48, 64, 96)},
    ),
    Sweep(
        'image side',
        'ResNeXt-50 32x4d, batch 4',
        {f'{s}': Point('resnext50_32x4d', 4, s) for s in (64, 128, 224)},
    ),
    Sweep(
        'cardinality',
        'ResNeXt-29, batch 8',
        {f'{c}': Point(f'resnext29_{c}x{INNER // c}d', 8) for c in (1, 2, 4, 8, 16, 32)},
        proportional=False,
    ),
)


def run(quick: bool) -> Result:
    sweeps = [shorten(sweep) for sweep in SWEEPS] if quick else list(SWEEPS)
    points = list(dict.fromkeys(point for sweep in sweeps for point in sweep.points.values()))
    with on_cores(CORES):
        if quick:
            costs = measure(points, rounds=1, turn_s=0.0, at_least=1)
        else:
            costs = measure(points, rounds=ROUNDS, turn_s=TURN_S, at_least=LEAST_STEPS)
    result = Result(figures={})
    fits = []
    for sweep in sweeps:
        measured = {label: costs[point] for label, point in sweep.points.items()}
        time_slope = slope(measured, [cost.seconds for cost in measured.values()])
        memory_slope = slope(measured, [cost.peak_bytes for cost in measured.values()])
        result.tables.append(describe(sweep, measured))
        result.figures[sweep.title] = {
            'time_exponent': round(time_slope, 3),
            'memory_exponent': round(memory_slope, 3),
            'points': {label: keep(sweep.points[label], c) for label, c in measured.items()},
        }
        if sweep.proportional:
            what = f'{sweep.title}: exponent of time'
            result.claims.append(Claim(what, time_slope, STEEPEST, '', at_most=True))
        fits.append([sweep.title, f'{time_slope:.2f}', f'{memory_slope:.2f}'])
    header = ['grow like multiply-adds to the power of', 'time', 'memory']
    result.tables.append(table(header, fits))
    result.pictures['cost.png'] = draw(sweeps, costs)
    return result


def shorten(sweep: Sweep) -> Sweep:
    """The first two points, with small batches."""
    points = {
        label: Point(point.model, max(1, point.batch // 8), point.side)
        for label, point in list(sweep.points.items())[:2]
    }
    return Sweep(sweep.what, sweep.fixed, points, sweep.proportional)


def measure(
    points: Sequence[Point], *, rounds: int, turn_s: float, at_least: int
) -> dict[Point, Cost]:
    costs = {point: Cost() for point in points}
    for _ in range(rounds):  # so that a slow minute of the machine hits only one turn of a point
        for point, cost in costs.items():
            with Worker('paddle_step', asdict(point)) as worker:
                worker.ask('each_step', for_s=0.0, at_least=1)
                [timed] = worker.ask('each_step', for_s=turn_s, at_least=at_least)
                [peak] = worker.ask('peak')
                [counted] = worker.ask('multiply_adds')
            cost.step_s += timed['seconds']
            cost.peak_bytes = max(cost.peak_bytes, peak['bytes'])
            cost.multiply_adds = counted['count'] * point.batch
    return costs


def slope(measured: dict[str, Cost], values: Sequence[float]) -> float:
    """The exponent: of the straight line through the values over multiply-adds, both logarithms."""
    counts = [cost.multiply_adds for cost in measured.values()]
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def describe(sweep: Sweep, measured: dict[str, Cost]) -> str:
    """The sweep's table; its last column but one is 1.00 throughout where time is proportional."""
    first = next(iter(measured.values()))
    rows = []
    for label, cost in measured.items():
        each_s, first_s = cost.seconds / cost.multiply_adds, first.seconds / first.multiply_adds
        rows.append(
            [
                label,
                f'{cost.multiply_adds / 1e9:.2f} G',
                f'{1000 * cost.seconds:.0f}',
                f'{1000 * min(cost.step_s):.0f} - {1000 * max(cost.step_s):.0f}',
                f'{1000 * cost.seconds / sweep.points[label].batch:.2f}',
                f'{1e12 * each_s:.0f}',
                f'{each_s / first_s:.2f}',
                f'{cost.peak_bytes / 2**20:.0f}',
            ]
        )
    header = [sweep.title, 'multiply-adds', 'ms a step', 'range', 'ms an image']
    return table([*header, 'ps a multiply-add', '/ the first', 'MiB'], rows)


def keep(point: Point, cost: Cost) -> dict[str, Any]:
    """What results.json has of a point."""
    return {
        **asdict(point),
        'multiply_adds': cost.multiply_adds,
        'step_ms': round(1000 * cost.seconds, 2),
        'range_ms': [round(1000 * edge(cost.step_s), 2) for edge in (min, max)],
        'steps': len(cost.step_s),
        'peak_mib': round(cost.peak_bytes / 2**20, 1),
    }


def draw(sweeps: Sequence[Sweep], costs: dict[Point, Cost]) -> Figure:
    """Time over multiply-adds, both on the same logarithmic scale: proportional is 45 degrees."""
    figure = Figure(figsize=(9, 6.3), layout='constrained')
    panels = list(figure.subplots(2, 3).flat)
    for axes, sweep in zip(panels, sweeps):
        draw_sweep(axes, sweep, {label: costs[point] for label, point in sweep.points.items()})
    figure.supxlabel('multiply-adds of the forward pass on the batch, in 10⁹', fontsize=10)
    figure.supylabel('seconds a training step', fontsize=10)
    panels[0].legend(fontsize=8, loc='upper left', frameon=False)
    return figure


def draw_sweep(axes: Any, sweep: Sweep, measured: dict[str, Cost]) -> None:
    counts = np.array([cost.multiply_adds / 1e9 for cost in measured.values()])
    times = np.array([cost.seconds for cost in measured.values()])
    line = times[0] / counts[0] * counts
    axes.loglog(counts, line, color='0.7', label='proportional to the first')
    axes.loglog(counts, times, 'o-', markersize=4, label='measured')
    for x, y, value, above in zip(counts, times, measured, times > line):
        shift, va = ((0, 5), 'bottom') if above else ((4, -5), 'top')
        options = {'textcoords': 'offset points', 'ha': 'center', 'va': va, 'fontsize': 8}
        axes.annotate(value, (x, y), shift, **options)
    power = rf'time $\propto$ multiply-adds$^{{{slope(measured, list(times)):.2f}}}$'
    axes.set_title(f'{sweep.title}\n{power}', fontsize=9)
    drawn = [np.log(np.concatenate(v)) for v in zip(*(x.get_data() for x in axes.get_lines()))]
    half = 0.68 * max(map(np.ptp, drawn))  # more than half, for the values next to the points
    for set_limits, logs in zip((axes.set_xlim, axes.set_ylim), drawn):
        middle = (logs.min() + logs.max()) / 2
        set_limits(np.exp(middle - half), np.exp(middle + half))
    axes.set_box_aspect(1)
    for axis in (axes.xaxis, axes.yaxis):  # 0.5, 1, 2, 5, ...: some sweeps span less than a decade
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter('{x:g}'))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
