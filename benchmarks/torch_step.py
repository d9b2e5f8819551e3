"""Worker: training steps of the PyTorch network, on as many threads as the process has cores."""

from __future__ import annotations

import json
import os
import sys

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.processes import Answer, seconds, serve
from benchmarks.torch_resnext import ResNeXt
from benchmarks.torch_wide_resnet import WideResNet
from engine.models import Spec, parse


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    spec = parse(settings['model'])
    device = torch.device(settings.get('device', 'cpu'))
    model = build(spec, settings['dropout']).to(device)
    images = torch.randn(settings['batch'], 3, spec.image_size, spec.image_size, device=device)
    labels = torch.randint(0, 10, (settings['batch'],), device=device)
    if settings['channels_last']:
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    dtype = getattr(torch, settings['dtype'])
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(images)
        scaler.scale(F.cross_entropy(logits.float(), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    def steps(times: int) -> Answer:
        def take() -> None:
            for _ in range(times):
                step()
            if device.type == 'cuda':
                torch.cuda.synchronize()

        return {'seconds': seconds(take)}

    def matmul(size: int, times: int) -> Answer:
        a, b = torch.randn(2, size, size)
        a @ b
        return {'seconds': seconds(lambda: a @ b, times)}

    serve({'steps': steps, 'matmul': matmul})


def build(spec: Spec, dropout: float) -> nn.Module:
    """What engine.models.build would, in PyTorch; of those for photographs, ResNeXt-50."""
    if spec.preactivated:
        return WideResNet(depth=spec.depth, widen_factor=spec.width, dropout=dropout)
    blocks = (3, 4, 6, 3) if spec.for_photos else 3 * ((spec.depth - 2) // 9,)
    classes = 1000 if spec.for_photos else 10
    return ResNeXt(
        blocks=blocks, cardinality=spec.cardinality, width=spec.width, num_classes=classes
    )


if __name__ == '__main__':
    main()
