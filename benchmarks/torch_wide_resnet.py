"""The same network in plain PyTorch, written from the paper: the rival, and the tests' reference.

    WideResNet(depth=28, widen_factor=10, num_classes=10, dropout=0.3)

Names are those of our wide_resnet.py in torch's convention (running_mean for _mean, running_var for
_variance, fc.weight transposed), so that weights can be carried over by name.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-dropout-conv; the projection of the shortcut sees the first BN-ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.convShortcut: Optional[nn.Conv2d] = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        residual = torch.relu(self.bn2(self.conv1(activated)))
        residual = self.conv2(self.dropout(residual))
        if self.convShortcut is not None:
            x = self.convShortcut(activated)
        return x + residual


class Stage(nn.Module):
    def __init__(self, count: int, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        blocks = [PreActivationBlock(inputs, outputs, stride, dropout)]
        for _ in range(1, count):
            blocks.append(PreActivationBlock(outputs, outputs, 1, dropout))
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-widen_factor for float32 [N, 3, H, W]; logits [N, num_classes]."""

    def __init__(
        self, *, depth: int, widen_factor: int, num_classes: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        count = (depth - 4) // 6
        if depth != 6 * count + 4:
            raise ValueError(f'depth must be 6n + 4, not {depth}')
        width = 16 * widen_factor
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(count, 16, width, 1, dropout)
        self.block2 = Stage(count, width, 2 * width, 2, dropout)
        self.block3 = Stage(count, 2 * width, 4 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        features = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(torch.relu(self.bn1(features)).mean(dim=(2, 3)))
