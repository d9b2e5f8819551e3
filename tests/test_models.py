"""Names of networks: what they mean, what they build, what it costs, what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from numpy_wide_resnet import images
from paddle import nn
from paddle_networks import randomise, run

from engine import models
from engine.errors import UserError
from engine.machine import cpu, start
from engine.models import __main__
from resnext import CifarResNeXt, ResNeXt
from wide_resnet import WideResNet

ROOT = Path(__file__).resolve().parent.parent

# Counted by others, but for resnext29_16x64d: the papers' tables, torchvision and paddle.vision.
PARAMETERS = {
    'wide_resnet16_8': 10_961_370,
    'wide_resnet28_10': 36_479_194,
    'wide_resnet40_4': 8_949_210,
    'wide_resnet40_10': 55_841_754,
    'wide_resnet50_2': 68_883_240,
    'wide_resnet101_2': 126_886_696,
    'resnext29_8x64d': 34_426_698,
    'resnext29_16x64d': 68_155_210,
    'resnext50_32x4d': 25_028_904,
    'resnext50_64x4d': 45_192_488,
    'resnext101_32x4d': 44_177_704,
    'resnext101_64x4d': 83_455_272,
    'resnext152_32x4d': 59_951_400,
    'resnext152_64x4d': 114_971_944,
}
each_published = pytest.mark.parametrize('name', models.MODELS)


def empty(name: str, **arguments) -> nn.Layer:
    """The network without any weights, which would take seconds; all else is there."""
    with paddle.LazyGuard():
        return models.build(name, **arguments)


def classes(name: str) -> int:
    return 1000 if models.parse(name).for_photos else 10


# ------------------------------------------------------------------ what names mean


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('wide_resnet28_10', ('wide_resnet', 28, 1, 10, False)),
        ('wide_resnet10_1', ('wide_resnet', 10, 1, 1, False)),
        ('wide_resnet1000_123', ('wide_resnet', 1000, 1, 123, False)),
        ('wide_resnet50_2', ('wide_resnet', 50, 1, 2, True)),
        ('wide_resnet101_3', ('wide_resnet', 101, 1, 3, True)),
        ('resnext29_8x64d', ('resnext', 29, 8, 64, False)),
        ('resnext29_32x4d', ('resnext', 29, 32, 4, False)),
        ('resnext20_4x8d', ('resnext', 20, 4, 8, False)),
        ('resnext11_1x1d', ('resnext', 11, 1, 1, False)),
        ('resnext50_32x4d', ('resnext', 50, 32, 4, True)),
        ('resnext101_32x8d', ('resnext', 101, 32, 8, True)),  # 101 is 9n + 2, too
        ('resnext152_64x4d', ('resnext', 152, 64, 4, True)),
    ],
)
def test_names_are_parsed(name, expected):
    spec = models.parse(name)
    assert (spec.family, spec.depth, spec.cardinality, spec.width, spec.for_photos) == expected
    assert spec.image_size == (224 if spec.for_photos else 32)
    assert spec.preactivated == (spec.family == 'wide_resnet' and not spec.for_photos)
    models.parse(name)


REFUSED = [
    ('wide_resnet27_10', '22 or 28'),
    ('wide_resnet29_10', '28 or 34'),
    ('wide_resnet27_10', '50, 101'),
    ('wide_resnet9_1', '10'),
    ('wide_resnet4_1', '10'),
    ('wide_resnet152_2', '148 or 154'),
    ('wide_resnet28_0', 'widen factor 0'),
    ('wide_resnet50_0', 'widen factor 0'),
    ('resnext51_32x4d', '47 or 56'),
    ('resnext51_32x4d', '50, 101, 152'),
    ('resnext30_8x64d', '29 or 38'),
    ('resnext2_8x64d', '11'),
    ('resnext0_8x64d', '11'),
    ('resnext29_0x4d', 'cardinality or width 0'),
    ('resnext29_8x0d', 'cardinality or width 0'),
    ('resnext50_0x0d', 'cardinality or width 0'),
    *(
        (name, hint)
        for name in (
            'wide_resnet28',
            'wide_resnet28_10_2',
            'wide_resnet-28_10',
            'Wide_ResNet28_10',
            ' wide_resnet28_10',
            'wide_resnet28_10\n',
            'wide_resnet28_8x64d',
            'resnext29_8x64',
            'resnext29_8x64d\n',
            'resnext29_8',
            'resnext29_-8x64d',
            'resnext50',
            'ResNeXt50_32x4d',
            'resnet50',
            'resnet50_32x4d',
            '',
        )
        for hint in ('wide_resnet28_10', 'resnext50_32x4d')
    ),
]


@pytest.mark.parametrize(('name', 'hint'), REFUSED)
def test_invalid_names_are_refused_with_valid_forms(name, hint):
    with pytest.raises(ValueError) as refused:
        models.parse(name)
    message = str(refused.value)
    assert hint in message
    assert '\n' not in message
    with pytest.raises(ValueError, match='must be') as error:
        models.parse(name)
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        models.build(name, num_classes=10)
    assert str(error.value) == f'model name {message}'


def test_names_are_checked_without_paddle():
    program = (
        'import sys; from engine.models import MODELS, parse\n'
        'print(len([parse(name) for name in MODELS]), "paddle" in sys.modules)'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [str(len(models.MODELS)), 'False'], done.stderr


# ------------------------------------------------------------------ what they build


@pytest.mark.parametrize(('name', 'count'), PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(name, count):
    assert models.parameter_count(empty(name, num_classes=classes(name))) == count


def test_all_networks_of_the_papers_are_counted():
    assert set(models.MODELS) == set(PARAMETERS)


@pytest.mark.parametrize(
    ('name', 'kind', 'features'),
    [
        ('wide_resnet10_2', WideResNet, 128),
        ('resnext11_2x4d', CifarResNeXt, 1024),
        ('resnext50_2x4d', ResNeXt, 2048),
        ('wide_resnet50_1', ResNeXt, 2048),
    ],
)
def test_class_count_changes_only_the_last_layer(name, kind, features):
    ten, hundred = empty(name, num_classes=10), empty(name, num_classes=100)
    assert type(ten) is kind
    extra = models.parameter_count(hundred) - models.parameter_count(ten)
    assert extra == 90 * (features + 1)
    assert list(hundred.fc.weight.shape) == [features, 100]


@pytest.mark.parametrize(
    ('name', 'last', 'beyond'),
    [
        ('wide_resnet10_1', 'block3.layer.0', 'block3.layer.1'),
        ('wide_resnet22_3', 'block3.layer.2', 'block3.layer.3'),
        ('resnext11_2x4d', 'layer3.0', 'layer3.1'),
        ('resnext29_2x4d', 'layer3.2', 'layer3.3'),
        ('resnext50_2x4d', 'layer3.5', 'layer3.6'),
        ('resnext101_2x4d', 'layer3.22', 'layer3.23'),
        ('resnext152_2x4d', 'layer2.7', 'layer2.8'),
        ('resnext152_2x4d', 'layer3.35', 'layer3.36'),
        ('wide_resnet101_1', 'layer3.22', 'layer3.23'),
    ],
)
def test_depth_is_that_of_the_name(name, last, beyond):
    state = empty(name, num_classes=5).state_dict()
    assert f'{last}.conv2.weight' in state
    assert f'{beyond}.conv2.weight' not in state


@pytest.mark.parametrize(
    ('name', 'entry', 'shape'),
    [
        ('wide_resnet22_3', 'block3.layer.2.conv2.weight', [192, 192, 3, 3]),
        ('resnext29_4x8d', 'layer1.0.conv2.weight', [32, 8, 3, 3]),
        ('resnext29_4x8d', 'layer3.2.conv2.weight', [128, 32, 3, 3]),
        ('resnext101_32x8d', 'layer4.0.conv2.weight', [2048, 64, 3, 3]),
        ('wide_resnet50_3', 'layer1.0.conv2.weight', [192, 192, 3, 3]),
        ('wide_resnet101_2', 'layer4.2.conv2.weight', [1024, 1024, 3, 3]),
    ],
)
def test_width_and_groups_are_those_of_the_name(name, entry, shape):
    """A weight has the shape [out, in / groups, 3, 3]."""
    assert list(empty(name, num_classes=5).state_dict()[entry].shape) == shape


def test_dropout_reaches_every_block():
    model = models.build('wide_resnet22_1', num_classes=5, dropout=0.2)
    rates = [layer.p for layer in model.sublayers() if isinstance(layer, nn.Dropout)]
    assert rates == [0.2] * 9


@pytest.mark.parametrize('name', ['resnext29_8x64d', 'resnext50_32x4d', 'wide_resnet50_2'])
def test_bottlenecks_have_no_dropout(name):
    with pytest.raises(ValueError, match=f'{name} has no dropout'):
        models.build(name, num_classes=10, dropout=0.3)
    assert not any(isinstance(m, nn.Dropout) for m in empty(name, num_classes=10).sublayers())


@pytest.mark.parametrize('name', ['resnext11_2x2d', 'resnext50_2x1d'])
@pytest.mark.parametrize('asked', [True, False])
def test_zero_init_reaches_the_blocks(name, asked):
    model = models.build(name, num_classes=10, zero_init_last_bn=asked)
    last = [layer.weight.numpy() for n, layer in model.named_sublayers() if n.endswith('bn3')]
    assert len(last) == (16 if '50' in name else 3)
    assert all((gamma == (0 if asked else 1)).all() for gamma in last)


def test_preactivated_blocks_have_no_batch_norm_to_zero():
    with pytest.raises(ValueError, match='wide_resnet28_10 has no batch norm'):
        models.build('wide_resnet28_10', num_classes=10, zero_init_last_bn=True)


@pytest.mark.parametrize('name', ['wide_resnet10_1', 'resnext11_2x2d', 'resnext50_2x1d'])
def test_a_network_has_a_class(name):
    with pytest.raises(ValueError, match='num_classes'):
        models.build(name, num_classes=0)


@pytest.mark.slow
@each_published
def test_published_networks_run(name):
    model = models.build(name, num_classes=classes(name))
    model.eval()
    side = 64 if models.parse(name).for_photos else 32
    with paddle.no_grad():
        logits = model(paddle.randn([1, 3, side, side])).numpy()
    assert logits.shape == (1, classes(name))
    assert np.isfinite(logits).all()


# ------------------------------------------------------------------ initialisation


@pytest.mark.parametrize('name', ['wide_resnet16_2', 'resnext20_4x8d', 'resnext50_4x4d'])
def test_xavier_is_uniform_with_the_gain_of_relu(name):
    paddle.seed(3)
    model = models.build(name, num_classes=10, init='xavier')
    for prefix, layer in model.named_sublayers():
        if not isinstance(layer, nn.Conv2D):
            continue
        weights = layer.weight.numpy().astype(np.float64)
        out_channels, in_channels, side, _ = weights.shape
        fan_in, fan_out = in_channels * side * side, out_channels * side * side
        bound = math.sqrt(2) * math.sqrt(6 / (fan_in + fan_out))
        assert np.abs(weights).max() <= bound * (1 + 1e-6), prefix
        assert np.abs(weights).max() > bound * (1 - 20 / weights.size), prefix
        # A uniform distribution's standard deviation, and the relative error of its estimate.
        spread = 5 * math.sqrt(0.2 / weights.size)
        assert weights.std() == pytest.approx(bound / math.sqrt(3), rel=spread), prefix
        assert abs(weights.mean()) < 5 * bound / math.sqrt(3 * weights.size), prefix


@pytest.mark.parametrize('name', ['wide_resnet16_2', 'resnext20_4x8d'])
def test_he_over_the_fan_in(name):
    """As MSRinit of the Wide ResNet paper's code: what a convolution reads."""
    paddle.seed(3)
    model = models.build(name, num_classes=10, init='he_fan_in')
    for prefix, layer in model.named_sublayers():
        if isinstance(layer, nn.Conv2D):
            weights = layer.weight.numpy().astype(np.float64)
            expected = math.sqrt(2 / weights[0].size)
            assert weights.std() == pytest.approx(expected, rel=5 / weights.size**0.5), prefix


