"""Batches: which images, in which order, and with which values."""

import dataclasses
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from cifar_files import small_cifar
from sklearn.datasets import load_digits

from engine.config import Config, Data, Train
from engine.config import Eval as EvalConfig
from engine.config.checks import DATA_SETS
from engine.data import (
    ArrayBatches,
    DataSet,
    Images,
    class_count,
    load_data,
    preparation,
    test_batches,
    train_batches,
)
from engine.data.augmentation import Augmentation
from engine.data.batches import BatchOptions
from engine.data.policies import make_policy
from engine.data.sources import find_source
from engine.errors import UserError

test_batches.__test__ = False  # what it is called does not make it a test

MEAN, STD = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])
EVERYTHING = Augmentation(
    crop_padding=2,
    padding_mode='reflect',
    flip=True,
    policy=make_policy('randaugment'),
    jitter=(0.4, 0.4, 0.4, 0.1),
    cutout=3,
    random_erasing=0.5,
    mixup=0.4,
    cutmix=1.0,
)


def numbered(count, side=8):
    """Random images, each labelled with its own number."""
    pixels = np.random.default_rng(9).integers(0, 256, (count, 3, side, side), np.uint8)
    return Images(pixels, np.arange(count))


def batches_of(images, **choices):
    return ArrayBatches(
        images, BatchOptions(**{'batch_size': 10, 'mean': MEAN, 'std': STD, **choices})
    )


def seen(batches):
    """The labels of every batch of the epoch."""
    return [batch.labels.tolist() for batch in batches]


def flat(lists):
    return [item for items in lists for item in items]


def assert_same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        np.testing.assert_array_equal(batch.images, other.images)
        np.testing.assert_array_equal(batch.labels, other.labels)
        np.testing.assert_array_equal(batch.rows, other.rows)
        np.testing.assert_array_equal(batch.partners, other.partners)
        assert batch.own_weight == other.own_weight


# ------------------------------------------------------------------ one process


@pytest.mark.parametrize('count', [1, 9, 10, 11, 97, 100])
@pytest.mark.parametrize('shuffle', [False, True])
def test_every_image_comes_once_in_each_epoch(count, shuffle):
    batches = batches_of(numbered(count), shuffle=shuffle)
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        labels = seen(batches)
        assert sorted(flat(labels)) == list(range(count))
        assert len(labels) == len(batches)
        assert [len(part) for part in labels] == [batches.size(i) for i in range(len(batches))]


@pytest.mark.parametrize('shuffle', [False, True])
def test_images_keep_their_labels_and_are_normalised(shuffle):
    images = numbered(35)
    for pixels, labels, rows, *mixed in batches_of(images, shuffle=shuffle):
        assert pixels.dtype == np.float32
        assert labels.dtype == rows.dtype == np.int64
        np.testing.assert_array_equal(rows, labels)  # each is labelled with its place
        assert mixed == [None, 1.0]
        expected = np.empty(pixels.shape, np.float64)
        for i, channel, y, x in np.ndindex(pixels.shape):
            value = float(images.pixels[labels[i], channel, y, x])
            expected[i, channel, y, x] = (value - MEAN[channel]) / STD[channel]
        np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-5)


def test_without_shuffling_the_order_is_that_of_the_files():
    batches = batches_of(numbered(25))
    for epoch in (0, 5):
        batches.set_epoch(epoch)
        assert flat(seen(batches)) == list(range(25))


def test_the_order_follows_from_seed_and_epoch():
    def order(seed, epoch, **choices):
        batches = batches_of(numbered(100), shuffle=True, seed=seed, **choices)
        batches.set_epoch(epoch)
        return flat(seen(batches))

    first = order(0, 0)
    assert first != list(range(100))
    assert order(0, 0) == first
    assert order(0, 0, augmentation=EVERYTHING) == first
    assert order(0, 0, batch_size=7) == first
    others = [order(0, 1), order(1, 0), order(1, 1), order(2, 0), order(0, 2)]
    assert len({tuple(one) for one in [first, *others]}) == 6


