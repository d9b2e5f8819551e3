"""The machine: devices, packages, processor, cores, and the folder for our cache."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Callable, Optional

from installation import built_for, unused_card
from predictor.errors import UserError

PLUGIN = re.compile(r'Fail to open library: (\S+) with error: (.*)')
DRIVER = 'nvcuda.dll' if os.name == 'nt' else 'libcuda.so.1'  # NVIDIA's
# What Paddle's page on NPUs and PaddleX set; paddle-custom-npu reads them when it is loaded.
NPU_FLAGS = {
    'FLAGS_npu_storage_format': '0',  # no private layout: the plug-in warns of its accuracy
    'FLAGS_npu_jit_compile': '0',  # no compiling of operators while running
    'FLAGS_npu_scale_aclnn': 'True',  # not CANN's old Power operator
    'FLAGS_npu_split_aclnn': 'True',
    'FLAGS_use_stride_kernel': '0',  # its kernels expect contiguous memory
    'FLAGS_allocator_strategy': 'auto_growth',
}
CGROUP = Path('/sys/fs/cgroup')
_HOME = os.path.expanduser('~')  # '~' for a container's user who has none
_CACHES = Path('/' if _HOME == '~' else _HOME, '.cache')
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or _CACHES) / 'wide-resnet-resnext'


def may_have_npu() -> bool:
    """Whether importing paddle loads plug-ins of devices: without the variable, those of pip."""
    folder = os.environ.get('CUSTOM_DEVICE_ROOT')
    return version('paddle-custom-npu') is not None if folder is None else folder != ''


def set_npu_flags() -> None:
    """Before paddle is imported, where it may load a plug-in. What the user has set stays."""
    if may_have_npu():
        for name, value in NPU_FLAGS.items():
            os.environ.setdefault(name, value)


def plugin_problem(text: str) -> Optional[str]:
    """What to do about an exception with this text; None if it is not of a plug-in."""
    found = PLUGIN.search(text)
    return found and (
        f'the plug-in {found[1]} cannot be loaded: {found[2].strip()}; source the set_env.sh of '
        'CANN and of its nnal/atb (docs/ascend.md), or export CUSTOM_DEVICE_ROOT= to do without it'
    )


def find_device(wanted: str, tell: Callable[[str], None] = print) -> str:
    """The wanted device with its number; for 'auto', the first there is of gpu:0, npu:0 and cpu.

    UserError if it is not here. Where Paddle does not load, `tell` gets the reason, and devices
    are those of the other engines.
    """
    kind, _, number = wanted.partition(':')
    bad = number and (not number.isdecimal() or kind in ('auto', 'cpu'))
    if kind not in ('auto', 'cpu', 'gpu', 'npu') or bad:
        raise UserError(f'--device {wanted}: auto, cpu, gpu, gpu:1, npu and npu:1 are known')
    if kind == 'cpu':
        return kind
    # Importing paddle takes seconds; with auto, only where it may find a card.
    maybe = _may_have_gpu() or may_have_npu() or kind != 'auto'
    cards = _cards_without_paddle()
    try:
        cards = _cards() if maybe else cards
    except UserError as error:
        if kind != 'auto' and not cards[kind]:
            raise
        tell(f'Paddle is not used: {error}')
    if kind == 'auto':
        return next((f'{name}:0' for name, count in cards.items() if count), 'cpu')
    if int(number or 0) >= cards[kind]:
        why = unused_card() or f'{cards["gpu"]} GPUs, {cards["npu"]} NPUs'
        raise UserError(f'--device {wanted} is not here: {why}')
    return f'{kind}:{number or 0}'


def _may_have_gpu() -> bool:
    """Whether there are a package for GPUs and a card."""
    return (built_for('gpu') or version('onnxruntime-gpu') is not None) and _nvidia_cards() > 0


def _cards() -> dict[str, int]:
    """How many there are."""
    cards = _cards_without_paddle()
    if not installed('paddle'):
        return cards
    from predictor.paddle_engine import import_paddle

    paddle = import_paddle()
    gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    npus = [name for name in paddle.device.get_available_custom_device() if name.startswith('npu')]
    return {'gpu': max(gpus, cards['gpu']), 'npu': len(npus)}


def _cards_without_paddle() -> dict[str, int]:
    """Those that ONNX Runtime can use."""
    return {'gpu': _nvidia_cards() if version('onnxruntime-gpu') else 0, 'npu': 0}


def _nvidia_cards() -> int:
    """As the driver counts them, CUDA_VISIBLE_DEVICES included; 0 without a driver."""
    count = ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL(DRIVER)
        if driver.cuInit(0) == 0:
            driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def version(*packages: str) -> Optional[str]:
    """Of the first that is installed."""
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def cores() -> int:
    """That this process may use."""
    if not hasattr(os, 'sched_getaffinity'):  # macOS
        return os.cpu_count() or 1
    return math.ceil(min(len(os.sched_getaffinity(0)), _container_limit()))


def _container_limit() -> float:
    """The cores' worth of time that a container may use (docker run --cpus 2)."""
    for files in (['cpu.max'], ['cpu/cpu.cfs_quota_us', 'cpu/cpu.cfs_period_us']):  # version 2, 1
        with contextlib.suppress(OSError, ValueError):  # ValueError: 'max'
            quota, period = ' '.join((CGROUP / file).read_text() for file in files).split()
            if float(quota) > 0:
                return float(quota) / float(period)
    return math.inf


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