@pytest.mark.parametrize('other', ['he_fan_in', 'xavier'])
def test_an_init_leaves_all_but_the_convolutions(other):
    states = []
    for init in ('he', other):
        paddle.seed(3)
        model = models.build('resnext11_2x4d', num_classes=10, init=init, zero_init_last_bn=True)
        states.append({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    he, others = states
    changed = {name for name in he if (he[name] != others[name]).any()}
    assert changed == {name for name, value in he.items() if value.ndim == 4}


# ------------------------------------------------------------------ memory layout

each_small = pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('wide_resnet10_2', (32, 40)),
        ('resnext11_4x4d', (32, 24)),
        ('resnext50_2x4d', (64, 48)),
    ],
)


def in_both_layouts(name: str) -> tuple[nn.Layer, nn.Layer]:
    """NCHW with random weights and statistics, and NHWC with the same."""
    nchw = models.build(name, num_classes=7)
    nhwc = models.build(name, num_classes=7, data_format='NHWC')
    randomise(nchw, seed=4)
    assert nhwc.set_state_dict(nchw.state_dict()) == ([], [])  # nothing missing, nothing left
    return nchw, nhwc


@each_small
def test_logits_do_not_depend_on_the_layout(name, size):
    nchw, nhwc = in_both_layouts(name)
    nchw.eval(), nhwc.eval()
    batch = images(2, *size)
    expected = run(nchw, batch)
    assert 0.3 < expected.std() < 10
    np.testing.assert_allclose(run(nhwc, batch), expected, rtol=0, atol=1e-5)


