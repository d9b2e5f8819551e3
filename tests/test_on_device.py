"""Batches that are augmented on the device against those that NumPy makes; and who waits for it."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import product

import numpy as np
import paddle
import pytest
from conftest import REPOSITORY, execute
from fake_npu import build, run
from test_loop import CONFIG, changed, new_trainer, run_epoch

from engine import data
from engine.config import Config, load_config
from engine.data import ArrayBatches, Images
from engine.data.augmentation import Augmentation
from engine.data.batches import BatchOptions
from engine.data.on_device import BATCHES_PER_UPLOAD, DeviceBatches
from engine.data.policies import make_policy
from engine.errors import UserError
from engine.evaluation import evaluate
from engine.machine import devices
from engine.training.progress import StepRecord

MEAN, STD = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])
EVERYTHING = Augmentation(
    crop_padding=2, padding_mode='reflect', flip=True, cutout=5, mixup=0.4, cutmix=1.0
)


def images_of(count, height=12, width=10, seed=9):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3, height, width), np.uint8)
    return Images(pixels, rng.integers(0, 10, count))


def both(images, augmentation=None, *, epoch=2, done=0, **choices):
    """The same batches of either path."""
    options = {'batch_size': 16, 'mean': MEAN, 'std': STD, 'shuffle': True, 'seed': 4, **choices}
    options['augmentation'] = augmentation or Augmentation()
    result = []
    for kind in (ArrayBatches, DeviceBatches):
        batches = kind(images, BatchOptions(**options))
        batches.set_epoch(epoch, done=done)
        result.append(batches)
    return result


def assert_equal(host, device, *, ulps=0):
    """Batch by batch. `ulps`: how far images may be apart, in units of float32's last place at 4,
    which no normalised pixel reaches."""
    host, device = list(host), list(device)
    assert len(host) == len(device) > 0
    for expected, batch in zip(host, device):
        assert isinstance(batch.images, paddle.Tensor)
        assert (batch.images.dtype, batch.labels.dtype) == (paddle.float32, paddle.int64)
        assert len(batch.labels) == len(expected.labels)
        assert batch.images.stop_gradient
        assert batch.own_weight == expected.own_weight
        ours = batch.moved(np.asarray)
        np.testing.assert_allclose(ours.images, expected.images, rtol=0, atol=ulps * 2.0**-22)
        for name in ('labels', 'rows', 'partners'):
            np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name), name)


# ------------------------------------------------------------------ equal to NumPy


@pytest.mark.parametrize('mode', ['zero', 'reflect', 'mean'])
@pytest.mark.parametrize(
    ('padding', 'flip', 'cutout'), list(product([0, 1, 3], [False, True], [0, 1, 4, 5, 20]))
)
def test_images_equal_those_of_numpy(mode, padding, flip, cutout):
    """To the bit: each pixel passes through the same two operations. 50 images: a small batch."""
    augmentation = Augmentation(crop_padding=padding, padding_mode=mode, flip=flip, cutout=cutout)
    assert_equal(*both(images_of(50), augmentation))


@pytest.mark.parametrize('alphas', [{'mixup': 0.4}, {'cutmix': 1.0}, {'mixup': 0.4, 'cutmix': 1.0}])
@pytest.mark.parametrize('others', [{}, {'crop_padding': 2, 'flip': True, 'cutout': 5}])
@pytest.mark.parametrize('epoch', range(4))
def test_mixed_images_equal_those_of_numpy(alphas, others, epoch):
    host, device = both(images_of(90), Augmentation(**alphas, **others), epoch=epoch)
    assert_equal(host, device, ulps=1)
    assert len({batch.own_weight for batch in host}) > 3


@pytest.mark.parametrize(('height', 'width'), [(1, 1), (5, 9), (9, 4), (32, 32)])
def test_images_of_every_shape(height, width):
    augmentation = dataclasses.replace(EVERYTHING, padding_mode='zero', cutout=1)
    assert_equal(*both(images_of(40, height, width), augmentation), ulps=1)


@pytest.mark.parametrize(('epoch', 'side'), [(0, 5), (2, 9), (5, 10)])
def test_images_that_grow(epoch, side):
    growing = dataclasses.replace(EVERYTHING, sides=(5, 9, 10), epochs=6)
    host, device = both(images_of(40), growing, epoch=epoch)
    assert next(iter(host)).images.shape[2:] == (side, side)
    assert_equal(host, device, ulps=2)


@pytest.mark.parametrize('count', [1, 2, 17, 33, 65])
@pytest.mark.parametrize(('rank', 'world_size'), [(0, 1), (0, 2), (1, 2)])
def test_processes_and_last_batches_of_any_size(count, rank, world_size):
    for shuffle, augmentation in ((True, EVERYTHING), (False, None)):
        host, device = both(
            images_of(count),
            augmentation,
            rank=rank,
            world_size=world_size,
            shuffle=shuffle,
            batch_size=16,
        )
        if not len(host):
            assert list(device) == []
        elif len(host.rows()[-1]):
            assert_equal(host, device, ulps=1)


def test_a_process_without_an_image_of_the_last_batch_evaluates_nothing_of_it():
    *_, expected = (
        host := both(images_of(33), shuffle=False, rank=1, world_size=2, batch_size=16)
    )[0]
    *_, batch = host[1]
    for name in ('images', 'labels', 'rows'):
        ours, theirs = getattr(batch, name), getattr(expected, name)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert len(ours) == 0


@pytest.mark.parametrize('done', [16, 40, 80, 96])
@pytest.mark.parametrize('world_size', [1, 2])
def test_the_rest_of_an_epoch_of_any_place(done, world_size):
    for rank in range(world_size):
        host, device = both(
            images_of(97),
            EVERYTHING,
            done=done,
            rank=rank,
            world_size=world_size,
            batch_size=16 // world_size,
        )
        if host.rows():
            assert_equal(host, device, ulps=1)


def test_batches_of_more_than_one_upload():
    count = 2 * (2 * BATCHES_PER_UPLOAD + 3) - 1
    host, device = both(images_of(count, 4, 4), Augmentation(flip=True, cutout=2), batch_size=2)
    assert_equal(host, device)
    assert_equal(host, device)  # and again: iterating changes nothing


def test_a_set_too_large_for_32_bits_is_indexed_with_64(monkeypatch):
    plain = both(images_of(40), EVERYTHING)[1]
    wide = both(images_of(40), EVERYTHING)[1]
    monkeypatch.setattr(wide, '_dtype', np.int64)
    for name in ('_starts', '_x', '_y'):
        monkeypatch.setattr(wide, name, getattr(wide, name).astype('int64'))
    assert plain._dtype == np.int32
    assert_equal([batch.moved(np.asarray) for batch in plain], wide)


@pytest.mark.parametrize('count', [1, 2, 5, 13, 100])
def test_parts_of_a_batch(count):
    host, device = both(images_of(13), EVERYTHING, batch_size=13)
    (expected,), (batch,) = host, device
    assert_equal(expected.parts(count), batch.parts(count), ulps=1)


def test_pixels_as_an_npu_keeps_them(monkeypatch):
    monkeypatch.setattr(devices, 'pixel_dtype', lambda: 'float32')
    host, device = both(images_of(50), EVERYTHING)
    assert device._pixels.dtype == paddle.float32
    assert_equal(host, device, ulps=1)


@pytest.mark.parametrize('mirror', [False, True])
def test_evaluation_measures_the_same(mirror):
    paddle.seed(0)
    model = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(360, 10))
    host, device = (
        evaluate(model, batches, mirror=mirror) for batches in both(images_of(37), shuffle=False)
    )
    for name in ('rows', 'labels', 'predictions', 'in_top5', 'losses', 'probabilities'):
        np.testing.assert_array_equal(getattr(host, name), getattr(device, name), name)


# ------------------------------------------------------------------ who chooses


def config_of(**choices) -> Config:
    return changed(CONFIG, data={'num_images': 40, **choices})


@pytest.mark.parametrize('accelerator', [False, True])
@pytest.mark.parametrize('expected', [None, False, True])
@pytest.mark.parametrize(
    'by_image', [{}, {'auto_augment': 'randaugment'}, {'color_jitter': (0.4, 0.4, 0.4)}]
)
def test_where_the_batches_are_made(monkeypatch, accelerator, expected, by_image):
    monkeypatch.setattr(devices, 'is_accelerator', lambda: accelerator)
    config = config_of(on_device=expected, **by_image)
    dataset = data.load_data(config)
    chosen = accelerator if expected is None else expected
    train = DeviceBatches if chosen and not by_image else ArrayBatches
    assert type(data.train_batches(dataset, config)) is train
    tests = data.test_batches(dataset, config)
    assert type(tests) is (DeviceBatches if chosen else ArrayBatches)


@pytest.mark.parametrize(
    ('augmentation', 'expected'),
    [
        (EVERYTHING, False),
        (Augmentation(policy=make_policy('randaugment')), True),
        (Augmentation(jitter=(0.4, 0.4, 0.4)), True),
        (Augmentation(random_erasing=0.1), True),
    ],
    ids=['everything else', 'policy', 'jitter', 'erasing'],
)
def test_what_is_done_image_by_image(augmentation, expected):
    assert augmentation.image_by_image is expected


@pytest.mark.parametrize(
    'setting',
    ['data.auto_augment=randaugment', 'data.color_jitter=[0.4, 0.4, 0.4]', 'data.random_erasing=1'],
)
def test_augmentation_on_the_cpu_is_refused_by_name(setting):
    quickstart = REPOSITORY / 'configs' / 'quickstart.yaml'
    for unasked in ('null', 'false'):
        load_config(quickstart, [setting, f'data.on_device={unasked}'])
    with pytest.raises(UserError) as caught:
        load_config(quickstart, [setting, 'data.on_device=true'])
    name = setting.partition('=')[0]
    assert str(caught.value) == (
        '-o data.on_device=true: data.on_device does not work with '
        f'{name}, which runs on the CPU; leave one of them out'
    )


def test_pictures_in_a_folder_are_refused():
    folder = REPOSITORY / 'configs' / 'finetune_folder.yaml'
    with pytest.raises(
        UserError, match=r'data\.on_device has no effect with data\.name: folder; lea'
    ):
        load_config(folder, ['data.on_device=true'])


# ------------------------------------------------------------------ nobody waits for the device


WAITING = (
    *('numpy', 'item', 'tolist', 'cpu', 'pin_memory', '_copy_to'),
    *('__array__', '__bool__', '__float__', '__int__', '__index__', '__str__'),
)
DEMANDING = changed(
    CONFIG,
    data={'num_images': 64, 'cutout': 4, 'mixup': 0.4, 'cutmix': 1.0},
    optimizer={'clip_norm': 1.0, 'decay_bn_and_bias': False},
    train={'log_every': 4, 'accumulate': 2, 'label_smoothing': 0.1},
)


@pytest.fixture
def waits(monkeypatch):
    """The names of the methods that have waited for the device so far."""
    called: list[str] = []

    def watched(name, method):
        def call(*args, **kwargs):
            called.append(name)
            return method(*args, **kwargs)

        return call

    for name in WAITING:
        monkeypatch.setattr(paddle.Tensor, name, watched(name, getattr(paddle.Tensor, name)))
    return called


def test_waiting_is_noticed(waits):
    tensor = paddle.to_tensor([1.0])
    assert waits == []
    for wait in (bool, float, int, str, np.asarray, paddle.Tensor.tolist, paddle.Tensor.item):
        wait(tensor)
        assert waits, wait
        waits.clear()


def test_a_gpu_fetches_arrays_from_page_locked_memory_while_the_host_goes_on(monkeypatch):
    """What a stand-in for one is lines."""
    lines = []

    def fetch(tensor, *, blocking):
        lines.append(blocking)
        return tensor

    monkeypatch.setattr(devices, 'device_kind', lambda: 'gpu')
    monkeypatch.setattr(
        paddle, 'CUDAPinnedPlace', lambda: lines.append('pinned') or paddle.CPUPlace()
    )
    monkeypatch.setattr(paddle.Tensor, 'cuda', fetch, raising=False)
    array = np.arange(5, dtype=np.int32)
    tensor = devices.to_device(array)
    assert lines == ['pinned', False]
    assert tensor.dtype == paddle.int32
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert devices.to_device(tensor) is tensor
    assert len(lines) == 2


@pytest.mark.parametrize('on_device', [False, True])
@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_step_never_waits_and_a_collection_twice(waits, on_device, accumulate):
    """Of losses and of hits, whatever the augmentation, clipping, averaging and dropout."""
    batches = {'batch_size': 8 // accumulate, 'on_device': on_device}
    trainer = new_trainer(changed(DEMANDING, data=batches, train={'accumulate': accumulate}))
    assert isinstance(trainer.batches, DeviceBatches if on_device else ArrayBatches)
    history = []

    def after_step(record: StepRecord) -> None:
        history.append((record.measured is not None, list(waits)))
        waits.clear()

    waits.clear()
    trainer.train_one_epoch(after_step=after_step)
    assert [collected for collected, _ in history] == [True, *[False] * 3] * 2
    for collected, names in history:
        assert names == (['numpy'] * 2 if collected else [])


# ------------------------------------------------------------------ whole trainings


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_trainer_has_the_losses_of_the_host(accumulate):
    records = []
    for on_device in (False, True):
        config = changed(DEMANDING, data={'on_device': on_device}, train={'accumulate': accumulate})
        trainer = new_trainer(config)
        records.append([run_epoch(trainer)['train_loss'] for _ in range(2)])
    np.testing.assert_allclose(records[1], records[0], rtol=0, atol=1e-5)


def test_a_run_that_was_stopped_goes_on_where_the_other_path_left_it():
    """The place of the data is no part of a run's state."""
    host, device = (changed(DEMANDING, data={'on_device': where}) for where in (False, True))
    whole, first, second = new_trainer(host), new_trainer(host), new_trainer(device)
    expected = run_epoch(whole)
    assert run_epoch(first, until=2) is None
    second.restore(first.snapshot())
    record = run_epoch(second)
    for name in ('train_loss', 'eval_loss'):
        assert record[name] == pytest.approx(expected[name], rel=0, abs=1e-5)


