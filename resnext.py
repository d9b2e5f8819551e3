"""ResNeXt (Xie, Girshick, Dollar, Tu & He, CVPR 2017, https://arxiv.org/abs/1611.05431).

The bottleneck of Figure 3(c), the ImageNet networks of Table 1 and section 5.1, and ResNeXt-29 for
CIFAR (section 5.3). The file needs nothing but paddle, so it can be copied alone.

    model = resnext50_32x4d(num_classes=1000)
    logits = model(images)                    # float32 [N, 3, H, W] -> [N, 1000]

State-dict names are those of torchvision and paddle.vision. The 3x3 convolution has
`cardinality * width` channels in the first stage and doubles with each stage; with a cardinality
of 1 and a width of 128 the same network is WRN-50-2 (wide_resnet.py).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Sequence

from paddle import ParamAttr, Tensor, nn
from paddle.nn import functional as F
from paddle.nn.initializer import Constant, Normal, Uniform

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STEM = 64  # channels before the first stage
EXPANSION = 4  # the stages end with 256, 512, 1024 (and 2048) channels, whatever the cardinality


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    data_format: str = 'NCHW',
) -> nn.Conv2D:
    """Convolution without bias (a batch norm follows), He-normal over the fan-out."""
    if data_format not in ('NCHW', 'NHWC'):
        raise ValueError(f'data_format must be NCHW or NHWC, not {data_format!r}')
    std = math.sqrt(2.0 / (kernel * kernel * out_channels))
    return nn.Conv2D(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        weight_attr=Normal(0.0, std),
        bias_attr=False,
        data_format=data_format,
    )


def classifier(features: int, num_classes: int) -> nn.Linear:
    """The last layer, with zero bias."""
    if num_classes < 1:
        raise ValueError(f'num_classes must be 1 or more, not {num_classes}')
    bound = 1.0 / math.sqrt(features)
    return nn.Linear(
        features, num_classes, weight_attr=Uniform(-bound, bound), bias_attr=Constant(0.0)
    )


def to_data_format(images: Tensor, data_format: str) -> Tensor:
    """Images [N, C, H, W] in the memory layout of the layers that follow."""
    return images if data_format == 'NCHW' else images.transpose([0, 2, 3, 1])


def global_mean(x: Tensor, data_format: str) -> Tensor:
    """Global average pooling, to [N, C]."""
    return x.mean([data_format.index('H'), data_format.index('W')])


class NormReLU(nn.Layer):
    """ReLU(norm(x)), where `norm` is a batch norm of the block that calls it.

    It has no weights. It is a layer so that a faster one can take its place (engine/cpu_conv).
    """

    def forward(self, norm: nn.Layer, x: Tensor) -> Tensor:
        return F.relu(norm(x))


class Bottleneck(nn.Layer):
    """1x1, grouped 3x3, 1x1 convolution, each with a batch norm, and a shortcut (Figure 3(c)).

    The stride sits on the 3x3 convolution. Where size or width change, the shortcut is a 1x1
    convolution and a batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        cardinality: int = 1,
        zero_init_last_bn: bool = False,
        data_format: str = 'NCHW',
    ) -> None:
        super().__init__()
        conv2d = partial(conv, data_format=data_format)
        norm = partial(nn.BatchNorm2D, data_format=data_format)
        self.norm_relu = NormReLU()
        self.conv1 = conv2d(in_channels, inner_channels, 1)
        self.bn1 = norm(inner_channels)
        self.conv2 = conv2d(inner_channels, inner_channels, 3, stride=stride, groups=cardinality)
        self.bn2 = norm(inner_channels)
        self.conv3 = conv2d(inner_channels, out_channels, 1)
        gamma = Constant(0.0 if zero_init_last_bn else 1.0)
        self.bn3 = norm(out_channels, weight_attr=ParamAttr(initializer=gamma))
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                conv2d(in_channels, out_channels, 1, stride=stride), norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.norm_relu(self.bn1, self.conv1(x))
        out = self.norm_relu(self.bn2, self.conv2(out))
        out = self.bn3(self.conv3(out))
        return F.relu(out + shortcut)


