"""How fast a network is here, engine by engine: python3 deploy/benchmark.py inference/

Latency (milliseconds a call) and throughput (images a second) over batch sizes and threads, as a
table, and on request as JSON (--output) and as a picture (--plot). The images are random and lie in
memory, ready to be run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional, Sequence

import installation
from predictor import console, devices, engines, machine
from predictor.errors import UserError
from predictor.exported_folder import Description, open_folder
from predictor.setting import Setting
from predictor.timing import Failed, Process, Sample, Settings

NO_ONEDNN = 'paddle-no-onednn'
ENGINES = (*console.ENGINES[1:], NO_ONEDNN)
BATCH_SIZES = [1, 2, 4, 8, 16]
PICTURES = ('.png', '.svg', '.pdf')
ROUNDS = 3  # engines take turns, so that other programs disturb all of them
PACKAGES = ('paddlepaddle', 'paddlepaddle-gpu', 'tensorrt', 'onnxruntime', 'onnxruntime-gpu')


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
        series += measure(description, device, names, count, args)
    print(table(series), flush=True)
    if args.output:
        content = {**about, 'left_out': lacks, 'series': [one.as_json() for one in series]}
        text = json.dumps(content, indent=1, ensure_ascii=False) + '\n'
        write_new(args.output, text.encode(errors='backslashreplace'))
    if not any(one.samples for one in series):
        raise UserError('no engine runs this model here')
    if args.plot:
        title = f'{description.model}, {device}, {args.precision}'
        write_new(args.plot, picture(series, title, args.plot.suffix[1:]))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = console.parser(
        'Measure how fast an exported network is with each engine.',
        example='benchmark.py output/quickstart/inference',
    )
    parser.add_argument(
        '--engines',
        type=engine_names,
        default=list(ENGINES),
        metavar='NAME,...',
        help=f'auto (all that can run here), or some of {", ".join(ENGINES)}',
    )
    parser.add_argument('--batch-sizes', type=numbers, default=BATCH_SIZES, metavar='N,...')
    parser.add_argument(
        '--threads', type=numbers, metavar='N,...', help='of a CPU (default: 1, and one a core)'
    )
    parser.add_argument(
        '--seconds',
        type=console.positive_number,
        default=3.0,
        metavar='S',
        help='for each figure (default: 3)',
    )
    parser.add_argument('--device', default='auto', help='auto, cpu, gpu, gpu:1, npu ...')
    parser.add_argument('--precision', choices=('float32', 'float16', 'int8'), default='float32')
    parser.add_argument('--output', type=Path, metavar='FILE', help='the figures as JSON')
    parser.add_argument(
        '--plot', type=Path, metavar='FILE', help=f'a picture of them ({", ".join(PICTURES)})'
    )
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
        if path is None:
            continue
        if os.path.lexists(path):
            raise UserError(f'{option} {path} is there already; name a new file')
        if not os.access(path.parent, os.W_OK):
            raise UserError(f'{option} {path}: {path.parent} is no folder that can be written to')
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
    lacks = {}
    for name in args.engines:
        setting = Setting(device, 1, max(args.batch_sizes), args.precision, True)
        lack = engines.ENGINES[name.replace(NO_ONEDNN, 'paddle')].missing(description, setting)
        if name == NO_ONEDNN and device != 'cpu':
            lack = 'oneDNN is for CPUs'
        if lack:
            lacks[name] = lack
    names = [name for name in (*engines.ENGINES, NO_ONEDNN) if name in args.engines]
    able = [name for name in names if name not in lacks]
    if not able:
        raise engines.none_of(lacks)
    return able, lacks


def conditions(description: Description, device: str, args: argparse.Namespace) -> dict[str, str]:
    """What is measured, and on what; a line each."""
    shape = ', '.join(map(str, description.input.shape))
    packages = (*PACKAGES, 'openvino', 'numpy')
    versions = {name: installation.version(name) for name in packages}
    found = [f'{name} {version}' for name, version in versions.items() if version]
    system = f'{platform.system()} {platform.machine()}'
    settings = [f'{k}={v}' for k, v in os.environ.items() if k.startswith(('OMP_', 'KMP_'))]
    return {
        'model': f'{description.model}, {description.input.type} [batch, {shape}], {args.folder}',
        'device': ', '.join([device, args.precision, *settings]),
        'machine': f'{machine.processor()}, {machine.cores()} cores, {system}',
        'versions': ', '.join([f'python {platform.python_version()}', *found]),
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

    def latencies(self, batch: int) -> list[float]:
        """p50, p95 and p99 of the calls, in ms."""
        calls = [value for sample in self.samples[batch] for value in sample.call_s]
        import numpy as np

        return [1000 * float(value) for value in np.percentile(calls, [50, 95, 99])]

    def figures(self, batch: int) -> dict[str, Any]:
        calls = [value for sample in self.samples[batch] for value in sample.call_s]
        p50, p95, p99 = self.latencies(batch)
        # The first sample: batch sizes are measured in order, so it includes no larger one.
        memory = self.samples[batch][0].memory
        return {
            'batch': batch,
            'p50_ms': round(p50, 4),
            'p95_ms': round(p95, 4),
            'p99_ms': round(p99, 4),
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
    description: Description, device: str, names: Sequence[str], threads: int, args: Any
) -> list[Series]:
    """Every engine in a process of its own; all are alive, and one at a time measures."""
    with contextlib.ExitStack() as stack:
        every, alive = [Series(name, threads) for name in names], []
        for one in every:
            settings = Settings(
                folder=str(args.folder.resolve()),
                engine=one.engine.replace(NO_ONEDNN, 'paddle'),
                device=device,
                threads=threads,
                batch=max(args.batch_sizes),
                precision=args.precision,
                onednn=one.engine != NO_ONEDNN,
            )
            console.report(f'starting {one.label}, {threads} thread{"s" * (threads > 1)}')
            try:
                alive.append((one, stack.enter_context(Process(settings))))
            except Failed as error:
                one.error = str(error)
        for turn in range(ROUNDS):
            console.report(f'measuring, round {turn + 1} of {ROUNDS}')
            for batch in args.batch_sizes:
                for one, process in [pair for pair in alive if pair[0].error is None]:
                    try:
                        sample = process.measure(batch, args.seconds / ROUNDS)
                        one.samples.setdefault(batch, []).append(sample)
                    except Failed as error:
                        one.error = f'batch {batch}: {error}'
    return every


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


def picture(series: Sequence[Series], title: str, form: str) -> bytes:
    from predictor.charts import Line, draw  # matplotlib, which need not be there

    lines = [
        Line(
            engine=one.label,
            threads=one.threads,
            batches=list(one.samples),
            milliseconds=[one.latencies(batch)[0] for batch in one.samples],
            images_per_second=[one.figures(batch)['images_per_second'] for batch in one.samples],
        )
        for one in series
        if one.samples
    ]
    return draw(lines, title, form)


def write_new(path: Path, content: bytes) -> None:
    """To a file that is not there yet."""
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