SHORT = (
    *('-c', str(REPOSITORY / 'configs' / 'quickstart.yaml'), '-o', 'train.max_steps=4'),
    *(
        'data.batch_size=16',
        'train.log_every=1',
        'data.flip=true',
        'data.cutout=8',
        'data.mixup=0.4',
        'data.cutmix=1',
    ),
)


def results(folder, stdout):
    """The losses of the iter: lines, and the numbers of the only epoch."""
    losses = [float(loss) for loss in re.findall(r'^iter:\d+  loss:(\S+)', stdout, re.M)]
    assert len(losses) == 4
    record = json.loads((folder / 'metrics.jsonl').read_text())
    return losses, {name: record[name] for name in ('train_loss', 'eval_loss', 'eval_accuracy')}


def assert_same_results(ours, expected):
    np.testing.assert_allclose(ours[0], expected[0], rtol=0, atol=1.1e-4)  # they have four decimals
    assert ours[1] == pytest.approx(expected[1], rel=0, abs=1e-5)


@pytest.mark.slow
def test_train_py_has_the_losses_of_the_host(tmp_path):
    found = []
    for where, folder in (('false', tmp_path / 'host'), ('true', tmp_path / 'device')):
        settings = (f'data.on_device={where}', f'output.dir={folder}', 'device=cpu')
        process = execute(tmp_path, 'train.py', *SHORT, *settings)
        assert process.returncode == 0, process.stderr
        found.append(results(folder, process.stdout))
    assert_same_results(found[1], found[0])
    pictures = [(tmp_path / name / 'first_batch.png').read_bytes() for name in ('host', 'device')]
    assert pictures[0] == pictures[1]


