"""Augmentation against naive loops that make the same random draws."""

import numpy as np
import pytest

from engine.augment import crop_and_flip, cutout, normalise, pad


def random_images(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), np.uint8)


def naive_pixel(image, channel, y, x, mode):
    """The pixel of an image that goes on beyond its borders."""
    height, width = image.shape[1:]
    inside = 0 <= y < height and 0 <= x < width
    if mode == 'zero':
        return image[channel, y, x] if inside else 0
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


@pytest.mark.parametrize('mode', ['zero', 'reflect'])
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
        pad(images, padding, mode), rows, padding=padding, flip=flip, rng=np.random.default_rng(5)
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
    images = pad(random_images(4, 8, 8), padding, 'zero')
    before = images.copy()
    result = crop_and_flip(
        images, np.array([0, 1, 2, 3]), padding=padding, flip=flip, rng=np.random.default_rng(0)
    )
    result[...] = 77
    np.testing.assert_array_equal(images, before)


def test_no_rows_give_an_empty_batch():
    padded = pad(random_images(4, 8, 8), 2, 'zero')
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
