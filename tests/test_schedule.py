"""Schedules against paddle.optimizer.lr."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from paddle.optimizer import lr as paddle_lr

from engine import config as configs
from engine.config import Optimizer, Schedule, load_config
from engine.errors import UserError
from engine.training import schedule as schedules

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / 'configs' / 'wrn28_10_cifar10.yaml'

EPOCHS, PER_EPOCH, LR = 6, 7, 0.4
STEPS = EPOCHS * PER_EPOCH


def values(schedule: Schedule, *, lr: float = LR, epochs: int = EPOCHS) -> list[float]:
    """The rate of every step."""
    lr_at = schedules.make_schedule(schedule, lr=lr, epochs=epochs, steps_per_epoch=PER_EPOCH)
    return [lr_at(step) for step in range(epochs * PER_EPOCH)]


def stepped(scheduler: paddle_lr.LRScheduler, *, every: int = 1, steps: int = STEPS) -> list[float]:
    """What Paddle's scheduler gives when it is stepped every `every` steps."""
    rates = []
    for step in range(steps):
        rates.append(float(scheduler()))
        if (step + 1) % every == 0:
            scheduler.step()
    return rates


PIECEWISE = {'boundaries': (2.0, 3.0, 5.0), 'values': (0.4, 0.1, 0.05, 0.001)}
ONE_CYCLE = {'phase_pct': 0.35, 'divide_factor': 10.0, 'end_lr': 1e-3}


def paddle_one_cycle(steps: int, strategy: str) -> paddle_lr.LRScheduler:
    return paddle_lr.OneCycleLR(
        LR, steps, divide_factor=10.0, end_learning_rate=1e-3, phase_pct=0.35,
        anneal_strategy=strategy,
    )  # fmt: skip


# name -> our schedule, Paddle's scheduler, the number of steps, and how often that one is stepped
SAME: dict[str, tuple[Schedule, Callable[[int], paddle_lr.LRScheduler], int]] = {
    'piecewise': (
        Schedule(name='piecewise', **PIECEWISE),
        lambda steps: paddle_lr.PiecewiseDecay([14, 21, 35], [0.4, 0.1, 0.05, 0.001]),
        1,
    ),
    'piecewise by epochs': (
        Schedule(name='piecewise', **PIECEWISE),
        lambda steps: paddle_lr.PiecewiseDecay([2, 3, 5], [0.4, 0.1, 0.05, 0.001]),
        PER_EPOCH,
    ),
    'piecewise by gamma': (
        Schedule(name='piecewise', boundaries=(2.0, 5.0), gamma=0.2),
        lambda steps: paddle_lr.MultiStepDecay(LR, [2, 5], gamma=0.2),
        PER_EPOCH,
    ),
    'piecewise within an epoch': (
        Schedule(name='piecewise', boundaries=(0.5, 1.5), values=(0.4, 0.2, 0.1)),
        lambda steps: paddle_lr.PiecewiseDecay([4, 10], [0.4, 0.2, 0.1]),  # of 3.5 and 10.5
        1,
    ),
    'step': (
        Schedule(name='step', step_size=2.0, gamma=0.3),
        lambda steps: paddle_lr.StepDecay(LR, step_size=2 * PER_EPOCH, gamma=0.3),
        1,
    ),
    'cosine': (
        Schedule(name='cosine', end_lr=0.01),
        lambda steps: paddle_lr.CosineAnnealingDecay(LR, steps, eta_min=0.01),
        1,
    ),
    'cosine to zero': (
        Schedule(name='cosine'),
        lambda steps: paddle_lr.CosineAnnealingDecay(LR, steps),
        1,
    ),
    'exponential': (
        Schedule(name='exponential', gamma=0.9),
        lambda steps: paddle_lr.ExponentialDecay(LR, gamma=0.9),
        PER_EPOCH,
    ),
    'one cycle, cos': (
        Schedule(name='one_cycle', anneal_strategy='cos', **ONE_CYCLE),
        lambda steps: paddle_one_cycle(steps, 'cos'),
        1,
    ),
    'one cycle, linear': (
        Schedule(name='one_cycle', anneal_strategy='linear', **ONE_CYCLE),
        lambda steps: paddle_one_cycle(steps, 'linear'),
        1,
    ),
    'constant': (
        Schedule(name='constant'),
        lambda steps: paddle_lr.LambdaDecay(LR, lambda epoch: 1.0),
        1,
    ),
}


