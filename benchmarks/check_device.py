"""python3 -m benchmarks.check_device [--device gpu] [--only NAME ...] [--output FILE] [...]

The first command for a machine with a GPU or an Ascend. It trains, resumes, exports and infers
there, compares the results with a CPU, and writes a page (Markdown) of what passes, what fails, and
speed. After a failed check it continues with the next. Each check runs in its own processes.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Callable

from benchmarks.device import (
    RESNEXT_29,
    RESNEXT_50,
    SMALL,
    WRN_28,
    WRN_50,
    Mode,
    Network,
    Row,
    Scale,
    measure,
    outcome,
)
from benchmarks.device_page import FAIL, PASS, SKIPPED, Failure, Page, Skipped, ask, run
from benchmarks.processes import REPOSITORY
from benchmarks.train_step import has_bfloat16

FLOAT32, BITS_16 = 0.03, 0.1  # how far losses may be from a CPU's: TF32 has 10 bits, too


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        end = time.monotonic() + 60 * args.minutes
        page = Page(args.output, Path(scratch), args.quick, end, {'kind': args.device})
        try:
            page.about = ask(page, 'describe', device=args.device)
        except Failure as failure:
            sys.exit(f'{args.device}: {failure}')
        for name, check in CHECKS.items():
            if args.only and name not in args.only:
                continue
            try:
                check(page)
            except Skipped as reason:
                page.note(name, SKIPPED, str(reason))
            except Failure as failure:
                page.note(name, FAIL, str(failure))
            except Exception:  # a bug of this benchmark's, which must not hide what else is found
                page.note(name, FAIL, traceback.format_exc().strip())
    print(f'wrote {page.file}')
    sys.exit(any(outcome == FAIL for _, outcome, _ in page.found))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python3 -m benchmarks.check_device',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--device', choices=('auto', 'gpu', 'npu', 'cpu'), default='auto')
    parser.add_argument('--only', nargs='+', choices=CHECKS, metavar='NAME', help=', '.join(CHECKS))
    parser.add_argument('--output', type=Path, default=Path('device.md'), metavar='FILE')
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--quick', action='store_true', help='small networks: shows that it works')
    return parser.parse_args()


# ------------------------------------------------------------------ checks


def check_device(page: Page) -> None:
    about = page.about
    if page.kind not in str(about['computed on']).lower():
        raise Failure(f'{about["line"]}, but it was computed on {about["computed on"]}')
    errors = {name: about[f'{name} error'] for name in ('product', 'convolution')}
    text = ', '.join(f'{name} off by {error:.1e}' for name, error in errors.items())
    if max(errors.values()) > 1e-2:
        raise Failure(text)
    rounded = max(errors.values()) > 1e-5
    page.note('device', PASS, f'{text}{" (TF32 or float16, not float32)" if rounded else ""}')


def check_kernels(page: Page) -> None:
    """What the registry has; an operator without a kernel is computed on the CPU, by Paddle."""
    found = ask(page, 'kernels', device=page.kind)
    for dtype in ('float', 'float16', 'bfloat16'):
        lacking = [name for name, types in found.items() if dtype not in types]
        expected = page.kind == 'gpu' and dtype == 'float'
        text = f'{dtype}: all but {", ".join(lacking)}' if lacking else f'{dtype}: all'
        page.note('kernels', FAIL if expected and 'momentum' in lacking else PASS, text)


# name -> overrides, variables, and how far losses may be from a CPU's.
Variant = tuple[list[str], dict[str, str], float]
O1, O2 = 'train.amp=O1', 'train.amp=O2'
BF16, NCHW, NHWC = 'train.amp_dtype=bfloat16', 'model.data_format=NCHW', 'model.data_format=NHWC'
VARIANTS: dict[str, dict[str, Variant]] = {
    'gpu': {
        'float32 NCHW': ([NCHW], {}, FLOAT32),
        'float32 NHWC': ([NHWC], {}, FLOAT32),
        'O1 float16 NCHW': ([O1, NCHW], {}, BITS_16),
        'O1 float16 NCHW, persistent': (
            [O1, NCHW],
            {'FLAGS_cudnn_batchnorm_spatial_persistent': '1'},
            BITS_16,
        ),
        'O1 float16 NHWC': ([O1, NHWC], {}, BITS_16),
        'O1 bfloat16 NCHW': ([O1, BF16, NCHW], {}, BITS_16),
        'O1 bfloat16 NHWC': ([O1, BF16, NHWC], {}, BITS_16),
        'O2 float16 NCHW (and masters move)': ([O2, NCHW], {}, BITS_16),
        'O2 float16 NHWC (and masters move)': ([O2, NHWC], {}, BITS_16),
        'to_static': (['train.to_static=true'], {}, FLOAT32),
        'cinn': (['train.to_static=cinn'], {}, FLOAT32),
    },
    'npu': {
        'float32': ([], {}, FLOAT32),
        'O1 float16': ([O1], {}, BITS_16),
        'O2, which becomes O1': ([O2], {}, BITS_16),
        'to_static': (['train.to_static=true'], {}, FLOAT32),
        'images from the host': (['data.on_device=false'], {}, FLOAT32),
    },
    'cpu': {
        'oneDNN': ([], {}, FLOAT32),
        **({'oneDNN bfloat16': ([O1, BF16], {}, BITS_16)} if has_bfloat16() else {}),
    },
}


def train_ten_steps(page: Page, device: str, overrides: list[str], **more: Any) -> Any:
    small = {'networks': ['wide_resnet10_1', 'resnext11_2x4d'], 'side': 16, 'batch': 8}
    large = {'networks': ['wide_resnet16_2', 'resnext29_2x16d'], 'side': 32, 'batch': 32}
    settings = {**(small if page.quick else large), 'lacking': True, **more}
    return ask(page, 'losses', device=device, overrides=overrides, **settings)


def check_losses(page: Page) -> None:
    """Ten steps from the same weights on the same images, beside Paddle's own CPU kernels."""
    expected = train_ten_steps(page, 'cpu', ['train.cpu_conv=paddle'])['losses']
    for name, (overrides, variables, limit) in VARIANTS[page.kind].items():
        title = f'losses: {name}'
        try:
            found = train_ten_steps(page, page.kind, overrides, variables=variables)
        except Failure as failure:
            page.note(title, FAIL, str(failure))
            continue
        off = {
            network: max(abs(a - b) for a, b in zip(losses, expected[network]))
            for network, losses in found['losses'].items()
        }
        text = ', '.join(f'{network} off by {value:.1e}' for network, value in off.items())
        lines = ''.join(f'; {line}' for line in found['lines'])
        page.note(title, PASS if max(off.values()) < limit else FAIL, text + lines)


