"""Augmentation against naive loops that make the same random draws."""

import cv2
import numpy as np
import pytest

from engine.data.augmentation import (
    Augmentation,
    crop_and_flip,
    cutout,
    erase,
    mix,
    normalise,
    pad,
    random_erasing,
    recolour_batch,
    shrink,
)
from engine.data.policies import POLICY_NAMES, color_jitter, make_policy


def random_images(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), np.uint8)


MEAN = np.array([125.3, 123.0, 113.9])


def naive_pixel(image, channel, y, x, mode):
    """The pixel of an image that goes on beyond its borders."""
    height, width = image.shape[1:]
    inside = 0 <= y < height and 0 <= x < width
    if mode != 'reflect':
        outside = {'zero': 0, 'mean': (125, 123, 114)[channel]}[mode]
        return image[channel, y, x] if inside else outside
    y = -y if y < 0 else y if y < height else 2 * (height - 1) - y
    x = -x if x < 0 else x if x < width else 2 * (width - 1) - x
    return image[channel, y, x]


def naive_crop_and_flip(images, rows, *, padding, mode, flip, rng):
    count, width = len(rows), images.shape[3]
    tops = lefts = np.full(count, padding)
    if padding:
        tops, lefts = rng.integers(0, 2 * padding + 1, size=(2, count))
    mirrored = rng.random(count) < 0.5 if flip else np.zeros(count, bool)
    out = np.empty((count, *images.shape[1:]), np.uint8)
    for i, row in enumerate(rows):
        for channel, y, x in np.ndindex(out.shape[1:]):
            source_x = width - 1 - x if mirrored[i] else x
            out[i, channel, y, x] = naive_pixel(
                images[row], channel, y + tops[i] - padding, source_x + lefts[i] - padding, mode
            )
    return out


@pytest.mark.parametrize('mode', ['zero', 'reflect', 'mean'])
@pytest.mark.parametrize('flip', [False, True], ids=['no flip', 'flip'])
@pytest.mark.parametrize(
    ('height', 'width', 'padding'), [(32, 32, 4), (8, 8, 2), (5, 9, 4), (6, 4, 1), (8, 8, 0)]
)
def test_crop_and_flip_equal_a_naive_loop(mode, flip, height, width, padding):
    images = random_images(10, height, width)
    rows = np.array([7, 0, 3, 3, 9, 1, 5])
    expected = naive_crop_and_flip(
        images, rows, padding=padding, mode=mode, flip=flip, rng=np.random.default_rng(5)
    )
    result = crop_and_flip(
        pad(images, padding, mode, MEAN),
        rows,
        padding=padding,
        flip=flip,
        rng=np.random.default_rng(5),
    )
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


