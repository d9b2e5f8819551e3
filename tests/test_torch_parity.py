"""The networks and a training step equal PyTorch's, weight for weight.

What was found about the running variance: Paddle's CPU kernel records the biased variance of a
batch (divided by n), PyTorch the unbiased one (divided by n - 1). Paper and normalisation are the
same; the recorded values differ by the factor n / (n - 1), which is undone here before comparing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np
import paddle
import pytest
from numpy_wide_resnet import random_state

from engine import models
from engine.config import Optimizer
from engine.training import optimizers
from engine.training.loss import cross_entropy
from engine.weights import load_weights
from wide_resnet import WideResNet

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.torch

TOLERANCE = 1e-4


def pair(depth: int, widen_factor: int, num_classes: int = 10, dropout: float = 0.0):
    """Our network with random weights and statistics, and PyTorch's with the same ones."""
    from benchmarks.torch_wide_resnet import WideResNet as TorchWideResNet

    sizes = {
        'depth': depth,
        'widen_factor': widen_factor,
        'num_classes': num_classes,
        'dropout': dropout,
    }
    paddle.seed(depth)
    ours, theirs = WideResNet(**sizes), TorchWideResNet(**sizes)
    rng = np.random.default_rng(depth)
    for name, tensor in ours.state_dict().items():
        if name.endswith('_variance'):
            tensor.set_value(rng.uniform(0.5, 2.0, tensor.shape).astype(np.float32))
        elif tensor.ndim == 1:
            tensor.set_value(tensor.numpy() + rng.normal(0, 0.2, tensor.shape).astype(np.float32))
    theirs.load_state_dict(as_torch(ours), strict=True)
    return ours, theirs


