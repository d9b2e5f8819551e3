"""The optimizer and averaged weights against NumPy."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Optional

import numpy as np
import paddle
import pytest
from paddle import nn

from engine.config import Optimizer
from engine.machine import devices
from engine.training import optimizers
from engine.training.averaging import AveragedWeights
from engine.training.loss import cross_entropy
from engine.training.precision import full_precision, master_weights
from engine.weights import (
    Arrays,
    fit_weights,
    float32_arrays,
    parse_arrays,
    state_arrays,
    write_arrays,
)

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / 'configs' / 'wrn28_10_cifar10.yaml'

EPOCHS, PER_EPOCH, LR = 6, 7, 0.4
STEPS = EPOCHS * PER_EPOCH


# ------------------------------------------------------------------ optimizer


class Tiny(nn.Layer):
    """One of each: convolution, batch norm, linear layer with bias."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2D(2, width, 3, bias_attr=False)
        self.bn = nn.BatchNorm2D(width)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.fc(nn.functional.relu(self.bn(self.conv(x))).mean([2, 3]))


TRAINABLE = ['conv.weight', 'bn.weight', 'bn.bias', 'fc.weight', 'fc.bias']
UNDECAYED = ['bn.weight', 'bn.bias', 'fc.bias']


def tiny(seed: int = 0) -> Tiny:
    paddle.seed(seed)
    model = Tiny()
    rng = np.random.default_rng(seed)
    for _, parameter in trainable(model).items():
        parameter.set_value(rng.normal(1, 0.3, parameter.shape).astype(np.float32))
    return model


def trainable(model: nn.Layer) -> dict[str, paddle.Tensor]:
    return {name: p for name, p in model.named_parameters() if not p.stop_gradient}


def current(model: nn.Layer) -> dict[str, np.ndarray]:
    return {name: p.numpy().astype(np.float64) for name, p in trainable(model).items()}


def loss_of(model: nn.Layer, seed: int, scale: float = 1.0) -> paddle.Tensor:
    rng = np.random.default_rng(seed)
    batch = paddle.to_tensor(rng.normal(size=(6, 2, 8, 8)).astype(np.float32))
    labels = paddle.to_tensor(rng.integers(0, 3, 6))
    return cross_entropy(model(batch), labels) * scale


