"""The memory of a step is estimated before the first one, and refused where it cannot be had."""

from __future__ import annotations

import gc
import math
import os
import re

import numpy as np
import paddle
import pytest
from conftest import TINY

import train
from engine import cpu_conv, models
from engine.config import Config, Data, Model, Train, load_config
from engine.config.recipes import DEFAULT_CONFIG
from engine.errors import UserError
from engine.run.log import Log
from engine.training import memory
from engine.training.precision import Precision
from predictor import container


def network(name, onednn):
    paddle.seed(0)
    model = models.build(
        name, num_classes=10, dropout=0.0, data_format='NHWC' if onednn else 'NCHW'
    )
    if onednn:
        cpu_conv.accelerate(model, 'float32')
    return model


def held(model, images):
    """Bytes that a pass of these images leaves for the backward pass, counted on the spot."""
    gc.collect()
    before = memory._in_use()
    model.train()
    batch = paddle.zeros(images)
    logits = model(batch)
    after = memory._in_use()
    del logits
    return after - before


@pytest.mark.parametrize('onednn', [False, True])
@pytest.mark.parametrize(('name', 'side'), [('wide_resnet10_1', 32), ('resnext50_32x4d', 96)])
def test_an_estimate_from_two_small_images_is_what_a_larger_batch_takes(name, side, onednn):
    if onednn and cpu_conv.unavailable():
        pytest.skip('no oneDNN for this CPU')
    model, precision = network(name, onednn), Precision(Train())
    small = side // 2 if side == 32 else 64
    image = memory.retained_by_an_image(model, precision, small) * (side / small) ** 2
    assert held(model, [6, 3, side, side]) == pytest.approx(6 * image, rel=0.05)


def test_estimating_changes_nothing():
    model = network('wide_resnet10_1', onednn=False)
    model.eval()
    before = {name: np.array(value) for name, value in model.state_dict().items()}
    memory.retained_by_an_image(model, Precision(Train()), 32)
    assert not model.training
    assert all(not p.stop_gradient for p in model.parameters() if p.ndim == 4)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(np.array(value), before[name])


def checked(config, monkeypatch, free, images=10**6):
    """The lines about WRN-10-1."""
    monkeypatch.setattr(memory, 'free_memory', lambda: free)
    model = network(config.model.name, onednn=False)
    return memory.check(model, Precision(config.train), config, images=images)


def test_what_a_step_needs_is_reported(monkeypatch):
    config = Config(
        model=Model(name='wide_resnet10_1'), data=Data(name='synthetic', batch_size=100)
    )
    (line,) = checked(config, monkeypatch, 5e9)
    pattern = (
        r'memory: a step of 100 images needs about (\d+) MB more \((0\.\d) MB an image\), and '
    )
    total, image = map(float, re.match(pattern + r'5\.0 GB are free$', line).groups())
    weights = 8 * models.parameter_count(network('wide_resnet10_1', onednn=False)) / 1e6
    assert total == pytest.approx(100 * image + weights, rel=0.1)
    assert checked(config, monkeypatch, None)[0].endswith(' an image)')


@pytest.mark.parametrize('config_of', [{}, {'train': Train(accumulate=2)}])
def test_more_than_is_free_is_refused_with_what_would_fit(monkeypatch, config_of):
    data = Data(name='synthetic', batch_size=1000, image_size=32)
    config = Config(model=Model(name='wide_resnet10_1'), data=data, **config_of)
    with pytest.raises(UserError) as refusal:
        checked(config, monkeypatch, 1e8)
    text = str(refusal.value)
    assert text.startswith('out of memory: a step of 1000 images needs about ')
    assert ' of 32x32), and 100 MB are free; ' in text
    size, parts = map(
        int, re.search(r'data.batch_size=(\d+) .* train.accumulate=(\d+)', text).groups()
    )
    accumulated = config.train.accumulate
    assert 1000 * accumulated <= size * parts < 1000 * accumulated + parts
    smaller = Config(model=config.model, data=Data(name='synthetic', batch_size=size))
    assert len(checked(smaller, monkeypatch, 1e8)) == 1


