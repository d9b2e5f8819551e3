"""engine/data/pictures.py: every kind of file against the array that it was made of, evaluation
against Pillow's own resize, training against its definition."""

from __future__ import annotations

import math
import subprocess
import sys

import cv2
import numpy as np
import picture_files
import pytest
import simplejpeg
from conftest import REPOSITORY
from PIL import Image

from engine.data.pictures import EvalView, TrainView, open_picture
from predictor.pictures import BadPicture, crops, resized

WHOLE, DAMAGED = picture_files.whole_files(), picture_files.damaged_files()
WHOLE.update(picture_files.odd_files())


@pytest.mark.parametrize('name', WHOLE)
def test_every_kind_of_picture_is_read_right(name):
    picture, expected = open_picture(WHOLE[name].data), WHOLE[name]
    assert (picture.height, picture.width) == expected.pixels.shape[:2]
    pixels = picture.pixels()
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.pixels.shape
    difference = np.abs(pixels.astype(int) - expected.pixels).mean()
    assert difference <= expected.tolerance


@pytest.mark.parametrize('name', DAMAGED)
def test_every_damaged_file_is_refused_in_a_line(name):
    with pytest.raises(BadPicture) as caught:
        open_picture(DAMAGED[name]).pixels()
    text = str(caught.value)
    assert text.startswith(('is ', 'has '))
    assert '\n' not in text
    assert 'BytesIO' not in text


