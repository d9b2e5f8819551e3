"""Training speed, memory and fraction of peak FLOP/s on a GPU, an NPU or this CPU.

Claim: users of train.py get these figures. There are none of GPUs and NPUs so far.
Falsified by: python3 -m benchmarks device --device gpu (or npu, cpu; auto takes the first of these)

Each row is a process that runs train.py's main with a recipe of configs/ on random images. Speed
and the fraction of the time spent waiting for data are medians over the epochs after the first,
from metrics.jsonl. Peak FLOP/s are those of a large square matrix product in the same precision on
the same device, through Paddle; an image counts 2 x 3 x the network's multiply-adds. Memory is the
largest amount of device memory that tensors used at once; on a CPU it is the largest resident set,
images included, and the layout is oneDNN's own. The row of a failed run has the reason.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Optional

from benchmarks.processes import Worker
from benchmarks.report import Result, machine, table
from benchmarks.train_step import has_bfloat16
from engine.run.reading import read_records

KINDS = ('gpu', 'npu', 'cpu')
BY_ONEDNN = ('O1', 'bfloat16', 'NCHW')


@dataclass(frozen=True)
class Network:
    name: str
    config: str
    model: str
    batch: int
    side: int = 32
    classes: int = 10

    @property
    def title(self) -> str:
        return f'{self.name}, batch {self.batch}'


@dataclass(frozen=True)
class Mode:
    """Precision, memory layout and compilation."""

    amp: str = 'none'
    dtype: str = 'float32'
    layout: str = 'NCHW'
    to_static: bool = False

    @property
    def title(self) -> str:
        level = [] if self.amp == 'none' else [self.amp]
        return ' '.join([*level, self.dtype, self.layout, *['to_static'] * self.to_static])

    def overrides(self) -> list[str]:
        mixed = [f'train.amp={self.amp}', f'train.amp_dtype={self.dtype}']
        return [
            *([] if self.amp == 'none' else mixed),
            f'model.data_format={self.layout}',
            f'train.to_static={str(self.to_static).lower()}',
        ]

    def suits(self, kind: str) -> bool:
        """Whether train.py supports it on the device; else it is refused, or has no effect."""
        if kind == 'cpu':  # oneDNN rounds to bfloat16, and has a layout of its own
            by_onednn = (self.amp, self.dtype, self.layout) == BY_ONEDNN and has_bfloat16()
            return self.amp == 'none' or by_onednn
        refused = self.layout == 'NHWC' or self.dtype == 'bfloat16' or self.amp == 'O2'
        return kind == 'gpu' or not refused


@dataclass(frozen=True)
class Scale:
    """What is measured, the number of steps and epochs, and the side of the matrices."""

    networks: tuple[Network, ...]
    steps: int
    epochs: int
    matrix: int


@dataclass(frozen=True)
class Row:
    """A network in a mode: its figures, or why there are none."""

    network: Network
    mode: Mode
    images_per_second: tuple[float, ...] = ()
    data_wait: float = 0.0
    peak_bytes: Optional[int] = None
    failure: str = ''

    @property
    def title(self) -> str:
        return f'{self.network.title}, {self.mode.title}'


@dataclass(frozen=True)
class Peaks:
    """What speed is compared with."""

    matrix: int
    flops: dict[str, float]  # of a matrix product, by precision
    multiply_adds: dict[Network, int]

    def flops_of(self, row: Row) -> float:
        """Three times the forward pass, as gradients of inputs and of weights cost as much each."""
        return 3 * 2 * self.multiply_adds[row.network] * median(row.images_per_second)

    def fraction(self, row: Row) -> Optional[float]:
        dtype = row.mode.dtype
        return self.flops_of(row) / self.flops[dtype] if dtype in self.flops else None


MODES = (
    Mode(),
    Mode(to_static=True),
    Mode('O1', 'float16'),
    Mode('O1', 'bfloat16'),
    Mode('O1', 'float16', 'NHWC'),
    Mode('O1', 'bfloat16', 'NHWC'),
    Mode('O2', 'float16', 'NHWC'),
    Mode('O2', 'float16', 'NHWC', to_static=True),
)
WRN_28 = Network('WRN-28-10', 'wrn28_10_cifar10', 'wide_resnet28_10', 128)
RESNEXT_29 = Network('ResNeXt-29 8x64d', 'resnext29_8x64d_cifar10', 'resnext29_8x64d', 128)
RESNEXT_50 = Network(
    'ResNeXt-50 32x4d', 'resnext50_32x4d_imagenet', 'resnext50_32x4d', 64, side=224, classes=1000
)
WRN_50 = Network('WRN-50-2', 'wrn50_2_imagenet', 'wide_resnet50_2', 64, side=224, classes=1000)

SMALL = Scale(
    (
        replace(WRN_28, name='WRN-10-1', model='wide_resnet10_1', batch=4),
        replace(RESNEXT_50, batch=2, side=64),
    ),
    steps=2,
    epochs=2,
    matrix=256,
)
CPU = Scale(
    (
        *(replace(network, batch=16) for network in (WRN_28, RESNEXT_29)),
        *(replace(network, batch=4) for network in (RESNEXT_50, WRN_50)),
    ),
    steps=3,
    epochs=3,
    matrix=2048,
)
CARD = Scale(
    (
        *(WRN_28, RESNEXT_29, RESNEXT_50, WRN_50),
        *(replace(network, batch=128) for network in (RESNEXT_50, WRN_50)),
    ),
    steps=40,
    epochs=3,
    matrix=8192,
)


def run(quick: bool, device: str) -> Result:
    about = ask_about(device)
    kind = about['kind']
    scale = SMALL if quick else CPU if kind == 'cpu' else CARD
    modes = [mode for mode in MODES if mode.suits(kind)]
    peaks = Peaks(
        scale.matrix,
        measure_products(kind, scale.matrix, [mode.dtype for mode in modes]),
        count_multiply_adds(kind, scale.networks),
    )
    rows = []
    for network in scale.networks:
        for mode in modes:
            rows.append(measure(Row(network, mode), kind, scale))
            print(f'{rows[-1].title}: {outcome(rows[-1])}', flush=True)
    found = {**about, 'environment': environment(), **figures(rows, peaks), 'machine': machine()}
    return Result(
        figures={kind: found},
        tables=[describe(rows, peaks, about), *failures(rows)],
        others=KINDS,
    )


def environment() -> dict[str, str]:
    """The user's FLAGS_, which an Ascend needs; a Worker starts without them."""
    return {name: value for name, value in os.environ.items() if name.startswith('FLAGS_')}