def train(model: nn.Layer, optimizer: paddle.optimizer.Optimizer, seeds: range) -> None:
    for seed in seeds:
        loss_of(model, seed).backward()
        optimizer.step()
        optimizer.clear_grad()


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('momentum', [0.0, 0.9])
@pytest.mark.parametrize('weight_decay', [0.0, 0.05])
@pytest.mark.parametrize('decay_bn_and_bias', [False, True])
def test_three_steps_equal_numpy(nesterov, momentum, weight_decay, decay_bn_and_bias):
    model = tiny()
    optimizer = optimizers.make_optimizer(
        model,
        Optimizer(
            lr=123.0,  # the rate is set before each step; the config's counts for nothing here
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            decay_bn_and_bias=decay_bn_and_bias,
        ),
    )
    weights = current(model)
    velocity = {name: np.zeros_like(value) for name, value in weights.items()}
    for seed, lr in enumerate([0.1, 0.3, 0.05]):
        optimizer.set_lr(lr)
        loss_of(model, seed).backward()
        for name, parameter in trainable(model).items():
            gradient = parameter.grad.numpy().astype(np.float64)
            if decay_bn_and_bias or name not in UNDECAYED:
                gradient = gradient + weight_decay * weights[name]
            velocity[name] = momentum * velocity[name] + gradient
            direction = gradient + momentum * velocity[name] if nesterov else velocity[name]
            weights[name] = weights[name] - lr * direction
        optimizer.step()
        optimizer.clear_grad()
        for name, value in current(model).items():
            np.testing.assert_allclose(value, weights[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_nesterov_differs_from_plain_momentum():
    results = []
    for nesterov in (False, True):
        model = tiny()
        train(model, optimizers.make_optimizer(model, Optimizer(nesterov=nesterov)), range(2))
        results.append(current(model)['conv.weight'])
    assert np.abs(results[0] - results[1]).max() > 1e-4


@pytest.mark.parametrize('decay_bn_and_bias', [False, True])
def test_weight_decay_without_gradients(decay_bn_and_bias):
    model = tiny()
    before = current(model)
    config = Optimizer(lr=0.5, weight_decay=0.1, decay_bn_and_bias=decay_bn_and_bias)
    optimizer = optimizers.make_optimizer(model, config)
    loss_of(model, 0, scale=0.0).backward()
    optimizer.step()
    for name, value in current(model).items():
        decayed = decay_bn_and_bias or name not in UNDECAYED
        factor = 1 - 0.5 * 0.1 if decayed else 1.0
        np.testing.assert_allclose(value, factor * before[name], rtol=1e-6, err_msg=name)


def test_running_statistics_are_not_decayed():
    model = tiny()
    model.eval()  # the statistics then stay, unless the optimizer has them
    statistics = model.bn._variance.numpy().copy()
    optimizer = optimizers.make_optimizer(model, Optimizer(lr=0.5, weight_decay=0.1))
    train(model, optimizer, range(2))
    np.testing.assert_array_equal(model.bn._variance.numpy(), statistics)


def norm(update: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float((value**2).sum()) for value in update.values()))


@pytest.mark.parametrize('decay_bn_and_bias', [False, True])
@pytest.mark.parametrize('scale', [1e-3, 1e4])
def test_clipping_bounds_the_norm_over_all_parameters(decay_bn_and_bias, scale):
    """One norm over everything, however the parameters are grouped for weight decay."""
    updates = {}
    for clip in (None, 0.2):
        model = tiny()
        before = current(model)
        config = Optimizer(
            lr=1.0,
            momentum=0.0,
            weight_decay=0.0,
            decay_bn_and_bias=decay_bn_and_bias,
            clip_norm=clip,
        )
        optimizer = optimizers.make_optimizer(model, config)
        optimizer.set_lr(0.5)
        loss_of(model, 0, scale=scale).backward()
        optimizer.step()
        updates[clip] = {name: before[name] - value for name, value in current(model).items()}
    free, clipped = updates[None], updates[0.2]
    assert (norm(free) > 0.1) == (scale > 1)  # the case is what it is meant to be
    share = min(1.0, 0.5 * 0.2 / norm(free))
    for name in TRAINABLE:
        np.testing.assert_allclose(clipped[name], share * free[name], rtol=1e-3, atol=1e-6)
    assert norm(clipped) <= 0.5 * 0.2 * (1 + 1e-4)


# ------------------------------------------------------------------ optimizer state


def continue_training(model: nn.Layer, arrays: Optional[Arrays]) -> Arrays:
    """Two more steps with a new optimizer that was given `arrays`; returns the weights."""
    optimizer = optimizers.make_optimizer(model, Optimizer(nesterov=True))
    if arrays is not None:
        optimizers.load_optimizer_arrays(optimizer, model, arrays, state_arrays(model))
    train(model, optimizer, range(10, 12))
    return state_arrays(model)


def as_file(arrays: Arrays) -> Arrays:
    """Through the bytes of a checkpoint."""
    buffer = io.BytesIO()
    write_arrays(buffer, arrays)
    return parse_arrays(buffer.getvalue(), Path('optimizer.pdopt'))


@pytest.mark.parametrize('decay_bn_and_bias', [False, True])
def test_state_is_keyed_by_structured_names(decay_bn_and_bias):
    model = tiny()
    optimizer = optimizers.make_optimizer(model, Optimizer(decay_bn_and_bias=decay_bn_and_bias))
    train(model, optimizer, range(1))
    arrays = optimizers.optimizer_arrays(optimizer, model)
    assert sorted(arrays) == sorted(f'{name}/velocity_0' for name in TRAINABLE)
    for name, parameter in trainable(model).items():
        assert list(arrays[f'{name}/velocity_0'].shape) == list(parameter.shape)


@pytest.mark.parametrize('models_between', [0, 1, 11])
def test_state_survives_a_change_of_automatic_names(models_between):
    model = tiny()
    optimizer = optimizers.make_optimizer(model, Optimizer(nesterov=True))
    train(model, optimizer, range(3))
    weights, arrays = state_arrays(model), as_file(optimizers.optimizer_arrays(optimizer, model))
    train(model, optimizer, range(10, 12))
    expected = state_arrays(model)

    between = [Tiny(width=5) for _ in range(models_between)]
    other = Tiny()
    assert other.conv.weight.name not in {m.conv.weight.name for m in [model, *between]}
    other.set_state_dict(weights)
    resumed = continue_training(other, arrays)
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)

    forgetful = Tiny()
    forgetful.set_state_dict(weights)
    assert (continue_training(forgetful, None)['fc.weight'] != expected['fc.weight']).any()


