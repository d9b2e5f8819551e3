"""benchmark.py's figures as a picture: latency and throughput against the batch size."""

from __future__ import annotations

import io
import os
from typing import Any, Sequence

from predictor import machine

# Its list of fonts goes into our own cache, or a temporary folder if that cannot be written.
os.environ.setdefault('MPLCONFIGDIR', str(machine.CACHE / 'matplotlib'))
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

# Okabe and Ito's colours, safe for the colour-blind; the marks distinguish the engines, too.
STYLES = {
    'openvino': ('#0072B2', 'o'),
    'onnxruntime': ('#E69F00', 's'),
    'paddle': ('#009E73', '^'),
    'paddle, no oneDNN': ('#CC79A7', 'v'),
    'tensorrt': ('#D55E00', 'D'),
}
OTHER = ('#56B4E9', 'P')
DASHES = ('-', '--', ':', '-.')  # for the counts of threads


def draw(series: Sequence[dict[str, Any]], title: str, form: str) -> bytes:
    """series: as in the JSON of benchmark.py; form: png, svg or pdf"""
    series = [one for one in series if one['figures']]
    figure = Figure(figsize=(10, 5), layout='constrained')
    latency, throughput = figure.subplots(1, 2)
    counts = sorted({one['threads'] for one in series})
    for one in series:
        colour, marker = STYLES.get(one['engine'], OTHER)
        look: dict[str, Any] = {
            'color': colour,
            'marker': marker,
            'linestyle': DASHES[counts.index(one['threads']) % len(DASHES)],
            'label': f'{one["engine"]}, {one["threads"]} thread{"s" * (one["threads"] > 1)}',
        }
        batches = [figures['batch'] for figures in one['figures']]
        for axes, name in ((latency, 'p50_ms'), (throughput, 'images_per_second')):
            axes.plot(batches, [figures[name] for figures in one['figures']], **look)
    ticks = sorted({figures['batch'] for one in series for figures in one['figures']})
    for axes in (latency, throughput):
        axes.set_xscale('log', base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel('batch size')
        axes.grid(alpha=0.3)
    latency.set_yscale('log')
    latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latency.yaxis.set_major_formatter(FormatStrFormatter('%g'))
    latency.set_title('latency: median milliseconds a call')
    throughput.set_ylim(bottom=0)
    throughput.set_title('throughput: images/s')
    figure.suptitle(title)
    handles, labels = latency.get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=130)
    return file.getvalue()
