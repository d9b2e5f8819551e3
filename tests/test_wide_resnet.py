"""The network is the paper's: counts, names, arithmetic, initialisation, gradients."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from numpy_wide_resnet import block as numpy_block
from numpy_wide_resnet import images
from numpy_wide_resnet import logits as numpy_logits
from paddle import nn
from paddle_networks import norm, randomise, run

from engine import models
from wide_resnet import WideBlock, WideResNet

TOLERANCE = 1e-4


@pytest.fixture
def small() -> WideResNet:
    paddle.seed(3)
    return WideResNet(depth=10, widen_factor=1, num_classes=10, dropout=0.0)


# ------------------------------------------------------------------ counts and names


def test_class_count_changes_only_the_last_layer():
    ten = models.build('wide_resnet10_2', num_classes=10)
    hundred = models.build('wide_resnet10_2', num_classes=100)
    assert models.parameter_count(hundred) - models.parameter_count(ten) == 90 * (128 + 1)
    assert list(hundred.fc.weight.shape) == [128, 100]


def documented_names(depth: int) -> set[str]:
    """DESIGN.md, section 4, spelled out; with widen factor 1 group 1 needs no projection."""

    names = {'conv1.weight', 'fc.weight', 'fc.bias'} | norm('bn1')
    for group in (1, 2, 3):
        for i in range((depth - 4) // 6):
            prefix = f'block{group}.layer.{i}'
            names |= norm(f'{prefix}.bn1') | norm(f'{prefix}.bn2')
            names |= {f'{prefix}.conv1.weight', f'{prefix}.conv2.weight'}
        names.add(f'block{group}.layer.0.convShortcut.weight')
    return names


@pytest.mark.parametrize('depth', [10, 22])
def test_state_dict_names(depth):
    assert set(WideResNet(depth=depth, widen_factor=2).state_dict()) == documented_names(depth)


def test_no_projection_where_the_width_stays(small):
    projections = {name for name in small.state_dict() if 'convShortcut' in name}
    assert projections == {f'block{group}.layer.0.convShortcut.weight' for group in (2, 3)}


def test_channels_of_the_groups_follow_the_widen_factor():
    model = WideResNet(depth=10, widen_factor=3)
    widths = [getattr(model, f'block{group}').layer[0].conv2.weight.shape[0] for group in (1, 2, 3)]
    assert widths == [48, 96, 192]
    assert model.conv1.weight.shape[0] == 16  # Table 1: conv1 is never widened


def test_no_convolution_has_a_bias():
    model = WideResNet(depth=16, widen_factor=2)
    convolutions = [layer for layer in model.sublayers() if isinstance(layer, nn.Conv2D)]
    assert len(convolutions) == 1 + 2 * 6 + 3
    assert all(layer.bias is None for layer in convolutions)


# ------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize(
    ('width_in', 'width_out', 'stride'), [(8, 8, 1), (8, 16, 1), (8, 16, 2), (16, 8, 2)]
)
@pytest.mark.parametrize('size', [(12, 12), (10, 14)])
def test_block_equals_numpy(width_in, width_out, stride, size):
    module = WideBlock(width_in, width_out, stride=stride)
    state = randomise(module, seed=1)
    module.eval()
    batch = images(3, *size, channels=width_in)
    expected = numpy_block(batch.astype(np.float64), state, '', stride)
    assert ('convShortcut.weight' in state) == (width_in != width_out)
    np.testing.assert_allclose(run(module, batch), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ('depth', 'widen_factor', 'size'),
    [(10, 1, (32, 32)), (10, 1, (40, 48)), (16, 2, (32, 32)), (16, 2, (40, 48)), (10, 1, (33, 37))],
)
def test_network_equals_numpy(depth, widen_factor, size):
    model = WideResNet(depth=depth, widen_factor=widen_factor, num_classes=7)
    state = randomise(model, seed=depth)
    model.eval()
    batch = images(2, *size)
    expected = numpy_logits(batch, state, depth=depth)
    assert expected.shape == (2, 7)
    assert np.ptp(expected) > 0.1  # else any two sets of logits would be close
    np.testing.assert_allclose(run(model, batch), expected, rtol=0, atol=TOLERANCE)


def test_stride_is_on_the_first_convolution():
    module = WideBlock(8, 16, stride=2)
    sizes = {}

    def note(name: str):
        def hook(layer, inputs, output):
            sizes[name] = tuple(output.shape[2:])

        return hook

    for name in ('conv1', 'conv2', 'convShortcut'):
        getattr(module, name).register_forward_post_hook(note(name))
    run(module, images(1, 12, 12, channels=8))
    assert sizes == {'conv1': (6, 6), 'conv2': (6, 6), 'convShortcut': (6, 6)}


@pytest.mark.parametrize('data_format', ['NCHW', 'NHWC'])
def test_convolutions_have_the_requested_layout(data_format):
    model, channels = WideResNet(depth=10, widen_factor=1, data_format=data_format), {}

    def note(layer, inputs, output):
        channels[layer] = output.shape[data_format.index('C')]

    convolutions = [layer for layer in model.sublayers() if isinstance(layer, nn.Conv2D)]
    for layer in convolutions:
        layer.register_forward_post_hook(note)
    run(model, images(1, 40, 56))
    assert channels == {layer: layer.weight.shape[0] for layer in convolutions}


def test_evaluation_does_not_change_the_statistics(small):
    before = {name: tensor.numpy().copy() for name, tensor in small.state_dict().items()}
    small.eval()
    run(small, images(2))
    for name, tensor in small.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])


def test_training_moves_the_statistics_by_a_tenth():
    """0.9 in Paddle's sense (0.1 in torch's), with the biased variance of the batch."""
    module = WideBlock(4, 4)
    batch = images(5, 8, 8, channels=4) * 3 + 2
    module.train()
    run(module, batch)
    mean, variance = batch.mean((0, 2, 3)), batch.var((0, 2, 3))
    np.testing.assert_allclose(module.bn1._mean.numpy(), 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(module.bn1._variance.numpy(), 0.9 + 0.1 * variance, rtol=1e-4)


# ------------------------------------------------------------------ dropout and gradients


def test_dropout_is_off_in_evaluation():
    plain = WideResNet(depth=10, widen_factor=1, dropout=0.0)
    dropping = WideResNet(depth=10, widen_factor=1, dropout=0.9)
    dropping.set_state_dict(randomise(plain, seed=2))
    batch = images(2)
    plain.eval(), dropping.eval()
    np.testing.assert_array_equal(run(dropping, batch), run(plain, batch))


@pytest.mark.parametrize(('dropout', 'differ'), [(0.0, False), (0.5, True)])
def test_dropout_is_on_in_training(dropout, differ):
    model = WideResNet(depth=10, widen_factor=1, dropout=dropout)
    model.train()
    assert (run(model, images(2)) != run(model, images(2))).any() == differ


@pytest.mark.parametrize(('width_in', 'width_out', 'stride'), [(8, 8, 1), (8, 16, 2)])
def test_dropout_is_between_the_convolutions_only(width_in, width_out, stride):
    """The second convolution reads what dropout left; nothing else in the block is random."""
    paddle.seed(0)
    rate = 0.75
    module = WideBlock(width_in, width_out, stride=stride, dropout=rate)
    randomise(module, seed=4)
    batch = images(8, 16, 16, channels=width_in)
    inputs = []
    module.conv2.register_forward_pre_hook(lambda layer, given: inputs.append(given[0].numpy()))
    module.train()
    run(module, batch)
    module.dropout.p = 0.0
    run(module, batch)
    dropped, whole = inputs
    alive = whole > 1e-3
    ratio = dropped[alive] / whole[alive]
    kept = ratio > 0
    np.testing.assert_allclose(ratio[kept], 1 / (1 - rate), rtol=1e-3)
    assert kept.mean() == pytest.approx(1 - rate, abs=0.03)
    assert whole.min() == dropped.min() == 0  # dropped after the ReLU, not before

    module.dropout.p = rate
    module.conv2.weight.set_value(paddle.zeros_like(module.conv2.weight))
    np.testing.assert_array_equal(run(module, batch), run(module, batch))


@pytest.mark.parametrize('name', ['wide_resnet10_1', 'wide_resnet16_2'])
def test_every_parameter_receives_a_gradient(name):
    model = models.build(name, num_classes=10, dropout=0.3)
    model.train()
    labels = paddle.to_tensor(np.arange(4))
    nn.functional.cross_entropy(model(paddle.to_tensor(images(4))), labels).backward()
    trainable = {n: p for n, p in model.named_parameters() if not p.stop_gradient}
    statistics = ('_mean', '_variance')
    assert set(trainable) == {n for n in model.state_dict() if not n.endswith(statistics)}
    idle = [n for n, p in trainable.items() if p.grad is None or not np.abs(p.grad.numpy()).max()]
    assert idle == []


# ------------------------------------------------------------------ initialisation


def test_convolutions_start_he_normal_over_the_fan_out():
    paddle.seed(11)
    model = WideResNet(depth=16, widen_factor=4)
    for name, tensor in model.state_dict().items():
        if len(tensor.shape) != 4:
            continue
        weights = tensor.numpy().astype(np.float64)
        out_channels, _, side, _ = weights.shape
        std = math.sqrt(2 / (side * side * out_channels))
        error = 1 / math.sqrt(2 * weights.size)  # relative standard error of a standard deviation
        assert weights.std() == pytest.approx(std, rel=5 * error), name
        assert abs(weights.mean()) < 5 * std / math.sqrt(weights.size), name
        if weights.size > 10_000:  # a normal, not a uniform, distribution
            assert np.mean(np.abs(weights) > 2 * std) == pytest.approx(0.0455, abs=0.008), name


def test_initial_values_of_other_parameters(small):
    for name, tensor in small.state_dict().items():
        values = tensor.numpy()
        if name == 'fc.weight':
            assert 0.5 / 8 < np.abs(values).max() <= 1 / 8  # 64 inputs
        elif name.endswith(('bias', '_mean')):
            assert not values.any(), name
        elif values.ndim == 1:
            assert (values == 1).all(), name


def test_the_seed_decides_the_weights():
    def weights(seed: int) -> np.ndarray:
        paddle.seed(seed)
        return WideResNet(depth=10, widen_factor=1).conv1.weight.numpy()

    np.testing.assert_array_equal(weights(5), weights(5))
    assert (weights(5) != weights(6)).any()


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize('depth', [28, 40])
def test_arguments_are_keyword_only(depth):
    """Contrib's WideResNet(28, 10, 20, 0.3) is of widen factor 20, which nobody sees."""
    with pytest.raises(TypeError):
        WideResNet(depth, 10, 20, 0.3)


@pytest.mark.parametrize('depth', [-2, 0, 3, 4, 9, 11, 15, 27, 29])
def test_impossible_depths_are_refused(depth):
    with pytest.raises(ValueError, match=f'depth.*{depth}'):
        WideResNet(depth=depth, widen_factor=1)


@pytest.mark.parametrize(
    ('wrong', 'named'),
    [
        ({'widen_factor': 0}, 'widen_factor'),
        ({'widen_factor': -1}, 'widen_factor'),
        ({'num_classes': 0}, 'num_classes'),
        ({'dropout': -0.1}, 'dropout'),
        ({'dropout': 1.0}, 'dropout'),
        ({'dropout': 1.5}, 'dropout'),
        ({'dropout': math.nan}, 'dropout'),
        ({'data_format': 'nhwc'}, "data_format must be NCHW or NHWC, not 'nhwc'"),
        ({'data_format': 'NCL'}, "data_format must be NCHW or NHWC, not 'NCL'"),
        ({'data_format': None}, 'data_format must be NCHW or NHWC, not None'),
    ],
)
def test_impossible_arguments_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        WideResNet(**{'depth': 10, 'widen_factor': 1, **wrong})
