"""ResNeXt and WRN-50-2 in plain PyTorch, written from the paper: a rival, and the tests' reference.

    ResNeXt(blocks=(3, 4, 6, 3), cardinality=32, width=4, num_classes=1000)    # for photographs
    ResNeXt(blocks=(3, 3, 3), cardinality=8, width=64, num_classes=10)         # for CIFAR

Names are torchvision's, so that state dicts are interchangeable with it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Sequence

import torch
from torch import Tensor, nn


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Reduce, transform in groups, expand; then add the shortcut and rectify."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = projection(inputs, outputs, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        hidden = torch.relu(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(hidden))
        return torch.relu(hidden + (x if self.downsample is None else self.downsample(x)))


class ResNeXt(nn.Module):
    """Four stages for photographs or three for small images, of `blocks` blocks each."""

    def __init__(
        self, *, blocks: Sequence[int], cardinality: int, width: int, num_classes: int
    ) -> None:
        super().__init__()
        photographs = len(blocks) == 4
        self.conv1 = (
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
            if photographs
            else nn.Conv2d(3, 64, 3, padding=1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if photographs else nn.Identity()
        inputs, inner, outputs = 64, cardinality * width, 256
        self.stages = []
        for number, count in enumerate(blocks, start=1):
            stage = OrderedDict()
            for i in range(count):
                stride = 2 if i == 0 and number > 1 else 1
                stage[str(i)] = Block(inputs, inner, outputs, stride, cardinality)
                inputs = outputs
            self.add_module(f'layer{number}', nn.Sequential(stage))
            self.stages.append(f'layer{number}')
            inner, outputs = 2 * inner, 2 * outputs
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(x.mean(dim=(2, 3)))