@pytest.mark.parametrize('name', SAME)
def test_schedule_equals_paddles(name):
    schedule, theirs, every = SAME[name]
    np.testing.assert_allclose(
        values(schedule), stepped(theirs(STEPS), every=every), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize('name', sorted(schedules.PADDLE_NAMES))
def test_the_console_name_is_a_class_of_paddle(name):
    scheduler = getattr(paddle_lr, schedules.PADDLE_NAMES[name])
    assert issubclass(scheduler, paddle_lr.LRScheduler)
    compared = {key: case for key, case in SAME.items() if case[0].name == name}
    assert compared, f'{name} is not compared with Paddle above'
    if name != 'constant':
        assert any(isinstance(theirs(STEPS), scheduler) for _, theirs, _ in compared.values())


@pytest.mark.parametrize('name', ['step', 'cosine', 'cosine to zero', 'constant', 'one cycle, cos'])
@pytest.mark.parametrize(('epochs', 'start'), [(1.0, 0.0), (2.0, 0.01), (0.5, 0.02)])
def test_warmup_equals_paddles(name, epochs, start):
    schedule, theirs, every = SAME[name]
    warmup = round(epochs * PER_EPOCH)
    schedule = Schedule(**{**vars(schedule), 'warmup_epochs': epochs, 'warmup_start_lr': start})
    inner = theirs(STEPS - warmup)
    wrapped = paddle_lr.LinearWarmup(inner, warmup, start_lr=start, end_lr=float(inner()))
    expected = stepped(wrapped, every=every)
    np.testing.assert_allclose(values(schedule), expected, rtol=1e-9, atol=1e-12)


def test_warmup_leaves_the_boundaries_where_they_are():
    warm = values(Schedule(name='piecewise', warmup_epochs=1.0, **PIECEWISE))
    cold = values(Schedule(name='piecewise', **PIECEWISE))
    assert warm[PER_EPOCH:] == cold[PER_EPOCH:]
    np.testing.assert_allclose(warm[:PER_EPOCH], np.arange(PER_EPOCH) * LR / PER_EPOCH)


def test_warmup_of_exponential_delays_it():
    warm = values(Schedule(name='exponential', gamma=0.5, warmup_epochs=1.0))
    cold = values(Schedule(name='exponential', gamma=0.5))
    assert warm[PER_EPOCH:] == cold[:-PER_EPOCH]
    np.testing.assert_allclose(warm[:PER_EPOCH], np.arange(PER_EPOCH) * LR / PER_EPOCH)


@pytest.mark.parametrize('name', SAME)
def test_warmup_may_leave_no_step(name):
    """0.99 of one epoch is less than train.epochs, but rounds to all of its seven steps."""
    schedule = Schedule(**{**vars(SAME[name][0]), 'warmup_epochs': 0.99})
    rates = values(schedule, epochs=1)
    assert all(0 <= rate <= LR for rate in rates)
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ('epoch', 'rate'),
    [
        (0, 0.05), (59, 0.05), (60, 0.01), (119, 0.01), (120, 0.002), (160, 4e-4), (200, 2e-4),
        (240, 1e-4), (259, 1e-4), (260, 5e-5), (399, 5e-5),
    ],
)  # fmt: skip
def test_the_recipe_of_contrib(epoch, rate):
    config = load_config(RECIPE)
    lr_at = recipe_schedule(config)
    first, last = epoch * 391, epoch * 391 + 390
    assert lr_at(first) == lr_at(last) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize('factor', [0.5, 2.0])
def test_lr_override_scales_every_value(factor):
    plain = recipe_schedule(load_config(RECIPE))
    scaled = recipe_schedule(load_config(RECIPE, [f'optimizer.lr={0.05 * factor}']))
    for epoch in (0, 60, 120, 160, 200, 240, 260):
        assert scaled(epoch * 391) == pytest.approx(factor * plain(epoch * 391), rel=1e-12)


def recipe_schedule(config: configs.Config) -> Callable[[int], float]:
    return schedules.make_schedule(
        config.schedule, lr=config.optimizer.lr, epochs=config.train.epochs, steps_per_epoch=391
    )


@pytest.mark.parametrize(
    ('scaling', 'reference', 'images', 'factor'),
    [
        ('none', None, 1024, 1.0),
        ('linear', 256, 1024, 4.0),
        ('linear', 256, 256, 1.0),
        ('linear', 256, 64, 0.25),
        ('linear', 128, 320, 2.5),
    ],
)
def test_peak_lr_scales_with_the_global_batch_size(scaling, reference, images, factor):
    config = Optimizer(lr_scaling=scaling, reference_batch=reference)
    assert schedules.peak_lr(config, images) == config.lr * factor


@pytest.mark.parametrize('name', SAME)
@pytest.mark.parametrize('warmup', [0.0, 1.5])
@pytest.mark.parametrize('lr', [0.0, 1e-8, LR, 10.0])
def test_rates_are_never_negative(name, warmup, lr):
    schedule = Schedule(**{**vars(SAME[name][0]), 'warmup_epochs': warmup})
    rates = values(schedule, lr=lr)
    assert all(math.isfinite(rate) for rate in rates)
    assert min(rates) >= 0


@pytest.mark.parametrize('name', ['step', 'exponential', 'piecewise'])
def test_a_config_cannot_ask_for_negative_rates(tmp_path, name):
    path = tmp_path / 'negative.yaml'
    path.write_text(f'schedule: {{name: {name}, gamma: -0.5, boundaries: [1], step_size: 1}}\n')
    with pytest.raises(UserError, match=r'schedule\.gamma'):
        load_config(path)


@pytest.mark.parametrize('strategy', ['cos', 'linear'])
@pytest.mark.parametrize('epochs', [1, 2, 9])
@pytest.mark.parametrize('phase_pct', [0.0, 0.01, 0.3, 0.5, 0.99])
@pytest.mark.parametrize('warmup', [0.0, 0.5])
def test_one_cycle_ends_at_its_end(strategy, epochs, phase_pct, warmup):
    schedule = Schedule(
        name='one_cycle',
        anneal_strategy=strategy,
        phase_pct=phase_pct,
        end_lr=3e-4,
        warmup_epochs=warmup,
    )
    rates = values(schedule, epochs=epochs)
    assert rates[-1] == pytest.approx(3e-4, rel=1e-9)
    assert max(rates) <= LR * (1 + 1e-12)
    assert min(rates) >= 0
