"""What a benchmark found: tables for people, figures for results.json, claims that hold or fail."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from engine.files import write_atomically
from installation import version

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Claim:
    """A figure that should be at least, or at most, `target`."""

    what: str
    value: float
    target: float
    unit: str
    at_most: bool = False

    @property
    def reached(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass
class Result:
    """`figures` is what results.json keeps, beside the claims; those that `others` names stay from
    an earlier result. `pictures` are by the name of their file."""

    figures: dict[str, Any]
    claims: list[Claim] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    pictures: dict[str, Figure] = field(default_factory=dict)
    others: Sequence[str] = ()

    def show(self) -> None:
        for text in self.tables:
            print(f'\n{text}', flush=True)
        if self.claims:
            rows = [
                [
                    claim.what,
                    f'{claim.value:.4g} {claim.unit}',
                    f'{"at most" if claim.at_most else "at least"} {claim.target:g} {claim.unit}',
                    'yes' if claim.reached else 'NO',
                ]
                for claim in self.claims
            ]
            print(f'\n{table(["claim", "measured", "target", "reached"], rows)}', flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths)]
        return ' | '.join([cells[0].ljust(widths[0]), *padded[1:]])

    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    return '\n'.join(f'| {line(cells)} |' for cells in (header, rule, *rows))


def keep(name: str, result: Result, folder: Path) -> None:
    """Put one benchmark's result into the folder's results.json; the others stay."""
    everything = read_results(folder)
    before = everything.get(name, {})
    stays = {other: before[other] for other in result.others if other in before}
    claims = [{**asdict(claim), 'reached': claim.reached} for claim in result.claims]
    everything[name] = {'machine': machine(), 'claims': claims, **stays, **result.figures}
    folder.mkdir(parents=True, exist_ok=True)
    write_results(everything, folder)
    for file, figure in result.pictures.items():
        figure.savefig(folder / file, dpi=120)


def read_results(folder: Path = HERE) -> dict[str, Any]:
    """The content of results.json, which may not exist yet."""
    file = folder / 'results.json'
    return dict(json.loads(file.read_text(encoding='utf-8'))) if file.exists() else {}


def write_results(everything: dict[str, Any], folder: Path = HERE) -> None:
    text = json.dumps(everything, indent=2) + '\n'
    write_atomically(folder / 'results.json', lambda file: file.write(text.encode()))


def machine() -> dict[str, Any]:
    """Where and with what the figures were measured."""
    packages = (
        *('paddlepaddle', 'torch', 'onnxruntime', 'openvino'),
        *('numpy', 'pillow', 'simplejpeg', 'opencv-python-headless'),
    )
    return {
        'cpu': _cpu_model(),
        'cores': len(os.sched_getaffinity(0)),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        'versions': {
            'python': platform.python_version(),
            **{package: version(package) or 'absent' for package in packages},
        },
    }


def _cpu_model() -> str:
    """Brand, family and model: cloud machines call very different processors 'AMD EPYC'."""
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (x.partition(':') for x in lines)}
    name = facts.get('model name', platform.processor())
    return f'{name}, family {facts.get("cpu family", "?")} model {facts.get("model", "?")}'
