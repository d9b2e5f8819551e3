"""The memory that a step of training needs, estimated before the first one: a process that takes
too much is killed without a message.

What the backward pass needs of one image is counted by Paddle's allocator while one and two small
images go forward; it grows with their number and their pixels. Gradients and the optimizer's state
are as large as the weights.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
from typing import Iterator, Optional

import paddle
from paddle import nn

from engine import models
from engine.config import Config
from engine.data import preparation
from engine.errors import UserError
from engine.machine import devices, processes
from engine.machine.cpu import PROC
from engine.training.precision import Precision
from predictor import container

PROBE = {False: 32, True: 64}  # pixels of the small images; of networks for photographs
LARGE = 2  # a network for small images may see images this many times as high
ROOM = 0.7  # share of the free memory to advise: processes took up to half as much again


def check(model: nn.Layer, precision: Precision, config: Config, *, images: int) -> list[str]:
    """Lines about what a step needs. UserError, with what would fit, if the device has less.

    `images` are those of the training set: no batch is larger.
    """
    spec, size = models.parse(config.model.name), preparation(config).size
    advice = _advice(config.model.name, spec, size)
    batch, probe = min(config.data.batch_size, images), min(size, PROBE[spec.for_photos])
    image = 0.0
    if not config.train.to_static:  # would be compiled once more for this
        image = retained_by_an_image(model, precision, probe) * (size / probe) ** 2
    fixed = 8 * models.parameter_count(model)  # float32 gradients and momentum
    needed, free = batch * image + fixed, free_memory()
    has = '' if free is None else f', and {amount(free)} are free'
    text = f'a step of {batch} images needs about {amount(needed)} more ({amount(image)} an image'
    if image and free is not None and needed > free:
        fitting = _what_fits(config, int((ROOM * free - fixed) / image))
        problem = f'out of memory: {text} of {size}x{size}){has}; {fitting}'
        raise UserError('; '.join([problem, *advice]))
    lines = [f'memory: {text}){has}'] if image else []  # 0: this device's plug-in does not count
    return [*lines, *(f'warning: {text}' for text in advice)]


def _advice(name: str, spec: models.Spec, size: int) -> list[str]:
    """For a network for small images that gets photographs."""
    if spec.for_photos or size <= LARGE * spec.image_size:
        return []
    return [
        f'{name} is a network for images of {spec.image_size}x{spec.image_size}, and takes '
        f'{(size / spec.image_size) ** 2:.0f} times as long for {size}x{size}; for photographs '
        'take -c configs/finetune_folder.yaml or -o model.name=resnext50_32x4d'
    ]


def _what_fits(config: Config, fitting: int) -> str:
    if fitting < 1:
        return 'not even one image fits: take a smaller network (model.name) or smaller images'
    step = config.data.batch_size * config.train.accumulate
    parts = math.ceil(step / fitting)
    return (
        f'-o data.batch_size={math.ceil(step / parts)} would fit, and train.accumulate={parts} '
        'keeps as many images a step'
    )


def retained_by_an_image(model: nn.Layer, precision: Precision, side: int) -> int:
    """Bytes that the backward pass needs of one image of that side, itself included."""
    held = []
    gc.collect()  # or garbage of an earlier run in this process may be freed in between
    with _as_it_was(model):
        for count in (1, 2):
            before = _in_use()
            images = paddle.zeros([count, 3, side, side])
            with precision.autocast():
                logits = model(images)
            held.append(_in_use() - before)
            del images, logits
    return max(0, held[1] - held[0])


@contextlib.contextmanager
def _as_it_was(model: nn.Layer) -> Iterator[None]:
    """Within, the model is in training mode; afterwards its mode and statistics are as before."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    kept += [(p, p.clone()) for p in model.parameters() if p.stop_gradient]
    training = model.training
    model.train()
    try:
        yield
    finally:
        for tensor, value in kept:
            tensor.set_value(value)
        model.train() if training else model.eval()


def _in_use() -> int:
    """Bytes of tensors on the device."""
    kind, _, number = paddle.get_device().partition(':')
    core = paddle.base.core
    if kind == 'cpu':
        return int(core.host_memory_stat_current_value('Allocated', 0))
    return int(core.device_memory_stat_current_value('Allocated', int(number or 0)))


def free_memory() -> Optional[float]:
    """Bytes that this process may still take on its device; None where that is unknown."""
    kind = devices.device_kind()
    if kind == 'gpu':
        return float(paddle.device.cuda.get_device_properties().total_memory - _in_use())
    if kind == 'cpu':
        free = min(_host_memory(), container.memory_left())
        here = int(os.environ.get('PADDLE_LOCAL_SIZE', processes.WORLD_SIZE))
        return None if math.isinf(free) else free / here
    return None


def _host_memory() -> float:
    """Bytes that Linux can give, with what it can swap out; elsewhere, what the machine has."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = (PROC / 'meminfo').read_text().splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, rest in (s.split(':') for s in lines)}
        return 1024.0 * (kilobytes['MemAvailable'] + kilobytes['SwapFree'])
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
        return float(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    return math.inf


def amount(size: float) -> str:
    """1.2 GB, 340 MB, 0.5 MB, 30 kB."""
    if size >= 1e9:
        return f'{size / 1e9:.1f} GB'
    if size >= 1e5:
        return f'{size / 1e6:.{0 if size >= 1e7 else 1}f} MB'
    return f'{size / 1e3:.0f} kB'
