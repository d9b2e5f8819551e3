"""Augmentation policies against NumPy computations of what each operation means."""

import colorsys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from engine.data import policies
from engine.data.policies import (
    CIFAR10_POLICY,
    CIFAR10_SCALE,
    IMAGENET_POLICY,
    IMAGENET_SCALE,
    POLICY_NAMES,
    RANDAUGMENT_OPERATIONS,
    RANDAUGMENT_SCALE,
    color_jitter,
    make_policy,
)

GREY = 128
SIGNED = ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate')
SIZES = [(32, 32), (9, 14), (14, 9), (1, 7), (7, 1), (2, 2), (1, 1)]


def random_image(height=13, width=17, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), np.uint8)


def apply(name, image, level, scale=IMAGENET_SCALE, seed=0):
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(image)
    return np.array(policies.apply_operation(picture, name, level, scale, rng))


def enhance(kind, image, factor):
    return np.array(policies.enhance(Image.fromarray(image), kind, factor))


def within_a_grey_level(result, expected):
    assert result.dtype == np.uint8
    return np.abs(result - np.clip(expected, 0, 255)).max() <= 1


# ------------------------------------------------------------------ operations on values


def test_invert():
    image = random_image()
    np.testing.assert_array_equal(apply('Invert', image, 3), 255 - image)


@pytest.mark.parametrize(
    ('scale', 'level', 'threshold'),
    [
        (IMAGENET_SCALE, 0, 0),
        (IMAGENET_SCALE, 3, 76),
        (IMAGENET_SCALE, 10, 256),
        (CIFAR10_SCALE, 0, 256),
        (CIFAR10_SCALE, 2, 205),
        (CIFAR10_SCALE, 10, 0),
        (RANDAUGMENT_SCALE, 9, 230),
        (RANDAUGMENT_SCALE, 12, 307),
    ],
)
def test_solarize_inverts_from_the_threshold_on(scale, level, threshold):
    image = random_image(32, 32)
    expected = np.where(image < threshold, image, 255 - image)
    np.testing.assert_array_equal(apply('Solarize', image, level, scale), expected)


@pytest.mark.parametrize(
    ('scale', 'level', 'bits'),
    [
        (IMAGENET_SCALE, 0, 4),
        (IMAGENET_SCALE, 8, 7),
        (IMAGENET_SCALE, 10, 8),
        (CIFAR10_SCALE, 0, 8),
        (CIFAR10_SCALE, 7, 6),
        (CIFAR10_SCALE, 10, 4),
        (RANDAUGMENT_SCALE, 0, 1),
        (RANDAUGMENT_SCALE, 5, 2),
        (RANDAUGMENT_SCALE, 9, 3),
        (RANDAUGMENT_SCALE, 30, 8),
    ],
)
def test_posterize_keeps_the_upper_bits(scale, level, bits):
    image = random_image(32, 32)
    expected = image // 2 ** (8 - bits) * 2 ** (8 - bits)
    np.testing.assert_array_equal(apply('Posterize', image, level, scale), expected)


@pytest.mark.parametrize(('level', 'added'), [(0, 0), (3, 33), (9, 99), (10, 110), (30, 330)])
def test_solarize_add_brightens_the_dark_half(level, added):
    image = random_image(32, 32)
    expected = np.where(image < 128, np.minimum(image.astype(int) + added, 255), image)
    np.testing.assert_array_equal(apply('SolarizeAdd', image, level), expected)


def test_autocontrast_stretches_each_channel_to_the_whole_range():
    image = random_image(low=40, high=90)
    image[..., 1] += 100
    low, high = image.min(axis=(0, 1)).astype(float), image.max(axis=(0, 1)).astype(float)
    result = apply('AutoContrast', image, 0)
    assert within_a_grey_level(result, (image - low) * 255 / (high - low))
    assert (result.min(axis=(0, 1)) == 0).all()
    assert (result.max(axis=(0, 1)) >= 254).all()