def bottlenecks(name: str, folder: Path):
    """PyTorch's network with a random state, and ours of that name, which reads it from a file."""
    from benchmarks.torch_resnext import ResNeXt as TorchResNeXt

    spec = models.parse(name)
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}.get(spec.depth, [(spec.depth - 2) // 9] * 3)
    theirs = TorchResNeXt(
        blocks=blocks,
        cardinality=spec.cardinality,
        width=spec.width * (64 if spec.family == 'wide_resnet' else 1),
        num_classes=10,
    )
    ours = models.build(name, num_classes=10)
    shapes = {entry: tensor.shape for entry, tensor in ours.state_dict().items()}
    ours.set_state_dict(random_state(shapes, seed=spec.depth))
    theirs.load_state_dict(as_torch(ours), strict=True)
    torch.save(theirs.state_dict(), folder / 'weights.pth')
    ours = models.build(name, num_classes=10)
    report = load_weights(ours, folder / 'weights.pth')
    assert sorted(report.mapped) == sorted(ours.state_dict())
    return ours, theirs


def torch_name(name: str) -> str:
    return name.replace('_mean', 'running_mean').replace('_variance', 'running_var')


def as_torch(model: paddle.nn.Layer) -> dict:
    """The state dict in torch's names and layout."""
    state = {}
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        state[torch_name(name)] = torch.tensor(value.T.copy() if name == 'fc.weight' else value)
    counters = {
        name.replace('running_mean', 'num_batches_tracked'): torch.tensor(0)
        for name in state
        if name.endswith('running_mean')
    }
    return {**state, **counters}


def from_torch(model) -> dict[str, np.ndarray]:
    state = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    state['fc.weight'] = state['fc.weight'].T
    return {name: value for name, value in state.items() if 'num_batches' not in name}


def batch(count: int, height: int = 32, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    images = rng.normal(size=(count, 3, height, width)).astype(np.float32)
    return images, rng.integers(0, 10, count)


@pytest.mark.parametrize(
    ('depth', 'widen_factor', 'size'),
    [(16, 2, (32, 32)), (16, 2, (40, 48)), (28, 1, (32, 32)), (28, 2, (32, 32)), (10, 4, (33, 35))],
)
def test_logits_equal_pytorch(depth, widen_factor, size):
    ours, theirs = pair(depth, widen_factor)
    images, _ = batch(3, *size)
    ours.eval(), theirs.eval()
    with paddle.no_grad(), torch.no_grad():
        mine = ours(paddle.to_tensor(images)).numpy()
        other = theirs(torch.tensor(images)).numpy()
    assert np.ptp(other) > 0.1
    np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE)


def test_weights_saved_by_pytorch_load(tmp_path):
    """Of a WRN-d-k; those of bottlenecks are read from files in all that follows."""
    source, theirs = pair(16, 2)
    torch.save(theirs.state_dict(), tmp_path / 'weights.pth')
    ours = WideResNet(depth=16, widen_factor=2)
    load_weights(ours, tmp_path / 'weights.pth')
    for name, tensor in source.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)


BOTTLENECKS = [
    ('resnext11_4x8d', (32, 32)),
    ('resnext20_3x5d', (33, 37)),
    ('resnext29_8x4d', (40, 32)),
    ('resnext50_4x4d', (64, 64)),
    ('resnext50_32x4d', (45, 61)),
    ('wide_resnet50_1', (64, 64)),
    pytest.param('resnext101_8x4d', (64, 64), marks=pytest.mark.slow),
    pytest.param('wide_resnet50_2', (64, 64), marks=pytest.mark.slow),
    pytest.param('resnext29_8x64d', (32, 32), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(('name', 'size'), BOTTLENECKS)
def test_logits_of_bottlenecks_equal_pytorch(tmp_path, name, size):
    ours, theirs = bottlenecks(name, tmp_path)
    images, _ = batch(3, *size)
    ours.eval(), theirs.eval()
    with paddle.no_grad(), torch.no_grad():
        mine = ours(paddle.to_tensor(images)).numpy()
        other = theirs(torch.tensor(images)).numpy()
    assert 0.3 < other.std() < 10
    np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ('make', 'size', 'precision'),
    [
        (lambda folder: pair(16, 1), 32, 'float32'),
        (lambda folder: bottlenecks('resnext11_4x4d', folder), 32, 'float32'),
        (lambda folder: pair(16, 1), 32, 'float64'),
        (lambda folder: bottlenecks('resnext20_4x4d', folder), 32, 'float64'),
        (lambda folder: bottlenecks('resnext50_4x2d', folder), 64, 'float64'),
        (lambda folder: bottlenecks('wide_resnet50_1', folder), 64, 'float64'),
    ],
    ids=['WRN-16', 'ResNeXt-11', 'WRN-16 64', 'ResNeXt-20 64', 'ResNeXt-50 64', 'WRN-50 64'],
)
def test_one_step_equals_pytorch(tmp_path, make, size, precision):
    """Loss, all updated weights and all running statistics after a step of plain SGD.

    With 16 random blocks, rounding alone moves float32 gradients by some per cent: a value that is
    almost zero passes a ReLU here and not there. In float64 losses and weights agree to 1e-8, the
    statistics to 1e-6: Paddle's momentum of 0.9 remains a float32.
    """
    tolerance = {'float32': 1e-5, 'float64': 1e-8}[precision]
    ours, theirs = make(tmp_path)
    ours.to(dtype=precision), theirs.to(getattr(torch, precision))
    ours.train(), theirs.train()
    counts = batch_norm_counts(theirs)
    images, labels = batch(8, size, size)
    images = images.astype(precision)
    initial = from_torch(theirs)
    mine = paddle.optimizer.SGD(
        0.05, parameters=[p for p in ours.parameters() if not p.stop_gradient]
    )
    other = torch.optim.SGD(theirs.parameters(), lr=0.05)
    loss = cross_entropy(ours(paddle.to_tensor(images)), paddle.to_tensor(labels), 0.0)
    loss.backward()
    mine.step()
    reference = torch.nn.functional.cross_entropy(
        theirs(torch.tensor(images)), torch.tensor(labels)
    )
    reference.backward()
    other.step()
    assert loss.item() == pytest.approx(reference.item(), abs=tolerance)
    expected = from_torch(theirs)
    assert sorted(expected) == sorted(torch_name(name) for name in ours.state_dict())
    for name, tensor in ours.state_dict().items():
        value = expected[torch_name(name)]
        if name.endswith('_variance'):
            count, before = counts[name[: -len('._variance')]], 0.9 * initial[torch_name(name)]
            value = before + (value - before) * (count - 1) / count
        assert str(tensor.numpy().dtype) == precision
        near = max(tolerance, 1e-6) if name.endswith(('_mean', '_variance')) else tolerance
        np.testing.assert_allclose(tensor.numpy(), value, rtol=0, atol=near, err_msg=name)
    still = [name for name in initial if np.abs(expected[name] - initial[name]).max() < 1e-4]
    assert still == []  # a step that does nothing would pass otherwise


def batch_norm_counts(model) -> dict[str, int]:
    """Filled by the next forward pass: over how many values each batch norm takes its variance."""
    counts: dict[str, int] = {}

    def note(name: str) -> Callable:
        def hook(layer, inputs, output):
            counts[name] = output.numel() // output.shape[1]

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_hook(note(name))
    return counts


def test_same_parameters_by_name_and_count():
    ours, theirs = pair(16, 2)
    mine = {torch_name(n): p.size for n, p in ours.named_parameters() if not p.stop_gradient}
    assert mine == {name: p.numel() for name, p in theirs.named_parameters()}


@pytest.mark.parametrize('nesterov', [True, False])
@pytest.mark.parametrize(('steps', 'lr'), [(1, 0.05), (3, 0.01)])
def test_training_steps_equal_pytorch(nesterov, steps, lr):
    """Momentum, weight decay, gradients of batch norms in training: all of it."""
    momentum, weight_decay = 0.9, 5e-4
    ours, theirs = pair(16, 1)
    ours.train(), theirs.train()
    our_optimizer = optimizers.make_optimizer(
        ours,
        Optimizer(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay),
    )
    their_optimizer = torch.optim.SGD(
        theirs.parameters(), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
    images, labels = batch(8)
    initial = from_torch(theirs)
    for _ in range(steps):
        loss = cross_entropy(ours(paddle.to_tensor(images)), paddle.to_tensor(labels), 0.0)
        loss.backward()
        our_optimizer.step()
        our_optimizer.clear_grad()
        logits = theirs(torch.tensor(images))
        other = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
        their_optimizer.zero_grad()
        other.backward()
        their_optimizer.step()
        assert loss.item() == pytest.approx(other.item(), abs=TOLERANCE)
    expected = from_torch(theirs)
    mine = {torch_name(name): tensor.numpy() for name, tensor in ours.state_dict().items()}
    assert sorted(mine) == sorted(expected)
    for name, value in expected.items():
        if name.endswith('running_var'):
            continue  # compared below
        np.testing.assert_allclose(mine[name], value, rtol=0, atol=TOLERANCE, err_msg=name)
    moved = np.abs(expected['conv1.weight'] - initial['conv1.weight']).max()
    assert moved > 10 * TOLERANCE  # a step that does nothing would pass otherwise


def test_running_variance_is_biased_in_paddle_and_unbiased_in_pytorch():
    ours, theirs = pair(10, 1)
    ours.train(), theirs.train()
    images, _ = batch(4)
    initial = from_torch(theirs)
    with torch.no_grad():
        theirs(torch.tensor(images))
    with paddle.no_grad():
        ours(paddle.to_tensor(images))
    expected = from_torch(theirs)
    sides = {'block1': 32, 'block2': 16, 'block3': 8, 'bn1': 8}
    for name, tensor in ours.state_dict().items():
        other = torch_name(name)
        if name.endswith('_mean'):
            np.testing.assert_allclose(tensor.numpy(), expected[other], rtol=0, atol=TOLERANCE)
        if not name.endswith('_variance'):
            continue
        group = name.split('.')[0]
        side = sides[group]
        if group in ('block2', 'block3') and '.bn1.' in name:
            side *= 2  # the first batch norm of these sees the larger input
        count = 4 * side * side
        unbiased = (expected[other] - 0.9 * initial[other]) / 0.1
        biased = unbiased * (count - 1) / count
        np.testing.assert_allclose(
            tensor.numpy(), 0.9 * initial[other] + 0.1 * biased, rtol=2e-6, atol=2e-6, err_msg=name
        )


def test_dropout_equals_pytorch_in_rate_and_scale():
    """Random numbers differ, so what is compared is what survives of a constant."""
    rate, kept = 0.3, []
    x = np.ones((64, 1000), np.float32)
    paddle.seed(0)
    torch.manual_seed(0)
    ours, theirs = pair(10, 1, dropout=rate)
    mine = ours.block1.layer[0].dropout
    other = theirs.block1.layer[0].dropout
    mine.train(), other.train()
    for values in (mine(paddle.to_tensor(x)).numpy(), other(torch.tensor(x)).numpy()):
        assert set(np.unique(values).round(5)) == {0.0, np.float32(1 / (1 - rate)).round(5)}
        kept.append((values > 0).mean())
    assert kept[0] == pytest.approx(1 - rate, abs=0.01)
    assert kept[0] == pytest.approx(kept[1], abs=0.01)