# ------------------------------------------------------------------ an Ascend without an Ascend

NPU_BATCHES = """
import sys
sys.path[:0] = [{repository!r}, {repository!r} + '/tests']
from engine.machine.start import start_paddle
print(start_paddle('auto'))
from test_on_device import EVERYTHING, assert_equal, both, images_of, paddle
host, device = both(images_of(50), EVERYTHING)
assert_equal(host, device, ulps=1)
tracer, gather, levels = paddle.base.framework._dygraph_tracer(), paddle.gather, []
paddle.gather = lambda *tensors: levels.append(tracer._amp_level) or gather(*tensors)
with paddle.amp.auto_cast(level='O2'):  # as in an evaluation, whose images keep their 32 bits
    outside = tracer._amp_level
    assert_equal(host, device, ulps=1)
assert levels and outside not in levels, levels
print(device._pixels.place, device._pixels.dtype, next(iter(device)).images.place)
"""


@pytest.fixture(scope='module')
def npu(tmp_path_factory):
    return build(tmp_path_factory.mktemp('plugin'))


def test_batches_on_an_npu_equal_those_of_numpy(npu, tmp_path):
    process = run(tmp_path, npu, '-c', NPU_BATCHES.format(repository=str(REPOSITORY)))
    assert process.returncode == 0, process.stderr
    assert 'Place(npu:0) paddle.float32 Place(npu:0)' in process.stdout


@pytest.mark.slow
def test_training_on_an_npu_by_itself_augments_there_with_the_losses_of_the_host(npu, tmp_path):
    found = []
    for where, folder in (('false', tmp_path / 'host'), ('null', tmp_path / 'device')):
        settings = (f'data.on_device={where}', f'output.dir={folder}')
        process = run(tmp_path, npu, str(REPOSITORY / 'train.py'), *SHORT, *settings)
        assert process.returncode == 0, process.stderr
        assert '\ndevice: npu (' in process.stdout
        found.append(results(folder, process.stdout))
    assert_same_results(found[1], found[0])