def check_o2(page: Page) -> None:
    """Whether the plug-in's momentum still ignores the master weights."""
    if page.kind != 'npu':
        raise Skipped('for an npu; on a GPU, a row of losses')
    try:
        train_ten_steps(page, 'npu', [O2], lacking=False)
    except Failure as failure:
        if 'train.amp: O2 fails' not in str(failure):
            raise Failure(f'O2 ends before that shows: {failure}') from None
        page.note('o2', PASS, f'O2 is rightly O1 on npu: {failure}')
    else:
        page.note('o2', FAIL, 'O2 works here: engine/machine/support.py need not make it O1')


def check_same_seed(page: Page) -> None:
    overrides = [] if page.kind == 'cpu' else [O1]
    first, second = (train_ten_steps(page, page.kind, overrides) for _ in range(2))
    equal = first['weights'] == second['weights']
    text = (
        'two runs with one seed are equal to the bit' if equal else 'two runs with one seed differ'
    )
    page.note('same_seed', PASS if equal or page.kind != 'cpu' else FAIL, text)


def trained(page: Page) -> Path:
    """A run of eight steps, with a checkpoint after five; the same once more from there."""
    whole, resumed = page.scratch / 'whole', page.scratch / 'resumed'
    if not whole.exists():
        settings = ['-c', str(REPOSITORY / 'configs' / 'quickstart.yaml'), '-o']
        settings += [f'device={page.kind}', 'train.max_steps=8', 'train.save_every_steps=5']
        fixed = {'FLAGS_cudnn_deterministic': '1'} if page.kind == 'gpu' else {}
        run(page, [str(REPOSITORY / 'train.py'), *settings, f'output.dir={whole}'], fixed)
        inside = whole / 'checkpoints' / 'epoch_0000_batch_00005'
        arguments = ['--resume', str(inside), '-o', f'output.dir={resumed}']
        run(page, [str(REPOSITORY / 'train.py'), *arguments], fixed)
    return whole