def test_about_half_of_the_images_are_flipped_and_each_as_a_whole():
    images = random_images(400, 8, 8)
    rows = np.arange(400)
    result = crop_and_flip(images, rows, padding=0, flip=True, rng=np.random.default_rng(0))
    same = (result == images).all(axis=(1, 2, 3))
    mirrored = (result == images[..., ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_without_flip_and_padding_the_images_are_unchanged():
    images = random_images(6, 8, 8)
    rows = np.array([5, 2, 2])
    result = crop_and_flip(images, rows, padding=0, flip=False, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(result, images[rows])


def test_every_offset_of_the_crop_occurs():
    side, padding = 7, 3
    # Pixel (y, x) holds y in red and x in green, so that a crop shows where it was taken.
    image = np.zeros((1, 3, side + 2 * padding, side + 2 * padding), np.uint8)
    image[0, 0], image[0, 1] = np.indices(image.shape[2:])
    rows = np.zeros(2000, int)
    result = crop_and_flip(image, rows, padding=padding, flip=False, rng=np.random.default_rng(0))
    corners = {tuple(corner) for corner in result[:, :2, 0, 0].tolist()}
    assert corners == {(y, x) for y in range(2 * padding + 1) for x in range(2 * padding + 1)}


@pytest.mark.parametrize('padding', [0, 2])
@pytest.mark.parametrize('flip', [False, True])
def test_the_result_shares_no_memory_with_the_data_set(padding, flip):
    images = pad(random_images(4, 8, 8), padding, 'zero', MEAN)
    before = images.copy()
    result = crop_and_flip(
        images, np.array([0, 1, 2, 3]), padding=padding, flip=flip, rng=np.random.default_rng(0)
    )
    result[...] = 77
    np.testing.assert_array_equal(images, before)


def test_no_rows_give_an_empty_batch():
    padded = pad(random_images(4, 8, 8), 2, 'zero', MEAN)
    rows = np.array([], int)
    result = crop_and_flip(padded, rows, padding=2, flip=True, rng=np.random.default_rng(0))
    assert result.shape == (0, 3, 8, 8)


def test_normalise_equals_float64_arithmetic():
    images = random_images(4, 8, 8)
    mean, std = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])
    expected = (images.astype(np.float64) - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    result = normalise(images, mean, std)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------ cutout


def naive_cutout(batch, size, rng):
    count, _, height, width = batch.shape
    rows, columns = rng.integers(0, height, count), rng.integers(0, width, count)
    out = batch.copy()
    for i, y, x in np.ndindex(count, height, width):
        above, left = rows[i] - size // 2, columns[i] - size // 2
        if above <= y < above + size and left <= x < left + size:
            out[i, :, y, x] = 0
    return out


@pytest.mark.parametrize('size', [1, 2, 5, 8, 16])
@pytest.mark.parametrize(('height', 'width'), [(32, 32), (8, 8), (6, 11)])
def test_cutout_sets_one_square_and_nothing_else(size, height, width):
    batch = np.random.default_rng(1).normal(5, 1, (40, 3, height, width)).astype(np.float32)
    expected = naive_cutout(batch, size, np.random.default_rng(3))
    cutout(batch, size, np.random.default_rng(3))
    np.testing.assert_array_equal(batch, expected)


def test_cutout_is_whole_inside_and_clipped_at_each_border():
    size, side = 4, 9
    batch = np.ones((2000, 3, side, side), np.float32)
    cutout(batch, size, np.random.default_rng(0))
    holes = batch == 0
    assert (holes == holes[:, :1]).all(), 'the channels differ'
    inner = holes[:, 0]
    area = inner.sum(axis=(1, 2))
    assert area.max() == size * size
    # The smallest piece is at a lower or right corner or an upper left one: 2 x 2.
    assert area.min() == (size // 2) ** 2
    border = np.zeros((side, side), bool)
    border[[0, -1], :] = border[:, [0, -1]] = True
    assert (area[~(inner & border).any(axis=(1, 2))] == size * size).all()
    for edge in (inner[:, 0], inner[:, -1], inner[:, :, 0], inner[:, :, -1]):
        assert edge.any(), 'one border was never reached'


def test_cutout_twice_as_large_as_the_image_leaves_nothing():
    batch = np.ones((20, 3, 8, 8), np.float32)
    cutout(batch, 16, np.random.default_rng(0))
    assert not batch.any()


# ------------------------------------------------------------------ random erasing


def marked(count, height, width):
    """A batch none of whose values the noise will ever be."""
    return np.full((count, 3, height, width), 1e6, np.float32)


def erased(count, height, width, probability=1.0, seed=0):
    """For each image, where it was erased: bool [N, H, W]; and the batch."""
    batch = marked(count, height, width)
    random_erasing(batch, probability, np.random.default_rng(seed))
    holes = batch != 1e6
    assert (holes == holes[:, :1]).all(), 'the channels differ'
    return holes[:, 0], batch


def rectangle(hole):
    """Top, left, height and width of the one rectangle that is True."""
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    top, left = rows[0], columns[0]
    height, width = rows[-1] + 1 - top, columns[-1] + 1 - left
    assert hole.sum() == height * width, 'not a rectangle'
    return top, left, height, width


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (40, 64), (64, 40)])
def test_erasing_fills_one_rectangle_of_the_published_area_and_aspect(height, width):
    holes, _ = erased(500, height, width)
    boxes = [rectangle(hole) for hole in holes if hole.any()]
    assert len(boxes) > 490  # ten attempts find one that fits, nearly always
    shares = np.array([h * w for _, _, h, w in boxes]) / (height * width)
    aspects = np.array([h / w for _, _, h, w in boxes])
    # The sides are rounded to whole pixels, of which the smallest rectangle has about 3 x 8.
    assert 0.013 < shares.min() < 0.035
    assert 0.29 < shares.max() < 0.35
    assert 0.15 < shares.mean() < 0.19
    assert 0.22 < aspects.min() < 0.4
    assert 2.5 < aspects.max() < 4.5
    assert 0.4 < (aspects > 1).mean() < 0.6, 'upright and flat ones are equally likely'


def test_erasing_reaches_every_border_and_every_pixel():
    holes, _ = erased(800, 24, 24)
    assert holes.any(0).all()
    assert not holes.all(0).any()
    places = np.array([rectangle(hole) for hole in holes if hole.any()])
    assert places[:, :2].min(0).tolist() == [0, 0]
    assert (places[:, :2] + places[:, 2:]).max(0).tolist() == [24, 24]


def test_erased_pixels_are_normal_noise_of_their_own():
    holes, batch = erased(300, 32, 32)
    noise = np.concatenate([image[:, hole] for image, hole in zip(batch, holes)], axis=1)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs((np.abs(noise) < 1).mean() - 0.6827) < 0.01  # as of a normal distribution
    assert len(np.unique(noise)) > 0.99 * noise.size
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.03, 'the channels share their noise'


@pytest.mark.parametrize('probability', [0.0, 0.25, 0.9, 1.0])
def test_erasing_happens_to_its_share_of_the_images(probability):
    holes, batch = erased(1000, 16, 16, probability)
    happened = holes.any(axis=(1, 2)).mean()
    assert abs(happened - probability) < 0.05
    assert (batch[~holes.any(axis=(1, 2))] == 1e6).all()


def test_erasing_follows_from_the_generator():
    _, first = erased(20, 16, 16, 0.5, seed=1)
    _, same = erased(20, 16, 16, 0.5, seed=1)
    _, other = erased(20, 16, 16, 0.5, seed=2)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 9), (2, 2), (3, 200)])