def test_state_is_bit_identical_after_a_round_trip():
    """Before any further step, too: a run that is stopped as soon as it resumes saves again."""
    model = tiny()
    optimizer = optimizers.make_optimizer(model, Optimizer())
    train(model, optimizer, range(3))
    arrays = optimizers.optimizer_arrays(optimizer, model)
    other = Tiny()
    fresh = optimizers.make_optimizer(other, Optimizer())
    optimizers.load_optimizer_arrays(fresh, other, as_file(arrays), state_arrays(other))
    again = optimizers.optimizer_arrays(fresh, other)
    assert sorted(again) == sorted(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_state_is_a_copy():
    model = tiny()
    optimizer = optimizers.make_optimizer(model, Optimizer())
    train(model, optimizer, range(1))
    arrays = optimizers.optimizer_arrays(optimizer, model)
    before = {name: value.copy() for name, value in arrays.items()}
    train(model, optimizer, range(1, 3))
    for name, value in before.items():
        np.testing.assert_array_equal(arrays[name], value)


# ------------------------------------------------------------------ averaged weights


def test_averaged_weights_equal_the_recursion():
    """decay = min(given, (1 + t) / (10 + t)), over weights and running statistics."""
    model = tiny()
    optimizer = optimizers.make_optimizer(model, Optimizer(lr=0.2))
    ema = AveragedWeights(model, model.state_dict, decay=0.3)
    expected = {name: value.astype(np.float64) for name, value in state_arrays(model).items()}
    for step in range(6):
        train(model, optimizer, range(step, step + 1))
        ema.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in state_arrays(model).items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    arrays = ema.arrays()
    assert sorted(arrays) == sorted(model.state_dict())
    for name, value in expected.items():
        np.testing.assert_allclose(arrays[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        moved = np.abs(arrays[name] - state_arrays(model)[name]).max()
        assert moved > 1e-5, f'{name} equals the last weights: nothing was averaged'


def averaged(steps: int = 3) -> tuple[Tiny, AveragedWeights]:
    model = tiny()
    optimizer = optimizers.make_optimizer(model, Optimizer(lr=0.2))
    ema = AveragedWeights(model, model.state_dict, decay=0.9)
    for step in range(steps):
        train(model, optimizer, range(step, step + 1))
        ema.update(step)
    return model, ema


class Interrupted(Exception):
    pass


@pytest.mark.parametrize('fails', [False, True])
def test_in_place_restores_the_weights_of_the_model(fails):
    model, ema = averaged()
    own, average = state_arrays(model), ema.arrays()
    try:
        with ema.in_place():
            for name, value in state_arrays(model).items():
                np.testing.assert_array_equal(value, average[name], err_msg=name)
            assert (own['fc.weight'] != average['fc.weight']).any()
            model.fc.weight.set_value(paddle.zeros_like(model.fc.weight))
            if fails:
                raise Interrupted
    except Interrupted:
        assert fails
    for name, value in state_arrays(model).items():
        np.testing.assert_array_equal(value, own[name], err_msg=name)
    for name, value in ema.arrays().items():
        np.testing.assert_array_equal(value, average[name], err_msg=name)


def test_averaging_does_not_change_the_training():
    model, _ = averaged()
    plain = tiny()
    train(plain, optimizers.make_optimizer(plain, Optimizer(lr=0.2)), range(3))
    for name, value in state_arrays(plain).items():
        np.testing.assert_array_equal(state_arrays(model)[name], value, err_msg=name)


def test_averaged_weights_round_trip():
    model, ema = averaged()
    other, fresh = averaged(steps=1)
    fresh.load_arrays(as_file(ema.arrays()))
    other.set_state_dict(state_arrays(model))
    for average in (ema, fresh):
        average.update(3)
    for name, value in ema.arrays().items():
        np.testing.assert_array_equal(fresh.arrays()[name], value, err_msg=name)


# ------------------------------------------------------------------ 16-bit weights


HALF = ('conv.weight', 'fc.weight', 'fc.bias')


def half(model: nn.Layer, dtype: str = 'float16') -> None:
    """What O2 makes of a network: layers in 16 bits, all but its batch norms."""
    for layer in (model.conv, model.fc):
        layer.to(dtype=dtype)
    assert {n for n, p in model.named_parameters() if p.dtype != paddle.float32} == set(HALF)


def give_masters(model: nn.Layer, optimizer: paddle.optimizer.Optimizer, exact: Arrays) -> None:
    """As Precision.prepare does on a GPU."""
    optimizer._multi_precision = True
    optimizer.set_state_dict({'master_weights': master_weights(model, exact)})


def with_masters(seed: int = 0, dtype: str = 'float16'):
    """A model in 16 bits, its optimizer with float32 masters, and those."""
    model = tiny(seed)
    exact = state_arrays(model)
    half(model, dtype)
    optimizer = optimizers.make_optimizer(model, Optimizer())
    give_masters(model, optimizer, exact)
    return model, optimizer, exact


def assert_arrays(found: Arrays, expected: Arrays) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_master_weights_are_those_of_16_bit_weights_and_exact(dtype):
    model = tiny()
    exact = state_arrays(model)
    assert master_weights(model, exact) == {}
    half(model, dtype)
    masters = master_weights(model, exact)
    own = dict(model.named_parameters())
    assert sorted(masters) == sorted(own[name].name for name in HALF)
    for name in HALF:
        master = masters[own[name].name]
        assert master.dtype == paddle.float32
        np.testing.assert_array_equal(master.numpy(), exact[name])
        rounded = own[name].astype('float32').numpy()
        assert (rounded != exact[name]).any(), 'the case shows nothing'


def test_full_precision_has_the_masters_in_the_places_of_16_bit_weights():
    model, optimizer, exact = with_masters()
    assert_arrays(float32_arrays(full_precision(model, optimizer)), exact)
    plain = tiny()
    optimizer = optimizers.make_optimizer(plain, Optimizer())
    assert_arrays(float32_arrays(full_precision(plain, optimizer)), state_arrays(plain))


def momentum_like(arrays: Arrays, seed: int = 1) -> Arrays:
    """Velocities of the trainable ones, float32."""
    rng = np.random.default_rng(seed)
    return {
        f'{name}/velocity_0': rng.normal(size=arrays[name].shape).astype(np.float32)
        for name in TRAINABLE
    }


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_state_with_masters_has_the_same_names_and_an_exact_round_trip(dtype):
    """Slots have the names that they have in float32, and masters are the weights themselves."""
    model, optimizer, exact = with_masters(dtype=dtype)
    velocities = momentum_like(exact)
    optimizers.load_optimizer_arrays(optimizer, model, as_file(velocities), as_file(exact))
    saved = optimizers.optimizer_arrays(optimizer, model)
    weights = float32_arrays(full_precision(model, optimizer))
    assert_arrays(saved, velocities)
    assert_arrays(weights, exact)

    other, fresh, _ = with_masters(seed=5, dtype=dtype)
    fit_weights(other, weights, 'there')
    optimizers.load_optimizer_arrays(fresh, other, as_file(saved), as_file(weights))
    assert_arrays(optimizers.optimizer_arrays(fresh, other), velocities)
    assert_arrays(float32_arrays(full_precision(other, fresh)), exact)


def test_slots_that_a_step_has_made_have_the_names_of_those_that_were_loaded():
    """A CPU has no kernel for the step itself; by then the optimizer has made its slots."""
    model, optimizer, exact = with_masters()
    velocities = momentum_like(exact)
    optimizers.load_optimizer_arrays(optimizer, model, velocities, exact)
    assert optimizer._accumulators_holder
    for parameter in trainable(model).values():
        parameter.grad = paddle.ones(parameter.shape).astype(parameter.dtype)
    with pytest.raises(Exception, match='momentum'):
        optimizer.step()
    assert not optimizer._accumulators_holder, 'the optimizer has not found what was loaded'
    assert_arrays(optimizers.optimizer_arrays(optimizer, model), velocities)
    assert_arrays(float32_arrays(full_precision(model, optimizer)), exact)


@pytest.mark.parametrize(('before', 'after'), [('float32', 'float16'), ('float16', 'float32')])
def test_state_crosses_between_precisions(before, after):
    """A run in float32 may continue in 16 bits, and the other way round."""

    def made(dtype: str, seed: int):
        if dtype != 'float32':
            return with_masters(seed)
        model = tiny(seed)
        return model, optimizers.make_optimizer(model, Optimizer()), state_arrays(model)

    model, optimizer, exact = made(before, 0)
    velocities = momentum_like(exact)
    optimizers.load_optimizer_arrays(optimizer, model, velocities, exact)
    saved = optimizers.optimizer_arrays(optimizer, model)
    weights = float32_arrays(full_precision(model, optimizer))
    other, fresh, _ = made(after, 5)
    fit_weights(other, weights, 'there')
    optimizers.load_optimizer_arrays(fresh, other, saved, weights)
    assert_arrays(optimizers.optimizer_arrays(fresh, other), velocities)
    assert_arrays(float32_arrays(full_precision(other, fresh)), exact)
    if after == 'float32':  # and the optimizer makes use of them
        loss_of(other, 0, scale=0.0).backward()
        before_step = current(other)
        fresh.set_lr(1.0)
        fresh.step()
        for name, value in current(other).items():
            decayed = 5e-4 * before_step[name]
            moved = 0.9 * velocities[f'{name}/velocity_0'] + decayed
            np.testing.assert_allclose(value, before_step[name] - moved, rtol=1e-4, atol=1e-5)


def test_averages_of_16_bit_weights_are_those_of_their_masters():
    model, optimizer, exact = with_masters()
    ema = AveragedWeights(model, lambda: full_precision(model, optimizer), decay=0.3)
    assert_arrays(ema.arrays(), exact)
    ema.update(5)
    for name, value in ema.arrays().items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, exact[name], rtol=1e-6, err_msg=name)
    own = state_arrays(model)
    with ema.in_place():
        inside = state_arrays(model)
        for name in HALF:
            assert inside[name].dtype == np.float16
            np.testing.assert_allclose(inside[name], ema.arrays()[name], rtol=2**-9)
    assert_arrays(state_arrays(model), own)


# ------------------------------------------------------------------ one kernel for all tensors


@pytest.mark.parametrize(
    'options',
    [{}, {'nesterov': True, 'decay_bn_and_bias': False}, {'clip_norm': 0.1, 'weight_decay': 1e-3}],
)
def test_one_kernel_for_all_tensors_equals_one_for_each_to_the_bit(options, monkeypatch):
    """And they continue from each other's state: a checkpoint doesn't record its writer."""
    config = Optimizer(lr=0.1, **options)

    def train(*kinds: str) -> tuple[Arrays, Arrays]:
        paddle.seed(0)
        weights: Arrays = {}
        state: Arrays = {}
        for step, device in enumerate(kinds):
            layers = nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Flatten(), nn.Linear(16, 2)
            model = nn.Sequential(*layers)
            model.set_state_dict(weights)
            monkeypatch.setattr(devices, 'device_kind', lambda device=device: device)
            optimizer = optimizers.make_optimizer(model, config)
            assert optimizer._use_multi_tensor == (device != 'npu')
            optimizers.load_optimizer_arrays(optimizer, model, state, weights)
            images = np.random.default_rng(step).normal(size=(5, 3, 4, 4)).astype(np.float32)
            model(paddle.to_tensor(images)).square().mean().backward()
            optimizer.step()
            optimizer.clear_grad()
            weights, state = state_arrays(model), optimizers.optimizer_arrays(optimizer, model)
        return weights, state

    alone, together, mixed = train(*['npu'] * 4), train(*['cpu'] * 4), train(*['npu', 'cpu'] * 2)
    for other in (together, mixed):
        for ours, expected in zip(other, alone):
            assert_arrays(ours, expected)
    assert len(alone[1]) == 6


# ------------------------------------------------------------------ loss


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize('classes', [2, 10])
@pytest.mark.parametrize('device', ['cpu', 'npu'])  # where it is composed of other kernels
def test_cross_entropy_equals_numpy(smoothing, classes, device, monkeypatch):
    monkeypatch.setattr(devices, 'device_kind', lambda: device)
    rng = np.random.default_rng(classes)
    logits = rng.normal(scale=4, size=(9, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 9)
    target = np.full((9, classes), smoothing / classes)
    target[np.arange(9), labels] += 1 - smoothing
    wide = logits.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    expected = -(target * log_p).sum(1).mean()
    loss = cross_entropy(paddle.to_tensor(logits), paddle.to_tensor(labels), smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('scale', [20.0, 1e4, 1e30])
def test_cross_entropy_of_large_logits(smoothing, scale):
    """Finite, and right as far as Paddle's CPU kernel goes: it cuts log probabilities at -64."""
    logits = paddle.to_tensor(np.array([[scale, -scale, 0.0]], np.float32))
    logits.stop_gradient = False
    loss = cross_entropy(logits, paddle.to_tensor([1]), smoothing)
    assert math.isfinite(loss.item())
    if scale < 30:
        expected = (1 - smoothing) * 2 * scale + smoothing * (0 + 2 * scale + scale) / 3
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    else:
        assert loss.item() > 60 * (1 - smoothing)
    loss.backward()
    gradient = logits.grad.numpy().ravel()
    np.testing.assert_allclose(gradient, [1, -1, 0] - smoothing * np.array([1 / 3, -2 / 3, 1 / 3]),
                               atol=1e-5)  # fmt: skip
