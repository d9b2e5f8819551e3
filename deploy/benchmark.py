"""How fast a network is here, engine by engine: python3 deploy/benchmark.py inference/

Latency (milliseconds a call) and throughput (images a second) over batch sizes and threads, as a
table, and on request as JSON (--output) and as a picture (--plot). The images are random and in
memory, ready to be run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional, Sequence

import installation
from predictor import console, devices, engines, machine, timing
from predictor.errors import UserError
from predictor.exported_folder import Description, open_folder
from predictor.setting import Setting
from predictor.timing import Sample

NO_ONEDNN = 'paddle-no-onednn'
ENGINES = (*engines.ENGINES, NO_ONEDNN)
BATCH_SIZES = [1, 2, 4, 8, 16]
PICTURES = ('.png', '.svg', '.pdf')
ROUNDS = 3
PACKAGES = (
    *('paddlepaddle', 'paddlepaddle-gpu', 'tensorrt'),
    *('onnxruntime', 'onnxruntime-gpu', 'openvino', 'numpy'),
)


def main() -> int:
    args = parse_arguments()
    require_writable(args)
    description = open_folder(args.folder)
    device = devices.find_device(args.device, console.report)
    threads = args.threads or sorted({1, machine.cores()} if device == 'cpu' else {machine.cores()})
    names, lacks = find_engines(description, device, args)
    about = conditions(description, device, args)
    left_out = [f'{name} is left out: {lack}' for name, lack in lacks.items()]
    print(*about.values(), *left_out, '', sep='\n', flush=True)
    series: list[Series] = []
    for count in threads:
        series += measure(device, names, count, args)
    print(table(series), flush=True)
    figures = [one.as_json() for one in series]
    if args.output:
        content = {**about, 'left_out': lacks, 'series': figures}
        text = json.dumps(content, indent=1, ensure_ascii=False) + '\n'
        write_new(args.output, text.encode(errors='backslashreplace'))
    if not any(one.samples for one in series):
        raise UserError('no engine runs this model here')
    if args.plot:
        from predictor.charts import draw  # needs Matplotlib, which is optional

        title = f'{description.model}, {device}, {args.precision}'
        write_new(args.plot, draw(figures, title, args.plot.suffix[1:]))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = console.Parser(
        'Measure how fast an exported network is with each engine.',
        example='benchmark.py output/quickstart/inference',
    )
    add = parser.add_argument
    add(
        '--engines',
        type=engine_names,
        default=list(ENGINES),
        metavar='NAME,...',
        help=f'auto (all that can run here), or some of {", ".join(ENGINES)}',
    )
    add('--batch-sizes', type=numbers, default=BATCH_SIZES, metavar='N,...')
    add('--threads', type=numbers, metavar='N,...', help='of a CPU (default: 1, and one a core)')
    add(
        '--seconds',
        type=console.positive_number,
        default=3.0,
        metavar='S',
        help='for each figure (default: 3)',
    )
    console.add_device_options(parser)
    add('--output', type=Path, metavar='FILE', help='the figures as JSON')
    add('--plot', type=Path, metavar='FILE', help=f'a picture of them ({", ".join(PICTURES)})')
    return parser.parse_args()


def engine_names(text: str) -> list[str]:
    names = list(ENGINES) if text == 'auto' else list(dict.fromkeys(text.split(',')))
    for name in names:
        if name not in ENGINES:
            raise argparse.ArgumentTypeError(f'{name!r} is not one of auto, {", ".join(ENGINES)}')
    return names


def numbers(text: str) -> list[int]:
    return sorted({console.positive(part) for part in text.split(',')})


def require_writable(args: argparse.Namespace) -> None:
    """UserError now, not after minutes, if the results could not be written."""
    for option, path in (('--output', args.output), ('--plot', args.plot)):
        if path is not None and os.path.lexists(path):
            raise UserError(f'{option} {path} already exists; name a new file')
        if path is not None and not os.access(path.parent, os.W_OK):
            raise UserError(f'{option} {path}: {path.parent} is not a writable folder')
    if args.output and args.output == args.plot:
        raise UserError('--output and --plot name the same file')
    if args.plot and args.plot.suffix not in PICTURES:
        raise UserError(f'--plot {args.plot}: the name must end in {", ".join(PICTURES)}')
    if args.plot and importlib.util.find_spec('matplotlib') is None:
        raise UserError('--plot needs matplotlib: python3 -m pip install matplotlib')


def find_engines(
    description: Description, device: str, args: argparse.Namespace
) -> tuple[list[str], dict[str, str]]:
    """Those that can run here, and what each of the others lacks. UserError if none can."""
    setting = Setting(device, 1, max(args.batch_sizes), args.precision, True)
    names = [name for name in ENGINES if name in args.engines]
    lacks = {}
    for name in names:
        lack = engines.ENGINES[name.replace(NO_ONEDNN, 'paddle')].missing(description, setting)
        if name == NO_ONEDNN and device != 'cpu':
            lack = 'oneDNN is for CPUs'
        if lack:
            lacks[name] = lack
    if len(lacks) == len(names):
        raise engines.none_of(lacks)
    return [name for name in names if name not in lacks], lacks


def conditions(description: Description, device: str, args: argparse.Namespace) -> dict[str, str]:
    """What is measured, and on what; a line each."""
    shape = ', '.join(map(str, description.input.shape))
    versions = {'python': platform.python_version()}
    versions.update({name: installation.version(name) or '' for name in PACKAGES})
    system = f'{platform.system()} {platform.machine()}'
    settings = [f'{k}={v}' for k, v in os.environ.items() if k.startswith(('OMP_', 'KMP_'))]
    return {
        'model': f'{description.model}, {description.input.type} [batch, {shape}], {args.folder}',
        'device': ', '.join([device, args.precision, *settings]),
        'machine': f'{machine.processor()}, {machine.cores()} cores, {system}',
        'versions': ', '.join(f'{name} {text}' for name, text in versions.items() if text),
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
    }


@dataclass
class Series:
    """An engine with a number of threads: samples by batch size, and the error that ended them."""

    engine: str
    threads: int
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    error: Optional[str] = None

    @property
    def label(self) -> str:
        return 'paddle, no oneDNN' if self.engine == NO_ONEDNN else self.engine

    def figures(self, batch: int) -> dict[str, Any]:
        import numpy as np

        calls = [value for sample in self.samples[batch] for value in sample.call_s]
        p50, p95, p99 = (round(1000 * float(s), 4) for s in np.percentile(calls, [50, 95, 99]))
        # The first sample: batch sizes are measured in order, so it includes no larger one.
        memory = self.samples[batch][0].memory
        return {
            'batch': batch,
            'p50_ms': p50,
            'p95_ms': p95,
            'p99_ms': p99,
            'images_per_second': round(batch * len(calls) / sum(calls), 3),
            'calls': len(calls),
            'peak_memory_mib': memory and round(memory / 2**20),
        }

    def as_json(self) -> dict[str, Any]:
        return {
            'engine': self.label,
            'threads': self.threads,
            'error': self.error,
            'figures': [self.figures(batch) for batch in self.samples],
        }


def measure(
    device: str, names: Sequence[str], threads: int, args: argparse.Namespace
) -> list[Series]:
    """Every engine, several times in turns, so that other programs disturb all of them."""
    series = [Series(name, threads) for name in names]
    for turn in range(ROUNDS):
        for one in (one for one in series if one.error is None):
            console.report(f'measuring {one.label}, {counted(threads)}, {turn + 1} of {ROUNDS}')
            options = {
                'folder': str(args.folder.resolve()),
                'engine': one.engine.replace(NO_ONEDNN, 'paddle'),
                'device': device,
                'threads': threads,
                'batch': max(args.batch_sizes),
                'precision': args.precision,
                'onednn': one.engine != NO_ONEDNN,
            }
            found, one.error = timing.measure(options, args.batch_sizes, args.seconds / ROUNDS)
            for batch, sample in found.items():
                one.samples.setdefault(batch, []).append(sample)
    return series


def counted(threads: int) -> str:
    return f'{threads} thread{"s" * (threads > 1)}'


def table(series: Sequence[Series]) -> str:
    header = ('p50 ms', 'p95 ms', 'p99 ms', 'images/s', 'calls', 'MiB at most')
    lines = [f'{"engine":18}{"threads":>7}{"batch":>7}' + ''.join(f'{x:>12}' for x in header)]
    for one in series:
        start = f'{one.label:18}{one.threads:7}'
        for batch in one.samples:
            # images/s, calls and memory, after the batch and three latencies
            _, *latencies, speed, calls, memory = one.figures(batch).values()
            cells = [*(f'{value:.2f}' for value in latencies), f'{speed:.1f}', calls, memory or '']
            lines.append(f'{start}{batch:7}' + ''.join(f'{x:>12}' for x in cells))
        if one.error:
            lines.append(f'{start}  {one.error}')
    return '\n'.join(lines)


def write_new(path: Path, content: bytes) -> None:
    """To a file that does not exist yet."""
    try:
        with path.open('xb') as file:
            file.write(content)
    except FileExistsError:
        raise UserError(f'{path} was made by something else meanwhile; it stays as it is') from None
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None
    console.report(f'wrote {path}')


if __name__ == '__main__':
    console.run(main)