def test_the_order_does_not_depend_on_what_was_iterated_before():
    batches = batches_of(numbered(30), shuffle=True, augmentation=EVERYTHING)
    list(batches)
    batches.set_epoch(7)
    next(iter(batches))
    batches.set_epoch(3)
    fresh = batches_of(numbered(30), shuffle=True, augmentation=EVERYTHING)
    fresh.set_epoch(3)
    assert_same(batches, fresh)
    assert_same(batches, fresh)  # and again: iterating changes nothing


@pytest.mark.parametrize('batches_done', [0, 1, 4, 9, 10])
@pytest.mark.parametrize(('rank', 'world_size'), [(0, 1), (1, 2)])
def test_the_rest_of_an_epoch_is_the_tail_of_the_whole_one_to_the_bit(
    batches_done, rank, world_size
):
    def epoch(batches_done):
        batches = batches_of(
            numbered(97),
            shuffle=True,
            seed=4,
            augmentation=EVERYTHING,
            rank=rank,
            world_size=world_size,
            batch_size=10 // world_size,
        )
        batches.set_epoch(2, done=min(10 * batches_done, 97))
        return batches

    whole = list(epoch(0))
    assert len(whole) == 10
    assert_same(epoch(batches_done), whole[batches_done:])


def test_the_next_epoch_leaves_nothing_out_unless_asked_to():
    batches = batches_of(numbered(30), shuffle=True)
    batches.set_epoch(0, done=20)
    assert len(seen(batches)) == 1
    batches.set_epoch(1)
    assert len(seen(batches)) == 3


@pytest.mark.parametrize(
    'augmentation',
    [
        Augmentation(flip=True),
        Augmentation(crop_padding=2),
        Augmentation(crop_padding=2, padding_mode='reflect'),
        Augmentation(policy=make_policy('randaugment')),
        Augmentation(jitter=(0.4, 0.4, 0.4)),
        Augmentation(cutout=3),
        Augmentation(random_erasing=0.7),
        Augmentation(mixup=0.4),
        Augmentation(cutmix=1.0),
    ],
    ids=['flip', 'zero', 'reflect', 'policy', 'jitter', 'cutout', 'erasing', 'mixup', 'cutmix'],
)
def test_each_augmentation_changes_images_and_differs_by_epoch_seed_and_image(augmentation):
    def images(epoch=0, seed=0, **choices):
        batches = batches_of(numbered(40), seed=seed, **choices)
        batches.set_epoch(epoch)
        return np.concatenate([batch.images for batch in batches])

    plain, augmented = images(), images(augmentation=augmentation)
    changed = (plain != augmented).any(axis=(1, 2, 3))
    assert changed.sum() > 10
    if augmentation.flip:
        assert not changed.all()
    for other in (images(1, augmentation=augmentation), images(0, 1, augmentation=augmentation)):
        assert (other != augmented).any()


def test_cutout_leaves_the_mean_in_a_normalised_batch():
    batches = batches_of(numbered(20), augmentation=Augmentation(cutout=4))
    for batch in batches:
        assert (batch.images == 0).all(axis=1).any(axis=(1, 2)).all()


# ------------------------------------------------------------------ several processes