@each_small
def test_training_does_not_depend_on_the_layout(name, size):
    """Loss, every gradient, all running statistics.

    In float64: in float32 the two batch norms round differently, which moves values over the kink
    of a ReLU, and one such value is worth 1% of some gradients.
    """
    found = []
    for model in in_both_layouts(name):
        model.to(dtype='float64')
        model.train()
        batch = paddle.to_tensor(images(4, *size).astype(np.float64))
        loss = nn.functional.cross_entropy(model(batch), paddle.arange(4))
        loss.backward()
        parameters = model.named_parameters()
        gradients = {n: p.grad.numpy() for n, p in parameters if not p.stop_gradient}
        statistics = {n: b.numpy() for n, b in model.state_dict().items() if n not in gradients}
        found.append((loss.item(), gradients, statistics))
    (loss, gradients, statistics), (other_loss, other_gradients, other_statistics) = found
    assert other_loss == pytest.approx(loss, rel=1e-10)
    assert set(other_gradients) == set(gradients)
    for entry, gradient in gradients.items():
        scale = np.abs(gradient).max()
        assert scale > 0, entry
        assert np.abs(other_gradients[entry] - gradient).max() < 1e-9 * scale, entry
    assert {entry.rsplit('.')[-1] for entry in statistics} == {'_mean', '_variance'}
    for entry, values in statistics.items():
        np.testing.assert_allclose(
            other_statistics[entry], values, rtol=1e-9, atol=1e-9, err_msg=entry
        )


