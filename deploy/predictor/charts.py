"""benchmark.py's figures as a picture: latency and throughput against the batch size."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any, Sequence

from predictor import machine

# Its list of fonts goes into our own cache, or where there is none, into a temporary folder.
os.environ.setdefault('MPLCONFIGDIR', str(machine.CACHE / 'matplotlib'))
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

# Okabe and Ito's colours, which the colour-blind tell apart; the marks tell the engines, too.
STYLES = {
    'openvino': ('#0072B2', 'o'),
    'onnxruntime': ('#E69F00', 's'),
    'paddle': ('#009E73', '^'),
    'paddle, no oneDNN': ('#CC79A7', 'v'),
    'tensorrt': ('#D55E00', 'D'),
}
DASHES = ('-', '--', ':', '-.')  # for the counts of threads
DPI = 130


@dataclass(frozen=True)
class Line:
    """An engine with so many threads; a value for each batch size."""

    engine: str
    threads: int
    batches: list[int]
    milliseconds: list[float]  # the median call
    images_per_second: list[float]


def draw(lines: Sequence[Line], title: str, form: str) -> bytes:
    """form: png, svg or pdf"""
    figure = Figure(figsize=(10, 5), layout='constrained')
    latency, throughput = figure.subplots(1, 2)
    counts = sorted({line.threads for line in lines})
    for line in lines:
        colour, marker = STYLES[line.engine]
        threads = f'{line.threads} thread{"s" * (line.threads > 1)}'
        look: dict[str, Any] = {
            'color': colour,
            'marker': marker,
            'linestyle': DASHES[counts.index(line.threads) % len(DASHES)],
            'label': f'{line.engine}, {threads}',
        }
        latency.plot(line.batches, line.milliseconds, **look)
        throughput.plot(line.batches, line.images_per_second, **look)
    latency.set_yscale('log')
    ticks = sorted({batch for line in lines for batch in line.batches})
    for axes in (latency, throughput):
        axes.set_xscale('log', base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel('batch size')
        axes.grid(alpha=0.3)
    latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latency.yaxis.set_major_formatter(FormatStrFormatter('%g'))
    latency.set_title('latency: median milliseconds a call')
    throughput.set_ylim(bottom=0)
    throughput.set_title('throughput: images/s')
    figure.suptitle(title)
    handles, labels = latency.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=DPI)
    return file.getvalue()