def check_resume(page: Page) -> None:
    import numpy as np

    from engine.weights import read_weights

    whole = trained(page)
    runs = whole, page.scratch / 'resumed'
    ours, expected = (read_weights(folder / 'best.pdparams').arrays for folder in runs)
    off = max(float(np.abs(ours[name] - array).max()) for name, array in expected.items())
    if off > 1e-3:
        raise Failure(f'a resumed run is off by {off:.1e} from an uninterrupted one')
    text = 'equals an uninterrupted one to the bit' if not off else f'is off by {off:.1e} from one'
    page.note('resume', PASS, f'a resumed run {text}')


def two(page: Page) -> None:
    if page.kind != 'cpu' and page.about['cards'] < 2:
        raise Skipped('there is one card')


def check_sync_bn(page: Page) -> None:
    if page.kind != 'gpu':
        raise Skipped(f'Paddle has no kernel for {page.kind}')
    two(page)
    for answer in ask(page, 'sync_bn', processes=2, device='gpu'):
        if max(abs(a - b) for a, b in zip(answer['mean'], answer['of all'])) > 1e-4:
            raise Failure(f'a SyncBatchNorm has not seen all processes: {answer}')
    page.note('sync_bn', PASS, 'a SyncBatchNorm of two processes has the mean of both')


def check_processes(page: Page) -> None:
    """Two processes have the same weights after ten steps, each on a part of each batch."""
    two(page)
    first, second = train_ten_steps(page, page.kind, [], processes=2)
    if first['weights'] != second['weights']:
        raise Failure('two processes have different weights after ten steps')
    page.note('processes', PASS, 'two processes have the same weights after ten steps')


ENGINES = {
    'gpu': [('paddle', 'float32'), ('tensorrt', 'float32'), ('tensorrt', 'float16')],
    'npu': [('paddle', 'float32')],
    'cpu': [('paddle', 'float32'), ('onnxruntime', 'float32'), ('openvino', 'float32')],
}


def check_engines(page: Page) -> None:
    """An exported network, through each engine, beside dygraph on the CPU."""
    weights, folder = trained(page) / 'best.pdparams', page.scratch / 'exported'
    export = [str(REPOSITORY / 'export.py'), '-w', str(weights.parent), '--output', str(folder)]
    try:
        run(page, [*export, '--onnx'])
    except Failure as failure:  # paddle2onnx is not everywhere
        page.note('engines: export --onnx', SKIPPED, str(failure))
        run(page, export)
    config = str(REPOSITORY / 'configs' / 'quickstart.yaml')
    about: dict[str, Any] = {'weights': str(weights), 'config': config, 'folder': str(folder)}
    ask(page, 'expected_logits', count=16, **about)
    engines = [*ENGINES[page.kind]]
    if page.kind == 'gpu':
        engines += [('onnxruntime', 'float32'), ('paddle', 'float16')]
    for engine, precision in engines:
        title, limit = f'engines: {engine} {precision}', 2e-2 if page.kind != 'cpu' else 1e-4
        about = {'folder': str(folder), 'engine': engine, 'precision': precision}
        try:
            off = max(ask(page, 'logits', device=page.kind, batches=[1, 16], **about).values())
            page.note(title, PASS if off < limit else FAIL, f'logits off by {off:.1e}')
        except Failure as failure:
            unavailable = 'cannot run here' in str(failure)  # its package or model.onnx is missing
            page.note(title, SKIPPED if unavailable else FAIL, str(failure))