def test_autocontrast_leaves_a_flat_image_as_it_is():
    image = np.full((4, 4, 3), 77, np.uint8)
    np.testing.assert_array_equal(apply('AutoContrast', image, 0), image)


def test_equalize_of_a_crowded_ramp_uses_the_whole_range():
    # 64 grey levels from 100 on, of 16 pixels each.
    image = np.repeat(np.arange(1024).reshape(32, 32, 1) // 16 + 100, 3, axis=2).astype(np.uint8)
    result = apply('Equalize', image, 0)
    # All pixels but the last level's are shared out among 255 steps.
    step = (1024 - 16) // 255
    expected = ((image.astype(int) - 100) * 16 + step // 2) // step
    np.testing.assert_array_equal(result, np.clip(expected, 0, 255))
    assert result.min() == 0
    assert result.max() == 255


def test_equalize_works_on_each_channel_alone_and_leaves_a_flat_one():
    image = random_image(40, 40, low=50, high=60)
    image[..., 2] = 9
    result = apply('Equalize', image, 0)
    assert (result[..., 2] == 9).all()
    for channel in (0, 1):
        values, counts = np.unique(image[..., channel], return_counts=True)
        below = np.concatenate([[0], np.cumsum(counts)[:-1]])
        step = (image[..., channel].size - counts[-1]) // 255
        table = dict(zip(values, np.minimum((below + step // 2) // step, 255)))
        expected = np.vectorize(table.get)(image[..., channel])
        np.testing.assert_array_equal(result[..., channel], expected)


# ------------------------------------------------------------------ blends


def luma(image):
    return image.astype(float) @ np.array([0.299, 0.587, 0.114])


def smoothed(image):
    """The mean of 3 x 3 pixels, of which the middle counts five times; borders stay."""
    out = image.astype(float)
    weights = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    for y in range(1, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 1):
            patch = image[y - 1 : y + 2, x - 1 : x + 2].astype(float)
            out[y, x] = (patch * weights[..., None]).sum(axis=(0, 1))
    return out


def destroyed(kind, image):
    """What factor 0 leaves of the image, in whole grey levels as Pillow has it."""
    if kind == 'Brightness':
        return np.zeros(image.shape)
    if kind == 'Contrast':
        return np.full(image.shape, np.rint(np.floor(luma(image) + 0.5).mean()))
    if kind == 'Color':
        return np.repeat(np.rint(luma(image))[..., None], 3, axis=2)
    return np.rint(smoothed(image))


KINDS = ['Brightness', 'Contrast', 'Color', 'Sharpness']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('factor', [0.0, 0.1, 0.55, 1.0, 1.4, 1.9])
def test_enhancements_blend_with_what_factor_zero_leaves(kind, factor):
    image = random_image()
    base = destroyed(kind, image)
    assert within_a_grey_level(enhance(kind, image, factor), base + factor * (image - base))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('level', 'factor'), [(0, 0.1), (3, 0.64), (5, 1.0), (10, 1.9), (20, 3.7)])
def test_levels_of_enhancements(kind, level, factor):
    image = random_image()
    np.testing.assert_array_equal(apply(kind, image, level), enhance(kind, image, factor))


# ------------------------------------------------------------------ geometry


def moved(image, matrix):
    """Nearest neighbours, and whether a pixel's source is clear of ties: (image, bool [H, W])."""
    height, width = image.shape[:2]
    y, x = np.indices((height, width)) + 0.5
    (a, b, c), (d, e, f) = matrix
    source_x, source_y = a * x + b * y + c, d * x + e * y + f
    clear = np.ones((height, width), bool)
    for source in (source_x, source_y):
        clear &= np.abs(source - np.rint(source)) > 1e-3
    column, row = np.floor(source_x).astype(int), np.floor(source_y).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    out = np.full_like(image, GREY)
    out[inside] = image[row[inside], column[inside]]
    return out, clear


def matrix_of(name, level, sign, height, width):
    """From result to source, by the definitions of table 6."""
    shear = sign * 0.3 * level / 10
    if name == 'Rotate':
        angle = sign * np.deg2rad(3.0 * level)
        cos, sin = np.cos(angle), np.sin(angle)
        x, y = width / 2, height / 2
        return (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y)
    return {
        'ShearX': ((1, shear, 0), (0, 1, 0)),
        'ShearY': ((1, 0, 0), (shear, 1, 0)),
        'TranslateX': ((1, 0, sign * round(level / 10 * 150 / 331 * width)), (0, 1, 0)),
        'TranslateY': ((1, 0, 0), (0, 1, sign * round(level / 10 * 150 / 331 * height))),
    }[name]


@pytest.mark.parametrize('name', SIGNED)
@pytest.mark.parametrize('level', [3, 9, 10])
@pytest.mark.parametrize(('height', 'width'), [(24, 24), (15, 31), (31, 14)])
def test_geometry_in_both_directions_with_grey_fill(name, level, height, width):
    image = random_image(height, width)
    signs = []
    for seed in range(40):
        result = apply(name, image, level, seed=seed)
        for sign in (1, -1):
            expected, clear = moved(image, matrix_of(name, level, sign, height, width))
            assert clear.mean() > 0.8
            if (result[clear] == expected[clear]).all():
                signs.append(sign)
    assert len(signs) == 40, 'some result is neither direction'
    assert 8 <= signs.count(1) <= 32


@pytest.mark.parametrize(('name', 'axis'), [('TranslateX', 1), ('TranslateY', 0)])
@pytest.mark.parametrize(
    ('scale', 'side', 'level', 'pixels'),
    [
        (CIFAR10_SCALE, 32, 9, 9),
        (CIFAR10_SCALE, 32, 4, 4),
        (CIFAR10_SCALE, 320, 10, 100),
        (IMAGENET_SCALE, 331, 10, 150),
        (RANDAUGMENT_SCALE, 224, 9, 90),
    ],
)
def test_translations_are_the_authors_at_their_sizes(name, axis, scale, side, level, pixels):
    image = random_image(*((side, 3) if axis == 0 else (3, side)), high=128)
    grey = (apply(name, image, level, scale) == GREY).all(axis=(1 - axis, 2))
    assert grey.sum() == pixels
    assert grey[:pixels].all() or grey[-pixels:].all()


@pytest.mark.parametrize('name', SIGNED)
def test_level_zero_of_geometry_is_the_identity(name):
    image = random_image()
    np.testing.assert_array_equal(apply(name, image, 0), image)


@pytest.mark.parametrize(('side', 'level', 'half'), [(224, 9, 36), (224, 10, 40), (32, 9, 5)])
def test_cutout_sets_one_grey_square_with_its_centre_anywhere(side, level, half):
    image = random_image(side, side + 20, high=128)
    areas, corners = [], set()
    for seed in range(150):
        hole = (apply('Cutout', image, level, seed=seed) == GREY).all(axis=2)
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        areas.append(hole.sum())
        corners.add((rows[0], columns[0]))
        assert areas[-1] == len(rows) * len(columns), 'not a rectangle'
        assert len(rows) <= 2 * half
        assert len(columns) <= 2 * half
        outside = ~hole
        np.testing.assert_array_equal(
            apply('Cutout', image, level, seed=seed)[outside], image[outside]
        )
    assert max(areas) == (2 * half) ** 2
    assert min(areas) < (2 * half) ** 2, 'it never lies partly outside'
    assert len(corners) > 50


def test_cutout_of_level_zero_is_the_identity():
    image = random_image()
    np.testing.assert_array_equal(apply('Cutout', image, 0), image)


@pytest.mark.parametrize('name', RANDAUGMENT_OPERATIONS)
def test_operations_do_not_change_the_picture_they_are_given(name):
    image = random_image()
    picture = Image.fromarray(image)
    policies.apply_operation(picture, name, 9, RANDAUGMENT_SCALE, np.random.default_rng(0))
    np.testing.assert_array_equal(np.array(picture), image)


# ------------------------------------------------------------------ tables


def test_cifar10_table_has_the_published_sub_policies():
    assert len(CIFAR10_POLICY) == 25
    assert len(set(CIFAR10_POLICY)) == 25
    assert CIFAR10_POLICY[0] == (('Invert', 0.1, 7), ('Contrast', 0.2, 6))
    assert CIFAR10_POLICY[3] == (('ShearY', 0.5, 8), ('TranslateY', 0.7, 9))
    assert CIFAR10_POLICY[13] == (('Brightness', 0.9, 6), ('Color', 0.2, 8))
    assert CIFAR10_POLICY[18] == (('AutoContrast', 0.8, 4), ('Solarize', 0.2, 8))
    assert CIFAR10_POLICY[24] == (('TranslateY', 0.7, 9), ('AutoContrast', 0.9, 1))


def test_imagenet_table_has_the_published_sub_policies():
    assert len(IMAGENET_POLICY) == 25
    assert len(set(IMAGENET_POLICY)) == 20  # five are published twice
    assert IMAGENET_POLICY[0] == (('Posterize', 0.4, 8), ('Rotate', 0.6, 9))
    assert IMAGENET_POLICY[7] == (('Posterize', 0.8, 5), ('Equalize', 1.0, 2))
    assert IMAGENET_POLICY[12] == (('Equalize', 0.0, 7), ('Equalize', 0.8, 8))
    assert IMAGENET_POLICY[17] == (('Sharpness', 0.4, 7), ('Invert', 0.6, 8))
    assert IMAGENET_POLICY[24] == IMAGENET_POLICY[2] == (('Equalize', 0.8, 8), ('Equalize', 0.6, 3))


@pytest.mark.parametrize('table', [CIFAR10_POLICY, IMAGENET_POLICY], ids=['cifar10', 'imagenet'])
def test_tables_hold_pairs_of_known_operations_with_tenths_and_levels(table):
    for sub_policy in table:
        assert len(sub_policy) == 2
        for name, probability, level in sub_policy:
            # Those of the paper's table 6 that act on one image alone; no policy has cutout.
            assert name in set(RANDAUGMENT_OPERATIONS) - {'SolarizeAdd', 'Cutout'}
            assert 0 <= probability <= 1
            assert abs(probability * 10 - round(probability * 10)) < 1e-9
            assert isinstance(level, int)
            assert 0 <= level <= 9


def test_randaugment_has_the_authors_sixteen_operations():
    assert len(set(RANDAUGMENT_OPERATIONS)) == len(RANDAUGMENT_OPERATIONS) == 16
    assert {'Invert', 'Cutout', 'SolarizeAdd'} < set(RANDAUGMENT_OPERATIONS)
    assert not {'Identity', 'Flip'} & set(RANDAUGMENT_OPERATIONS)


# ------------------------------------------------------------------ policies


@pytest.fixture
def steps(monkeypatch):
    """Every operation that a policy applies, as (name, level, scale), in its order."""
    seen = []

    def record(picture, name, level, scale, rng):
        seen.append((name, level, scale))
        return picture

    monkeypatch.setattr(policies, 'apply_operation', record)
    return seen


@pytest.mark.parametrize(
    ('name', 'table', 'scale'),
    [
        ('autoaugment_cifar10', CIFAR10_POLICY, CIFAR10_SCALE),
        ('autoaugment_imagenet', IMAGENET_POLICY, IMAGENET_SCALE),
    ],
)
def test_autoaugment_applies_sub_policies_with_their_probabilities(name, table, scale, steps):
    policy, image, rng = make_policy(name), random_image(1, 1), np.random.default_rng(0)
    draws = 20_000
    counts = {}
    for _ in range(draws):
        steps.clear()
        policy(image, rng)
        applied = tuple(steps)
        assert all(of == scale for _, _, of in applied)
        pair = tuple((name, level) for name, level, _ in applied)
        counts[pair] = counts.get(pair, 0) + 1
    expected = {}
    for (first, p, a), (second, q, b) in table:
        for chosen, chance in (
            (((first, a), (second, b)), p * q),
            (((first, a),), p * (1 - q)),
            (((second, b),), (1 - p) * q),
            ((), (1 - p) * (1 - q)),
        ):
            expected[chosen] = expected.get(chosen, 0) + chance / len(table)
    assert set(counts) <= {pair for pair, chance in expected.items() if chance > 0}
    for pair, chance in expected.items():
        spread = np.sqrt(draws * chance * (1 - chance))
        assert abs(counts.get(pair, 0) - draws * chance) <= 5 * spread + 1e-9, pair


def test_randaugment_applies_n_operations_of_equal_chance_at_its_magnitude(steps):
    policy = make_policy('randaugment', operations=3, magnitude=12.5)
    image, rng, draws = random_image(1, 1), np.random.default_rng(0), 4000
    for _ in range(draws):
        policy(image, rng)
    assert len(steps) == 3 * draws
    assert {(level, scale) for _, level, scale in steps} == {(12.5, RANDAUGMENT_SCALE)}
    names = [name for name, _, _ in steps]
    share = len(names) / 16
    for name in RANDAUGMENT_OPERATIONS:
        assert abs(names.count(name) - share) < 5 * np.sqrt(share)
    pairs = {tuple(names[i : i + 2]) for i in range(0, len(names), 3)}
    assert any(first == second for first, second in pairs), 'drawn without replacement'


def test_randaugment_by_default_applies_two_operations_at_nine(steps):
    make_policy('randaugment')(random_image(), np.random.default_rng(0))
    assert [level for _, level, _ in steps] == [9.0, 9.0]


def test_randaugment_of_no_operations_is_the_identity():
    image = random_image()
    policy = make_policy('randaugment', operations=0)
    np.testing.assert_array_equal(policy(image, np.random.default_rng(0)), image)


def test_unknown_policies_and_impossible_settings_are_refused():
    for wrong in ('autoaugment', 'RandAugment', ''):
        with pytest.raises(ValueError, match='randaugment'):
            make_policy(wrong)
    for settings in ({'operations': -1}, {'magnitude': -1.0}, {'magnitude': float('nan')}):
        with pytest.raises(ValueError, match='at least 0'):
            make_policy('randaugment', **settings)


# ------------------------------------------------------------------ all of them


JITTER = partial(color_jitter, strengths=(0.4, 0.4, 0.4, 0.1))


def everything():
    made = {name: make_policy(name) for name in POLICY_NAMES}
    strong = make_policy('randaugment', operations=4, magnitude=30.0)
    return {**made, 'strong': strong, 'jitter': lambda image, rng: JITTER(image, rng=rng)}


@pytest.mark.parametrize('name', [*POLICY_NAMES, 'strong', 'jitter'])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_any_size_deterministic_and_pure(name, size):
    change, image = everything()[name], random_image(*size)
    before = image.copy()
    image.flags.writeable = False
    for seed in range(30):
        result = change(image, np.random.default_rng(seed))
        again = change(image, np.random.default_rng(seed))
        assert result.shape == image.shape
        assert result.dtype == np.uint8
        assert result is image or (result.flags.writeable and not np.shares_memory(result, image))
        np.testing.assert_array_equal(result, again)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('name', [*POLICY_NAMES, 'jitter'])
def test_other_seeds_give_other_images(name):
    # Large enough for equalize, which leaves images of fewer than 256 pixels as they are.
    change, image = everything()[name], random_image(40, 40, low=30, high=200)
    results = {change(image, np.random.default_rng(seed)).tobytes() for seed in range(60)}
    assert len(results) > 20


@pytest.mark.parametrize('name', [*POLICY_NAMES, 'jitter'])
def test_views_that_are_not_contiguous_give_the_same(name):
    change = everything()[name]
    view = random_image(20, 20).transpose(1, 0, 2)[2:17, ::-1]
    for seed in range(10):
        np.testing.assert_array_equal(
            change(view, np.random.default_rng(seed)),
            change(view.copy(), np.random.default_rng(seed)),
        )


def test_threads_give_what_one_gives():
    changes = list(everything().values())

    def run(number):
        image = random_image(24, 20, seed=number)
        return changes[number % len(changes)](image, np.random.default_rng(number)).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(600))) == [run(number) for number in range(600)]


# ------------------------------------------------------------------ colour jitter


class Scripted:
    """A generator whose draws are given; it keeps what was asked for."""

    def __init__(self, draws, order):
        self.draws, self.order, self.ranges = list(draws), order, []

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return self.draws.pop(0)

    def permutation(self, count):
        assert count == len(self.order)
        return self.order


def hue_turned(image, turn):
    out = np.empty(image.shape)
    for y, x in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[y, x] / 255))
        out[y, x] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    return out * 255


def jittered(image, strengths, draws, order):
    return color_jitter(image, strengths, Scripted(draws, np.array(order)))


def test_jitter_draws_factors_around_one_and_a_hue_around_zero():
    rng = Scripted([1, 1, 1, 0], [0, 1, 2, 3])
    color_jitter(random_image(), (0.4, 1.5, 0.2, 0.1), rng)
    np.testing.assert_allclose(rng.ranges, [(0.6, 1.4), (0, 2.5), (0.8, 1.2), (-0.1, 0.1)])


def test_jitter_applies_its_operations_in_the_order_drawn():
    image = random_image()
    draws = [1.4, 0.6, 1.3]
    results = set()
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        expected = image
        for number in order:
            expected = enhance(('Brightness', 'Contrast', 'Color')[number], expected, draws[number])
        result = jittered(image, (0.5, 0.5, 0.5, 0), draws, order)
        np.testing.assert_array_equal(result, expected)
        results.add(result.tobytes())
    assert len(results) == 3


def test_every_order_occurs():
    image = random_image(2, 2)
    rng, orders = np.random.default_rng(0), set()
    permutation = rng.permutation

    class Listening:
        uniform = rng.uniform

        def permutation(self, count):
            orders.add(tuple(permutation(count)))
            return permutation(count)

    for _ in range(300):
        color_jitter(image, (0.1, 0.1, 0.1, 0.1), Listening())
    assert len(orders) == 24


def test_jitter_without_strength_is_the_identity_and_draws_nothing():
    image = random_image()
    rng = np.random.default_rng(0)
    assert color_jitter(image, (0, 0, 0, 0), rng) is image
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize('place', range(4))
def test_jitter_of_one_kind_changes_only_that(place):
    image = random_image()
    strengths = [0.0] * 4
    strengths[place] = 0.5
    draw = [0.5, 1.3, 0.7, 0.25][place]
    result = jittered(image, tuple(strengths), [draw], [0])
    if place == 3:
        expected = hue_turned(image, draw)
        assert np.abs(result - expected).max() < 12
    else:
        base = destroyed(KINDS[place], image)
        assert within_a_grey_level(result, base + draw * (image - base))


def test_a_third_of_the_hue_circle_takes_red_to_green_to_blue():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], np.uint8)
    turned = jittered(colours, (0, 0, 0, 0.5), [1 / 3], [0])
    assert turned.tolist() == [[[0, 255, 0], [0, 0, 255], [255, 0, 0], [90, 90, 90]]]
    back = jittered(turned, (0, 0, 0, 0.5), [-1 / 3], [0])
    np.testing.assert_array_equal(back, colours)


@pytest.mark.parametrize('turn', [-0.5, -0.2, 0.05, 0.1, 0.5])
def test_hue_turns_by_the_angle_on_saturated_colours(turn):
    # Where saturation is high, bytes of HSV lose little.
    image = random_image(20, 20, low=0, high=60)
    image[..., 0] += 190
    result = jittered(image, (0, 0, 0, 0.5), [turn], [0])
    assert np.abs(result - hue_turned(image, turn)).max() < 12
    assert np.abs(result - hue_turned(image, turn)).mean() < 4


@pytest.mark.parametrize('strengths', [(-0.1, 0, 0, 0), (0, 0, 0, 0.6)])
def test_impossible_strengths_are_refused(strengths):
    with pytest.raises(ValueError, match='strengths'):
        color_jitter(random_image(), strengths, np.random.default_rng(0))