def start_worker(variables: Optional[dict[str, str]] = None) -> Worker:
    return Worker('device_worker', {'environment': {**environment(), **(variables or {})}})


def ask_about(device: str) -> dict[str, Any]:
    with start_worker() as worker:
        try:
            [about] = worker.ask('start', device=device)
        except RuntimeError as error:
            sys.exit(reason(error))
    return about


def measure_products(kind: str, matrix: int, dtypes: list[str]) -> dict[str, float]:
    """FLOP/s by precision, without precisions that the device does not support."""
    flops = {}
    for dtype in dict.fromkeys(dtypes):
        with start_worker() as worker:
            worker.ask('start', device=kind)
            try:
                [answer] = worker.ask('product', size=matrix, dtype=dtype)
            except RuntimeError as error:
                print(f'no {dtype} product of {matrix}x{matrix}: {reason(error)}', flush=True)
            else:
                flops[dtype] = answer['flops']
    return flops


def count_multiply_adds(kind: str, networks: tuple[Network, ...]) -> dict[Network, int]:
    with start_worker() as worker:
        worker.ask('start', device=kind)
        counts = {}
        for network in networks:
            about = {key: getattr(network, key) for key in ('model', 'side', 'classes')}
            [answer] = worker.ask('network', **about)
            counts[network] = answer['multiply_adds']
    return counts