def test_erasing_leaves_something_of_the_smallest_images(height, width):
    holes, _ = erased(50, height, width)
    assert not holes.all(axis=(1, 2)).any()


def test_erasing_of_nothing():
    random_erasing(marked(0, 8, 8), 1.0, np.random.default_rng(0))


def test_erase_is_cutout_and_then_random_erasing():
    batch, expected = marked(30, 16, 16), marked(30, 16, 16)
    rng, twin = np.random.default_rng(4), np.random.default_rng(4)
    erase(batch, Augmentation(cutout=6, random_erasing=0.7), rng)
    cutout(expected, 6, twin)
    random_erasing(expected, 0.7, twin)
    np.testing.assert_array_equal(batch, expected)
    assert rng.random() == twin.random()


@pytest.mark.parametrize(
    ('augmentation', 'alone'),
    [
        (Augmentation(cutout=6), lambda batch, rng: cutout(batch, 6, rng)),
        (Augmentation(random_erasing=0.7), lambda batch, rng: random_erasing(batch, 0.7, rng)),
        (Augmentation(), lambda batch, rng: None),
        (Augmentation(crop_padding=4, flip=True, mixup=1.0), lambda batch, rng: None),
    ],
    ids=['cutout', 'erasing', 'nothing', 'nothing of its own'],
)
def test_erase_does_and_draws_only_what_is_on(augmentation, alone):
    batch, expected = marked(30, 16, 16), marked(30, 16, 16)
    rng, twin = np.random.default_rng(4), np.random.default_rng(4)
    erase(batch, augmentation, rng)
    alone(expected, twin)
    np.testing.assert_array_equal(batch, expected)
    assert rng.random() == twin.random()


# ------------------------------------------------------------------ mixup and CutMix


def plain_colours(count, height=8, width=8):
    """Image i is filled with i + 1."""
    batch = np.empty((count, 3, height, width), np.float32)
    batch[:] = np.arange(1, count + 1)[:, None, None, None]
    return batch


def mixed(augmentation, seed=0, *, count=12, height=8, width=8):
    """The batch of plain colours after mixing, the partners, and the share."""
    batch = plain_colours(count, height, width)
    partners, share = mix(batch, augmentation, np.random.default_rng(seed))
    return batch, partners, share


MIXUP, CUTMIX = Augmentation(mixup=0.8), Augmentation(cutmix=0.8)
BOTH = Augmentation(mixup=0.8, cutmix=0.8)


