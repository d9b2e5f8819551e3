"""python3 -m benchmarks.torch_train RUN [key=value ...]: the recipe of a run, in PyTorch.

The same network, images (by our batches, with the same seed), learning rates, label smoothing,
weight decay and averaged weights, on as many threads as there are cores, with channels last, and in
bfloat16 (autocast) if the recipe has it. What it reaches after the last epoch goes beside the run's
own in results.json. A run of several processes had data.batch_size images in each: name their sum.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.record_run import PLACES
from benchmarks.report import machine, read_results, write_results
from benchmarks.torch_step import build
from benchmarks.train_step import has_bfloat16
from engine import cli, data
from engine.config import Config, chosen
from engine.data.batches import Batches
from engine.errors import UserError
from engine.models import parse
from engine.run.reading import load_run_config
from engine.training.schedule import make_schedule, peak_lr

NOT_HERE = {
    'model': ('init', 'zero_init_last_bn', 'pretrained'),
    'data': ('mixup', 'cutmix'),
    'optimizer': ('clip_norm',),
    'train': ('accumulate', 'max_steps'),
}


class Averaged:
    """As engine.training.averaging.AveragedWeights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._own = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
        self._average = {name: tensor.clone() for name, tensor in self._own.items()}
        self._decay = decay

    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, average in self._average.items():
            average.lerp_(self._own[name], 1 - decay)

    def take_over(self) -> None:
        """The model has the averaged weights from here on."""
        for name, tensor in self._own.items():
            tensor.copy_(self._average[name])


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError('name the folder of a run, and key=value for what is to be otherwise')
    run = Path(sys.argv[1])
    config = load_run_config(run, [*sys.argv[2:], 'data.on_device=false'])
    require_known(config)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(config.seed)
    dataset = data.load_data(config)
    if len(dataset.classes) != 10:
        raise UserError(f'the networks in PyTorch have 10 classes; {dataset.origin} has others')
    start = time.perf_counter()
    model = train(config, data.train_batches(dataset, config))
    seconds = time.perf_counter() - start
    accuracy = evaluate(model, data.test_batches(dataset, config))
    print(f'accuracy {100 * accuracy:.2f} % after {seconds / 60:.1f} minutes')
    content = read_results()
    content.setdefault('runs_in_pytorch', {})[run.name] = {
        'epochs': config.train.epochs,
        'accuracy': accuracy,
        'training_seconds': round(seconds),
        'in_bfloat16': in_bfloat16(config),
        'settings': chosen(config, but=PLACES),
        'machine': machine(),
    }
    write_results(content)


def require_known(config: Config) -> None:
    """UserError where the recipe has something that is not done here."""
    if parse(config.model.name).for_photos:
        raise UserError(f'model.name: {config.model.name} is not done in PyTorch here')
    plain = Config()
    for section, names in NOT_HERE.items():
        for name in names:
            if getattr(getattr(config, section), name) != getattr(getattr(plain, section), name):
                raise UserError(f'{section}.{name} of the recipe is not done in PyTorch here')


def in_bfloat16(config: Config) -> bool:
    """Where the recipe is, and the CPU can: elsewhere, ours is in float32, too."""
    requested = config.train.amp != 'none' and config.train.amp_dtype == 'bfloat16'
    return requested and has_bfloat16()


def train(config: Config, batches: Batches) -> nn.Module:
    model = build(parse(config.model.name), config.model.dropout)
    model = model.to(memory_format=torch.channels_last)
    lr_at = make_schedule(
        config.schedule,
        lr=peak_lr(config.optimizer, batches.global_batch_size),
        epochs=config.train.epochs,
        steps_per_epoch=len(batches),
    )
    optimizer = torch.optim.SGD(
        groups(model, config),
        lr=config.optimizer.lr,
        momentum=config.optimizer.momentum,
        nesterov=config.optimizer.nesterov,
    )
    averaged = Averaged(model, config.train.ema) if config.train.ema else None
    for step, (images, labels) in enumerate(all_batches(batches, config.train.epochs)):
        for group in optimizer.param_groups:
            group['lr'] = lr_at(step)
        smoothing = config.train.label_smoothing
        with torch.autocast('cpu', torch.bfloat16, enabled=in_bfloat16(config)):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if averaged is not None:
            with torch.no_grad():
                averaged.update(step)
        if step % 50 == 0:
            print(f'iter:{step}  loss:{loss.item():.4f}', flush=True)
    if averaged is not None:
        averaged.take_over()
    return model


def groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """What weight decay is for, and what it is not for."""
    decayed = {True: config.optimizer.weight_decay, False: 0.0}
    by_kind: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        by_kind[config.optimizer.decay_bn_and_bias or parameter.ndim > 1].append(parameter)
    return [{'params': by_kind[kind], 'weight_decay': decayed[kind]} for kind in by_kind]


def all_batches(batches: Batches, epochs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for batch in batches:
            images = torch.from_numpy(np.asarray(batch.images))
            yield (
                images.contiguous(memory_format=torch.channels_last),
                torch.from_numpy(np.asarray(batch.labels)),
            )


def evaluate(model: nn.Module, batches: Batches) -> float:
    """The share of images whose likeliest class is theirs."""
    model.eval()
    right = 0
    with torch.no_grad():
        for batch in batches:
            predictions = model(torch.from_numpy(np.asarray(batch.images))).argmax(1).numpy()
            right += int((predictions == batch.labels).sum())
    return right / len(batches.images)


if __name__ == '__main__':
    cli.run(main)