def measure(row: Row, kind: str, scale: Scale, variables: Optional[dict[str, str]] = None) -> Row:
    """The row with the figures of its run, in an environment with these variables."""
    with tempfile.TemporaryDirectory() as folder, start_worker(variables) as worker:
        output = Path(folder) / 'run'
        overrides = [f'output.dir={output}', f'device={kind}', *settings(row, scale)]
        config = f'configs/{row.network.config}.yaml'
        try:
            [answer] = worker.ask('train', arguments=['-c', config, '-o', *overrides])
        except RuntimeError as error:
            return replace(row, failure=reason(error))
        epochs = read_records(output)[1:]
    return replace(
        row,
        images_per_second=tuple(epoch['images_per_second'] for epoch in epochs),
        data_wait=median(epoch['data_wait'] for epoch in epochs),
        peak_bytes=answer['peak_bytes'],
    )


def settings(row: Row, scale: Scale) -> list[str]:
    """What the measurement changes in the recipe; one evaluation, at the end."""
    network = row.network
    return [
        f'model.name={network.model}',
        f'model.num_classes={network.classes}',
        *('data.name=synthetic', 'data.color_jitter=[]', f'data.image_size={network.side}'),
        f'data.num_images={scale.steps * network.batch}',
        f'data.batch_size={network.batch}',
        f'eval.batch_size={network.batch}',
        f'eval.every={scale.epochs}',
        f'train.epochs={scale.epochs}',
        f'train.save_every={scale.epochs}',
        *row.mode.overrides(),
    ]


def reason(error: RuntimeError) -> str:
    """The most informative line of an error and the output around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    exhausted = [line for line in lines if 'out of memory' in line.lower()][:1]  # then comes advice
    best = (exhausted or [line for line in lines if 'Error: ' in line] or lines)[-1]
    return best.rpartition('UserError: ')[-1]


def outcome(row: Row) -> str:
    if row.failure:
        return 'out of memory' if 'out of memory' in row.failure.lower() else 'failed'
    return f'{median(row.images_per_second):.1f} images/s'


def describe(rows: list[Row], peaks: Peaks, about: dict[str, Any]) -> str:
    """The table for docs/performance.md."""
    cells = []
    for row in rows:
        if row.failure:
            cells.append([row.title, outcome(row), '', '', '', '', ''])
            continue
        fraction, peak = peaks.fraction(row), row.peak_bytes
        low, high = min(row.images_per_second), max(row.images_per_second)
        cells.append(
            [
                row.title,
                f'{median(row.images_per_second):.1f}',
                f'{low:.1f} - {high:.1f}',
                f'{peaks.flops_of(row) / 1e12:.3g}',
                '' if fraction is None else f'{100 * fraction:.0f} %',
                f'{100 * row.data_wait:.1f} %',
                '' if peak is None else f'{peak / 2**30:.2f} GiB',
            ]
        )
    header = [about['name'], 'images/s', 'range', 'TFLOP/s', f'of {peaks.matrix}³']
    return table([*header, 'waits for data', 'memory'], cells)


def failures(rows: list[Row]) -> list[str]:
    lines = [f'- {row.title}: {row.failure}' for row in rows if row.failure]
    return ['\n'.join(lines)] if lines else []


def figures(rows: list[Row], peaks: Peaks) -> dict[str, Any]:
    """For results.json."""
    return {
        'matrix': peaks.matrix,
        'product_gflops': {dtype: round(f / 1e9, 1) for dtype, f in peaks.flops.items()},
        'rows': [figures_of(row, peaks) for row in rows],
    }


def figures_of(row: Row, peaks: Peaks) -> dict[str, Any]:
    what = {**asdict(row.network), **asdict(row.mode)}
    if row.failure:
        return {**what, 'failure': row.failure}
    fraction = peaks.fraction(row)
    return {
        **what,
        'images_per_second': round(median(row.images_per_second), 2),
        'epochs': [round(value, 2) for value in row.images_per_second],
        'gflops': round(peaks.flops_of(row) / 1e9, 1),
        'share_of_product': fraction and round(fraction, 4),
        'data_wait': round(row.data_wait, 4),
        'peak_gib': row.peak_bytes and round(row.peak_bytes / 2**30, 3),
    }
