"""ResNeXt and WRN-50-2 are the papers': names, arithmetic, training, initialisation, arguments.

Two oracles: the sum over paths in plain NumPy (numpy_resnext.py), and the networks that come with
paddle.vision. PyTorch is the third, in test_torch_parity.py.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np
import paddle
import pytest
from numpy_resnext import block as numpy_block
from numpy_resnext import logits as numpy_logits
from numpy_wide_resnet import images
from paddle import nn
from paddle.vision import models as vision
from paddle.vision.models.resnet import BottleneckBlock
from paddle.vision.models.resnet import ResNet as VisionResNet
from paddle_networks import norm, randomise, run

import resnext
import wide_resnet
from resnext import Bottleneck, CifarResNeXt, ResNeXt

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4  # of logits of order 1

RESNEXT_50 = (3, 4, 6, 3)  # blocks of each stage

# Each family, small: cardinality and width shrink a network, its depth can't.
FAMILIES = {
    'photographs': partial(ResNeXt, depth=50, cardinality=4, width=2, num_classes=7),
    'cifar': partial(CifarResNeXt, depth=11, cardinality=4, width=4, num_classes=7),
    'wide bottleneck': partial(ResNeXt, depth=50, cardinality=1, width=12, num_classes=7),
}
PUBLISHED = {
    'resnext50_32x4d': resnext.resnext50_32x4d,
    'resnext50_64x4d': resnext.resnext50_64x4d,
    'resnext101_32x4d': resnext.resnext101_32x4d,
    'resnext101_64x4d': resnext.resnext101_64x4d,
    'resnext152_32x4d': resnext.resnext152_32x4d,
    'resnext152_64x4d': resnext.resnext152_64x4d,
    'wide_resnet50_2': wide_resnet.wide_resnet50_2,
    'wide_resnet101_2': wide_resnet.wide_resnet101_2,
}
each_family = pytest.mark.parametrize('build', FAMILIES.values(), ids=FAMILIES)


def shapes(build: Callable[[], nn.Layer]) -> dict[str, tuple[int, ...]]:
    """Of a network that is never given any weights, which would take seconds."""
    with paddle.LazyGuard():
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


def layers(model: nn.Layer, kind: type) -> dict[str, nn.Layer]:
    return {name: layer for name, layer in model.named_sublayers() if isinstance(layer, kind)}


# ------------------------------------------------------------------ names and shapes


@pytest.mark.parametrize('name', PUBLISHED)
def test_names_and_shapes_are_those_of_paddle_vision(name):
    assert shapes(PUBLISHED[name]) == shapes(getattr(vision, name))


@pytest.mark.parametrize('depth', [11, 29])
def test_names_of_the_cifar_network(depth):
    names = {'conv1.weight', 'fc.weight', 'fc.bias'} | norm('bn1')
    for stage in (1, 2, 3):
        for i in range((depth - 2) // 9):
            prefix = f'layer{stage}.{i}'
            names |= {f'{prefix}.conv{number}.weight' for number in (1, 2, 3)}
            names |= norm(f'{prefix}.bn1') | norm(f'{prefix}.bn2') | norm(f'{prefix}.bn3')
        names |= {f'layer{stage}.0.downsample.0.weight'} | norm(f'layer{stage}.0.downsample.1')
    assert set(shapes(partial(CifarResNeXt, depth=depth, width=4))) == names


def test_channels_of_the_cifar_network():
    """Section 5.3: widths of 64, 128 and 256 a path, and outputs of 256, 512 and 1024."""
    found = shapes(CifarResNeXt)
    assert found['conv1.weight'] == (64, 3, 3, 3)
    for stage, inputs in ((1, 64), (2, 256), (3, 512)):
        width, outputs = 64 * 2 ** (stage - 1), 256 * 2 ** (stage - 1)
        first = f'layer{stage}.0'
        assert found[f'{first}.conv1.weight'] == (8 * width, inputs, 1, 1)
        assert found[f'{first}.conv2.weight'] == (8 * width, width, 3, 3)
        assert found[f'{first}.conv3.weight'] == (outputs, 8 * width, 1, 1)
        assert found[f'{first}.downsample.0.weight'] == (outputs, inputs, 1, 1)
    assert found['fc.weight'] == (1024, 10)


@pytest.mark.parametrize(('number', 'width'), [(1, 128), (2, 256), (3, 512), (4, 1024)])
def test_wide_resnet50_2_doubles_the_3x3_convolutions_of_resnet50(number, width):
    wide, plain = shapes(wide_resnet.wide_resnet50_2), shapes(vision.resnet50)
    name = f'layer{number}.1.conv2.weight'
    assert wide[name] == (width, width, 3, 3)
    assert plain[name] == (width // 2, width // 2, 3, 3)
    assert wide[f'layer{number}.1.bn3.weight'] == plain[f'layer{number}.1.bn3.weight']


@each_family
def test_no_convolution_has_a_bias(build):
    convolutions = layers(build(), nn.Conv2D)
    assert all(layer.bias is None for layer in convolutions.values())


# ------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize(
    ('width_in', 'inner', 'width_out', 'stride', 'cardinality'),
    [
        (16, 8, 16, 1, 1),
        (16, 8, 16, 1, 4),
        (16, 6, 16, 1, 6),  # one channel a path
        (16, 12, 24, 1, 3),
        (16, 8, 16, 2, 2),
        (16, 8, 32, 2, 4),
    ],
)
@pytest.mark.parametrize('size', [(12, 12), (9, 14)])
def test_block_equals_numpy(width_in, inner, width_out, stride, cardinality, size):
    module = Bottleneck(width_in, inner, width_out, stride=stride, cardinality=cardinality)
    state = randomise(module, seed=1)
    module.eval()
    batch = images(3, *size, channels=width_in)
    expected = numpy_block(
        batch.astype(np.float64), state, '', stride=stride, cardinality=cardinality
    )
    assert ('downsample.0.weight' in state) == (width_in != width_out or stride != 1)
    np.testing.assert_allclose(run(module, batch), expected, rtol=0, atol=TOLERANCE)


def assert_logits_equal_numpy(model, batch, *, blocks, cardinality):
    state = randomise(model, seed=cardinality)
    model.eval()
    expected = numpy_logits(batch, state, blocks=blocks, cardinality=cardinality)
    assert expected.shape == (len(batch), 7)
    assert 0.3 < expected.std() < 10  # of order 1, and the tolerance means something
    np.testing.assert_allclose(run(model, batch), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ('cardinality', 'width', 'size'),
    [(4, 4, (64, 64)), (3, 5, (45, 61)), (32, 1, (32, 32)), (1, 12, (64, 64)), (1, 16, (33, 70))],
)
def test_network_for_photographs_equals_numpy(cardinality, width, size):
    model = ResNeXt(depth=50, cardinality=cardinality, width=width, num_classes=7)
    assert_logits_equal_numpy(model, images(2, *size), blocks=RESNEXT_50, cardinality=cardinality)


@pytest.mark.parametrize(
    ('depth', 'cardinality', 'width', 'size'),
    [
        (11, 4, 8, (32, 32)),
        (20, 2, 4, (32, 32)),
        (29, 8, 1, (32, 32)),
        (11, 3, 5, (33, 37)),
        (20, 1, 8, (40, 24)),
    ],
)
def test_network_for_cifar_equals_numpy(depth, cardinality, width, size):
    model = CifarResNeXt(depth=depth, cardinality=cardinality, width=width, num_classes=7)
    blocks = [(depth - 2) // 9] * 3
    assert_logits_equal_numpy(model, images(2, *size), blocks=blocks, cardinality=cardinality)


@pytest.mark.slow
def test_wide_resnet50_2_at_full_width_equals_numpy():
    model = wide_resnet.wide_resnet50_2(num_classes=7)
    assert_logits_equal_numpy(model, images(1, 64, 64), blocks=RESNEXT_50, cardinality=1)


@pytest.mark.parametrize(
    'name',
    [
        'resnext50_32x4d',
        pytest.param('wide_resnet50_2', marks=pytest.mark.slow),
        pytest.param('resnext101_64x4d', marks=pytest.mark.slow),
        pytest.param('resnext152_32x4d', marks=pytest.mark.slow),
    ],
)
def test_state_and_logits_equal_paddle_vision(name):
    ours, theirs = PUBLISHED[name](num_classes=7), getattr(vision, name)(num_classes=7)
    randomise(theirs, seed=2)
    assert ours.set_state_dict(theirs.state_dict()) == ([], [])  # nothing missing, nothing left
    ours.eval(), theirs.eval()
    batch = images(2, 64, 64)
    expected = run(theirs, batch)
    assert 0.3 < expected.std() < 10
    np.testing.assert_allclose(run(ours, batch), expected, rtol=0, atol=1e-5)


def test_stride_is_on_the_3x3_convolution():
    module = Bottleneck(8, 8, 16, stride=2, cardinality=2)
    sizes = {}

    def note(name: str):
        def hook(layer, inputs, output):
            sizes[name] = tuple(output.shape[2:])

        return hook

    for name, layer in layers(module, nn.Conv2D).items():
        layer.register_forward_post_hook(note(name))
    run(module, images(1, 12, 12, channels=8))
    assert sizes == {'conv1': (12, 12), 'conv2': (6, 6), 'conv3': (6, 6), 'downsample.0': (6, 6)}


@pytest.mark.parametrize(
    ('build', 'sides'),
    [('photographs', [56, 28, 14, 7]), ('wide bottleneck', [56, 28, 14, 7]), ('cifar', [8, 4, 2])],
)
def test_sizes_of_the_stages(build, sides):
    """Table 1, for images of 224 pixels; the CIFAR network, for images of 8."""
    model, found = FAMILIES[build](), []
    for number in range(len(sides)):
        stage = getattr(model, f'layer{number + 1}')
        stage.register_forward_post_hook(lambda layer, given, output: found.append(output.shape[2]))
    run(model, images(1, *(2 * [224 if len(sides) == 4 else 8])))
    assert found == sides


@each_family
@pytest.mark.parametrize('data_format', ['NCHW', 'NHWC'])
def test_convolutions_have_the_requested_layout(build, data_format):
    model, channels = build(data_format=data_format), {}

    def note(layer, inputs, output):
        channels[layer] = output.shape[data_format.index('C')]

    convolutions = layers(model, nn.Conv2D).values()
    for layer in convolutions:
        layer.register_forward_post_hook(note)
    run(model, images(1, 40, 56))
    assert channels == {layer: layer.weight.shape[0] for layer in convolutions}


@each_family
def test_evaluation_does_not_change_the_statistics(build):
    model = build()
    before = randomise(model, seed=3)
    model.eval()
    run(model, images(2))
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name], err_msg=name)


# ------------------------------------------------------------------ training


def test_training_moves_the_statistics_by_a_tenth():
    """0.9 in Paddle's sense (0.1 in torch's), with the biased variance of the batch."""
    module = Bottleneck(4, 4, 8)
    with paddle.no_grad():
        module.conv1.weight.set_value(paddle.eye(4).reshape([4, 4, 1, 1]))
    batch = images(5, 8, 8, channels=4) * 3 + 2
    module.train()
    run(module, batch)
    mean, variance = batch.mean((0, 2, 3)), batch.var((0, 2, 3))
    np.testing.assert_allclose(module.bn1._mean.numpy(), 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(module.bn1._variance.numpy(), 0.9 + 0.1 * variance, rtol=1e-4)


def sgd_step(model: nn.Layer, batch: np.ndarray, labels: np.ndarray) -> float:
    optimizer = paddle.optimizer.SGD(
        0.05, parameters=[p for p in model.parameters() if not p.stop_gradient]
    )
    model.train()
    loss = nn.functional.cross_entropy(model(paddle.to_tensor(batch)), paddle.to_tensor(labels))
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(('cardinality', 'width'), [(4, 2), (1, 12)])
def test_training_step_equals_paddle_vision(cardinality, width):
    """Loss, all updated weights, all running statistics."""
    ours = ResNeXt(depth=50, cardinality=cardinality, width=width, num_classes=7)
    theirs = VisionResNet(BottleneckBlock, 50, width=width, groups=cardinality, num_classes=7)
    initial = randomise(ours, seed=4)
    theirs.set_state_dict(initial)
    batch, labels = images(8, 64, 64), np.arange(8) % 7
    assert sgd_step(ours, batch, labels) == pytest.approx(sgd_step(theirs, batch, labels), abs=1e-5)
    expected = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    for name, tensor in ours.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=0, atol=1e-5, err_msg=name)
    still = [name for name in initial if np.abs(expected[name] - initial[name]).max() < 1e-4]
    assert still == []  # a step that does nothing would pass otherwise


@each_family
def test_every_parameter_receives_a_gradient(build):
    paddle.seed(2)
    model = build()
    model.train()
    labels = paddle.to_tensor(np.arange(4))
    nn.functional.cross_entropy(model(paddle.to_tensor(images(4, 48, 48))), labels).backward()
    trainable = {n: p for n, p in model.named_parameters() if not p.stop_gradient}
    statistics = ('_mean', '_variance')
    assert set(trainable) == {n for n in model.state_dict() if not n.endswith(statistics)}
    idle = [n for n, p in trainable.items() if p.grad is None or not np.abs(p.grad.numpy()).max()]
    assert idle == []
    assert all(np.isfinite(p.grad.numpy()).all() for p in trainable.values())


# ------------------------------------------------------------------ initialisation


@each_family
def test_convolutions_start_he_normal_over_the_fan_out(build):
    paddle.seed(11)
    for name, layer in layers(build(), nn.Conv2D).items():
        weights = layer.weight.numpy().astype(np.float64)
        out_channels, _, side, _ = weights.shape  # the outputs of all groups together
        std = math.sqrt(2 / (side * side * out_channels))
        error = 1 / math.sqrt(2 * weights.size)  # relative standard error of a standard deviation
        assert weights.std() == pytest.approx(std, rel=5 * error), name
        assert abs(weights.mean()) < 5 * std / math.sqrt(weights.size), name
        if weights.size > 10_000:  # a normal, not a uniform, distribution
            assert np.mean(np.abs(weights) > 2 * std) == pytest.approx(0.0455, abs=0.01), name


@each_family
def test_initial_values_of_other_parameters(build):
    paddle.seed(1)
    for name, tensor in build().state_dict().items():
        values = tensor.numpy()
        if name == 'fc.weight':
            bound = 1 / math.sqrt(len(values))
            assert 0.9 * bound < np.abs(values).max() <= bound
        elif name.endswith(('bias', '_mean')):
            assert not values.any(), name
        elif values.ndim == 1:
            assert (values == 1).all(), name


@each_family
def test_zero_init_makes_each_block_its_shortcut(build):
    """Rectified, as the end of a block is; in training and in evaluation."""
    paddle.seed(4)
    model, seen = build(zero_init_last_bn=True), []

    def compare(block, inputs, output):
        (given,) = inputs
        shortcut = given if block.downsample is None else block.downsample(given)
        np.testing.assert_array_equal(output.numpy(), nn.functional.relu(shortcut).numpy())
        seen.append(np.abs(output.numpy()).max())

    blocks = layers(model, Bottleneck)
    for block in blocks.values():
        block.register_forward_post_hook(compare)
    for mode in (model.train, model.eval):
        mode()
        run(model, images(4))
    assert len(seen) == 2 * len(blocks)
    assert min(seen) > 0


@each_family
def test_zero_init_reaches_only_the_last_gammas(build):
    model = build(zero_init_last_bn=True)
    gammas = {name: layer.weight.numpy() for name, layer in layers(model, nn.BatchNorm2D).items()}
    zero = {name for name, values in gammas.items() if not values.any()}
    assert zero == {f'{name}.bn3' for name in layers(model, Bottleneck)}
    assert all((values == 1).all() for name, values in gammas.items() if name not in zero)


def test_zero_init_is_off_by_default():
    norms = layers(CifarResNeXt(depth=11, width=2), nn.BatchNorm2D)
    assert all((layer.weight.numpy() == 1).all() for layer in norms.values())


@each_family
def test_zero_init_learns(build):
    """The zero gammas receive a gradient, so that a block leaves its shortcut at the first step."""
    paddle.seed(5)
    model = build(zero_init_last_bn=True)
    sgd_step(model, images(4), np.arange(4))
    assert all(block.bn3.weight.numpy().any() for block in layers(model, Bottleneck).values())


@each_family
def test_the_seed_decides_the_weights(build):
    def weights(seed: int) -> np.ndarray:
        paddle.seed(seed)
        return build().layer3[0].conv2.weight.numpy()

    np.testing.assert_array_equal(weights(5), weights(5))
    assert (weights(5) != weights(6)).any()


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize('network', [ResNeXt, CifarResNeXt, *PUBLISHED.values()])
def test_arguments_are_keyword_only(network):
    with pytest.raises(TypeError):
        network(50)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_networks_take_num_classes(name):
    features = shapes(PUBLISHED[name])['fc.weight'][0]
    found = shapes(partial(PUBLISHED[name], num_classes=12))
    assert features == 2048
    assert (found['fc.weight'], found['fc.bias']) == ((2048, 12), (12,))


@pytest.mark.parametrize('name', ['resnext50_32x4d', 'wide_resnet50_2'])
def test_published_networks_take_zero_init(name):
    with paddle.LazyGuard():
        model = PUBLISHED[name](zero_init_last_bn=True)
    gamma = model.layer4[2].bn3.weight
    gamma.initialize()
    assert not gamma.numpy().any()


@pytest.mark.parametrize('depth', [-2, 0, 18, 29, 34, 49, 51, 100, 200])
def test_impossible_depths_are_refused(depth):
    with pytest.raises(ValueError, match=f'50, 101, 152.*{depth}'):
        ResNeXt(depth=depth)


@pytest.mark.parametrize('depth', [-7, 0, 1, 2, 3, 10, 12, 28, 30, 50, 152])
def test_impossible_depths_for_cifar_are_refused(depth):
    with pytest.raises(ValueError, match=rf'9n \+ 2.*29.*{depth}'):
        CifarResNeXt(depth=depth)


@pytest.mark.parametrize('network', [partial(ResNeXt, depth=50), CifarResNeXt])
@pytest.mark.parametrize('named', ['cardinality', 'width', 'num_classes'])
@pytest.mark.parametrize('value', [0, -1])
def test_impossible_sizes_are_refused(network, named, value):
    with pytest.raises(ValueError, match=f'{named}.*1 or more'):
        network(**{named: value})


@each_family
@pytest.mark.parametrize('value', ['nhwc', 'NCL', 'NDHWC', '', None])
def test_impossible_layouts_are_refused(build, value):
    with pytest.raises(ValueError, match=f'data_format must be NCHW or NHWC, not {value!r}'):
        build(data_format=value)


# ------------------------------------------------------------------ copied elsewhere


def run_alone(folder: Path, program: str, *files: str) -> list[str]:
    """The printed lines of a program in a folder that has only these files of the repository."""
    for file in files:
        shutil.copy(ROOT / file, folder)
    (folder / 'program.py').write_text(program)
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [sys.executable, 'program.py'],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ('files', 'program'),
    [
        (
            ['resnext.py'],
            'from resnext import CifarResNeXt, resnext50_32x4d\n'
            'model = CifarResNeXt(depth=11, cardinality=2, width=4)\n',
        ),
        (
            ['resnext.py', 'wide_resnet.py'],
            'from wide_resnet import WideResNet, wide_resnet50_2\n'
            'model = WideResNet(depth=10, widen_factor=1)\n',
        ),
    ],
    ids=['resnext.py', 'both'],
)
def test_files_work_alone(tmp_path, files, program):
    program += (
        'import paddle, sys\n'
        'print(list(model(paddle.zeros([2, 3, 32, 32])).shape))\n'
        'print(sorted(n for n, m in sys.modules.items()\n'
        f'             if (getattr(m, "__file__", "") or "").startswith({str(ROOT) + os.sep!r})\n'
        '             and "site-packages" not in m.__file__))\n'  # a .venv may lie inside it
    )
    printed = run_alone(tmp_path, program, *files)
    assert printed[-2:] == ['[2, 10]', '[]']  # nothing of the repository is loaded


PLAIN_PADDLE = """
import copy
import numpy as np
import paddle
from paddle import nn
from resnext import CifarResNeXt, NormReLU
from wide_resnet import WideResNet