def test_where_no_image_fits_no_batch_size_is_offered(monkeypatch):
    config = Config(model=Model(name='wide_resnet10_1'), data=Data(name='synthetic'))
    with pytest.raises(UserError, match=r'not even one image fits.*model\.name'):
        checked(config, monkeypatch, 1e6)


def test_a_network_for_small_images_on_photographs(monkeypatch):
    data = Data(name='synthetic', image_size=224, batch_size=16)
    config = Config(model=Model(name='wide_resnet10_1'), data=data)
    _, warning = checked(config, monkeypatch, 1e12)
    assert warning.startswith('warning: wide_resnet10_1 is a network for images of 32x32, ')
    assert 'takes 49 times as long for 224x224' in warning
    assert 'resnext50_32x4d' in warning
    with pytest.raises(UserError, match=r'batch_size=.*network for images of 32x32.*resnext50'):
        checked(config, monkeypatch, 1e8)


def test_no_step_has_more_images_than_the_set(monkeypatch):
    data = Data(name='synthetic', batch_size=10**6)
    config = Config(model=Model(name='wide_resnet10_1'), data=data)
    (line,) = checked(config, monkeypatch, 1e9, images=18)
    assert line.startswith('memory: a step of 18 images ')


def test_a_refused_training_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, 'free_memory', lambda: 1e6)
    run = tmp_path / 'run'
    config = load_config(DEFAULT_CONFIG, [*TINY, f'output.dir={run}'])
    with pytest.raises(UserError, match='out of memory'):
        train.train(config, train.RunFolder(run), None, Log())
    assert not run.exists()


# ------------------------------------------------------------------ what there is


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """Write files of /proc and of the control groups; 8 GB are available, 1 GB of swap is free."""
    monkeypatch.setattr(memory, 'PROC', tmp_path / 'proc')
    monkeypatch.setattr(container, 'PROC', tmp_path / 'proc')
    monkeypatch.setattr(container, 'CGROUP', tmp_path / 'cgroup')
    monkeypatch.delenv('PADDLE_LOCAL_SIZE', raising=False)

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    write('proc/meminfo', 'MemTotal: 9 kB\nMemAvailable: 8000000 kB\nSwapFree: 1000000 kB\n')
    return write


def test_free_is_what_linux_can_give(linux):
    assert memory.free_memory() == 9e6 * 1024


def test_free_is_no_more_than_a_container_may_use(linux):
    """Version 2: the process's own group has no limit, that around it has; files are given up."""
    linux('proc/self/cgroup', '0::/job/step\n')
    linux('cgroup/job/step/memory.max', 'max\n')
    linux('cgroup/job/memory.max', '4000\n')
    linux('cgroup/job/memory.current', '1500\n')
    linux('cgroup/job/memory.stat', 'anon 700\nactive_file 500\ninactive_file 200\n')
    assert memory.free_memory() == 4000 - (1500 - 700)


def test_free_in_a_container_of_version_1(linux):
    linux('proc/self/cgroup', '5:devices:/\n4:memory:/docker/1\n0::/\n')
    for name, value in {'limit_in_bytes': 4000, 'usage_in_bytes': 3900}.items():
        linux(f'cgroup/memory/memory.{name}', f'{value}\n')  # a container sees its own group here
    linux('cgroup/memory/memory.stat', 'active_file 1\ntotal_active_file 100\n')
    assert memory.free_memory() == 200


def test_processes_of_a_machine_share_it(linux, monkeypatch):
    monkeypatch.setenv('PADDLE_LOCAL_SIZE', '4')
    assert memory.free_memory() == 9e6 * 1024 / 4


def test_without_proc_it_is_what_the_machine_has(linux, tmp_path):
    (tmp_path / 'proc' / 'meminfo').unlink()
    pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    assert memory.free_memory() == pages
    assert not math.isinf(pages)


@pytest.mark.parametrize(
    ('size', 'text'),
    [(4.04e10, '40.4 GB'), (3.4e8, '340 MB'), (9.94e6, '9.9 MB'), (1e5, '0.1 MB'), (3e4, '30 kB')],
)
def test_amounts(size, text):
    assert memory.amount(size) == text
