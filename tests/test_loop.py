"""The loop: resuming to the bit, divergence, evaluation against NumPy, records."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Optional

import numpy as np
import paddle
import pytest
from paddle import nn

from engine import data, models
from engine.config import Config, Data, Eval, Model, Optimizer, Schedule, Train, to_dict
from engine.data import ArrayBatches, Batches, DataSet, Images
from engine.data.batches import Batch, BatchOptions
from engine.errors import Diverged, UserError
from engine.evaluation import Evaluation, evaluate
from engine.run.checkpoint import Checkpoints
from engine.training import network, optimizers
from engine.training.progress import StepRecord, is_due
from engine.training.snapshot import Snapshot
from engine.training.trainer import Trainer
from engine.weights import Arrays, state_arrays

IMAGES, BATCH = 22, 8  # three batches an epoch, the last of six images
CLASSES = [str(i) for i in range(10)]

CONFIG = Config(
    seed=3,
    model=Model(name='wide_resnet10_1', dropout=0.3),
    data=Data(name='synthetic', batch_size=BATCH, num_images=IMAGES, image_size=16, crop_padding=2),
    optimizer=Optimizer(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    schedule=Schedule(name='cosine', warmup_epochs=0.5),
    train=Train(epochs=4, ema=0.9, label_smoothing=0.1, log_every=2),
    eval=Eval(batch_size=5),
)


def changed(config: Config, **sections: dict) -> Config:
    """The config with keys of sections replaced: changed(CONFIG, train={'ema': 0.0})."""
    replaced = {
        name: dataclasses.replace(getattr(config, name), **keys) for name, keys in sections.items()
    }
    return dataclasses.replace(config, **replaced)


class Smallest(nn.Layer):
    """A network for tests that are not about the network: convolution, batch norm, dropout."""

    def __init__(self, num_classes: int = 10, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3, stride=2, bias_attr=False)
        self.bn = nn.BatchNorm2D(4)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.fc(self.dropout(nn.functional.relu(self.bn(self.conv(x)))).mean([2, 3]))


def new_trainer(
    config: Config = CONFIG, *, classes: Optional[list[str]] = None, wide: bool = False
) -> Trainer:
    """As train.py builds it. The weights depend on nothing that was built before."""
    paddle.seed(config.seed)
    if wide:
        model = models.build(config.model.name, num_classes=10, dropout=config.model.dropout)
    else:
        model = Smallest(dropout=config.model.dropout)
    batches = data.train_batches(data.load_data(config), config)
    return Trainer(model, config, batches=batches, classes=classes or list(CLASSES))


class Pause(Exception):
    pass


def ignore(step: StepRecord) -> None:
    pass


def unfinished(trainer: Trainer) -> bool:
    return trainer.step < trainer.steps


def pause_at(trainer: Trainer, step: int):
    def after_step(done: StepRecord) -> None:
        if trainer.step == step:
            raise Pause

    return after_step


def thirteen(batch_size: int = 5) -> Batches:
    """Images to evaluate on."""
    rng = np.random.default_rng(1)
    images = Images(rng.integers(0, 256, (13, 3, 16, 16), np.uint8), rng.integers(0, 10, 13))
    return ArrayBatches(images, BatchOptions(batch_size, np.full(3, 127.5), np.full(3, 60.0)))


def run_epoch(trainer: Trainer, *, until: Optional[int] = None) -> Optional[dict]:
    """One epoch with its evaluation, or as far as step `until`; the record, if it ended."""
    try:
        trainer.train_one_epoch(after_step=pause_at(trainer, until) if until else ignore)
    except Pause:
        return None
    with trainer.evaluated_weights() as model:
        evaluation = evaluate(model, thirteen())
    return trainer.end_epoch(evaluation)


def run_until(trainer: Trainer, stop: int) -> list[dict]:
    """As far as that step; the records of the epochs that have ended."""
    records = []
    while trainer.step < stop:
        record = run_epoch(trainer, until=stop)
        records += [record] if record else []
    return records


def run_to_end(trainer: Trainer) -> list[dict]:
    records = []
    while unfinished(trainer):
        record = run_epoch(trainer)
        assert record is not None
        records.append(record)
    return records


# What differs from run to run, and the texts.
TIMES = ('seconds', 'images_per_second', 'data_wait', 'weights_sha256', 'eval_data', 'eval_views')


def timeless(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def state_of(trainer: Trainer) -> dict[str, Arrays]:
    return {
        'model': state_arrays(trainer.model),
        'optimizer': optimizers.optimizer_arrays(trainer.optimizer, trainer.model),
        'ema': trainer.ema.arrays() if trainer.ema is not None else {},
    }


def assert_identical(one: Trainer, other: Trainer) -> None:
    for part, arrays in state_of(one).items():
        theirs = state_of(other)[part]
        assert sorted(theirs) == sorted(arrays), part
        for name, value in arrays.items():
            assert value.tobytes() == theirs[name].tobytes(), f'{part}: {name}'


def through_disk(snapshot: Snapshot, folder: Path, name: str) -> Snapshot:
    Checkpoints(folder).save(name, snapshot)
    found = Checkpoints(folder).newest(pytest.fail)
    assert found is not None
    return found


# ------------------------------------------------------------------ resuming


@pytest.mark.parametrize('ema', [0.0, 0.9])
@pytest.mark.parametrize('stop', [1, 2, 3, 4, 6, 7, 8, 9, 11])
def test_resume_is_bit_identical(tmp_path, stop, ema):
    """To the bit, wherever the run was stopped: after the first step, in an epoch, at its end."""
    config = changed(CONFIG, train={'ema': ema})
    whole = new_trainer(config)
    expected = run_to_end(whole)
    assert whole.step == 12

    first = new_trainer(config)
    records = run_until(first, stop)
    snapshot = through_disk(first.snapshot(), tmp_path, first.progress.name)
    assert snapshot.state['step'] == first.step == stop

    second = new_trainer(config)
    second.restore(snapshot)
    assert second.step == stop
    records += run_to_end(second)
    assert_identical(second, whole)
    assert timeless(records) == timeless(expected)


@pytest.mark.parametrize('count', [23, 24])
def test_a_run_stopped_at_the_last_step_of_an_epoch_continues_with_its_evaluation(tmp_path, count):
    """Also where the last batch is a whole one."""
    config = changed(CONFIG, data={'num_images': count}, train={'epochs': 2})
    whole = new_trainer(config)
    expected = run_to_end(whole)
    first = new_trainer(config)
    assert run_epoch(first, until=3) is None
    snapshot = through_disk(first.snapshot(), tmp_path, first.progress.name)
    second = new_trainer(config)
    second.restore(snapshot)
    assert second.step == 3
    assert not second.inside_epoch
    assert timeless(run_to_end(second)) == timeless(expected)
    assert_identical(second, whole)


def test_resume_of_a_wide_resnet_is_bit_identical(tmp_path):
    config = changed(CONFIG, train={'epochs': 2})
    whole = new_trainer(config, wide=True)
    expected = run_to_end(whole)

    first = new_trainer(config, wide=True)
    run_epoch(first, until=2)
    snapshot = through_disk(first.snapshot(), tmp_path, first.progress.name)
    second = new_trainer(config, wide=True)
    second.restore(snapshot)
    assert timeless(run_to_end(second)) == timeless(expected)
    assert_identical(second, whole)


STRONG = {
    'auto_augment': 'randaugment',
    'color_jitter': (0.4, 0.4, 0.4, 0.1),
    'random_erasing': 0.5,
    'cutout': 4,
    'mixup': 0.4,
    'cutmix': 1.0,
}


@pytest.mark.parametrize('stop', [1, 2, 4, 5, 8])
def test_resume_with_every_augmentation_is_bit_identical(tmp_path, stop):
    config = changed(CONFIG, data=STRONG, train={'epochs': 3})
    whole = new_trainer(config)
    expected = run_to_end(whole)

    first = new_trainer(config)
    records = run_until(first, stop)
    assert first.inside_epoch
    snapshot = through_disk(first.snapshot(), tmp_path, first.progress.name)
    second = new_trainer(config)
    second.restore(snapshot)
    records += run_to_end(second)
    assert_identical(second, whole)
    assert timeless(records) == timeless(expected)


@pytest.mark.parametrize('key', STRONG)
def test_every_augmentation_is_on_in_that_test(key):
    states = []
    for choice in (STRONG, {**STRONG, key: getattr(Data, key)}):
        trainer = new_trainer(changed(CONFIG, data=choice))
        run_epoch(trainer)
        states.append(state_of(trainer)['model']['fc.weight'])
    assert (states[0] != states[1]).any()


def test_training_depends_on_the_seed_alone():
    one, other, different = (
        new_trainer(dataclasses.replace(CONFIG, seed=seed)) for seed in (3, 3, 4)
    )
    for trainer in (one, other, different):
        run_epoch(trainer)
    assert_identical(one, other)
    assert (state_of(one)['model']['fc.weight'] != state_of(different)['model']['fc.weight']).any()


def test_dropout_and_the_averaged_weights_are_on_in_these_tests():
    """The tests above would also pass if these did nothing."""
    states = []
    for sections in ({}, {'model': {'dropout': 0.0}}, {'optimizer': {'momentum': 0.5}}):
        trainer = new_trainer(changed(CONFIG, **sections))
        run_epoch(trainer)
        states.append(state_of(trainer))
    plain, *others = states
    for other in others:
        assert (plain['model']['fc.weight'] != other['model']['fc.weight']).any()
    assert (plain['model']['fc.weight'] != plain['ema']['fc.weight']).any()


@pytest.mark.parametrize('log_every', [1, 100])
def test_saving_and_logging_do_not_change_the_training(log_every):
    """Snapshots at every step, or results fetched at every step, change no bit of the training."""
    plain = new_trainer(CONFIG)
    expected = run_to_end(plain)
    watched = new_trainer(changed(CONFIG, train={'log_every': log_every}))
    records = []
    while unfinished(watched):
        watched.train_one_epoch(after_step=lambda step: watched.snapshot())
        with watched.evaluated_weights() as model:
            evaluation = evaluate(model, thirteen())
        records.append(watched.end_epoch(evaluation))
    assert timeless(records) == timeless(expected)
    assert_identical(plain, watched)


def test_snapshot_of_what_was_just_restored_is_the_same(tmp_path):
    """A run that is stopped again before its first step must not lose its momentum."""
    first = new_trainer()
    run_epoch(first, until=2)
    snapshot = through_disk(first.snapshot(), tmp_path / 'one', first.progress.name)
    second = new_trainer()
    second.restore(snapshot)
    again = through_disk(second.snapshot(), tmp_path / 'two', second.progress.name)
    for part in ('model', 'optimizer', 'ema'):
        before, after = getattr(snapshot, part), getattr(again, part)
        assert sorted(after) == sorted(before), part
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert again.state['progress'] == snapshot.state['progress']


def test_snapshot_before_the_first_step(tmp_path):
    first = new_trainer()
    snapshot = through_disk(first.snapshot(), tmp_path, first.progress.name)
    second = new_trainer(dataclasses.replace(CONFIG, seed=8))
    second.restore(snapshot)
    assert second.step == 0
    for name, value in state_arrays(first.model).items():
        np.testing.assert_array_equal(state_arrays(second.model)[name], value, err_msg=name)


def test_snapshot_records_where_it_was_taken():
    trainer = new_trainer()
    run_epoch(trainer)
    run_epoch(trainer, until=5)
    state = trainer.snapshot().state
    assert trainer.progress.name == 'epoch_0001_batch_00002'
    assert (state['epoch'], state['step'], state['images_per_step']) == (1, 5, 8)
    assert (state['images'], state['progress']['images']) == (IMAGES, 16)
    assert state['loss_scale'] == {}  # on a CPU there is none
    assert state['classes'] == CLASSES
    assert state['config'] == json.loads(json.dumps(to_dict(CONFIG)))
    assert set(state['versions']) >= {'paddle', 'numpy', 'python'}
    json.dumps(state)


def test_snapshot_is_a_copy():
    trainer = new_trainer()
    run_epoch(trainer)
    snapshot = trainer.snapshot()
    before = copy.deepcopy(snapshot)
    run_epoch(trainer)
    for part in ('model', 'optimizer', 'ema'):
        for name, value in getattr(before, part).items():
            np.testing.assert_array_equal(getattr(snapshot, part)[name], value, err_msg=name)
    assert snapshot.state == before.state


@pytest.mark.parametrize(('before', 'after'), [(0.0, 0.9), (0.9, 0.0)])
def test_a_resume_may_switch_averaging_on_or_off(before, after):
    first = new_trainer(changed(CONFIG, train={'ema': before}))
    run_epoch(first)
    second = new_trainer(changed(CONFIG, train={'ema': after}))
    second.restore(first.snapshot())
    assert (second.ema is not None) == bool(after)
    if second.ema is not None:  # it starts at the weights that are there
        for name, value in second.ema.arrays().items():
            np.testing.assert_array_equal(value, state_arrays(first.model)[name], err_msg=name)
    run_to_end(second)


def test_max_steps_ends_inside_an_epoch_and_can_be_raised():
    whole = new_trainer()
    run_to_end(whole)
    first = new_trainer(changed(CONFIG, train={'max_steps': 4}))
    run_epoch(first)
    first.train_one_epoch(after_step=ignore)
    assert first.step == 4
    assert not unfinished(first)
    second = new_trainer()
    second.restore(first.snapshot())
    assert unfinished(second)
    run_to_end(second)
    assert_identical(second, whole)


# ------------------------------------------------------------------ restoring what doesn't fit


@pytest.mark.parametrize('classes', [CLASSES[::-1], CLASSES[:9], [*CLASSES, 'more']])
def test_restore_refuses_other_classes(classes):
    first = new_trainer()
    run_epoch(first)
    snapshot = first.snapshot()
    second = new_trainer(classes=classes)
    before = state_arrays(second.model)
    with pytest.raises(UserError, match='classes'):
        second.restore(snapshot)
    assert second.step == 0
    for name, value in state_arrays(second.model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_restore_refuses_another_model():
    first = new_trainer()
    run_epoch(first)
    second = new_trainer(wide=True)
    with pytest.raises(UserError, match=r'conv\.weight'):
        second.restore(first.snapshot())


@pytest.mark.parametrize(
    'sections', [{'seed': 4}, {'data': {'num_images': 23}}, {'data': {'num_images': 16}}], ids=str
)
def test_restore_inside_an_epoch_refuses_another_order(sections):
    """The order of an epoch follows from the seed and the number of images."""
    first = new_trainer()
    run_epoch(first, until=2)
    snapshot = first.snapshot()
    seed = sections.get('seed', CONFIG.seed)
    config = changed(CONFIG, data=sections.get('data', {}))
    second = new_trainer(dataclasses.replace(config, seed=seed))
    with pytest.raises(UserError, match='lies inside an epoch of 22 images and seed 3') as error:
        second.restore(snapshot)
    assert f'now they are {config.data.num_images} and {seed}: ' in str(error.value)
    assert '\n' not in str(error.value)
    assert second.step == 0


def test_restore_refuses_to_hold_out_images_that_were_trained_on():
    whole, part = (changed(CONFIG, data={'num_images': 80, 'holdout': h}) for h in (0.0, 0.25))
    first = new_trainer(whole)
    run_epoch(first)
    snapshot = first.snapshot()
    second = new_trainer(part)
    with pytest.raises(UserError, match=r'with data\.holdout=0: with 0\.25, .* keep 0$'):
        second.restore(snapshot)
    assert second.step == 0
    snapshot.state['config']['data']['holdout'] = 0.25
    second.restore(snapshot)
    new_trainer(whole).restore(snapshot)  # which trains on all


@pytest.mark.parametrize('sections', [{'seed': 4}, {'data': {'num_images': 23}}], ids=str)
def test_restore_at_an_epochs_end_takes_another_order(sections):
    first = new_trainer()
    run_epoch(first)
    config = changed(CONFIG, data=sections.get('data', {}))
    second = new_trainer(dataclasses.replace(config, seed=sections.get('seed', CONFIG.seed)))
    second.restore(first.snapshot())
    assert second.progress.epoch == 1
    assert len(run_to_end(second)) == 3


class Noting(ArrayBatches):
    """Batches that note which images were given out."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.noted: list[list[int]] = []

    def __iter__(self):
        for batch in super().__iter__():
            self.noted.append(batch.rows.tolist())
            yield batch