@each_small
@pytest.mark.parametrize('init', ['he', 'he_fan_in', 'xavier'])
def test_initial_weights_do_not_depend_on_the_layout(name, size, init):
    states = []
    for data_format in ('NCHW', 'NHWC'):
        paddle.seed(3)
        model = models.build(name, num_classes=7, init=init, data_format=data_format)
        states.append({entry: tensor.numpy() for entry, tensor in model.state_dict().items()})
    assert list(states[0]) == list(states[1])
    for entry, values in states[0].items():
        np.testing.assert_array_equal(states[1][entry], values, err_msg=entry)


@each_small
def test_multiply_adds_do_not_depend_on_the_layout(name, size):
    nchw, nhwc = in_both_layouts(name)
    assert models.multiply_adds(nhwc, size[0]) == models.multiply_adds(nchw, size[0])


@pytest.mark.parametrize('name', ['wide_resnet10_1', 'resnext11_2x2d', 'resnext50_2x1d'])
def test_other_layouts_are_refused(name):
    with pytest.raises(ValueError, match="data_format must be NCHW or NHWC, not 'nhwc'"):
        models.build(name, num_classes=10, data_format='nhwc')


# ------------------------------------------------------------------ costs


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        (
            'wide_resnet10_1',
            8 * 8 * 16 * 27  # conv1
            + 64 * (16 * 144 + 16 * 144)  # block1, whose shortcut is the identity
            + 16 * (32 * 144 + 32 * 288 + 32 * 16)  # block2, at 4x4: two 3x3 convolutions, one 1x1
            + 4 * (64 * 288 + 64 * 576 + 64 * 32)  # block3, at 2x2
            + 64 * 10,
        ),
        (
            'resnext11_2x4d',
            8 * 8 * 64 * 27
            + 64 * (8 * 64 + 8 * (4 * 9) + 256 * 8 + 256 * 64)  # 3x3: each value from 4 channels
            + 64 * 16 * 256  # the first 1x1 convolution comes before the stride
            + 16 * (16 * (8 * 9) + 512 * 16 + 512 * 256)
            + 16 * 32 * 512
            + 4 * (32 * (16 * 9) + 1024 * 32 + 1024 * 512)
            + 1024 * 10,
        ),
    ],
)
def test_multiply_adds_of_a_small_network_by_hand(name, expected):
    assert models.multiply_adds(models.build(name, num_classes=10), 8) == expected