def shards(count, world_size, batch_size, **choices):
    return [
        batches_of(
            numbered(count), batch_size=batch_size, rank=rank, world_size=world_size, **choices
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize('world_size', [1, 2, 3])
@pytest.mark.parametrize('count', [1003, 1000, 961, 2, 1])
def test_evaluation_counts_every_image_once_over_all_ranks(count, world_size):
    ranks = shards(count, world_size, batch_size=32)
    parts = [seen(rank) for rank in ranks]
    assert len({len(part) for part in parts}) == 1, 'the ranks have different numbers of batches'
    assert sorted(flat(flat(parts))) == list(range(count))


@pytest.mark.parametrize(
    ('count', 'world_size', 'batch_size', 'left_out'),
    [
        (1003, 1, 32, 0),
        (1003, 2, 32, 0),
        (1003, 3, 32, 0),
        (1003, 3, 334, 1),  # one batch of 1002, and one image for three processes
        (97, 2, 24, 1),
        (98, 3, 16, 2),
        (99, 3, 16, 0),
        (2, 3, 16, 2),
    ],
)
def test_training_leaves_out_only_a_last_batch_smaller_than_the_world_size(
    count, world_size, batch_size, left_out
):
    ranks = shards(count, world_size, batch_size, shuffle=True, seed=1)
    for epoch in (0, 1):
        for rank in ranks:
            rank.set_epoch(epoch)
        parts = [seen(rank) for rank in ranks]
        assert all(len(part) == len(rank) for part, rank in zip(parts, ranks))
        together = flat(flat(parts))
        assert len(together) == len(set(together)) == count - left_out
        for number, shares in enumerate(zip(*parts)):
            sizes = [len(share) for share in shares]
            assert sum(sizes) == ranks[0].size(number)
            assert min(sizes) >= 1
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize('world_size', [2, 3])
def test_a_batch_holds_the_same_images_on_however_many_processes(world_size):
    alone = seen(batches_of(numbered(1003), batch_size=12, shuffle=True, seed=5))
    parts = [
        seen(rank) for rank in shards(1003, world_size, 12 // world_size, shuffle=True, seed=5)
    ]
    together = [flat(shares) for shares in zip(*parts)]
    assert [sorted(batch) for batch in together] == [sorted(batch) for batch in alone]


def test_the_ranks_draw_different_augmentation():
    same = Images(np.repeat(numbered(1).pixels, 64, axis=0), np.arange(64))
    first, second = (
        next(iter(batches_of(same, augmentation=EVERYTHING, rank=rank, world_size=2))).images
        for rank in (0, 1)
    )
    assert (first != second).any()


# ------------------------------------------------------------------ the rest of an epoch


SHAPES = [  # images, then batch size and processes before, and after
    (22, (8, 1), (8, 1)),
    (22, (8, 1), (3, 1)),
    (22, (3, 1), (9, 1)),
    (97, (5, 2), (7, 3)),
    (97, (7, 3), (5, 2)),
    (97, (16, 1), (4, 8)),
    (97, (4, 8), (16, 1)),
    (100, (10, 1), (3, 3)),
    (33, (4, 8), (1, 8)),  # one image is left over for eight processes
    (9, (1, 2), (100, 4)),
    (7, (2, 1), (2, 4)),
]


def places_between_batches(count, batch_size, world_size):
    """What a checkpoint can have as the number of images done, with these batches."""
    batches = batches_of(
        numbered(count), shuffle=True, batch_size=batch_size, world_size=world_size
    )
    return [batches.start(number) for number in range(len(batches) + 1)]


@pytest.mark.parametrize(('count', 'before', 'after'), SHAPES)
def test_with_other_batches_an_epoch_goes_on_in_its_order(count, before, after):
    """Wherever it was left: no image comes twice, and none is left out but a tail too small."""
    batch_size, world_size = after
    whole = batches_of(numbered(count), shuffle=True, seed=6, batch_size=count)
    whole.set_epoch(3)
    (order,) = whole.rows()
    for done in places_between_batches(count, *before):
        ranks = shards(count, world_size, batch_size, shuffle=True, seed=6)
        for rank in ranks:
            rank.set_epoch(3, done=done)
        shares = list(zip(*(rank.rows() for rank in ranks)))
        rest = flat(np.concatenate(share).tolist() for share in shares)
        left_out = count - done - len(rest)
        assert rest == order[done : count - left_out].tolist()
        assert 0 <= left_out < world_size
        first, together = ranks[0].first, batch_size * world_size
        assert [min(map(len, share)) >= 1 for share in shares] == [True] * len(shares)
        assert [sum(map(len, share)) for share in shares] == [
            ranks[0].size(number) for number in range(first, len(ranks[0]))
        ]
        for rank in ranks:
            assert rank.global_batch_size == together
            assert len(rank.rows()) == len(rank) - rank.first
            assert rank.first == first
        # Every batch but the first and the last is a whole one, where it would be without a stop.
        for number in range(first + 1, len(ranks[0]) - 1):
            assert ranks[0].start(number) == number * together
            assert ranks[0].size(number) == together


@pytest.mark.parametrize(('count', 'before', 'after'), SHAPES)
def test_start_and_size_of_the_batches_add_up_to_the_images(count, before, after):
    batch_size, world_size = after
    for done in places_between_batches(count, *before):
        batches = batches_of(
            numbered(count), shuffle=True, batch_size=batch_size, world_size=world_size
        )
        batches.set_epoch(0, done=done)
        assert batches.start(batches.first) == done
        for number in range(batches.first, len(batches)):
            assert batches.size(number) == batches.start(number + 1) - batches.start(number)
            assert world_size <= batches.size(number) < batches.global_batch_size + world_size
        if batches.first < len(batches):
            total = sum(batches.size(number) for number in range(batches.first, len(batches)))
            assert done + total == batches.start(len(batches))


@pytest.mark.parametrize(
    ('done', 'first'), [(0, 0), (1, 0), (8, 0), (9, 1), (10, 1), (18, 1), (19, 2)]
)
def test_what_is_left_of_a_batch_comes_alone_unless_it_is_less_than_an_image_each(done, first):
    """Two processes take batches of 10, of 40 images."""
    batches = batches_of(numbered(40), shuffle=True, batch_size=5, world_size=2)
    batches.set_epoch(0, done=done)
    assert batches.first == first
    assert batches.start(first) == done
    assert batches.start(first + 1) == 10 * (first + 1)


def test_an_image_that_is_left_of_the_last_batch_is_left_out_with_several_processes():
    batches = batches_of(numbered(40), shuffle=True, batch_size=5, world_size=2)
    batches.set_epoch(0, done=39)
    assert batches.rows() == []
    batches.set_epoch(0, done=40)
    assert batches.rows() == []


@pytest.mark.parametrize('count', [21, 29, 30])
def test_a_finished_epoch_has_no_batch_left_and_the_next_one_has_all(count):
    """Whether its last batch was a whole one or not."""
    batches = batches_of(numbered(count), shuffle=True)
    batches.set_epoch(0, done=count)
    assert seen(batches) == []
    assert batches.first == len(batches) == 3
    batches.set_epoch(1)
    assert sorted(flat(seen(batches))) == list(range(count))
    assert batches.first == 0


@pytest.mark.parametrize('count', [1, 3, 4, 5, 13, 100])
@pytest.mark.parametrize('augmentation', [Augmentation(), Augmentation(mixup=1.0)])
def test_parts_of_a_batch_are_the_batch_in_order(count, augmentation):
    batches = batches_of(numbered(13), shuffle=True, batch_size=13, augmentation=augmentation)
    (batch,) = batches
    parts = batch.parts(count)
    sizes = [len(part.labels) for part in parts]
    assert len(sizes) == count  # with some images more than once, where they are fewer
    assert max(sizes) - min(sizes) <= 1
    for name in ('images', 'labels', 'rows'):
        together = np.concatenate([getattr(part, name) for part in parts])
        once = getattr(batch, name)
        again = np.take(once, np.arange(max(count, 13)), axis=0, mode='wrap')
        np.testing.assert_array_equal(together, again)
    assert {part.own_weight for part in parts} == {batch.own_weight}
    if augmentation.mixup:
        partners = np.concatenate([part.partners for part in parts])
        np.testing.assert_array_equal(partners[:13], batch.partners)
        assert (partners[:13] != batch.labels).any()
    else:
        assert {part.partners for part in parts} == {None}


# ------------------------------------------------------------------ digits


def naive_upsample(image):
    """8x8 -> 32x32, linear along the rows and then along the columns, pixel centres aligned."""
    at = (np.arange(32) + 0.5) / 4 - 0.5
    wide = np.array([np.interp(at, np.arange(8), row) for row in image])
    return np.array([np.interp(at, np.arange(8), column) for column in wide.T]).T


@pytest.fixture(scope='module')
def digits():
    return load_data(Config(data=Data(name='digits')))


def test_digits_are_all_there_once_with_their_labels(digits):
    """As multisets: no test image is also a training image, and none has got lost."""
    source = load_digits()
    expected = sorted(
        (label, np.rint(naive_upsample(image * 255 / 16)).astype(np.uint8).tobytes())
        for image, label in zip(source.images, source.target)
    )
    assert len(digits.train) + len(digits.test) == len(expected) == 1797
    found = []
    for part in (digits.train, digits.test):
        assert part.pixels.dtype == np.uint8
        assert part.pixels.shape == (len(part), 3, 32, 32)
        assert (part.pixels == part.pixels[:, :1]).all(), 'grey means three equal channels'
        found += [(label, image[0].tobytes()) for image, label in zip(part.pixels, part.labels)]
    assert sorted(found) == expected


def test_a_fifth_of_each_digit_is_for_testing(digits):
    assert len(digits.test) == 359
    assert digits.classes == list('0123456789')
    shares = np.bincount(digits.test.labels) / (
        np.bincount(digits.test.labels) + np.bincount(digits.train.labels)
    )
    assert len(shares) == 10
    assert shares.min() > 0.12
    assert shares.max() < 0.28


def test_the_split_of_digits_is_always_the_same(digits):
    again = load_data(Config(data=Data(name='digits')))
    np.testing.assert_array_equal(again.test.pixels, digits.test.pixels)
    np.testing.assert_array_equal(again.train.labels, digits.train.labels)


def test_normalised_digits_have_mean_0_and_deviation_1(digits):
    batches = ArrayBatches(digits.train, BatchOptions(500, digits.mean, digits.std))
    pixels = np.concatenate([batch.images for batch in batches])
    assert abs(pixels.mean(dtype=np.float64)) < 1e-4
    assert abs(pixels.std(dtype=np.float64) - 1) < 1e-4


# ------------------------------------------------------------------ from the config


def test_cifar_comes_with_the_papers_statistics(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    small = small_cifar('cifar10')
    small.write_python_archive(tmp_path)
    data = load_data(Config(data=Data(name='cifar10', root=str(tmp_path), download=False)))
    np.testing.assert_array_equal(data.train.pixels, small.train_pixels)
    np.testing.assert_array_equal(data.test.labels, small.test.labels)
    assert data.classes == small.classes
    assert data.mean.tolist() == [125.3, 123.0, 113.9]
    assert data.std.tolist() == [63.0, 62.1, 66.7]
    assert 'cifar-10-python.tar.gz' in data.origin


def test_a_root_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    small = small_cifar('cifar100')
    small.write_binary(tmp_path / 'sets')
    data = load_data(Config(data=Data(name='cifar100', root='~/sets', download=False)))
    np.testing.assert_array_equal(data.test.pixels, small.test.pixels)


@pytest.mark.parametrize('name', ['digits', 'synthetic'])
def test_the_configs_mean_and_std_win(name):
    data = load_data(Config(data=Data(name=name, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))))
    assert data.mean.tolist() == [1, 2, 3]
    assert data.std.tolist() == [4, 5, 6]


def test_synthetic_images_have_the_size_and_number_that_was_asked_for():
    config = Config(data=Data(name='synthetic', num_images=20, image_size=12))
    data, again = load_data(config), load_data(config)
    for part in (data.train, data.test):
        assert part.pixels.shape == (20, 3, 12, 12)
        assert part.pixels.dtype == np.uint8
        assert set(part.labels.tolist()) <= set(range(10))
    assert (data.train.pixels != data.test.pixels).any()
    np.testing.assert_array_equal(data.train.pixels, again.train.pixels)


def synthetic(**choices):
    return Config(data=Data(name='synthetic', num_images=50, image_size=8, **choices))


@pytest.mark.parametrize('accumulate', [1, 3])
def test_a_training_batch_holds_what_is_accumulated_and_a_test_batch_does_not(accumulate):
    config = dataclasses.replace(
        synthetic(batch_size=7), train=Train(accumulate=accumulate), eval=EvalConfig(batch_size=30)
    )
    data = load_data(config)
    train, test = train_batches(data, config), test_batches(data, config)
    assert train.global_batch_size == 7 * accumulate
    assert [train.size(number) for number in range(len(train))] == (
        [7] * 7 + [1] if accumulate == 1 else [21, 21, 8]
    )
    assert [len(batch.labels) for batch in test] == [30, 20]


def test_training_batches_are_shuffled_and_augmented_and_test_batches_are_not():
    config = dataclasses.replace(
        synthetic(crop_padding=2, batch_size=16), eval=EvalConfig(batch_size=30)
    )
    data = load_data(config)
    train, test = train_batches(data, config), test_batches(data, config)
    assert [len(batch.labels) for batch in train] == [16, 16, 16, 2]
    assert [len(batch.labels) for batch in test] == [30, 20]
    pixels = np.concatenate([batch.images for batch in test])
    expected = (data.test.pixels - 127.5) / 127.5
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-5)
    labels = np.concatenate([batch.labels for batch in test])
    np.testing.assert_array_equal(labels, data.test.labels)
    plain = (data.train.pixels - 127.5) / 127.5
    unchanged = [
        np.abs(plain - image).max(axis=(1, 2, 3)).min() < 1e-5
        for batch in train
        for image in batch.images
    ]
    assert sum(unchanged) < 15  # 1 in 50 by chance: no shift and no flip


# ------------------------------------------------------------------ mixed batches


def plain_colours(count):
    """Image i is filled with i, and labelled with it."""
    pixels = np.empty((count, 3, 8, 8), np.uint8)
    pixels[:] = np.arange(count)[:, None, None, None]
    return Images(pixels, np.arange(count))


def colour_batches(augmentation, *, count=200, **choices):
    mean, std = np.zeros(3), np.ones(3)
    return batches_of(
        plain_colours(count), mean=mean, std=std, augmentation=augmentation, shuffle=True, **choices
    )


def test_images_of_mixup_are_their_labels_and_their_partners_by_the_share():
    shares = set()
    for images, labels, rows, partners, share in colour_batches(Augmentation(mixup=1.0)):
        np.testing.assert_array_equal(labels, rows)
        assert partners.dtype == np.int64
        assert sorted(partners) == sorted(labels)  # of the same batch
        expected = share * labels + (1 - share) * partners
        np.testing.assert_allclose(images[:, 0, 0, 0], expected, rtol=1e-5)
        assert (images == images[:, :1, :1, :1]).all()
        shares.add(share)
    assert len(shares) == 20, 'every batch draws a share of its own'


def test_images_of_cutmix_hold_pixels_of_both_labels_by_the_share():
    cut = 0
    for images, labels, _, partners, share in colour_batches(Augmentation(cutmix=1.0)):
        if partners is None:  # the box was empty
            assert share == 1.0
            partners = labels
        own = (np.rint(images) == labels[:, None, None, None]).all(1)
        other = (np.rint(images) == partners[:, None, None, None]).all(1)
        assert (own | other).all()
        apart = labels != partners
        np.testing.assert_allclose(own[apart].mean(axis=(1, 2)), share, atol=1e-9)
        cut += int(apart.any())
    assert cut > 15


def test_an_unmixed_batch_has_no_partners():
    for batch in colour_batches(Augmentation(cutout=3, random_erasing=0.5, flip=True)):
        assert batch.partners is None
        assert batch.own_weight == 1.0


def test_images_are_erased_before_they_are_mixed():
    """Where one of two was cut out, the other one's part is left."""
    augmentation = Augmentation(cutout=6, mixup=1.0)
    seen = np.zeros(4, int)
    for images, labels, _, partners, share in colour_batches(augmentation):
        for image, own, other in zip(images, share * labels, (1 - share) * partners):
            possible = np.array([own + other, own, other, 0.0])
            nearest = np.abs(image[..., None] - possible)
            assert nearest.min(-1).max() < 1e-3
            seen += np.bincount(nearest.argmin(-1).ravel(), minlength=4)
    assert seen.min() > 1000, 'one of the cases never occurred'


def test_ranks_mix_among_their_own_images():
    for rank in (0, 1):
        augmentation = Augmentation(mixup=1.0)
        for batch in colour_batches(augmentation, batch_size=5, rank=rank, world_size=2):
            assert sorted(batch.partners) == sorted(batch.labels)


POLICY = {'auto_augment': 'randaugment'}


@pytest.mark.parametrize(
    ('plain', 'changed'),
    [
        ({}, {'random_erasing': 1.0}),
        ({}, {'mixup': 0.2}),
        ({}, {'cutmix': 1.0}),
        ({'mixup': 0.2}, {'mixup': 0.2, 'cutmix': 1.0}),
        ({}, {'cutout': 3}),
        ({}, {'color_jitter': (0.4, 0.4, 0.4)}),
        ({'color_jitter': (0.4, 0.4, 0.4)}, {'color_jitter': (0.4, 0.4, 0.4, 0.1)}),
        ({}, {'auto_augment': 'autoaugment_imagenet'}),
        ({'auto_augment': 'autoaugment_imagenet'}, {'auto_augment': 'autoaugment_cifar10'}),
        ({'auto_augment': 'autoaugment_cifar10'}, POLICY),
        (POLICY, {**POLICY, 'randaugment_operations': 3}),
        (POLICY, {**POLICY, 'randaugment_magnitude': 4.0}),
        ({'flip': True}, {'flip': False}),
        ({'crop_padding': 2}, {'crop_padding': 3}),
        ({'crop_padding': 2}, {'crop_padding': 2, 'padding_mode': 'reflect'}),
    ],
    ids=str,
)
def test_each_key_of_augmentation_changes_the_training_images_and_no_test_image(plain, changed):
    base = {'crop_padding': 0, 'flip': False}
    before, after = (synthetic(**{**base, **choice}) for choice in (plain, changed))
    data = load_data(before)
    train = [
        np.concatenate([batch.images for batch in train_batches(data, config)])
        for config in (before, before, after)
    ]
    np.testing.assert_array_equal(train[0], train[1])
    assert (train[0] != train[2]).any(axis=(1, 2, 3)).sum() > 5
    assert_same(test_batches(data, before), test_batches(data, after))


def test_operations_of_randaugment_can_be_none():
    config = synthetic(crop_padding=0, flip=False, auto_augment='randaugment')
    none = dataclasses.replace(config.data, randaugment_operations=0)
    plain = dataclasses.replace(config.data, auto_augment='none')
    data = load_data(config)
    ours, expected = (
        train_batches(data, dataclasses.replace(config, data=choice)) for choice in (none, plain)
    )
    assert_same(ours, expected)


def test_the_seed_changes_the_training_batches():
    config = synthetic(crop_padding=0, flip=False)
    data = load_data(config)
    first, same, other = (
        flat(seen(train_batches(data, dataclasses.replace(config, seed=seed))))
        for seed in (0, 0, 1)
    )
    assert first == same
    assert first != other


@pytest.mark.parametrize('mode', ['zero', 'reflect'])
def test_padding_must_be_smaller_than_the_image(mode):
    data = load_data(synthetic())
    list(train_batches(data, synthetic(crop_padding=7, padding_mode=mode)))
    for padding in (8, 100):
        with pytest.raises(UserError, match='crop_padding'):
            train_batches(data, synthetic(crop_padding=padding, padding_mode=mode))


def test_a_cutout_that_always_hides_everything_is_refused():
    data = load_data(synthetic())
    list(train_batches(data, synthetic(cutout=16)))
    with pytest.raises(UserError, match='cutout'):
        train_batches(data, synthetic(cutout=17))


def test_images_grow_over_the_epochs_and_are_whole_in_the_end():
    config = synthetic(progressive=(4, 6, 8))
    config = dataclasses.replace(config, train=Train(epochs=6))
    loaded = load_data(config)
    batches = train_batches(loaded, config)
    sides = []
    for epoch in range(6):
        batches.set_epoch(epoch)
        sides.append({batch.images.shape[1:] for batch in batches})
    assert sides == [{(3, side, side)} for side in (4, 4, 6, 6, 8, 8)]
    whole = train_batches(loaded, dataclasses.replace(config, data=synthetic().data))
    whole.set_epoch(5)
    np.testing.assert_array_equal(next(iter(batches)).images, next(iter(whole)).images)
    assert {batch.images.shape[2] for batch in test_batches(loaded, config)} == {8}


def test_epochs_on_larger_images_are_more_work():
    growing = Augmentation(sides=(16, 32), epochs=5)  # three epochs of 16, two of 32
    assert [growing.side(epoch) for epoch in range(5)] == [16, 16, 16, 32, 32]
    assert growing.work(0, 5, like=0) == 3 + 2 * 4
    assert growing.work(0, 5, like=4) == 3 / 4 + 2
    assert growing.work(2.5, 4, like=2) == 0.5 + 4
    assert growing.work(0.5, 1.25, like=1) == 0.75
    assert growing.work(4.5, 5, like=4) == 0.5
    assert growing.work(5, 5, like=4) == 0
    assert Augmentation().work(1.5, 4, like=1) == 2.5


def test_images_can_only_shrink():
    with pytest.raises(UserError, match='progressive'):
        train_batches(load_data(synthetic()), synthetic(progressive=(4, 9)))


def test_a_share_of_each_class_of_the_training_images_is_held_out():
    """The test images are then out of play, so that choices made by them are none by the test."""
    whole = load_data(Config(data=Data(name='digits')))
    held, again = (load_data(Config(data=Data(name='digits', holdout=0.25))) for _ in range(2))
    everything = Counter(image.tobytes() for image in whole.train.pixels)
    parts = [Counter(image.tobytes() for image in part.pixels) for part in (held.train, held.test)]
    assert parts[0] + parts[1] == everything
    for label, count in Counter(whole.train.labels.tolist()).items():
        assert (held.test.labels == label).sum() == round(0.25 * count)
    np.testing.assert_array_equal(held.test.pixels, again.test.pixels)
    by_image = {
        image.tobytes(): label for image, label in zip(whole.train.pixels, whole.train.labels)
    }
    assert all(
        by_image[i.tobytes()] == label for i, label in zip(held.test.pixels, held.test.labels)
    )
    assert '25 % of its training images held out' in held.origin


def test_a_class_of_one_image_cannot_be_held_out():
    with pytest.raises(UserError, match=r'has one image of \d: data\.holdout needs two'):
        load_data(Config(data=Data(name='synthetic', num_images=2, holdout=0.5)))


def test_class_count():
    images = Images(np.zeros((3, 3, 8, 8), np.uint8), np.array([0, 1, 2]))
    data = DataSet(images, images, ['cat', 'dog', 'fox'], MEAN, STD, 'the zoo')
    assert class_count(data, None) == 3
    assert class_count(data, 3) == 3
    assert class_count(data, 1000) == 1000
    for expected in (1, 2):
        with pytest.raises(UserError, match='the zoo') as caught:
            class_count(data, expected)
        assert f'model.num_classes is {expected}' in str(caught.value)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', DATA_SETS)
def test_every_data_set_has_a_module(name):
    source = find_source(name)
    assert all(len(values) == 3 for values in (source.MEAN, source.STD))
    assert source.SIZE >= 32
    assert callable(source.load)


def test_mean_and_std_of_digits_are_those_of_the_training_images(digits):
    pixels = digits.train.pixels
    assert digits.mean.tolist() == pytest.approx([pixels.mean()] * 3, rel=1e-12)
    assert digits.std.tolist() == pytest.approx([pixels.std()] * 3, rel=1e-12)


def test_a_data_set_is_a_module_and_a_name(monkeypatch):
    """The way that engine/data/sources/__init__.py describes."""

    def load(data, request):
        images = Images(np.zeros((20, 3, 28, 28), np.uint8), np.arange(20) % 2)
        mean, std = request.preparation.mean, request.preparation.std
        return DataSet(images, images, ['even', 'odd'], mean, std, data.root)

    module = SimpleNamespace(MEAN=(1.0, 2.0, 3.0), STD=(4.0, 5.0, 6.0), SIZE=28, load=load)
    monkeypatch.setitem(sys.modules, 'engine.data.sources.mine', module)
    config = Config(data=Data(name='mine', batch_size=10))
    data = load_data(config)
    assert (data.mean.tolist(), data.std.tolist()) == ([1, 2, 3], [4, 5, 6])
    assert (preparation(config).size, preparation(config).resize) == (28, 28)
    (first, _), (test,) = train_batches(data, config), test_batches(data, config)
    assert first.images.shape == (10, 3, 28, 28)
    np.testing.assert_allclose(test.images[0, :, 0, 0], [-1 / 4, -2 / 5, -3 / 6])