def _stages(
    blocks: Sequence[int], cardinality: int, width: int, zero_init: bool, data_format: str
) -> list[nn.Sequential]:
    """The stages of Table 1; each after the first halves the image and doubles the channels."""
    if cardinality < 1 or width < 1:
        raise ValueError(f'cardinality and width must be 1 or more, not {cardinality} and {width}')
    stages, in_channels = [], STEM
    for number, count in enumerate(blocks):
        inner = cardinality * width * 2**number
        out_channels = STEM * EXPANSION * 2**number
        layers = []
        for index in range(count):
            stride = 2 if number > 0 and index == 0 else 1
            layers.append(
                Bottleneck(
                    in_channels,
                    inner,
                    out_channels,
                    stride=stride,
                    cardinality=cardinality,
                    zero_init_last_bn=zero_init,
                    data_format=data_format,
                )
            )
            in_channels = out_channels
        stages.append(nn.Sequential(*layers))
    return stages


class ResNeXt(nn.Layer):
    """ResNeXt-depth, `cardinality`x`width`d, for images of about 224 pixels (Table 1).

    Args:
        depth: 50, 101 or 152.
        cardinality: groups of the 3x3 convolutions (32 or 64 in the paper).
        width: channels of a group in the first stage (4 in the paper).
        num_classes: outputs of the last layer.
        zero_init_last_bn: start each block as its shortcut, with a zero gamma in its last batch
            norm (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        data_format: memory layout between the layers, 'NCHW' or 'NHWC', which NVIDIA's tensor
            cores prefer in half precision. Input, weights and their names are the same in both.

    Input float32 [N, 3, H, W], from 32 pixels; output logits [N, num_classes].
    Raises ValueError for a depth, cardinality, width, class count or layout that makes no network.
    """

    def __init__(
        self,
        *,
        depth: int,
        cardinality: int = 32,
        width: int = 4,
        num_classes: int = 1000,
        zero_init_last_bn: bool = False,
        data_format: str = 'NCHW',
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f'depth must be one of {", ".join(map(str, BLOCKS))}, not {depth}')
        self.data_format = data_format
        self.conv1 = conv(3, STEM, 7, stride=2, data_format=data_format)
        self.bn1 = nn.BatchNorm2D(STEM, data_format=data_format)
        self.norm_relu = NormReLU()
        self.maxpool = nn.MaxPool2D(3, stride=2, padding=1, data_format=data_format)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(
            BLOCKS[depth], cardinality, width, zero_init_last_bn, data_format
        )
        self.fc = classifier(STEM * EXPANSION * 8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(to_data_format(x, self.data_format))
        out = self.maxpool(self.norm_relu(self.bn1, out))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.fc(global_mean(out, self.data_format))


class CifarResNeXt(nn.Layer):
    """ResNeXt-depth, `cardinality`x`width`d, for images of 32 pixels (section 5.3).

    Args:
        depth: 9n + 2; 29 in the paper.
        cardinality, width: as in ResNeXt; the paper has 8x64d and 16x64d.
        num_classes, zero_init_last_bn, data_format: as in ResNeXt.

    Input float32 [N, 3, H, W]; output logits [N, num_classes].
    Raises ValueError for a depth, cardinality, width, class count or layout that makes no network.
    """

    def __init__(
        self,
        *,
        depth: int = 29,
        cardinality: int = 8,
        width: int = 64,
        num_classes: int = 10,
        zero_init_last_bn: bool = False,
        data_format: str = 'NCHW',
    ) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(f'depth must be 9n + 2 (11, 20, 29, 38, ...), not {depth}')
        self.data_format = data_format
        self.conv1 = conv(3, STEM, 3, data_format=data_format)
        self.bn1 = nn.BatchNorm2D(STEM, data_format=data_format)
        self.norm_relu = NormReLU()
        self.layer1, self.layer2, self.layer3 = _stages(
            [(depth - 2) // 9] * 3, cardinality, width, zero_init_last_bn, data_format
        )
        self.fc = classifier(STEM * EXPANSION * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(to_data_format(x, self.data_format))
        out = self.norm_relu(self.bn1, out)
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.fc(global_mean(out, self.data_format))


# The networks of sections 5.1 and 5.2, num_classes=1000 by default.
resnext50_32x4d = partial(ResNeXt, depth=50, cardinality=32, width=4)
resnext50_64x4d = partial(ResNeXt, depth=50, cardinality=64, width=4)
resnext101_32x4d = partial(ResNeXt, depth=101, cardinality=32, width=4)
resnext101_64x4d = partial(ResNeXt, depth=101, cardinality=64, width=4)
resnext152_32x4d = partial(ResNeXt, depth=152, cardinality=32, width=4)
resnext152_64x4d = partial(ResNeXt, depth=152, cardinality=64, width=4)
