"""Training with oneDNN equals training with Paddle's own kernels, to rounding. What oneDNN does not
support is left to Paddle, and oneDNN is chosen only if its results are right."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
import threading
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import REPOSITORY, execute
from paddle import nn
from paddle.nn import functional as F

from engine import cpu_conv, models
from engine.config import Config, Data, Model, Train, load_config
from engine.cpu_conv import accelerate, kernels, layers, onednn, self_check
from engine.errors import UserError
from engine.machine import devices
from resnext import NormReLU

CONFIGS = sorted((REPOSITORY / 'configs').glob('*.yaml'))
TOLERANCE = 1e-5  # of the largest value
CONV = partial(nn.Conv2D, bias_attr=False, data_format='NHWC')
NORM = partial(nn.BatchNorm2D, data_format='NHWC')

LIBRARY = Path(paddle.__file__).parent / 'libs' / onednn.LIBRARY

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason='this Paddle has no oneDNN')


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(one: np.ndarray, other: np.ndarray) -> float:
    """Of one against the other, relative to the largest value."""
    assert one.shape == other.shape
    return float(np.abs(one - other).max() / np.abs(other).max())


def results(layer: nn.Layer, x: np.ndarray, *, relu: bool = False) -> list[np.ndarray]:
    """Output, and the gradients of its weighted sum by the input and the parameters."""
    images = paddle.to_tensor(x)
    images.stop_gradient = False
    norm_relu = NormReLU()
    if type(layer) is not nn.BatchNorm2D:
        accelerate(norm_relu)
    output = norm_relu(layer, images) if relu else layer(images)
    weights = paddle.to_tensor(numbers(*output.shape, seed=100).astype(x.dtype))
    layer.clear_gradients()
    (output * weights).sum().backward()
    gradients = [p.grad for p in layer.parameters() if not p.stop_gradient]
    return [tensor.numpy() for tensor in (output, images.grad, *gradients)]


def pair(layer: nn.Layer) -> tuple[nn.Layer, nn.Layer]:
    """An accelerated copy, and the layer as it was."""
    fast = accelerate(copy.deepcopy(layer))
    return fast, layer


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray], limit: float = TOLERANCE) -> None:
    assert len(ours) == len(theirs)
    assert [error(*both) for both in zip(ours, theirs)] == pytest.approx([0] * len(ours), abs=limit)


# ------------------------------------------------------------------ every convolution we have

Case = tuple[int, int, int, int, int, int, int]  # in, out, kernel, stride, padding, groups, side


def convolutions(config: Config) -> set[Case]:
    """Of the network of a config, found with a batch of one small image; sides scale with it."""
    spec = models.parse(config.model.name)
    # The first and last block of a stage have all of its shapes: the shallowest of the family does.
    depth = {('wide_resnet', False): 16, ('resnext', False): 20}.get(
        (spec.family, spec.for_photos), 50
    )
    size = f'{spec.cardinality}x{spec.width}d' if spec.family == 'resnext' else f'{spec.width}'
    with paddle.LazyGuard():
        model = models.build(f'{spec.family}{depth}_{size}', num_classes=10)
    sides = config.data.progressive or [config.data.image_size or spec.image_size]
    found = set()
    for name, layer in model.named_sublayers():
        if isinstance(layer, nn.Conv2D):
            out, inside, kernel, _ = layer.weight.shape
            stride, padding, groups = layer._stride[0], layer._padding, layer._groups
            for side in sides:
                at = side_at(name, side, spec.for_photos)
                found.add((inside * groups, out, kernel, stride, padding, groups, at))
    return found


def side_at(name: str, side: int, for_photos: bool) -> int:
    """Of the images that a layer is given."""
    stage = re.match(r'(?:layer|block)(\d)\.(.*)', name)
    if not stage:
        return side
    number, rest = int(stage[1]), stage[2]
    first = re.sub(r'^layer\.', '', rest).startswith('0.')
    strided = {'layer': ('conv1', 'conv2', 'downsample'), 'block': ('conv1', 'convShortcut')}
    before = first and any(part in rest for part in strided[name[:5]])
    steps = number - 1 - (before and number > 1)
    return -(-side // ((4 if for_photos else 1) << steps))


ALL = {path.stem: convolutions(load_config(path)) for path in CONFIGS}
SMALL = sorted(set().union(*(cases for cases in ALL.values() if max(c[2] for c in cases) == 3)))
PHOTOS = sorted(set().union(*ALL.values()) - set(SMALL))


def check_convolution(case: Case, batch: int) -> None:
    inside, out, kernel, stride, padding, groups, side = case
    layer = CONV(inside, out, kernel, stride=stride, padding=padding, groups=groups)
    x = numbers(batch, side, side, inside)
    ours = results(accelerate(layer), x)
    assert isinstance(layer, layers._Conv2D)
    images, weight = paddle.to_tensor(x.transpose(0, 3, 1, 2)), layer.weight.detach()
    images.stop_gradient = weight.stop_gradient = False
    output = F.conv2d(images, weight, stride=stride, padding=padding, groups=groups)
    weights = paddle.to_tensor(numbers(*ours[0].shape, seed=100).transpose(0, 3, 1, 2))
    (output * weights).sum().backward()
    theirs = [t.numpy().transpose(0, 2, 3, 1) for t in (output, images.grad)]
    assert_same(ours, [*theirs, weight.grad.numpy()])


@pytest.mark.parametrize('name', ['wide_resnet16_1', 'resnext20_2x4d', 'resnext50_2x4d'])
def test_listed_convolutions_are_those_of_the_network(name):
    own = Config(model=Model(name), data=Data(name='synthetic', image_size=64))
    layers = models.build(name, num_classes=10)
    seen = set()

    def see(layer: nn.Layer, inputs: tuple[paddle.Tensor]) -> None:
        out, inside, kernel, _ = layer.weight.shape
        groups = layer._groups
        stride, side = layer._stride[0], inputs[0].shape[-1]
        seen.add((inside * groups, out, kernel, stride, layer._padding, groups, side))

    for layer in layers.sublayers():
        if isinstance(layer, nn.Conv2D):
            layer.register_forward_pre_hook(see)
    layers(paddle.zeros([1, 3, 64, 64]))
    assert convolutions(own) == seen


@pytest.mark.parametrize('case', SMALL, ids=str)
def test_convolutions_of_small_images_equal_paddle(case):
    check_convolution(case, batch=2)


@pytest.mark.parametrize('case', PHOTOS[::6], ids=str)
def test_some_convolutions_of_photographs_equal_paddle(case):
    check_convolution(case, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize('case', PHOTOS, ids=str)
def test_convolutions_of_photographs_equal_paddle(case):
    check_convolution(case, batch=1)


@pytest.mark.parametrize(
    ('layer', 'shape'),
    [
        (lambda: CONV(13, 7, 5, stride=3, padding=2), (3, 17, 11, 13)),
        (lambda: CONV(24, 48, 3, padding=1, groups=24), (2, 9, 8, 24)),
        (lambda: CONV(15, 30, 3, padding=1, groups=5), (2, 9, 8, 15)),
        (lambda: CONV(8, 8, (2, 3), stride=(1, 2), padding=1), (2, 9, 10, 8)),
        (lambda: CONV(1, 1, 3, padding=1), (1, 1, 1, 1)),
        (lambda: CONV(8, 8, 3), (2, 3, 3, 8)),
    ],
    ids=['stride 3', 'depthwise', 'odd groups', 'oblong', 'one pixel', 'just fits'],
)
def test_unusual_convolutions_equal_paddle(layer, shape):
    fast, plain = pair(layer())
    assert type(fast) is not type(plain)
    x = numbers(*shape)
    assert_same(results(fast, x), results(plain, x))


# ------------------------------------------------------------------ batch norm


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('shape', [(4, 6, 5, 24), (1, 5, 7, 3), (16, 1, 1, 8)], ids=str)
def test_batch_norm_equals_paddle_for_several_steps(shape, relu):
    fast, plain = pair(NORM(shape[-1], momentum=0.7, epsilon=1e-3))
    for layer in (fast, plain):
        layer.weight.set_value(numbers(shape[-1], seed=5))
        layer.bias.set_value(numbers(shape[-1], seed=6))
    for step in range(4):
        x = 3 * numbers(*shape, seed=step) + 1
        assert_same(results(fast, x, relu=relu), results(plain, x, relu=relu), 2e-5)
    for name in ('_mean', '_variance'):
        assert error(getattr(fast, name).numpy(), getattr(plain, name).numpy()) < TOLERANCE
        assert np.abs(getattr(plain, name).numpy() - (name == '_variance')).max() > 0.1


@pytest.mark.parametrize('relu', [False, True])
def test_batch_norm_with_running_statistics_is_left_to_paddle(relu):
    for settings, training in (({}, False), ({'use_global_stats': True}, True)):
        fast, plain = pair(NORM(8, **settings))
        for layer in (fast, plain):
            layer._mean.set_value(numbers(8))
            layer.train() if training else layer.eval()
        x = numbers(2, 5, 5, 8)
        assert_same(results(fast, x, relu=relu), results(plain, x, relu=relu), 1e-7)
        np.testing.assert_array_equal(fast._mean.numpy(), numbers(8))


def test_relu_passes_no_gradient_at_zero():
    fast, plain = pair(NORM(8))
    for layer in (fast, plain):
        layer.weight.set_value(np.zeros(8, np.float32))
    x = numbers(2, 5, 5, 8)
    ours, theirs = results(fast, x, relu=True), results(plain, x, relu=True)
    for mine, other in zip(ours, theirs):
        assert not other.any()
        assert not mine.any()


def test_large_means_lose_no_more_precision_than_paddle():
    fast, plain = pair(NORM(8))
    x = numbers(4, 9, 9, 8) + 1000
    wide = x.astype(np.float64)
    exact = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 1e-5)
    ours, theirs = results(fast, x)[0], results(plain, x)[0]
    assert error(ours, exact) <= 2 * error(theirs, exact) + 1e-6


# ------------------------------------------------------------------ networks


@pytest.mark.parametrize(
    ('name', 'side', 'settings'),
    [
        ('wide_resnet10_1', 16, {}),
        ('wide_resnet10_1', 16, {'dropout': 0.3}),
        ('resnext11_2x4d', 16, {}),
        ('resnext50_2x4d', 64, {'zero_init_last_bn': True}),
        pytest.param('wide_resnet50_1', 32, {'zero_init_last_bn': True}, marks=pytest.mark.slow),
    ],
    ids=['wide', 'dropout', 'resnext', 'photographs', 'wide bottleneck'],
)
def test_ten_training_steps_equal_paddle(name, side, settings):
    """A small rate, and blocks that begin as shortcuts where there are many: otherwise each step
    multiplies the rounding of those before."""
    labels = paddle.to_tensor(np.arange(8) % 5)
    paddle.seed(0)
    build = partial(models.build, name, num_classes=5, **settings)
    plain, fast = build(), accelerate(build(data_format='NHWC'))
    plain_of_nhwc = build(data_format='NHWC')
    assert {type(layer) for layer in fast.sublayers()}.isdisjoint({nn.Conv2D, nn.BatchNorm2D})
    start = {key: value.numpy() for key, value in plain.state_dict().items()}
    ends, losses = [], []
    # Dropout draws in the layout of its input: the same masks need the same layout.
    for model in (plain_of_nhwc if 'dropout' in settings else plain, fast):
        missing, unexpected = model.set_state_dict(start)
        assert not missing
        assert not unexpected
        optimizer = paddle.optimizer.Momentum(1e-3, 0.9, parameters=model.parameters())
        model.train()
        losses.append([])
        for step in range(10):
            paddle.seed(step)
            loss = F.cross_entropy(model(paddle.to_tensor(numbers(8, 3, side, side))), labels)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            losses[-1].append(float(loss))
        ends.append({key: value.numpy() for key, value in model.state_dict().items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert list(ends[0]) == list(ends[1])
    for key, value in ends[0].items():
        assert np.abs(ends[1][key] - value).max() <= 1e-3 * max(1, np.abs(value).max()), key
    plain.set_state_dict(ends[1])
    for model in (plain, fast):
        model.eval()
    x = paddle.to_tensor(numbers(2, 3, side, side, seed=9))
    assert error(plain(x).numpy(), fast(x).numpy()) < 1e-4


# ------------------------------------------------------------------ tensors of all kinds


def small() -> nn.Sequential:
    paddle.seed(4)
    return nn.Sequential(CONV(8, 16, 3, padding=1), NORM(16))


@pytest.mark.parametrize(
    'view',
    [
        lambda x: x.transpose([0, 2, 1, 3]),
        lambda x: x[:, ::2, 1:, :],
        lambda x: x[1:],
        lambda x: x[:1].expand([3, -1, -1, -1]),
    ],
    ids=['transposed', 'steps', 'offset', 'expanded'],
)
@pytest.mark.parametrize('relu', [False, True])
def test_views_that_are_not_contiguous(view, relu):
    fast, plain = (nn.Sequential(*layers) for layers in pair(small()))
    ends = []
    for model in (fast, plain):
        x = paddle.to_tensor(numbers(3, 9, 9, 8))
        x.stop_gradient = False
        y = model(view(x))
        y = F.relu(y) if relu else y
        (y * paddle.to_tensor(numbers(*y.shape, seed=2))).sum().backward()
        ends.append([y.numpy(), x.grad.numpy(), model[0].weight.grad.numpy()])
    assert_same(*ends)


def test_gradients_that_are_not_contiguous():
    def gradients(layer, use):
        x = paddle.to_tensor(numbers(2, 9, 9, 8))
        x.stop_gradient = False
        use(layer(x)).backward()
        return [x.grad.numpy(), layer.weight.grad.numpy()]

    for use in (
        lambda y: y.sum(),
        lambda y: (y.transpose([0, 3, 1, 2]) * paddle.to_tensor(numbers(2, 16, 9, 9))).sum(),
        lambda y: (y * y).sum() + y[:, ::2].sum() + y.mean(),
    ):
        fast, plain = pair(CONV(8, 16, 3, padding=1))
        assert_same(gradients(fast, use), gradients(plain, use))


def test_input_without_gradient_gets_none():
    fast, plain = pair(small())
    x = paddle.to_tensor(numbers(2, 9, 9, 8))
    first = [model(x) for model in (fast, plain)]
    for y in first:
        (y**3).sum().backward()
    assert x.grad is None
    assert_same([fast[0].weight.grad.numpy()], [plain[0].weight.grad.numpy()], 1e-4)
    with paddle.no_grad():
        assert fast(x).stop_gradient


@pytest.mark.parametrize('layer', [lambda: CONV(8, 8, 3), lambda: NORM(8)], ids=['conv', 'norm'])
def test_frozen_weights_get_no_gradient_and_the_input_does(layer):
    fast, plain = pair(layer())
    for one in (fast, plain):
        for parameter in one.parameters():
            parameter.stop_gradient = True
    x = numbers(2, 5, 5, 8)
    assert_same(results(fast, x), results(plain, x))
    assert fast.weight.grad is None


def test_shift_can_be_trained_alone():
    """With Paddle's own, it is not."""
    fast, _ = pair(NORM(8))
    fast.weight.stop_gradient = True
    fast(paddle.to_tensor(numbers(2, 5, 5, 8))).sum().backward()
    assert fast.weight.grad is None
    assert fast.bias.grad.tolist() == [50.0] * 8