@pytest.mark.parametrize(
    ('name', 'billions'),
    [
        ('wide_resnet28_10', 5.24),
        ('resnext50_32x4d', 4.23),
        pytest.param('wide_resnet50_2', 11.40, marks=pytest.mark.slow),
        pytest.param('wide_resnet101_2', 22.75, marks=pytest.mark.slow),
        pytest.param('resnext101_64x4d', 15.46, marks=pytest.mark.slow),
        pytest.param('resnext101_32x8d', 16.41, marks=pytest.mark.slow),
        pytest.param('resnext152_64x4d', 22.9, marks=pytest.mark.slow),
    ],
)
def test_multiply_adds_are_the_published_ones(name, billions):
    """torchvision's (`_ops`), and those that the papers' networks are known by."""
    model = models.build(name, num_classes=classes(name))
    digits = 1 if billions == 22.9 else 2
    cost = models.multiply_adds(model, models.parse(name).image_size)
    assert round(cost / 1e9, digits) == billions


@pytest.mark.parametrize('name', ['wide_resnet10_1', 'resnext11_2x4d'])
@pytest.mark.parametrize('training', [True, False])
def test_counting_leaves_the_model_as_it_was(name, training):
    model = models.build(name, num_classes=10)
    model.train() if training else model.eval()
    before = {entry: tensor.numpy().copy() for entry, tensor in model.state_dict().items()}
    counts = {models.multiply_adds(model, 16) for _ in range(2)}
    assert len(counts) == 1
    assert {layer.training for layer in model.sublayers(include_self=True)} == {training}
    assert not any(layer._forward_post_hooks for layer in model.sublayers())
    for entry, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[entry], err_msg=entry)


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        ('ResNeXt50_32x4d', 'resnext50_32x4d'),
        ('resnext50', 'resnext50_32x4d'),
        ('ResNeXt101_32x8d_wsl', 'resnext101_32x8d'),
        ('WRN-28-10', 'wide_resnet28_10'),
        ('wrn_40_4', 'wide_resnet40_4'),
        ('WideResNet50_2', 'wide_resnet50_2'),
        ('wide_resnet101', 'wide_resnet101_2'),
    ],
)
def test_other_suites_names_are_answered_with_ours(name, meant):
    with pytest.raises(ValueError, match=f'; did you mean {meant}\\?$'):
        models.parse(name)


def run_command(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, 'argv', ['models.py', *arguments])
    monkeypatch.setattr(cpu, 'prepare_cpu', lambda: '')  # paddle is imported already
    monkeypatch.setattr(start, 'start_paddle', lambda device: '')
    __main__.main()


def test_the_command_prints_the_networks_that_it_is_given(monkeypatch, capsys):
    run_command(monkeypatch, 'wide_resnet10_1', 'wide_resnet16_8')
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ['wide_resnet10_1', 'wide_resnet16_8']
    assert ' 10,961,370 ' in rows[1]
    assert rows[1].endswith('  WRN paper, Table 4')


def test_the_commands_help_and_mistakes_are_answered_without_a_network(monkeypatch, capsys):
    monkeypatch.setattr(models, 'build', None)
    with pytest.raises(SystemExit, match=r'^0$'):
        run_command(monkeypatch, '--help')
    out = capsys.readouterr().out
    assert out.startswith('example: python3 -m engine.models wide_resnet28_10\n')
    assert max(map(len, out.splitlines())) <= 80
    with pytest.raises(UserError, match='did you mean resnext50_32x4d'):
        run_command(monkeypatch, 'wide_resnet16_8', 'resnext50')


@pytest.mark.slow
def test_the_command_lists_the_networks():
    done = subprocess.run(
        [sys.executable, '-m', 'engine.models'], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert list(rows) == list(models.MODELS)
    for name, row in rows.items():
        assert f' {PARAMETERS[name]:,} ' in row
        assert row.endswith(models.MODELS[name])
    assert ' 5.24 G  32x32 ' in rows['wide_resnet28_10']
    assert ' 22.9' in rows['resnext152_64x4d']
    assert ' 224x224 ' in rows['resnext152_64x4d']