def noting_trainer(batch_size: int, accumulate: int = 1) -> Trainer:
    config = changed(CONFIG, data={'batch_size': batch_size}, train={'accumulate': accumulate})
    images = data.load_data(config).train
    half = np.full(3, 127.5)
    size = batch_size * accumulate
    options = BatchOptions(size, half, half, shuffle=True, seed=config.seed)
    batches = Noting(images, options)
    paddle.seed(config.seed)
    return Trainer(Smallest(), config, batches=batches, classes=list(CLASSES))


OTHER_BATCHES = [(1, 1), (4, 1), (7, 1), (8, 1), (9, 1), (16, 1), (100, 1), (2, 2), (3, 4)]


@pytest.mark.parametrize('stop', [1, 2])
@pytest.mark.parametrize(('batch_size', 'accumulate'), OTHER_BATCHES)
def test_restore_inside_an_epoch_of_other_batches_sees_every_image_once(
    tmp_path, batch_size, accumulate, stop
):
    """In the epoch's own order; with 9 it has three batches, too, as with 8, but others."""
    whole = noting_trainer(IMAGES)
    run_epoch(whole)
    (order,) = whole.batches.noted
    first = noting_trainer(BATCH)
    run_epoch(first, until=stop)
    seen = [row for rows in first.batches.noted for row in rows][: stop * BATCH]
    assert first.progress.images == len(seen)
    snapshot = through_disk(first.snapshot(), tmp_path, first.progress.name)

    second = noting_trainer(batch_size, accumulate)
    lines = second.restore(snapshot)
    together = batch_size * accumulate
    assert second.step == second.progress.batch == stop * BATCH // together
    record = run_epoch(second)
    assert [*seen, *(row for rows in second.batches.noted for row in rows)] == order
    # Between the batches, the run is where it would be without the stop.
    sizes = [len(rows) for rows in second.batches.noted]
    assert sizes[0] == min(together - stop * BATCH % together, IMAGES - stop * BATCH)
    assert all(size == together for size in sizes[1:-1])
    assert record['step'] == len(second.batches) == -(-IMAGES // together)
    # The figures are those of the whole epoch, the beginning included.
    hits = record['train_accuracy'] * IMAGES
    assert hits == pytest.approx(round(hits), abs=1e-6)
    assert second.progress.epoch == 1
    run_epoch(second)
    assert sorted(row for rows in second.batches.noted for row in rows[:IMAGES]) == sorted(
        [*range(IMAGES), *order[stop * BATCH :]]
    )
    change = f'{together} images a step now, not 8; the order of the images stays'
    changes = [line for line in lines if not line.startswith('the config has changed: ')]
    assert changes == [change] * (together != BATCH)


@pytest.mark.parametrize('batch_size', [4, 9, 16])
def test_restore_at_an_epochs_end_takes_other_batches(batch_size):
    first = new_trainer()
    run_epoch(first)
    second = new_trainer(changed(CONFIG, data={'batch_size': batch_size}))
    second.restore(first.snapshot())
    assert second.progress.epoch == 1
    records = run_to_end(second)
    assert [record['epoch'] for record in records] == [1, 2, 3]
    assert second.step == 4 * len(second.batches)


# ------------------------------------------------------------------ several batches a step


def several(batch_size: int, accumulate: int, **sections: dict) -> Trainer:
    """Steps of batch_size x accumulate images, without what is drawn for a batch as a whole."""
    config = changed(
        CONFIG,
        model={'dropout': 0.0},
        data={'batch_size': batch_size, **sections.get('data', {})},
        train={'accumulate': accumulate, 'ema': 0.0, **sections.get('train', {})},
    )
    return new_trainer(config)


def freeze_batch_norms(trainer: Trainer) -> None:
    """They then normalise by what they have recorded, whatever the batch is."""
    norms = [x for x in trainer.model.sublayers() if isinstance(x, nn.BatchNorm2D)]
    assert norms
    for norm in norms:
        norm._use_global_stats = True


def largest_difference(one: Trainer, other: Trainer) -> float:
    theirs = state_arrays(other.model)
    return max(
        float(np.abs(array - theirs[name]).max()) for name, array in state_arrays(one.model).items()
    )


@pytest.mark.parametrize('mixed', [{}, {'mixup': 1.0}, {'cutmix': 1.0}], ids=str)
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize(
    ('batch_size', 'accumulate'),
    [(4, 2), (2, 4), (1, 8), (3, 3), (5, 3), (2, 11), (10, 3)],
    # 22 images, so that a last batch may be short: of 6, 6, 6, 4, 7, 22 and 22 images
)
def test_accumulated_batches_make_the_step_of_one_large_batch(
    batch_size, accumulate, smoothing, mixed
):
    """To rounding, when batch norms don't look at the batch."""
    sections = {'data': mixed, 'train': {'label_smoothing': smoothing, 'epochs': 2}}
    large = several(batch_size * accumulate, 1, **sections)
    parts = several(batch_size, accumulate, **sections)
    start = several(1, 1)
    records = []
    for trainer in (large, parts):
        freeze_batch_norms(trainer)
        records.append(run_to_end(trainer))
    assert large.step == parts.step == 2 * -(-IMAGES // (batch_size * accumulate))
    assert largest_difference(large, parts) < 1e-6
    assert largest_difference(large, start) > 1e-3
    for one, other in zip(*map(timeless, records)):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize('left', [1, 2, 3])
def test_a_step_has_as_many_parts_where_images_could_not_be_read(left, monkeypatch):
    """Processes that wait for each other in each of them would wait for ever."""
    trainer = several(2, 4)
    batch = next(iter(trainer.batches))
    batch = batch._replace(images=batch.images[:left], labels=batch.labels[:left])
    seen = []
    forward = trainer._forward_backward

    def record(part: Batch, weight: float, *, last: bool):
        seen.append((part.labels.tolist(), last))
        return forward(part, weight, last=last)

    monkeypatch.setattr(trainer, '_forward_backward', record)
    trainer._train_step(batch)
    trainer.collect()
    assert [last for _, last in seen] == [False, False, False, True]
    labels = batch.labels.tolist()
    assert [part for part, _ in seen] == [[labels[place % left]] for place in range(4)]
    assert np.isfinite(trainer.last_loss)


def test_live_batch_norms_normalise_each_accumulated_batch_by_itself():
    """So that what is accumulated is not quite a large batch: as in every framework."""
    large, parts = several(8, 1), several(4, 2)
    for trainer in (large, parts):
        run_epoch(trainer)
    assert largest_difference(large, parts) > 1e-4
    # Each part is a batch to the running statistics, too.
    one, two = several(8, 1), several(4, 2)
    for trainer in (one, two):
        trainer.optimizer.set_lr(0.0)
        trainer.lr_at = lambda step: 0.0
        run_epoch(trainer, until=1)
    pixels = next(iter(several(8, 1).batches)).images
    outputs = one.model.conv(paddle.to_tensor(pixels)).numpy()
    means = [outputs[:4].mean((0, 2, 3)), outputs[4:].mean((0, 2, 3))]
    expected = 0.9 * 0.1 * means[0] + 0.1 * means[1]
    np.testing.assert_allclose(two.model.bn._mean.numpy(), expected, rtol=1e-4, atol=1e-6)
    expected = 0.1 * outputs.mean((0, 2, 3))
    np.testing.assert_allclose(one.model.bn._mean.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('stop', [1, 2, 4])
def test_resume_with_accumulated_batches_is_bit_identical(tmp_path, stop):
    config = changed(
        CONFIG, data={'batch_size': 3, 'mixup': 0.4}, train={'accumulate': 3, 'epochs': 2}
    )
    whole = new_trainer(config)
    expected = run_to_end(whole)
    assert whole.step == 6

    first = new_trainer(config)
    records = run_until(first, stop)
    snapshot = through_disk(first.snapshot(), tmp_path, first.progress.name)
    assert snapshot.state['images_per_step'] == 9
    second = new_trainer(config)
    second.restore(snapshot)
    records += run_to_end(second)
    assert_identical(second, whole)
    assert timeless(records) == timeless(expected)


@pytest.mark.parametrize(('batch_size', 'accumulate'), [(16, 1), (8, 2), (2, 8), (32, 1), (2, 1)])
def test_linear_scaling_multiplies_the_rate_by_the_images_of_a_step(batch_size, accumulate):
    """The rate that the config names, and not those at the ends of warm-up and cosine."""
    scaling = {'lr_scaling': 'linear', 'reference_batch': 8, 'lr': 0.3}
    ends = {'end_lr': 0.01, 'warmup_start_lr': 0.02, 'warmup_epochs': 1.0}
    config = changed(
        CONFIG,
        data={'batch_size': batch_size, 'num_images': 64},
        optimizer=scaling,
        schedule=ends,
        train={'accumulate': accumulate},
    )
    trainer = new_trainer(config)
    peak, steps = 0.3 * batch_size * accumulate / 8, len(trainer.batches)
    assert trainer.lr_at(0) == 0.02
    assert trainer.lr_at(steps) == pytest.approx(peak)
    middle = steps + 3 * steps // 2  # of the cosine, in epochs 1 to 3
    assert trainer.lr_at(middle) == pytest.approx((peak + 0.01) / 2)
    assert trainer.lr_at(4 * steps) == pytest.approx(0.01)
    plain = new_trainer(changed(config, optimizer={'lr_scaling': 'none', 'reference_batch': None}))
    assert plain.lr_at(steps) == pytest.approx(0.3)
    used = []
    trainer.train_one_epoch(after_step=lambda step: used.append(trainer.optimizer.get_lr()))
    assert used == pytest.approx([trainer.lr_at(step) for step in range(steps)], rel=1e-6)


@pytest.mark.parametrize('wide', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_compiled_network_trains_to_the_same_weights_and_resumes(tmp_path, wide):
    config = changed(CONFIG, model={'dropout': 0.0}, train={'epochs': 2})
    plain = new_trainer(config, wide=wide)
    expected = run_to_end(plain)
    static = changed(config, train={'to_static': True})
    whole = new_trainer(static, wide=wide)
    records = run_to_end(whole)
    assert largest_difference(whole, plain) < 1e-6
    for one, other in zip(timeless(records), timeless(expected)):
        assert one == pytest.approx(other, rel=1e-5)

    first = new_trainer(static, wide=wide)
    run_epoch(first, until=2)
    snapshot = through_disk(first.snapshot(), tmp_path, first.progress.name)
    assert sorted(snapshot.model) == sorted(state_arrays(plain.model))
    for way in (static, config):  # a compiled run continues without compilation, too
        second = new_trainer(way, wide=wide)
        second.restore(snapshot)
        run_to_end(second)
        assert largest_difference(second, whole) < 1e-6


@pytest.mark.parametrize('to_static', [False, True])
def test_to_static_compiles_the_network_and_its_absence_does_not(to_static, monkeypatch):
    """Or the test above compares it with itself."""
    compiled = []
    compile_it = paddle.jit.to_static
    monkeypatch.setattr(
        paddle.jit, 'to_static', lambda x, **how: compiled.append(x) or compile_it(x, **how)
    )
    trainer = new_trainer(changed(CONFIG, train={'to_static': to_static}))
    assert compiled == [trainer.model] * to_static


# ------------------------------------------------------------------ divergence


@pytest.mark.parametrize('log_every', [1, 2, 100])
@pytest.mark.parametrize('lr', [1e25, 1e38])
def test_divergence_names_step_and_rate(lr, log_every):
    """The first step that is not finite, however rarely results are fetched."""
    config = changed(
        CONFIG,
        optimizer={'lr': lr},
        schedule={'name': 'constant', 'warmup_epochs': 0.0},
        train={'log_every': log_every},
    )
    with pytest.raises(Diverged) as error:
        run_to_end(new_trainer(config))
    text = str(error.value)
    assert 'step 1 ' in text
    assert f'learning rate {lr:.6g}' in text
    assert 'nan' in text or 'inf' in text
    assert '\n' not in text


def test_divergence_is_detected_before_a_snapshot():
    config = changed(
        CONFIG,
        optimizer={'lr': 1e38},
        schedule={'name': 'constant', 'warmup_epochs': 0.0},
        train={'log_every': 100},
    )
    trainer = new_trainer(config)
    run_epoch(trainer, until=2)
    with pytest.raises(Diverged, match='step 1 '):
        trainer.snapshot()


def test_divergence_after_a_resume_counts_from_the_beginning():
    first = new_trainer()
    run_epoch(first)
    run_epoch(first, until=4)
    second = new_trainer()
    second.restore(first.snapshot())
    second.lr_at = lambda step: 1e38 if step >= 6 else 0.1
    with pytest.raises(Diverged, match=r'step 7 \(learning rate 1e\+38\)'):
        run_to_end(second)


# ------------------------------------------------------------------ evaluation


class Fixed(nn.Layer):
    """Logits that are looked up by the image's first pixel."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.table = paddle.to_tensor(table)
        self.seen: list[int] = []

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        rows = x[:, 0, 0, 0].round().astype('int64')
        self.seen += rows.numpy().tolist()
        return self.table[rows]


def numbered(count: int, classes: int, batch_size: int) -> tuple[Batches, np.ndarray]:
    """A set whose image i is filled with i."""
    rng = np.random.default_rng(count)
    pixels = np.empty((count, 3, 4, 4), np.uint8)
    pixels[:] = np.arange(count)[:, None, None, None]
    labels = rng.integers(0, classes, count)
    images = Images(pixels, labels)
    batches = ArrayBatches(images, BatchOptions(batch_size, np.zeros(3), np.ones(3)))
    return batches, rng.normal(scale=2, size=(count, classes)).astype(np.float32)


@pytest.mark.parametrize(
    ('count', 'batch_size'), [(1, 1), (1, 8), (7, 3), (9, 3), (13, 5), (13, 12), (13, 100), (40, 1)]
)
@pytest.mark.parametrize('classes', [1, 2, 4, 5, 6, 100])
def test_evaluation_equals_numpy(count, batch_size, classes):
    batches, logits = numbered(count, classes, batch_size)
    labels = batches.images.labels
    model = Fixed(logits)
    result = evaluate(model, batches)
    assert sorted(model.seen) == list(range(count))  # each image once

    wide = logits.astype(np.float64)
    p = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
    of_label = p[np.arange(count), labels]
    rank = (p > of_label[:, None]).sum(1)  # how many classes are likelier than the right one
    np.testing.assert_array_equal(result.rows, np.arange(count))
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_array_equal(result.predictions, p.argmax(1))
    np.testing.assert_array_equal(result.in_top5, rank < 5)
    np.testing.assert_allclose(result.losses, -np.log(of_label), atol=1e-5)
    np.testing.assert_allclose(result.probabilities, p.max(1), atol=1e-5)
    assert result.correct == (rank == 0).sum()
    assert result.top1 == pytest.approx((rank == 0).mean())
    assert result.top5 == pytest.approx((rank < 5).mean())
    assert result.loss == pytest.approx(-np.log(of_label).mean(), abs=1e-5)
    if classes <= 5:
        assert result.top5 == 1.0


def test_evaluation_does_not_depend_on_the_batch_size():
    paddle.seed(0)
    model = Smallest()
    results = []
    for size in (1, 5, 13, 64):
        results.append(evaluate(model, thirteen(batch_size=size)))
    for result in results[1:]:
        np.testing.assert_array_equal(result.predictions, results[0].predictions)
        np.testing.assert_allclose(result.losses, results[0].losses, rtol=1e-5)


def test_evaluation_uses_recorded_statistics_and_no_dropout():
    paddle.seed(0)
    model = Smallest(dropout=0.9)
    model.train()
    before = state_arrays(model)
    first, second = evaluate(model, thirteen()), evaluate(model, thirteen())
    np.testing.assert_array_equal(first.losses, second.losses)
    for name, value in state_arrays(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_training_continues_in_training_mode_after_an_evaluation():
    trainer = new_trainer()
    run_epoch(trainer)
    statistics = state_arrays(trainer.model)['bn._mean']
    trainer.train_one_epoch(after_step=ignore)
    assert trainer.model.training
    assert (state_arrays(trainer.model)['bn._mean'] != statistics).any()


def test_evaluation_may_be_interrupted_after_each_batch():
    calls = []
    evaluate(Smallest(), thirteen(), after_batch=lambda: calls.append(1))
    assert len(calls) == 3

    def stop() -> None:
        raise Pause

    trainer = new_trainer()
    run_epoch(trainer)
    own = state_arrays(trainer.model)
    with pytest.raises(Pause), trainer.evaluated_weights() as model:
        evaluate(model, thirteen(), after_batch=stop)
    for name, value in state_arrays(trainer.model).items():
        np.testing.assert_array_equal(value, own[name], err_msg=name)


def test_summary_is_the_line_that_scripts_grep_for():
    labels = np.arange(10_000) % 10
    predictions = labels.copy()
    predictions[:340] = (labels[:340] + 1) % 10
    ones = np.ones(10_000)
    result = Evaluation(
        rows=np.arange(10_000),
        labels=labels,
        predictions=predictions,
        in_top5=ones > 0,
        losses=ones,
        probabilities=ones,
        seconds=1.0,
    )
    assert result.summary == 'acc:9660 total:10000 ratio:0.966'


def test_averaged_weights_are_evaluated_and_kept():
    trainer = new_trainer()
    run_epoch(trainer)
    assert trainer.ema is not None
    average, own = trainer.ema.arrays(), state_arrays(trainer.model)
    with trainer.evaluated_weights() as model:
        for name, value in state_arrays(model).items():
            np.testing.assert_array_equal(value, average[name], err_msg=name)
    for name, value in trainer.weights().items():
        np.testing.assert_array_equal(value, average[name], err_msg=name)
    assert (own['fc.weight'] != average['fc.weight']).any()

    plain = new_trainer(changed(CONFIG, train={'ema': 0.0}))
    for name, value in plain.weights().items():
        np.testing.assert_array_equal(value, state_arrays(plain.model)[name], err_msg=name)


# ------------------------------------------------------------------ records and the best


def test_record_of_an_epoch():
    """The training figures are means over images, so that the smaller last batch counts less."""
    config = changed(
        CONFIG,
        model={'dropout': 0.0},
        optimizer={'lr': 0.0},
        schedule={'name': 'constant', 'warmup_epochs': 0.0},
        train={'ema': 0.0, 'label_smoothing': 0.0},
    )
    trainer = new_trainer(config)
    losses, hits, sizes = [], [], []
    trainer.batches.set_epoch(0)
    paddle.seed(config.seed)
    twin = Smallest(dropout=0.0)
    twin.train()
    for images, labels, *_ in trainer.batches:
        logits = twin(paddle.to_tensor(images)).numpy().astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses += list(-log_p[np.arange(len(labels)), labels])
        hits += list(logits.argmax(1) == labels)
        sizes.append(len(labels))
    assert sizes == [8, 8, 6]

    trainer.train_one_epoch(after_step=ignore)
    evaluation = evaluate(trainer.model, thirteen())
    record = trainer.end_epoch(evaluation)
    assert record['epoch'] == 0
    assert record['step'] == 3
    assert record['lr'] == 0.0
    assert record['train_loss'] == pytest.approx(np.mean(losses), rel=1e-5)
    assert record['train_accuracy'] == pytest.approx(np.mean(hits))
    assert record['eval_loss'] == evaluation.loss
    assert record['eval_accuracy'] == evaluation.top1
    assert record['eval_top5'] == evaluation.top5
    assert record['best_accuracy'] == evaluation.top1
    assert record['best_epoch'] == 0
    assert record['seconds'] > 0
    assert record['images_per_second'] == pytest.approx(22 / record['seconds'])
    assert 0 <= record['data_wait'] <= 1
    json.dumps(record)
    assert trainer.progress.name == 'epoch_0001'


def soft_targets(batch: Batch, smoothing: float) -> np.ndarray:
    """What the labels of a mixed and smoothed batch are as probabilities: float64 [N, 10]."""
    target = batch.own_weight * np.eye(10)[batch.labels]
    if batch.partners is not None:
        target += (1 - batch.own_weight) * np.eye(10)[batch.partners]
    return (1 - smoothing) * target + smoothing / 10


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_loss_of_mixed_images_is_that_of_both_labels_by_their_shares(kind, smoothing):
    config = changed(
        CONFIG,
        data={kind: 1.0},
        model={'dropout': 0.0},
        optimizer={'lr': 0.0},
        schedule={'name': 'constant', 'warmup_epochs': 0.0},
        train={'ema': 0.0, 'label_smoothing': smoothing},
    )
    trainer = new_trainer(config)
    paddle.seed(config.seed)
    twin = Smallest(dropout=0.0)
    twin.train()
    losses, hits, mixed = [], [], 0
    for batch in trainer.batches:
        log_p = log_softmax(twin(paddle.to_tensor(batch.images)).numpy())
        losses += list(-(soft_targets(batch, smoothing) * log_p).sum(1))
        hits += list(log_p.argmax(1) == batch.labels)  # of the image's own label
        mixed += int(batch.partners is not None and (batch.partners != batch.labels).any())
    assert mixed >= 2
    trainer.train_one_epoch(after_step=ignore)
    record = trainer.end_epoch(None)
    assert record['train_loss'] == pytest.approx(np.mean(losses), rel=1e-5)
    assert record['train_accuracy'] == pytest.approx(np.mean(hits))


def test_a_step_on_mixed_images_follows_the_gradient_of_that_loss():
    """One plain step, against Paddle's own cross entropy of soft labels."""
    config = changed(
        CONFIG,
        data={'mixup': 1.0},
        model={'dropout': 0.0},
        optimizer={'lr': 0.5, 'momentum': 0.0, 'nesterov': False, 'weight_decay': 0.0},
        schedule={'name': 'constant', 'warmup_epochs': 0.0},
        train={'ema': 0.0},
    )
    trainer = new_trainer(config)
    batch = next(iter(trainer.batches))
    assert 0.05 < batch.own_weight < 0.95
    paddle.seed(config.seed)
    twin = Smallest(dropout=0.0)
    target = paddle.to_tensor(soft_targets(batch, 0.1).astype(np.float32))
    logits = twin(paddle.to_tensor(batch.images))
    nn.functional.cross_entropy(logits, target, soft_label=True).backward()
    run_epoch(trainer, until=1)
    ours = state_arrays(trainer.model)
    for name, parameter in twin.named_parameters():
        if not parameter.stop_gradient:
            expected = parameter.numpy() - 0.5 * parameter.grad.numpy()
            assert np.abs(expected - parameter.numpy()).max() > 1e-3, name
            np.testing.assert_allclose(ours[name], expected, atol=1e-6, err_msg=name)


def test_record_without_evaluation_has_no_evaluation_fields():
    trainer = new_trainer()
    trainer.train_one_epoch(after_step=ignore)
    record = trainer.end_epoch(None)
    assert not [key for key in record if key.startswith('eval_')]
    assert record['best_epoch'] is None
    assert record['lr'] == trainer.lr_at(2)


def of_accuracy(correct: int) -> Evaluation:
    labels = np.zeros(10, np.int64)
    predictions = (np.arange(10) >= correct).astype(np.int64)
    ones = np.ones(10)
    return Evaluation(
        rows=np.arange(10),
        labels=labels,
        predictions=predictions,
        in_top5=ones > 0,
        losses=ones,
        probabilities=ones,
        seconds=1.0,
    )


def finish_epoch(trainer: Trainer, correct: int) -> dict:
    trainer.train_one_epoch(after_step=ignore)
    return trainer.end_epoch(of_accuracy(correct))


def test_best_is_remembered_through_restore(tmp_path):
    trainer = new_trainer()
    bests = []
    for correct in (0, 7, 7):  # the first of equals stays, and 0 % is better than nothing
        record = finish_epoch(trainer, correct)
        bests.append((record['best_accuracy'], record['best_epoch']))
    assert bests == [(0.0, 0), (0.7, 1), (0.7, 1)]
    snapshot = through_disk(trainer.snapshot(), tmp_path, trainer.progress.name)
    second = new_trainer()
    second.restore(snapshot)
    assert (second.progress.best, second.progress.best_epoch) == (0.7, 1)
    record = finish_epoch(second, 6)
    assert (record['eval_accuracy'], record['best_accuracy']) == (0.6, 0.7)
    assert record['best_epoch'] == 1


def test_a_better_epoch_after_restore_takes_over():
    trainer = new_trainer()
    finish_epoch(trainer, 5)
    second = new_trainer()
    second.restore(trainer.snapshot())
    assert finish_epoch(second, 8)['best_epoch'] == 1


# ------------------------------------------------------------------ what a step does


def test_each_step_uses_the_learning_rate_of_the_schedule():
    trainer = new_trainer()
    used = []

    def note(step: StepRecord) -> None:
        used.append(trainer.optimizer.get_lr())

    while unfinished(trainer):
        trainer.train_one_epoch(after_step=note)
        trainer.end_epoch(None)
    assert used == pytest.approx([trainer.lr_at(step) for step in range(12)], rel=1e-6)
    assert len(set(used)) > 8


def test_epochs_see_every_image_once_and_in_another_order():
    trainer = new_trainer()
    orders = []
    for _ in range(2):
        trainer.train_one_epoch(after_step=ignore)
        orders.append(np.concatenate(trainer.batches.rows()).tolist())
        assert trainer.progress.sums.images == IMAGES
        trainer.end_epoch(None)
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(IMAGES))
    assert orders[0] != orders[1]


def test_label_smoothing_is_used():
    records = []
    for smoothing in (0.0, 0.5):
        trainer = new_trainer(changed(CONFIG, train={'label_smoothing': smoothing}))
        records.append(run_epoch(trainer))
    assert records[0]['train_loss'] != records[1]['train_loss']


def built_by_train(**keys) -> Arrays:
    """The weights of a fresh network, as train.py builds it with these model keys."""
    config = changed(CONFIG, model={'dropout': 0.0, **keys})
    paddle.seed(0)
    dataset = data.load_data(config)
    classes = data.class_count(dataset, config.model.num_classes)
    return state_arrays(network.build(config.model, config.train, classes)[0])


def test_train_builds_the_network_that_the_config_describes():
    plain, xavier = (built_by_train(init=init) for init in ('he', 'xavier'))
    assert plain['fc.weight'].shape == (32 * 2, 10)
    weight = 'block1.layer.0.conv1.weight'
    assert xavier[weight].shape == plain[weight].shape
    # Uniform values end where normal ones do not.
    assert np.abs(xavier[weight]).max() < 1.8 * xavier[weight].std()
    assert np.abs(plain[weight]).max() > 2 * plain[weight].std()
    assert built_by_train(num_classes=12)['fc.weight'].shape == (64, 12)
    resnext = {'name': 'resnext11_2x4d'}
    ones, zeros = (built_by_train(zero_init_last_bn=zero, **resnext) for zero in (False, True))
    different = [name for name in ones if (ones[name] != zeros[name]).any()]
    assert len(different) == 3  # the last batch norms of three blocks
    assert all((ones[name] == 1).all() and (zeros[name] == 0).all() for name in different)


def test_train_passes_dropout_on(monkeypatch):
    asked = []
    build = models.build
    monkeypatch.setattr(models, 'build', lambda *a, **k: asked.append(k) or build(*a, **k))
    built_by_train(dropout=0.25)
    assert asked[0]['dropout'] == 0.25


def test_a_few_epochs_learn_the_digits():
    """Real images: far above chance after some seconds, or something in the loop is wrong."""
    digits = data.load_data(Config(data=Data(name='digits')))
    train, test = (
        Images(part.pixels[:count, :, ::2, ::2], part.labels[:count])
        for part, count in ((digits.train, 320), (digits.test, 100))
    )
    few = DataSet(train, test, digits.classes, digits.mean, digits.std, digits.origin)
    config = changed(
        CONFIG,
        model={'dropout': 0.0},
        data={'name': 'digits', 'flip': False, 'batch_size': 32},
        train={'epochs': 4, 'label_smoothing': 0.0, 'ema': 0.0},
        eval={'batch_size': 100},
    )
    paddle.seed(0)
    model = models.build('wide_resnet10_1', num_classes=10)
    trainer = Trainer(
        model,
        config,
        batches=data.train_batches(few, config),
        classes=few.classes,
    )
    records = []
    while unfinished(trainer):
        trainer.train_one_epoch(after_step=ignore)
        records.append(trainer.end_epoch(None))
    assert records[-1]['train_loss'] < 0.85 * records[0]['train_loss']
    assert evaluate(model, data.test_batches(few, config)).top1 > 0.3


@pytest.mark.parametrize(
    ('every', 'start', 'last', 'due'),
    [
        (1, 0, 4, [0, 1, 2, 3, 4]),
        (2, 0, 4, [1, 3, 4]),
        (2, 1, 4, [2, 4]),
        (3, 0, 7, [2, 5, 7]),
        (10, 0, 4, [4]),
        (1, 3, 4, [3, 4]),
        (1, 9, 4, [4]),
    ],
)
def test_is_due(every, start, last, due):
    found = [e for e in range(last + 1) if is_due(e, every=every, start=start, last=last)]
    assert found == due


@pytest.mark.parametrize('name', ['wide_resnet10_1', 'resnext11_4x4d', 'resnext50_2x4d'])
def test_sync_bn_exchanges_the_batch_norms_and_nothing_else(name):
    """What they compute is Paddle's, and has no kernel here."""
    networks = []
    for sync_bn in (False, True):
        config = changed(CONFIG, model={'name': name, 'dropout': 0.0}, train={'sync_bn': sync_bn})
        paddle.seed(3)
        networks.append(network.build(config.model, config.train, 10)[0])
    plain, synchronised = networks
    expected = state_arrays(plain)
    assert list(expected) == list(state_arrays(synchronised))
    for key, value in state_arrays(synchronised).items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    kinds = [type(layer) for layer in synchronised.sublayers()]
    norms = sum(isinstance(layer, nn.BatchNorm2D) for layer in plain.sublayers())
    assert kinds.count(nn.SyncBatchNorm) == norms > 0
    assert nn.BatchNorm2D not in kinds
