"""Names of networks, and the networks: build('wide_resnet28_10', num_classes=10, dropout=0.3).

python3 -m engine.models [NAME ...]    their sizes and costs (default: the papers' networks)
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names are checked before paddle is imported
    from paddle import nn

_NUMBER = '(0|[1-9][0-9]*)'
_WIDE_RESNET = re.compile(f'wide_resnet{_NUMBER}_{_NUMBER}')
_RESNEXT = re.compile(f'resnext{_NUMBER}_{_NUMBER}x{_NUMBER}d')
_PHOTO_DEPTHS = {'wide_resnet': (50, 101), 'resnext': (50, 101, 152)}

# The networks that the papers report, and where.
MODELS = {
    'wide_resnet16_8': 'WRN paper, Table 4',
    'wide_resnet28_10': 'WRN paper, Table 5',
    'wide_resnet40_4': 'WRN paper, Table 4',
    'wide_resnet40_10': "MindSpore's recipe",
    'wide_resnet50_2': 'WRN paper, Table 8',
    'wide_resnet101_2': 'torchvision',
    'resnext29_8x64d': 'ResNeXt paper, Table 7',
    'resnext29_16x64d': 'ResNeXt paper, Table 7',
    'resnext50_32x4d': 'ResNeXt paper, Table 3',
    'resnext50_64x4d': 'paddle.vision',
    'resnext101_32x4d': 'ResNeXt paper, Table 3',
    'resnext101_64x4d': 'ResNeXt paper, Table 5',
    'resnext152_32x4d': 'paddle.vision',
    'resnext152_64x4d': "MindSpore's recipe",
}


@dataclass(frozen=True)
class Spec:
    """What a name says."""

    family: str  # wide_resnet or resnext
    depth: int
    cardinality: int  # 1 in a wide_resnet
    width: int  # the widen factor of a wide_resnet
    for_photos: bool  # four stages behind a 7x7 stem, else three behind a 3x3 one

    @property
    def image_size(self) -> int:
        """Side of the images that the network was designed for."""
        return 224 if self.for_photos else 32

    @property
    def preactivated(self) -> bool:
        """The block of WRN-d-k, which has dropout, and no batch norm at its end."""
        return self.family == 'wide_resnet' and not self.for_photos


def parse(name: str) -> Spec:
    """ValueError, saying what is wrong with it, if there is no such network."""
    match = _WIDE_RESNET.fullmatch(name) or _RESNEXT.fullmatch(name)
    if match is None:
        raise ValueError(
            'must be like wide_resnet28_10 (depth 28, widen factor 10) or resnext50_32x4d '
            f'(depth 50, 32 groups of width 4), not {name!r}{_nearest(name)}'
        )
    family = name[: match.start(1)]
    depth, *sizes = map(int, match.groups())
    for_photos = depth in _PHOTO_DEPTHS[family]
    rest, step = (4, 6) if family == 'wide_resnet' else (2, 9)
    if not for_photos and (depth < rest + step or (depth - rest) % step):
        below = max(rest + step, depth - (depth - rest) % step)
        photos = ', '.join(map(str, _PHOTO_DEPTHS[family]))
        raise ValueError(
            f'has depth {depth}, which must be {step}n + {rest}, so {below} or {below + step} '
            f'(for small images), or one of {photos} (for photographs)'
        )
    if min(sizes) < 1:
        what = 'widen factor' if family == 'wide_resnet' else 'cardinality or width'
        raise ValueError(f'has {what} 0, which must be 1 or more')
    cardinality, width = (1, *sizes) if family == 'wide_resnet' else sizes
    return Spec(family, depth, cardinality, width, for_photos)


def _nearest(name: str) -> str:
    """A hint at what other suites' spellings (ResNeXt50_32x4d, WRN-28-10, resnext50) mean."""
    plain = re.sub('[-_ ]+', '_', name.lower())
    plain = re.sub('^(wrn|wide_?res_?net)_?(?=[0-9])', 'wide_resnet', plain)
    match = _WIDE_RESNET.match(plain) or _RESNEXT.match(plain)
    starting = [known for known in MODELS if known.startswith(f'{plain}_')]
    near = [match.group()] if match else starting or difflib.get_close_matches(plain, MODELS)
    return f'; did you mean {near[0]}?' if near else ''