def test_batch_norm_can_be_the_first_layer():
    ends = []
    for layer in pair(NORM(8)):
        (layer(paddle.to_tensor(numbers(2, 5, 5, 8))) ** 3).sum().backward()
        ends.append([layer.weight.grad.numpy()])
    assert_same(*ends)


def test_gradients_accumulate():
    (fast, _), x = pair(small()), paddle.to_tensor(numbers(2, 9, 9, 8))
    (fast(x) ** 3).sum().backward()
    once = fast[0].weight.grad.numpy().copy()
    (fast(x) ** 3).sum().backward()
    assert error(fast[0].weight.grad.numpy(), 2 * once) < TOLERANCE


def test_changed_weights_and_sizes_take_effect():
    fast, plain = pair(small())
    for step, shape in enumerate([(2, 9, 9, 8), (1, 4, 5, 8), (2, 9, 9, 8), (5, 9, 9, 8)] * 2):
        x = numbers(*shape, seed=step)
        assert_same(results(fast, x), results(plain, x), 1e-4)
        for model in (fast, plain):
            with paddle.no_grad():
                model[0].weight.scale_(0.5)
                model[0].weight.add_(paddle.to_tensor(numbers(16, 8, 3, 3, seed=step)))


# ------------------------------------------------------------------ threads


