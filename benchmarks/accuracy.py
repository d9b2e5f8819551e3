"""python3 -m benchmarks.accuracy RUN ...: accuracy against training time, of runs in results.json.

Prints the table and draws accuracy.png. benchmarks.record_run has put the runs there, each a whole
schedule of its own, and benchmarks.torch_train what PyTorch makes of the same recipe.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from benchmarks.report import read_results, table
from engine import cli
from engine.errors import UserError

PICTURE = Path(__file__).with_name('accuracy.png')
TARGETS = {45: 0.90, 120: 0.93}  # minutes -> test accuracy
SERIES = {'runs': 'this repository', 'runs_in_pytorch': 'PyTorch, the same recipe'}


def main() -> None:
    names = sys.argv[1:]
    results = read_results()
    require_tested(names, results.get('runs', {}))
    series = {
        label: [results.get(key, {}).get(name) for name in names] for key, label in SERIES.items()
    }
    for name, ours, theirs in zip(names, *series.values()):
        require_same_recipe(name, ours, theirs)
    print(describe(names, series))
    draw(series).savefig(PICTURE, dpi=120)


def require_tested(names: list[str], runs: dict[str, Any]) -> None:
    """UserError unless the names are of runs that were measured on test images."""
    if not names:
        raise UserError(f'name runs of results.json: {", ".join(runs)}')
    for name in names:
        if name not in runs:
            raise UserError(f'{name} is not in results.json; there are {", ".join(runs)}')
        if runs[name].get('settings', {}).get('data.holdout'):
            raise UserError(f'{name} was measured on held-out training images')


def require_same_recipe(name: str, ours: dict[str, Any], theirs: Optional[dict[str, Any]]) -> None:
    """UserError if PyTorch had other settings, but for how the processes share a step's images."""
    if theirs is None:
        return
    pair = [{**run.get('settings', {}), 'train.epochs': run['epochs']} for run in (ours, theirs)]
    keys = set().union(*pair) if 'settings' in theirs else {'train.epochs'}
    other = [
        key for key in keys if key != 'data.batch_size' and pair[0].get(key) != pair[1].get(key)
    ]
    if other:
        raise UserError(f'{name} has another recipe in PyTorch: {", ".join(sorted(other))}')


def describe(names: list[str], series: dict[str, list[Any]]) -> str:
    rows = []
    for name, *both in zip(names, *series.values()):
        row = [name, both[0]['model'], str(both[0]['epochs'])]
        for run in both:
            row += [f'{minutes(run):.1f}', f'{run["accuracy"]:.2%}'] if run else ['', '']
        rows.append(row)
    header = ['run', 'network', 'epochs']
    return table([*header, 'minutes', 'accuracy', 'PyTorch: minutes', 'accuracy'], rows)


def minutes(run: dict[str, Any]) -> float:
    return float(run['training_seconds'] / 60)


def draw(series: dict[str, list[Any]]) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), layout='constrained')
    axes = figure.subplots()
    for label, runs in series.items():
        points = sorted((minutes(run), 100 * run['accuracy']) for run in runs if run)
        if points:
            axes.plot(*zip(*points), 'o-', label=label)
    times, accuracies = zip(*TARGETS.items())
    axes.plot(times, [100 * value for value in accuracies], '*', color='0.5', label='target')
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    ticks = sorted({15, 30, 60, 120, *times})
    axes.set_xticks(ticks)
    axes.set_xlabel('minutes of training on two CPU cores, each point a whole schedule')
    axes.set_ylabel('test accuracy of the last epoch, %')
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc='lower right')
    return figure


if __name__ == '__main__':
    cli.run(main)