def build(
    name: str,
    *,
    num_classes: int,
    dropout: float = 0.0,
    zero_init_last_bn: bool = False,
    init: str = 'he',
    data_format: str = 'NCHW',
) -> nn.Layer:
    """The network of that name with fresh weights; ValueError if there is none.

    `dropout` is for wide_resnet{6n+4}_{k}, `zero_init_last_bn` for all others. `init` of the
    convolutions is 'he' (normal, over the fan-out), 'he_fan_in' or 'xavier' (uniform, with gain
    sqrt 2).
    `data_format`, 'NCHW' or 'NHWC', is the memory layout between the layers: the network takes
    [N, 3, H, W] and has the same weights in both.
    """
    try:
        spec = parse(name)
    except ValueError as error:
        raise ValueError(f'model name {error}') from None
    if dropout and not spec.preactivated:
        raise ValueError(f'{name} has no dropout')
    if zero_init_last_bn and spec.preactivated:
        raise ValueError(f'{name} has no batch norm at the end of its blocks')
    if init not in ('he', 'he_fan_in', 'xavier'):
        raise ValueError(f'init must be he or xavier, not {init!r}')
    model = _construct(spec, num_classes, dropout, zero_init_last_bn, data_format)
    if init != 'he':  # which is what the model files do
        _initialise(model, init)
    return model


def _construct(
    spec: Spec, num_classes: int, dropout: float, zero_init: bool, data_format: str
) -> nn.Layer:
    from resnext import CifarResNeXt, ResNeXt
    from wide_resnet import WideResNet

    if spec.preactivated:
        return WideResNet(
            depth=spec.depth,
            widen_factor=spec.width,
            num_classes=num_classes,
            dropout=dropout,
            data_format=data_format,
        )
    wider = 64 if spec.family == 'wide_resnet' else 1  # WRN-50-k widens ResNet-50's 64 channels
    return (ResNeXt if spec.for_photos else CifarResNeXt)(
        depth=spec.depth,
        cardinality=spec.cardinality,
        width=wider * spec.width,
        num_classes=num_classes,
        zero_init_last_bn=zero_init,
        data_format=data_format,
    )


def _initialise(model: nn.Layer, init: str) -> None:
    """Convolutions anew, as other sources have them.

    xavier: Glorot & Bengio 2010 with the gain of ReLU, as MindSpore's WRN-40-10. he_fan_in: He et
    al. 2015, as the code of the Wide ResNet paper and Paddle Contrib's; the model files have its
    form over the fan-out.
    """
    from paddle import nn

    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D):
            out_channels, in_channels, *kernel = layer.weight.shape  # in_channels of one group
            area = kernel[0] * kernel[1]
            if init == 'xavier':
                bound = (2.0 * 6.0 / ((out_channels + in_channels) * area)) ** 0.5
                nn.initializer.Uniform(-bound, bound)(layer.weight)
            else:
                nn.initializer.Normal(0.0, (2.0 / (in_channels * area)) ** 0.5)(layer.weight)


def parameter_count(model: nn.Layer) -> int:
    """Trainable parameters (the running statistics of batch norms are none)."""
    return sum(p.size for p in model.parameters() if not p.stop_gradient)


def multiply_adds(model: nn.Layer, image_size: int) -> int:
    """Multiply-adds of convolutions and the last layer for one image, counted as they happen."""
    import paddle
    from paddle import nn

    counts = []

    def count(layer: nn.Layer, inputs: tuple[paddle.Tensor], output: paddle.Tensor) -> None:
        # Each output value sums over one filter: all but the first axis of a convolution's weight
        # [out, in / groups, k, k], the first axis of a linear layer's [in, out].
        convolution = isinstance(layer, nn.Conv2D)
        filter_size = layer.weight[0].size if convolution else layer.weight.shape[0]
        counts.append(output.size * filter_size)

    kinds = (nn.Conv2D, nn.Linear)
    counted = [layer for layer in model.sublayers() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_post_hook(count) for layer in counted]
    was_training = {layer: layer.training for layer in model.sublayers(include_self=True)}
    try:
        model.eval()
        with paddle.no_grad():
            model(paddle.zeros([1, 3, image_size, image_size]))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in was_training.items():
            layer.training = training
    return sum(counts)


def main() -> None:
    from engine import cli
    from engine.errors import UserError

    parser = cli.Parser(
        'Sizes and costs of networks.',
        prog='python3 -m engine.models',
        example='python3 -m engine.models wide_resnet28_10',
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help='(default: those of the papers)')
    names = parser.parse_args().names or list(MODELS)
    try:
        specs = [parse(name) for name in names]
    except ValueError as error:
        raise UserError(f'NAME {error}') from None
    from engine.machine import cpu
    from engine.machine.start import start_paddle

    cpu.prepare_cpu()
    start_paddle('cpu')
    print('model              parameters  multiply-adds  input    classes  reported in')
    for name, spec in zip(names, specs):
        classes = 1000 if spec.for_photos else 10
        model = build(name, num_classes=classes)
        cost = multiply_adds(model, spec.image_size) / 1e9
        side = f'{spec.image_size}x{spec.image_size}'
        row = f'{name:17} {parameter_count(model):11,}  {cost:11.2f} G  {side:8} {classes:6}'
        print(f'{row}  {MODELS.get(name, "")}'.rstrip(), flush=True)


if __name__ == '__main__':
    from engine import cli

    cli.run(main)