# ------------------------------------------------------------------ speed

QUICK = SMALL.networks[:1]
WRN_40 = Network('WRN-40-10', 'wrn40_10_cifar10', 'wide_resnet40_10', 64)
NETWORKS = (WRN_28, RESNEXT_50, RESNEXT_29, WRN_40, WRN_50)
MODES = (
    *(Mode('O1', 'float16', 'NHWC'), Mode('O1', 'bfloat16'), Mode()),
    *(Mode('O1', 'float16'), Mode('O1', 'bfloat16', 'NHWC')),
)
EXHAUSTIVE = {'FLAGS_cudnn_exhaustive_search': '1'}


def check_speed(page: Page) -> None:
    """Each recipe's network in each mode, as far as the time goes."""
    networks = QUICK if page.quick else NETWORKS
    steps = 2 if page.quick or page.kind == 'cpu' else 40
    scale = Scale(networks, steps=steps, epochs=2, matrix=0)
    modes = [mode for mode in MODES if mode.suits(page.kind)]
    if page.kind == 'npu':
        modes = [mode for mode in modes if mode.dtype != 'bfloat16']
    planned: list[tuple[Network, Mode, dict[str, str]]]
    planned = [(network, mode, {}) for mode in modes for network in networks]
    if page.kind == 'gpu':
        planned.insert(1, (networks[0], modes[0], EXHAUSTIVE))
    for number, (network, mode, variables) in enumerate(planned):
        if page.seconds_left < 20:
            rest = len(planned) - number
            page.note(
                'speed', SKIPPED, f'{rest} of {len(planned)} rows: no time is left (--minutes)'
            )
            return
        row = measure(Row(network, mode), page.kind, scale, variables)
        torch = '' if variables else torch_speed(page, network, mode)
        title = ' '.join([row.title, *('exhaustive search' for _ in variables)])
        page.rows.append((title, row.failure or outcome(row), torch))
        print(f'{title}: {row.failure or outcome(row)} {torch}', flush=True)
        page.write()
    failed = sum('images/s' not in speed for _, speed, _ in page.rows)
    page.note('speed', FAIL if failed else PASS, f'{len(page.rows)} rows, {failed} failed')


def torch_speed(page: Page, network: Network, mode: Mode) -> str:
    """images/s of the same network in PyTorch, where it is installed and has the device."""
    if page.kind == 'npu' or network.model.startswith('wide_resnet50'):
        return ''
    from benchmarks.processes import Worker

    settings = {
        'model': network.model,
        'dropout': 0.0,
        'batch': network.batch,
        'dtype': mode.dtype,
        'channels_last': mode.layout == 'NHWC',
        'device': 'cuda' if page.kind == 'gpu' else 'cpu',
    }
    times = 2 if page.quick else 20
    with contextlib.suppress(RuntimeError), Worker('torch_step', settings) as worker:
        worker.ask('steps', times=times)
        [answer] = worker.ask('steps', times=times)
        return f'{network.batch * times / answer["seconds"]:.1f} images/s'
    return ''


CHECKS: dict[str, Callable[[Page], None]] = {
    'device': check_device,
    'sync_bn': check_sync_bn,
    'kernels': check_kernels,
    'losses': check_losses,
    'o2': check_o2,
    'same_seed': check_same_seed,
    'resume': check_resume,
    'processes': check_processes,
    'engines': check_engines,
    'speed': check_speed,
}


if __name__ == '__main__':
    main()