def test_a_file_cut_off_anywhere_is_refused_or_complete():
    for name in ('baseline.jpg', 'progressive.JPG', 'rgba.png', 'animated.gif', 'plain.bmp'):
        data = WHOLE[name].data
        whole = open_picture(data).pixels()
        refused = 0
        for length in range(0, len(data), max(1, len(data) // 60)):
            try:
                pixels = open_picture(data[:length]).pixels()
            except BadPicture:
                refused += 1
            else:
                np.testing.assert_array_equal(pixels, whole, err_msg=f'{name}[:{length}]')
        assert refused > 20, name


def test_changed_bytes_never_raise_anything_but_bad_picture():
    rng = np.random.default_rng(0)
    found = 0
    for file in WHOLE.values():
        for _ in range(25):
            data = bytearray(file.data)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            try:
                open_picture(bytes(data)).pixels()
            except BadPicture:
                found += 1
    assert found > 100


def test_damaged_exif_prints_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = 'a long description' * 3, 6
    for cut in range(12, len(exif.tobytes()), 5):
        data = picture_files.jpeg(picture_files.smooth(), exif=exif.tobytes()[:cut])
        (tmp_path / f'{cut}.jpg').write_bytes(data)
        data = picture_files.encode(picture_files.smooth(), 'PNG', exif=exif.tobytes()[:cut])
        (tmp_path / f'{cut}.png').write_bytes(data)
    code = (
        'import sys, pathlib; from engine.data.pictures import open_picture\n'
        'for path in pathlib.Path(sys.argv[1]).iterdir(): open_picture(path.read_bytes()).pixels()'
    )
    command = [sys.executable, '-W', 'always', '-c', code, str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, '')
    assert 'PIL' not in result.stderr


def test_most_lost_sectors_of_a_jpeg_are_noticed():
    rng = np.random.default_rng(3)
    photo = picture_files.jpeg(picture_files.noisy(128, 128), quality=90)
    noticed = 0
    for share in rng.uniform(0.2, 0.8, 40):
        try:
            open_picture(picture_files.overwritten(photo, share, 64)).pixels()
        except BadPicture:
            noticed += 1
    assert noticed >= 36


def test_damage_that_a_png_decodes_without_complaint_is_found_by_its_checksum():
    data = bytearray(picture_files.encode(picture_files.noisy(), 'PNG', compress_level=0))
    data[len(data) // 2] ^= 1
    with pytest.raises(BadPicture, match='checksum'):
        open_picture(bytes(data)).pixels()


def test_bytes_between_pixels_and_end_are_harmless_but_not_many_and_not_without_the_end():
    photo = WHOLE['baseline.jpg'].data
    padded = photo[:-2] + bytes(5) + photo[-2:]  # of which the decoder's buffer takes some
    with pytest.raises(ValueError, match='extraneous'):
        simplejpeg.decode_jpeg(padded)
    at = photo.index(b'\xff\xc4')
    warned = photo[:at] + bytes(2) + photo[at:]  # after a warning, no other is heard
    for harmless in (padded, warned):
        difference = np.abs(
            open_picture(harmless).pixels().astype(int) - WHOLE['baseline.jpg'].pixels
        )
        assert difference.mean() < 3
    for bad in (photo[:-2] + bytes(50) + photo[-2:], warned[:-200]):
        with pytest.raises(BadPicture):
            open_picture(bad).pixels()


def test_a_huge_picture_is_refused_before_it_takes_memory(monkeypatch):
    monkeypatch.setattr(Image.Image, 'load', lambda image: pytest.fail('decoded'))
    monkeypatch.setattr(simplejpeg, 'decode_jpeg', lambda *_, **__: pytest.fail('decoded'))
    for name in ('huge.jpg', 'huge.png'):
        with pytest.raises(BadPicture, match='50000 x 50000 pixels'):
            open_picture(DAMAGED[name]).pixels()


@pytest.mark.parametrize('shrink', [1, 2, 4, 8])
def test_a_jpeg_decoded_at_a_fraction_has_the_size_and_colours_of_one_averaged(shrink):
    for orientation in (1, 6):
        pixels = picture_files.smooth(320, 480)
        stored = np.ascontiguousarray(picture_files.STORED[orientation](pixels))
        small = open_picture(picture_files.jpeg(stored, orientation=orientation)).pixels(shrink)
        averaged = cv2.resize(pixels, (480 // shrink, 320 // shrink), interpolation=cv2.INTER_AREA)
        assert small.shape == averaged.shape
        assert np.abs(small.astype(int) - averaged).mean() < 2
    odd = open_picture(picture_files.jpeg(picture_files.smooth(161, 243)))
    assert odd.pixels(shrink).shape == (-(-161 // shrink), -(-243 // shrink), 3)


# ------------------------------------------------------------------ evaluation


def by_pillow(pixels: np.ndarray, size: int, resize: int) -> tuple[np.ndarray, list]:
    """The whole picture resized with antialiasing, and the corners of centre and four crops."""
    height, width = pixels.shape[:2]
    if height < width:
        target = resize, int(resize * width / height)
    else:
        target = int(resize * height / width), resize
    whole = Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR)
    down, right = target[0] - size, target[1] - size
    centre = round(down / 2), round(right / 2)
    return np.asarray(whole), [centre, (0, 0), (0, right), (down, 0), (down, right)]


SHAPES = [(240, 360), (360, 240), (301, 299), (40, 400), (400, 40), (37, 37), (20, 31), (31, 20)]
SHAPES += [(9, 500), (1, 40), (40, 1), (1, 1), (64, 64), (73, 64), (500, 333), (1000, 667)]


@pytest.mark.parametrize('shape', SHAPES)
def test_evaluation_sees_pillows_resize_and_crops(shape):
    rng = np.random.default_rng(shape)
    fine = rng.integers(0, 256, (*shape, 3), np.uint8)
    size, resize = 64, 73
    whole, corners = by_pillow(fine, size, resize)
    views = EvalView(size=size, resize=resize, five_crops=True)(
        picture_files.encode(fine, 'PNG', compress_level=1)
    )
    expected = np.stack([whole[y : y + size, x : x + size] for y, x in corners])
    difference = np.abs(views.astype(int) - expected)
    assert difference.mean() < 0.05
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.95
    centre = EvalView(size=size, resize=resize)(picture_files.encode(fine, 'PNG'))
    np.testing.assert_array_equal(centre, views[:1])


def test_an_evaluation_crop_never_leaves_the_picture():
    """Sides for which (first + size) * side / goal is more than side by a rounding error."""
    for resize, size in ((37, 32), (292, 256), (341, 299), (49, 49)):
        for side in range(resize - 30, resize + 400, 7):
            pixels = np.zeros((side, resize + 1, 3), np.uint8)
            views = crops(pixels, size=size, resize=resize, five=True)
            assert views.shape == (5, size, size, 3)


def test_resized_sides_are_torchvisions():
    assert resized(375, 500, 256) == (256, 341)
    assert resized(500, 375, 256) == (341, 256)
    assert resized(333, 333, 256) == (256, 256)
    assert resized(1, 1000, 256) == (256, 256_000)


# ------------------------------------------------------------------ training


def test_crops_have_the_areas_and_aspects_that_were_asked_for():
    """Of a picture so large that no attempt fails, both are uniform, the aspect as logarithm."""
    view, rng = TrainView(size=8, scale=(0.1, 0.5)), np.random.default_rng(0)
    boxes = np.array([view.draw_box(2000, 2000, rng) for _ in range(8000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 2000).all()
    assert (left + width <= 2000).all()
    area = height * width / 2000**2
    aspect = np.log(width / height)
    at = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(np.quantile(area, at), 0.1 + 0.4 * at, atol=0.012)
    low, high = math.log(3 / 4), math.log(4 / 3)
    np.testing.assert_allclose(np.quantile(aspect, at), low + (high - low) * at, atol=0.015)
    np.testing.assert_allclose(np.quantile(top / (2000 - height), at), at, atol=0.025)
    np.testing.assert_allclose(np.quantile(left / (2000 - width), at), at, atol=0.025)
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.04


def test_where_no_crop_fits_the_largest_in_the_middle_is_taken():
    view, rng = TrainView(size=8, scale=(0.9, 1.0)), np.random.default_rng(0)
    assert {view.draw_box(30, 3000, rng) for _ in range(20)} == {(0, 1480, 30, 40)}
    assert {view.draw_box(3000, 30, rng) for _ in range(20)} == {(1480, 0, 40, 30)}
    whole = TrainView(size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert whole.draw_box(50, 50, rng) == (0, 0, 50, 50)
    for shape in ((1, 1), (1, 7), (2, 1)):
        top, left, height, width = TrainView(size=8).draw_box(*shape, rng)
        assert 0 <= top < top + height <= shape[0]
        assert 0 <= left < left + width <= shape[1]


@pytest.mark.parametrize('kind', ['jpeg', 'png'])
def test_a_training_view_is_the_drawn_box_resized(kind):
    """Also where a JPEG is decoded at a fraction of its size, and of one that the EXIF turns."""
    pixels = picture_files.smooth(600, 900)
    stored = np.ascontiguousarray(picture_files.STORED[8](pixels))
    data = {
        'jpeg': lambda: picture_files.jpeg(stored, orientation=8),
        'png': lambda: picture_files.encode(pixels, 'PNG', compress_level=1),
    }[kind]()
    view = TrainView(size=48, flip=False)
    for seed in range(12):
        top, left, height, width = view.draw_box(600, 900, np.random.default_rng(seed))
        crop = pixels[top : top + height, left : left + width]
        expected = cv2.resize(crop, (48, 48), interpolation=cv2.INTER_AREA).astype(int)
        seen = view(data, np.random.default_rng(seed))
        assert seen.shape == (1, 48, 48, 3)
        assert np.abs(seen[0] - expected).mean() < 3


def test_only_a_crop_more_than_twice_too_large_is_decoded_at_a_fraction(monkeypatch):
    shapes, decode = [], simplejpeg.decode_jpeg

    def spy(*arguments, **options):
        pixels = decode(*arguments, **options)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(simplejpeg, 'decode_jpeg', spy)
    data = picture_files.jpeg(picture_files.smooth(320, 480))
    for size, expected in ((161, 320), (160, 160), (81, 160), (80, 80), (40, 40), (8, 40)):
        TrainView(size=size, scale=(1, 1), ratio=(1.5, 1.5))(data, np.random.default_rng(0))
        assert shapes.pop()[0] == expected, size


def test_half_of_the_training_views_are_mirrored_and_none_without_flip():
    pixels = picture_files.smooth(30, 30)
    data = picture_files.encode(pixels, 'PNG')
    whole = {'size': 30, 'scale': (1, 1), 'ratio': (1, 1)}
    mirrored = 0
    for seed in range(400):
        view = TrainView(**whole)(data, np.random.default_rng(seed))[0]
        plain = TrainView(**whole, flip=False)(data, np.random.default_rng(seed))[0]
        np.testing.assert_array_equal(plain, pixels)
        if (view != pixels).any():
            np.testing.assert_array_equal(view, pixels[:, ::-1])
            mirrored += 1
    assert 160 < mirrored < 240


@pytest.mark.parametrize('name', WHOLE)
def test_every_kind_of_picture_can_be_trained_on(name):
    expected = WHOLE[name].pixels
    view = TrainView(size=20, scale=(1, 1), ratio=(1.5, 1.5), flip=False)
    seen = view(WHOLE[name].data, np.random.default_rng(0))[0]
    resized_ = cv2.resize(expected, (20, 20), interpolation=cv2.INTER_LINEAR)
    assert np.abs(seen.astype(int) - resized_).mean() <= max(4 * WHOLE[name].tolerance, 1)