@pytest.mark.parametrize('seed', range(10))
def test_mixup_is_the_weighted_sum_of_each_image_and_its_partner(seed):
    batch = np.random.default_rng(99).normal(size=(9, 3, 5, 7)).astype(np.float32)
    before = batch.astype(np.float64)
    partners, share = mix(batch, Augmentation(mixup=1.0), np.random.default_rng(seed))
    assert sorted(partners.tolist()) == list(range(9))
    assert 0 < share < 1
    for own, partner, result in zip(before, partners, batch):
        np.testing.assert_allclose(
            result, share * own + (1 - share) * before[partner], rtol=0, atol=1e-6
        )
    assert batch.dtype == np.float32


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize(('height', 'width'), [(8, 8), (6, 11), (1, 5)])
def test_cutmix_puts_one_box_of_the_partner_into_each_image(seed, height, width):
    batch, partners, share = mixed(CUTMIX, seed, height=height, width=width)
    assert sorted(partners.tolist()) == list(range(12))
    foreign = batch[:, 0] != plain_colours(12, height, width)[:, 0]
    np.testing.assert_array_equal(batch, batch[:, :1].repeat(3, axis=1))
    for index, (image, partner) in enumerate(zip(batch, partners)):
        if partner == index:
            assert not foreign[index].any()
            continue
        assert (image[0][foreign[index]] == partner + 1).all()
        if foreign[index].any():
            top, left, h, w = rectangle(foreign[index])
            # As large, in shares of the sides, whatever the sides are; less where it is cut off.
            inside = top > 0 and left > 0 and top + h < height and left + w < width
            assert not inside or abs(h / height - w / width) < 1 / height + 1 / width
        # What the labels are weighted with is the area that is really left, to the pixel.
        assert share == pytest.approx(1 - foreign[index].mean(), abs=1e-12)


def test_cutmix_boxes_reach_every_pixel_and_all_sizes():
    seen, shares = np.zeros((8, 8), int), []
    for seed in range(400):
        batch, partners, share = mixed(Augmentation(cutmix=1.0), seed)
        index = next(i for i, partner in enumerate(partners) if partner != i)
        seen += batch[index, 0] != index + 1
        shares.append(share)
    assert seen.min() > 40
    # Of a box of side s (the image's is 1), s - s^2 / 4 is inside on average in each direction; for
    # areas s^2 that are drawn uniformly, this leaves the image 0.679 of itself.
    assert min(shares) < 0.35
    assert max(shares) == 1.0
    assert np.mean(shares) == pytest.approx(0.679, abs=0.04)


