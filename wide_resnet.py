"""Wide Residual Networks (Zagoruyko & Komodakis, BMVC 2016, https://arxiv.org/abs/1605.07146).

WRN-d-k for 32x32 images: Table 1 of the paper, the block of its Figure 1(d) and section 2.4
(dropout between the two convolutions). WRN-50-2 and WRN-101-2 for photographs (section 3, Table 8):
ResNet's bottleneck with a wider 3x3 convolution, which is resnext.py's with a cardinality of 1.
The two files together need nothing but paddle: copy both.

    model = WideResNet(depth=28, widen_factor=10, num_classes=10, dropout=0.3)
    logits = model(images)                    # float32 [N, 3, H, W] -> [N, 10]
    model = wide_resnet50_2(num_classes=1000)

State-dict names are those of xternalz/WideResNet-pytorch and of Paddle Contrib's wide_resnet;
those of WRN-50-2 are torchvision's and paddle.vision's.
"""

from __future__ import annotations

from functools import partial

from paddle import Tensor, nn

from resnext import NormReLU, ResNeXt, classifier, conv, global_mean, to_data_format


class WideBlock(nn.Layer):
    """BN-ReLU-conv3x3-BN-ReLU-dropout-conv3x3 and a shortcut (Figure 1(d)).

    Where the width changes, the shortcut is a 1x1 convolution of the *activated* input; elsewhere
    it is the raw input. The stride sits on the first 3x3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dropout: float = 0.0,
        data_format: str = 'NCHW',
    ) -> None:
        super().__init__()
        conv2d = partial(conv, data_format=data_format)
        norm = partial(nn.BatchNorm2D, data_format=data_format)
        self.norm_relu = NormReLU()
        self.bn1 = norm(in_channels)
        self.conv1 = conv2d(in_channels, out_channels, 3, stride=stride)
        self.bn2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv2d(out_channels, out_channels, 3)
        changes_width = in_channels != out_channels
        # The name is that of the state dicts named above.
        self.convShortcut = (
            conv2d(in_channels, out_channels, 1, stride=stride) if changes_width else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm_relu(self.bn1, x)
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = self.conv1(out)
        out = self.conv2(self.dropout(self.norm_relu(self.bn2, out)))
        return out + shortcut


class WideGroup(nn.Layer):
    """`blocks` blocks of equal width; the first one may change width and stride."""

    def __init__(
        self,
        blocks: int,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        dropout: float,
        data_format: str,
    ) -> None:
        super().__init__()
        block = partial(WideBlock, dropout=dropout, data_format=data_format)
        first = block(in_channels, out_channels, stride=stride)
        rest = [block(out_channels, out_channels) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Layer):
    """WRN-depth-widen_factor of Table 1, with global average pooling.

    Args:
        depth: number of convolutions, 6n + 4 (10, 16, 22, 28, 40, ...); the projections of the
            shortcuts are not counted, as in the paper.
        widen_factor: k; the three groups are 16k, 32k and 64k channels wide.
        num_classes: outputs of the last layer.
        dropout: probability of dropping an activation between a block's two convolutions.
        data_format: memory layout between the layers, 'NCHW' or 'NHWC', which NVIDIA's tensor
            cores prefer in half precision. Input, weights and their names are the same in both.

    Input float32 [N, 3, H, W] with H and W of 8 or more; output logits [N, num_classes].
    Raises ValueError for a depth, width, class count, probability or layout that makes no network.
    """

    def __init__(
        self,
        *,
        depth: int,
        widen_factor: int,
        num_classes: int = 10,
        dropout: float = 0.0,
        data_format: str = 'NCHW',
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f'depth must be 6n + 4 (10, 16, 22, 28, 40, ...), not {depth}')
        if widen_factor < 1:
            raise ValueError(f'widen_factor must be 1 or more, not {widen_factor}')
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f'dropout must be in [0, 1), not {dropout}')
        blocks = (depth - 4) // 6
        w1, w2, w3 = (width * widen_factor for width in (16, 32, 64))
        group = partial(WideGroup, blocks, dropout=dropout, data_format=data_format)
        self.data_format = data_format
        self.conv1 = conv(3, 16, 3, data_format=data_format)
        self.block1 = group(16, w1, stride=1)
        self.block2 = group(w1, w2, stride=2)
        self.block3 = group(w2, w3, stride=2)
        self.bn1 = nn.BatchNorm2D(w3, data_format=data_format)
        self.norm_relu = NormReLU()
        self.fc = classifier(w3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(to_data_format(x, self.data_format))
        out = self.block3(self.block2(self.block1(out)))
        out = self.norm_relu(self.bn1, out)
        return self.fc(global_mean(out, self.data_format))


# ResNet-50 and -101 with 3x3 convolutions twice as wide, 1,000 classes by default.
wide_resnet50_2 = partial(ResNeXt, depth=50, cardinality=1, width=128)
wide_resnet101_2 = partial(ResNeXt, depth=101, cardinality=1, width=128)
