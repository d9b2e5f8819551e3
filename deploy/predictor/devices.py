"""Which device computes: the CPU, an NVIDIA GPU or an Ascend NPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Callable

import installation
from predictor import paddle_import
from predictor.errors import UserError

DRIVER = 'nvcuda.dll' if os.name == 'nt' else 'libcuda.so.1'  # NVIDIA's


def find_device(name: str, report: Callable[[str], None] = print) -> str:
    """The device with its number; for 'auto', the first available of gpu:0, npu:0 and cpu.

    UserError if it is not available. If Paddle does not load, `report` gets the reason, and the
    devices are those of the other engines.
    """
    kind, _, number = name.partition(':')
    bad = number and (not number.isdecimal() or kind in ('auto', 'cpu'))
    if kind not in ('auto', 'cpu', 'gpu', 'npu') or bad:
        raise UserError(f'--device {name}: use auto, cpu, gpu, gpu:1, npu or npu:1')
    if kind == 'cpu':
        return kind
    # Importing paddle takes seconds; with auto, only where it may find a card.
    maybe = _may_have_gpu() or paddle_import.may_have_npu() or kind != 'auto'
    cards = _cards_without_paddle()
    try:
        cards = _cards() if maybe else cards
    except UserError as error:
        if kind != 'auto' and not cards[kind]:
            raise
        report(f'Paddle is not used: {error}')
    if kind == 'auto':
        return next((f'{card}:0' for card, count in cards.items() if count), 'cpu')
    if int(number or 0) >= cards[kind]:
        why = installation.unused_card() or f'{cards["gpu"]} GPUs, {cards["npu"]} NPUs'
        raise UserError(f'--device {name} is not available: {why}')
    return f'{kind}:{number or 0}'


def _may_have_gpu() -> bool:
    """Whether a package for GPUs and a card are available."""
    package = installation.built_for('gpu') or installation.version('onnxruntime-gpu')
    return bool(package) and _nvidia_cards() > 0


def _cards() -> dict[str, int]:
    """How many there are."""
    cards = _cards_without_paddle()
    if not installation.installed('paddle'):
        return cards
    paddle = paddle_import.import_paddle()
    gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    npus = [name for name in paddle.device.get_available_custom_device() if name.startswith('npu')]
    return {'gpu': max(gpus, cards['gpu']), 'npu': len(npus)}


def _cards_without_paddle() -> dict[str, int]:
    """Those that ONNX Runtime can use."""
    return {'gpu': _nvidia_cards() if installation.version('onnxruntime-gpu') else 0, 'npu': 0}


def _nvidia_cards() -> int:
    """As the driver counts them, CUDA_VISIBLE_DEVICES included; 0 without a driver."""
    count = ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL(DRIVER)
        if driver.cuInit(0) == 0:
            driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value