@pytest.mark.parametrize('alpha', [0.2, 1.0, 5.0])
def test_shares_of_mixup_have_their_beta_distribution(alpha):
    shares = np.array([mixed(Augmentation(mixup=alpha), seed, count=2)[2] for seed in range(1500)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)


def kind_of(augmentation, seed):
    batch, _, share = mixed(augmentation, seed)
    whole = (batch == batch[:, :, :1, :1]).all()
    blended = (batch != np.rint(batch)).any()
    return 'mixup' if blended else 'cutmix' if not whole else f'neither: {share}'


def test_where_both_are_on_each_batch_has_one_of_them_by_chance():
    kinds = [kind_of(BOTH, seed) for seed in range(300)]
    assert 110 < kinds.count('mixup') < 190
    assert 80 < kinds.count('cutmix') < 190  # less those whose box is empty, or everything
    assert len(kinds) - kinds.count('mixup') - kinds.count('cutmix') < 60


def test_one_that_is_on_never_becomes_the_other():
    assert 'cutmix' not in {kind_of(MIXUP, seed) for seed in range(60)}
    assert 'mixup' not in {kind_of(CUTMIX, seed) for seed in range(60)}


def test_each_of_both_has_its_own_alpha():
    """With an alpha of 1e6 a share is one half; with 1e-6 it is 0 or 1, which blends nothing."""
    blends = 0
    for seed in range(40):
        half_mixed = Augmentation(mixup=1e6, cutmix=1e-6)
        if kind_of(half_mixed, seed) == 'mixup':
            blends += 1
            assert mixed(half_mixed, seed)[2] == pytest.approx(0.5, abs=0.01)
        half_cut = Augmentation(mixup=1e-6, cutmix=1e6)
        assert kind_of(half_cut, seed) != 'mixup'
    assert blends > 10


@pytest.mark.parametrize('augmentation', [MIXUP, CUTMIX, BOTH], ids=['mixup', 'cutmix', 'both'])
def test_mixing_follows_from_the_generator(augmentation):
    batch, partners, share = mixed(augmentation, 3)
    same = mixed(augmentation, 3)
    np.testing.assert_array_equal(batch, same[0])
    np.testing.assert_array_equal(partners, same[1])
    assert share == same[2]
    assert any((batch != mixed(augmentation, seed)[0]).any() for seed in (4, 5, 6))


def test_partners_differ_by_batch():
    assert len({tuple(mixed(MIXUP, seed)[1].tolist()) for seed in range(20)}) == 20


def test_without_mixing_nothing_changes_and_nothing_is_drawn():
    batch = plain_colours(5)
    rng = np.random.default_rng(1)
    partners, share = mix(batch, Augmentation(cutout=4, random_erasing=1.0, flip=True), rng)
    np.testing.assert_array_equal(batch, plain_colours(5))
    assert partners.tolist() == [0, 1, 2, 3, 4]
    assert share == 1.0
    assert rng.random() == np.random.default_rng(1).random()


@pytest.mark.parametrize('augmentation', [MIXUP, CUTMIX, BOTH], ids=['mixup', 'cutmix', 'both'])
@pytest.mark.parametrize('count', [0, 1])
def test_mixing_of_too_few_images_changes_none(augmentation, count):
    for seed in range(5):
        batch, partners, _ = mixed(augmentation, seed, count=count)
        np.testing.assert_allclose(batch, plain_colours(count), rtol=1e-6)
        assert partners.tolist() == list(range(count))


# ------------------------------------------------------------------ colours


def test_each_image_of_a_batch_is_recoloured_by_itself_and_upright():
    """The policy sees uint8 [H, W, 3], one image after another, and one generator."""
    images = random_images(6, 5, 9)
    seen = []

    def policy(image, rng):
        seen.append((image.copy(), image.flags.c_contiguous))
        return np.roll(255 - image, int(rng.integers(9)), axis=1)

    result = recolour_batch(
        images.copy(), Augmentation(policy=policy), rng=np.random.default_rng(8)
    )
    twin = np.random.default_rng(8)
    assert result.dtype == np.uint8
    assert len(seen) == 6
    for image, (upright, contiguous), after in zip(images, seen, result):
        assert contiguous  # what Pillow takes without a copy
        np.testing.assert_array_equal(upright, image.transpose(1, 2, 0))
        expected = np.roll(255 - image, int(twin.integers(9)), axis=2)
        np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize('strengths', [(0.4, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1), (0.0, 0.0, 0.0, 0.5)])
def test_jitter_comes_after_the_policy_and_needs_no_hue(strengths):
    images = random_images(5, 6, 7)
    augmentation = Augmentation(policy=make_policy('randaugment'), jitter=strengths)
    result = recolour_batch(images.copy(), augmentation, np.random.default_rng(2))
    twin = np.random.default_rng(2)
    policy = make_policy('randaugment')
    for image, after in zip(images, result):
        upright = policy(image.transpose(1, 2, 0), twin)
        expected = color_jitter(upright, (*strengths, 0.0)[:4], twin)
        np.testing.assert_array_equal(after.transpose(1, 2, 0), expected)
    assert (result != images).any(axis=(1, 2, 3)).all()


def test_without_a_policy_and_jitter_colours_stay_and_nothing_is_drawn():
    images = random_images(3, 8, 8)
    rng = np.random.default_rng(1)
    result = recolour_batch(images.copy(), Augmentation(mixup=1.0, cutout=3), rng)
    np.testing.assert_array_equal(result, images)
    assert rng.random() == np.random.default_rng(1).random()


@pytest.mark.parametrize('name', POLICY_NAMES)
def test_every_policy_takes_the_smallest_images_of_a_batch(name):
    images = random_images(40, 2, 3)
    result = recolour_batch(
        images.copy(), Augmentation(policy=make_policy(name)), np.random.default_rng(0)
    )
    assert result.shape == images.shape
    assert (result != images).any()


@pytest.mark.parametrize('side', [1, 8, 13, 20, 32])
def test_shrinking_averages_what_a_pixel_covers(side):
    images = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    upright = images.transpose(0, 2, 3, 1)
    area = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in upright]
    expected = np.stack(area).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(shrink(images, side), expected, rtol=0, atol=1e-6)


def test_shrinking_of_images_that_are_not_square():
    image = np.arange(12, dtype=np.float32).reshape(1, 1, 2, 6)
    assert shrink(image, 2).tolist() == [[[[1, 4], [7, 10]]]]
