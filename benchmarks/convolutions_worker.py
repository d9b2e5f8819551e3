"""Worker: single convolutions of our networks in training, by oneDNN and by Paddle in turns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Callable

from benchmarks.paddle_step import build
from benchmarks.processes import Answer, serve, steps
from engine.machine import cpu
from engine.machine.start import start_paddle
from engine.models import parse


@dataclass(frozen=True)
class Shape:
    """A convolution of square images, and whether training asks for their gradient: not for that of
    the pictures themselves."""

    batch: int
    inside: int
    out: int
    kernel: int
    stride: int
    padding: int
    groups: int
    side: int
    of_images: bool

    @property
    def title(self) -> str:
        """Such as: 3x3, 128 -> 128, 32 groups, 56 px."""
        what = [f'{self.kernel}x{self.kernel}', f'{self.inside} -> {self.out}']
        groups = [f'{self.groups} groups'] if self.groups > 1 else []
        stride = [f'stride {self.stride}'] if self.stride > 1 else []
        return ', '.join([*what, *groups, *stride, f'{self.side} px'])


def main() -> None:
    cpu.prepare_cpu()
    start_paddle('cpu')
    from engine import cpu_conv

    assert cpu_conv.unavailable() is None, cpu_conv.unavailable()
    serve(
        {
            'shapes': lambda **what: {'shapes': [asdict(shape) for shape in shapes(**what)]},
            'measure': lambda shape, **how: measure(Shape(**shape), **how),
        }
    )


def shapes(model: str, batch: int) -> list[Shape]:
    """Those of a network in training, in its order: found with one image."""
    import paddle
    from paddle import nn

    found: dict[Shape, None] = {}

    def see(layer: Any, inputs: tuple[Any]) -> None:
        out, inside, kernel, _ = layer.weight.shape
        stride, padding, groups = layer._stride[0], layer._padding, layer._groups
        side, of_images = inputs[0].shape[-1], not inputs[0].stop_gradient
        how = kernel, stride, padding, groups
        found[Shape(batch, inside * groups, out, *how, side, of_images)] = None

    network = build(model)
    for layer in network.sublayers():
        if isinstance(layer, nn.Conv2D):
            layer.register_forward_pre_hook(see)
    side = parse(model).image_size
    network(paddle.zeros([1, 3, side, side]))
    return list(found)


def measure(shape: Shape, *, rounds: int, turn_s: float) -> Answer:
    """Seconds of both passes in each round, in which oneDNN and Paddle take turns."""
    variants = {
        'onednn': make_passes(shape, 'NHWC', accelerated=True),
        'paddle_nhwc': make_passes(shape, 'NHWC'),
        'paddle_nchw': make_passes(shape, 'NCHW'),
    }
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for passes in variants.values():
        passes()  # to warm up
    for _ in range(rounds):
        for name, passes in variants.items():
            taken[name].append(median(steps(passes, turn_s, at_least=1)))
    return taken


def make_passes(shape: Shape, layout: str, *, accelerated: bool = False) -> Callable[[], Any]:
    """Forward and backward pass of a layer."""
    import paddle
    from paddle import nn

    from engine import cpu_conv

    layer = nn.Conv2D(
        *(shape.inside, shape.out, shape.kernel, shape.stride, shape.padding),
        groups=shape.groups,
        bias_attr=False,
        data_format=layout,
    )
    if accelerated:
        assert type(cpu_conv.accelerate(layer)) is not nn.Conv2D
    sizes = {'N': shape.batch, 'C': shape.inside, 'H': shape.side, 'W': shape.side}
    images = paddle.randn([sizes[axis] for axis in layout])
    images.stop_gradient = not shape.of_images
    inputs = [layer.weight, *([images] if shape.of_images else [])]
    gradient = paddle.randn(layer(images).shape)
    return lambda: paddle.grad(layer(images), inputs, gradient)


if __name__ == '__main__':
    main()