images = paddle.to_tensor(np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype('float32'))
paddle.seed(0)
for build in (
    lambda layout: CifarResNeXt(depth=11, cardinality=2, width=4, data_format=layout),
    lambda layout: WideResNet(depth=10, widen_factor=1, data_format=layout),
):
    model = build('NCHW')
    model(images)  # moves the statistics
    names = list(model.state_dict())

    def assert_same(other, mode='eval'):
        assert list(other.state_dict()) == names
        # Each computes with statistics of its own, which training moves.
        pair = [model, other] if mode == 'eval' else [copy.deepcopy(model), other]
        for one in pair:
            getattr(one, mode)()
        found, expected = (one(images).numpy() for one in pair)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    nhwc = build('NHWC')
    nhwc.set_state_dict(model.state_dict())
    assert_same(nhwc)
    assert_same(nhwc, 'train')
    for mode in ('eval', 'train'):
        assert_same(paddle.jit.to_static(copy.deepcopy(model)), mode)

    hooked, seen = copy.deepcopy(model), []
    for layer in hooked.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer.register_forward_post_hook(lambda *given: seen.append(given[-1].numpy().min()))
    assert_same(hooked)
    count = sum(isinstance(layer, nn.BatchNorm2D) for layer in model.sublayers())
    assert len(seen) == count and max(seen) < 0, seen  # each is called, and before the ReLU

    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    kinds = [type(layer) for layer in synchronised.sublayers()]
    assert (kinds.count(nn.SyncBatchNorm), kinds.count(nn.BatchNorm2D)) == (count, 0)
    nn.SyncBatchNorm.forward = nn.layer.norm._BatchNormBase.forward  # which a CPU has
    nn.SyncBatchNorm._check_data_format = nn.SyncBatchNorm._check_input_dim = lambda *_: None
    assert_same(synchronised)
print('right')
"""


def test_files_work_with_plain_paddle(tmp_path):
    """NHWC, to_static, forward hooks on batch norms, and conversion to SyncBatchNorm."""
    assert run_alone(tmp_path, PLAIN_PADDLE, 'resnext.py', 'wide_resnet.py')[-1] == 'right'