def test_kernels_are_thread_safe():
    """(Paddle's own backward pass crashes in threads, so these call the kernels themselves.)"""
    shapes = [((4, 8, 17, 17), (16, 8, 3, 3)), ((4, 8, 9, 9), (32, 4, 3, 3))]
    convolutions = [
        kernels.convolution(images, filters, (1, 1), (1, 1), images[1] // filters[1])
        for images, filters in shapes
    ]

    def once(index: int, seed: int) -> list[np.ndarray]:
        kernel = convolutions[index]
        batch, channels, height, width = kernel.images
        images = paddle.to_tensor(numbers(batch, height, width, channels, seed=seed))
        filters = paddle.to_tensor(numbers(*kernel.filters, seed=seed))
        result = paddle.empty([batch, height, width, kernel.filters[0]])
        of_images, of_filters = paddle.empty_like(images), paddle.empty_like(filters)
        kernel.forward(*layers._addresses(images, filters, result))
        kernel.backward_images(*layers._addresses(filters, result, of_images))
        kernel.backward_filters(*layers._addresses(images, result, of_filters))
        return [tensor.numpy() for tensor in (result, of_images, of_filters)]

    jobs = [(0, 0), (0, 1), (1, 2), (1, 3)]
    expected = [once(*job) for job in jobs]
    right = []

    def work(job: tuple[int, int], alone: list[np.ndarray]) -> None:
        right.extend(np.array_equal(*both) for _ in range(30) for both in zip(once(*job), alone))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(jobs, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert right == [True] * (4 * 30 * 3)


# ------------------------------------------------------------------ bfloat16

needs_bfloat16 = pytest.mark.skipif(
    not LIBRARY.exists() or not onednn.library().has_bfloat16, reason='this CPU has no bfloat16'
)
MIXED = Train(amp='O1', amp_dtype='bfloat16')


def rounded(array: np.ndarray) -> paddle.Tensor:
    """To the nearest bfloat16, the even one of two (Paddle 2.6 would cut off)."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    bits = bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000
    return paddle.to_tensor(bits.astype(np.uint32).view(np.float32))


@needs_bfloat16
@pytest.mark.parametrize(
    ('channels', 'groups', 'kernel', 'stride'),
    [(16, 1, 3, 1), (16, 1, 3, 2), (16, 1, 1, 2), (32, 8, 3, 1), (13, 1, 5, 3)],
)
def test_bfloat16_rounds_only_the_factors(channels, groups, kernel, stride):
    """Products of two bfloat16 are float32, exactly: against float32 of rounded factors."""
    settings = {'stride': stride, 'padding': kernel // 2, 'groups': groups}
    fast = accelerate(CONV(channels, 32, kernel, **settings), 'bfloat16')
    x = numbers(2, 9, 9, channels)
    ours = results(fast, x)
    images, weight = rounded(x.transpose(0, 3, 1, 2)), rounded(fast.weight.numpy())
    images.stop_gradient = weight.stop_gradient = False
    output = F.conv2d(images, weight, **settings)
    gradient = rounded(numbers(*ours[0].shape, seed=100).transpose(0, 3, 1, 2))
    output.backward(gradient)
    theirs = [t.numpy().transpose(0, 2, 3, 1) for t in (output, images.grad)]
    assert_same(ours, [*theirs, weight.grad.numpy()])


@needs_bfloat16
def test_evaluation_and_first_convolution_are_float32():
    x = numbers(2, 9, 9, 16)
    fast, plain = accelerate(CONV(16, 8, 3), 'bfloat16'), CONV(16, 8, 3)
    plain.set_state_dict(fast.state_dict())
    assert error(results(fast, x)[0], results(plain, x)[0]) > 1e-3
    fast.eval()
    assert_same(results(fast, x), results(plain, x))
    colours = numbers(2, 9, 9, 3)
    plain = CONV(3, 8, 3)
    assert_same(
        results(accelerate(copy.deepcopy(plain), 'bfloat16'), colours), results(plain, colours)
    )


@needs_bfloat16
def test_mixed_precision_is_bfloat16():
    dtype, (line,) = cpu_conv.choose(MIXED)
    assert dtype == 'bfloat16'
    assert 'in bfloat16' in line
    dtype, (_, line) = cpu_conv.choose(Train(amp='O2', amp_dtype='float16'))
    assert dtype == 'float32'
    assert line == 'mixed precision: off: on a cpu, it needs train.amp_dtype: bfloat16'


def test_mixed_precision_is_off_without_bfloat16_or_onednn(monkeypatch):
    monkeypatch.setattr(onednn.OneDNN, 'has_bfloat16', False)
    dtype, (_, line) = cpu_conv.choose(MIXED)
    assert dtype == 'float32'
    assert line == 'mixed precision: off: this cpu has no bfloat16'
    dtype, (_, line) = cpu_conv.choose(dataclasses.replace(MIXED, cpu_conv='paddle'))
    assert dtype is None
    assert line == 'mixed precision: off: on a cpu, only oneDNN has it'


# ------------------------------------------------------------------ what is left alone


class Own(nn.Conv2D):
    pass


LEFT_ALONE = {
    'bias': lambda: CONV(8, 8, 3, bias_attr=None),
    'dilation': lambda: CONV(8, 8, 3, dilation=2),
    'same': lambda: CONV(8, 8, 3, padding='SAME'),
    'reflect': lambda: CONV(8, 8, 3, padding=1, padding_mode='reflect'),
    'two paddings': lambda: CONV(8, 8, 3, padding=[1, 2]),
    'four paddings': lambda: CONV(8, 8, 3, padding=[0, 1, 2, 0]),
    'subclass': lambda: Own(8, 8, 3, bias_attr=False, data_format='NHWC'),
    'NCHW': lambda: nn.Conv2D(8, 8, 3, bias_attr=False),
    'NCHW norm': lambda: nn.BatchNorm2D(8),
    'norm without scale': lambda: NORM(8, weight_attr=False),
    'norm without shift': lambda: NORM(8, bias_attr=False),
}


@pytest.mark.parametrize('build', LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_unsupported_layers_are_left_to_paddle(build):
    fast, plain = pair(nn.Sequential(build()))
    x = paddle.to_tensor(numbers(2, 8, 8, 8))
    np.testing.assert_array_equal(fast(x).numpy(), plain(x).numpy())
    assert type(fast[0]) is type(plain[0])


def test_sync_batch_norm_is_left_to_paddle():
    layer = nn.SyncBatchNorm(8, data_format='NHWC')
    assert type(accelerate(nn.Sequential(layer))[0]) is nn.SyncBatchNorm


def test_accelerating_twice_and_copying_change_nothing():
    plain = small()
    names, x = list(plain.state_dict()), numbers(2, 9, 9, 8)
    fast = accelerate(plain)
    kinds, once = [type(layer) for layer in fast], results(fast, x)
    twin = copy.deepcopy(accelerate(fast))
    assert [type(layer) for layer in twin] == kinds
    assert kinds[0] is not nn.Conv2D
    assert kinds[1] is not nn.BatchNorm2D
    assert list(twin.state_dict()) == names
    assert_same(results(twin, x), once, 1e-6)
    with paddle.no_grad():
        twin[0].weight.scale_(2.0)
    assert_same(results(fast, x), once, 1e-6)


@pytest.mark.parametrize('kind', ['pre', 'post'])
def test_hooks_of_a_batch_norm_are_called(kind):
    """It is then not computed in one pass with its ReLU; the result is the same."""
    paddle.seed(0)
    model = accelerate(models.build('wide_resnet10_1', num_classes=3, data_format='NHWC'))
    x, called = paddle.to_tensor(numbers(2, 3, 16, 16)), []
    once = model(x).numpy()
    norm = model.block1.layer[0].bn1
    hook = getattr(norm, f'register_forward_{kind}_hook')(lambda *given: called.append(given[-1]))
    np.testing.assert_allclose(model(x).numpy(), once, rtol=1e-5, atol=1e-6)
    (seen,) = called
    assert kind == 'pre' or seen.numpy().min() < 0  # before the ReLU
    hook.remove()
    model(x)
    assert len(called) == 1


# ------------------------------------------------------------------ choosing


@pytest.fixture
def fresh_library():
    """The library is loaded and checked again, before and after the test."""

    def clear() -> None:
        # What was made with one engine cannot run in another's stream.
        for function in (
            onednn.library,
            kernels.convolution,
            kernels.batch_norm,
            kernels.rounding,
        ):
            function.cache_clear()
        cpu_conv.unavailable.cache_clear()

    clear()
    yield
    clear()


def assert_falls_back(reason: str) -> None:
    dtype, (line,) = cpu_conv.choose(Train())
    assert dtype is None
    assert re.fullmatch(rf"convolutions: Paddle's own \(.*{reason}.*\)", line)
    with pytest.raises(UserError, match=rf'^train\.cpu_conv: onednn is not available: .*{reason}'):
        cpu_conv.choose(Train(cpu_conv='onednn'))


def test_choice_follows_the_config():
    for choice in ('auto', 'onednn'):
        dtype, (line,) = cpu_conv.choose(Train(cpu_conv=choice))
        assert dtype == 'float32'
        assert re.fullmatch(rf'convolutions: oneDNN 3\.\d+\.\d+ in float32 \({choice}\)', line)
    assert cpu_conv.choose(Train(cpu_conv='paddle')) == (
        None,
        ["convolutions: Paddle's own (as requested)"],
    )


def test_onednn_is_available_here():
    assert cpu_conv.unavailable() is None


@needs_bfloat16
def test_bfloat16_is_available_here():
    assert cpu_conv.unavailable('bfloat16') is None


def test_accelerators_do_not_use_onednn(fresh_library, monkeypatch):
    monkeypatch.setattr(devices, 'is_accelerator', lambda: True)
    assert cpu_conv.choose(Train()) == (None, [])


def test_kernel_that_fails_in_the_backward_pass_is_not_used(fresh_library, monkeypatch):
    """Paddle makes something else of the exception."""

    class Failing(kernels.Convolution):
        @property
        def backward_filters(self):
            raise RuntimeError('dnnl_primitive_create returned 3')

    monkeypatch.setattr(kernels, 'convolution', Failing)
    assert_falls_back('dnnl_primitive_create returned 3')


def test_buffers_are_aligned_and_large_enough():
    for size in (1, 63, 64, 65, 127, 128, 129, 1000, 1063, 1064):
        address = onednn._buffer(10**6, size)
        held = onednn._buffers[10**6]
        assert address % 64 == 0
        assert held.ctypes.data <= address
        assert address + size <= held.ctypes.data + held.nbytes


def test_fallback_without_the_library(fresh_library, monkeypatch):
    monkeypatch.setattr(onednn, 'LIBRARY', 'libabsent.so.3')
    assert_falls_back('has no libabsent.so.3')


@pytest.mark.parametrize('place', range(4))
@pytest.mark.parametrize('wrong', [1.001, np.nan])
def test_library_with_wrong_results_is_not_used(fresh_library, monkeypatch, wrong, place):
    true = self_check._results

    def off(layer: nn.Layer, *arguments: object) -> list[np.ndarray]:
        found = true(layer, *arguments)
        if isinstance(layer, layers._BatchNorm2D):
            found[place] = found[place] * np.float32(wrong)
        return found

    monkeypatch.setattr(self_check, '_results', off)
    assert_falls_back('self-check')


def test_batch_norm_without_its_relu_is_not_used(fresh_library, monkeypatch):
    monkeypatch.setattr(layers._NormReLU, 'forward', lambda self, norm, x: norm(x))
    assert_falls_back('self-check')


@needs_bfloat16
def test_wrong_bfloat16_results_fall_back_to_float32(fresh_library, monkeypatch):
    def cut_off(tensor: paddle.Tensor, dtype: int) -> paddle.Tensor:
        result = rounded(tensor, dtype)
        return result if dtype == onednn.FLOAT32 else result * 1.1

    rounded = layers._rounded
    monkeypatch.setattr(layers, '_rounded', cut_off)
    dtype, (_, line) = cpu_conv.choose(MIXED)
    assert dtype == 'float32'
    assert re.fullmatch(r'mixed precision: off: oneDNN is off by \S+ in .*bfloat16', line)


def test_compiled_network_is_left_to_paddle():
    dtype, (line,) = cpu_conv.choose(Train(to_static=True))
    assert dtype is None
    assert 'train.to_static' in line
    with pytest.raises(UserError, match=r'^train\.cpu_conv: onednn .*train\.to_static'):
        cpu_conv.choose(Train(cpu_conv='onednn', to_static=True))


def test_choosing_draws_no_random_numbers(fresh_library):
    paddle.seed(7)
    expected = paddle.rand([4]).numpy()
    paddle.seed(7)
    cpu_conv.choose(Train())
    np.testing.assert_array_equal(paddle.rand([4]).numpy(), expected)


# ------------------------------------------------------------------ a run

RUNS = {
    'paddle': ("Paddle's own (as requested)", ['train.cpu_conv=paddle']),
    'onednn': ('oneDNN 3.', ['train.cpu_conv=onednn']),
    'bfloat16': ('oneDNN 3.', ['train.amp=O1', 'train.amp_dtype=bfloat16']),
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Eight steps of the quick start by name, once each: (run folder, losses)"""
    folder = tmp_path_factory.mktemp('runs')
    quick = str(REPOSITORY / 'configs' / 'quickstart.yaml')
    settings = ('train.max_steps=8', 'train.log_every=1', 'optimizer.lr=0.01', 'data.batch_size=16')

    @functools.cache
    def run_of(name):
        (line, changes), output = RUNS[name], f'output.dir={name}'
        run = execute(folder, 'train.py', '-c', quick, '-o', *settings, *changes, output)
        assert (run.returncode, run.stderr) == (0, '')
        assert f'\nconvolutions: {line}' in run.stdout
        losses = [float(loss) for loss in re.findall(r'^iter:\d+ +loss:(\S+)', run.stdout, re.M)]
        assert len(losses) == 8
        return folder / name, losses

    return run_of


def test_run_with_onednn_equals_run_with_paddle(runs):
    assert runs('onednn')[1] == pytest.approx(runs('paddle')[1], abs=1.5e-4)  # of four digits


@needs_bfloat16
def test_run_in_bfloat16_is_close(runs):
    assert runs('bfloat16')[1] != runs('onednn')[1]
    assert runs('bfloat16')[1] == pytest.approx(runs('onednn')[1], rel=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['onednn', 'bfloat16'])
def test_eval_reproduces_the_accuracy_of_the_run(runs, name):
    folder, _ = runs(name)
    record = json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])
    measured = execute(folder.parent, 'eval.py', '-w', name)
    ratio = re.search(r'ratio:(\S+)', measured.stdout)
    assert ratio is not None
    assert float(ratio[1]) == pytest.approx(record['eval_accuracy'], abs=1e-6)


@pytest.mark.slow
def test_resume_with_other_kernels_is_reported(runs, tmp_path):
    folder, _ = runs('onednn')
    changes = ('-o', 'train.cpu_conv=paddle', 'train.max_steps=9', f'output.dir={tmp_path / "on"}')
    result = execute(tmp_path, 'train.py', '--resume', str(folder), *changes)
    assert result.returncode == 0, result.stderr
    line = 'resume: convolutions are computed by Paddle now, not by oneDNN in float32'
    assert f'\n{line}' in result.stdout
