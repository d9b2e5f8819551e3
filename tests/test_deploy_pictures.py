"""deploy/predictor/pictures.py: every file gives the pixels that training's evaluation sees, or one
line that says what is wrong with it."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import picture_files
import pytest
from conftest import REPOSITORY
from PIL import Image
from sklearn.datasets import load_sample_image

from engine.data.pictures import EvalView
from predictor.pictures import BadPicture, centre, read_picture

ODD = picture_files.odd_files()
WHOLE, DAMAGED = picture_files.whole_files(), picture_files.damaged_files()
# Training decodes JPEG by a library that warns of such damage, and looks at a PNG's checksums.
UNNOTICED = ('sector_lost.jpg',)
VIEWS = [(16, 20), (32, 32), (64, 73), (224, 256)]  # smaller than the files, and larger
SHAPES = [(240, 360), (301, 299), (40, 400), (400, 40), (37, 37), (20, 31), (9, 500), (1, 40)]
SHAPES += [(40, 1), (1, 1), (64, 64), (73, 64), (500, 333), (1, 3000), (3000, 1), (7, 7)]
JPEGS = [{'subsampling': 2}, {'subsampling': 0, 'quality': 30}, {'progressive': True}]


def assert_seen_as_in_training(data: bytes, size: int, resize: int) -> None:
    seen = centre(read_picture(data), size=size, resize=resize)
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, EvalView(size, resize)(data)[0])


@pytest.mark.parametrize('name', WHOLE)
def test_every_kind_of_file_gives_the_pixels_that_evaluation_sees(name):
    for size, resize in VIEWS:
        assert_seen_as_in_training(WHOLE[name].data, size, resize)


@pytest.mark.parametrize('name', ODD)
def test_sound_files_that_pillow_alone_would_refuse_or_invert(name):
    np.testing.assert_array_equal(np.asarray(read_picture(ODD[name].data)), ODD[name].pixels)


def test_a_png_without_its_texts_is_still_refused_where_its_pixels_are_damaged():
    data = ODD['long_text.png'].data
    at = data.index(b'IDAT')
    for bad in (data[:at], data[: at + 30], data[: at + 20] + bytes(40) + data[at + 60 :]):
        with pytest.raises(BadPicture):
            read_picture(bad)


@pytest.mark.parametrize('shape', SHAPES)
def test_every_shape_gives_the_pixels_that_evaluation_sees(shape):
    pixels = np.random.default_rng(shape).integers(0, 256, (*shape, 3), np.uint8)
    files = [picture_files.encode(pixels, 'PNG', compress_level=1)]
    files += [picture_files.jpeg(pixels, **options) for options in JPEGS]
    for data in files:
        for size, resize in VIEWS[:3]:
            assert_seen_as_in_training(data, size, resize)


def test_the_first_picture_of_a_camera_s_jpeg_of_several_is_taken():
    pictures = [Image.fromarray(picture_files.smooth(seed=seed)) for seed in (1, 2)]
    file = io.BytesIO()
    pictures[0].save(file, 'MPO', save_all=True, append_images=pictures[1:], quality=95)
    assert_seen_as_in_training(file.getvalue(), 32, 40)
    seen = np.asarray(read_picture(file.getvalue())).astype(int)
    assert np.abs(seen - np.asarray(pictures[0])).mean() < 3


def test_size_and_mode_are_those_of_the_upright_picture():
    image = read_picture(WHOLE['exif6.jpg'].data)
    assert (image.mode, image.width, image.height) == ('RGB', 60, 40)


@pytest.mark.parametrize('name', sorted(set(DAMAGED) - set(UNNOTICED)))
def test_every_damaged_file_is_refused_in_one_line(name):
    with pytest.raises(BadPicture) as caught:
        read_picture(DAMAGED[name])
    text = str(caught.value)
    assert text.startswith(('is ', 'has '))
    assert '\n' not in text
    assert 'BytesIO' not in text


def test_libraries_print_nothing_about_damage(capfd):
    """libtiff writes to standard error by itself, in C."""
    whole = picture_files.encode(picture_files.noisy(), 'TIFF', compression='tiff_lzw')
    for share in (0.2, 0.5, 0.8):
        with pytest.raises(BadPicture, match='is damaged'):
            read_picture(picture_files.overwritten(whole, share))
    assert capfd.readouterr() == ('', '')


def test_a_file_cut_off_anywhere_is_refused_or_complete():
    for name in ('baseline.jpg', 'progressive.JPG', 'rgba.png', 'animated.gif', 'plain.bmp'):
        data = WHOLE[name].data
        whole, refused = np.asarray(read_picture(data)), 0
        for length in range(0, len(data), max(1, len(data) // 60)):
            try:
                pixels = np.asarray(read_picture(data[:length]))
            except BadPicture:
                refused += 1
            else:
                np.testing.assert_array_equal(pixels, whole, err_msg=f'{name}[:{length}]')
        assert refused > 20, name


@pytest.mark.filterwarnings('ignore')  # Pillow's, of damaged EXIF
def test_changed_and_random_bytes_never_raise_anything_but_bad_picture():
    rng = np.random.default_rng(0)
    refused = 0
    for file in WHOLE.values():
        for count in (1, 3, 30) * 8:
            data = np.frombuffer(file.data, np.uint8).copy()
            data[rng.integers(0, len(data), count)] = rng.integers(0, 256, count)
            # The header, too, so that some get beyond nothing but a signature.
            data[rng.integers(8, 60)] = rng.integers(256)
            try:
                centre(read_picture(data.tobytes(), max_pixels=2**22), size=16, resize=20)
            except BadPicture:
                refused += 1
    assert refused > 200
    for length in (1, 2, 10, 1000):
        with pytest.raises(BadPicture):
            read_picture(rng.bytes(length))


def test_a_picture_of_just_the_allowed_number_of_pixels_is_read_and_no_larger_one():
    data = WHOLE['baseline.jpg'].data
    assert read_picture(data, max_pixels=40 * 60).size == (60, 40)
    with pytest.raises(BadPicture, match=r'^has 60 x 40 pixels, more than 0 million \('):
        read_picture(data, max_pixels=40 * 60 - 1)


def test_a_jpeg_with_too_many_scans_is_refused():
    """Seconds of work for each kilobyte, if the picture is large."""
    file = picture_files.jpeg(picture_files.smooth(), progressive=True)
    scan, end = file[file.rindex(b'\xff\xda') : -2], file[-2:]
    assert end == b'\xff\xd9'
    most = file[:-2] + scan * (100 - file.count(b'\xff\xda'))
    assert read_picture(most + end).size == (60, 40)
    with pytest.raises(BadPicture, match=r'^has more than 100 scans$'):
        read_picture(most + scan + end)
    # What only looks like scans: in a comment, and behind the end.
    comment = b'\xff\xfe' + struct.pack('>H', 2002) + b'\xff\xda' * 1000
    looks = file[:2] + comment + file[2:] + b'\xff\xda' * 1000
    np.testing.assert_array_equal(read_picture(looks), read_picture(file))


def test_a_plain_ppm_with_too_many_comments_is_refused():
    head, pixels = b'P3 2 1 255\n', b'1 2 3 4 5 6\n'
    assert read_picture(head + b'#\n' * 1000 + pixels).size == (2, 1)
    with pytest.raises(BadPicture, match=r'^has more than 1000 comments$'):
        read_picture(head + b'#\n' * 1001 + pixels)
    binary = b'P6 40 40 255\n' + b'#' * 4800
    assert read_picture(binary).getpixel((0, 0)) == (35, 35, 35)


def huge_files() -> dict[str, bytes]:
    """A few bytes each, that claim to be 50,000 x 50,000."""
    side = 50_000
    # Width, height, bits, compression, kind, strip's place, samples, rows in the strip, its bytes.
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, side), (279, 4, 100)]
    entries = b''.join(struct.pack('<HHII', tag, kind, 1, value) for tag, kind, value in tags)
    sides = struct.pack('<I', side - 1)[:3] * 2
    extended = struct.pack('<4sIB3x', b'VP8X', 10, 0) + sides
    return {
        'png': picture_files.png_of(
            struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0), zlib.compress(bytes(10**6))
        ),
        'jpeg': DAMAGED['huge.jpg'],
        'gif': b'GIF89a' + struct.pack('<HHBBB', side, side, 0, 0, 0) + WHOLE['animated.gif'].data,
        'bmp': struct.pack('<2sIIIIiiHHIIiiII', b'BM', 54, 0, 54, 40, side, side, 1, 24, *[0] * 6),
        'ppm': b'P6 %d %d 255\n' % (side, side) + bytes(100),
        'tiff': struct.pack('<2sHIH', b'II', 42, 8, len(tags)) + entries + bytes(4),
        'webp': b'RIFF' + struct.pack('<I', 4 + len(extended)) + b'WEBP' + extended,
    }


def test_a_huge_picture_is_refused_without_time_or_memory(tmp_path):
    for name, data in huge_files().items():
        (tmp_path / f'huge.{name}').write_bytes(data)
    script = """
import resource, sys, time
from pathlib import Path
from predictor.pictures import BadPicture, read_picture
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.suffix, read_picture(path.read_bytes()).size)
    except BadPicture as error:
        print(path.suffix, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)
"""
    result = subprocess.run(
        [sys.executable, '-c', script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY / 'deploy')},
    )
    assert result.returncode == 0, result.stderr
    *answers, used = result.stdout.splitlines()
    refusals = dict(answer.split(' ', 1) for answer in answers)
    # WebP holds at most 16,384 x 16,384: this file is damaged.
    assert refusals.pop('.webp').startswith(('is ', 'has '))
    expected = 'has 50000 x 50000 pixels, more than 134 million (max_pixels_million)'
    assert refusals == {f'.{name}': expected for name in huge_files() if name != 'webp'}
    kilobytes, seconds = used.split()
    assert int(kilobytes) < 50_000
    assert float(seconds) < 0.5


@pytest.mark.parametrize('page', ['docs/export.md', 'docs/zh_cn/export.md'])
@pytest.mark.parametrize(('resize_short', 'crop'), [(256, 224), (72, 64), (500, 448)])
def test_the_lines_of_opencv_in_the_docs_are_right(tmp_path, page, resize_short, crop):
    """Near to ours on a photograph, and nearer than without INTER_AREA."""
    cv2 = pytest.importorskip('cv2')
    photo = Image.fromarray(load_sample_image('china.jpg'))
    text = (REPOSITORY / page).read_text(encoding='utf-8')
    (lines,) = re.findall(r'```python\n(.*?)```', text, re.S)
    assert re.findall(r'INTER_\w+', lines) == re.findall(r'cv::(INTER_\w+)', text)
    mean, std = np.array([123.0, 116.0, 104.0], np.float32), np.float32(58.0)
    for number, picture in enumerate((photo, photo.crop((0, 0, 333, 427)))):
        picture.save(tmp_path / f'{number}.png')
        content = (tmp_path / f'{number}.png').read_bytes()
        ours = centre(read_picture(content), size=crop, resize=resize_short)
        expected = ((ours - mean) / std).transpose(2, 0, 1)[None]
        means = []
        for code in (lines, lines.replace('INTER_AREA', 'INTER_LINEAR')):
            known = {'cv2': cv2, 'np': np, 'path': str(tmp_path / f'{number}.png')}
            known |= {'resize_short': resize_short, 'crop': crop, 'mean': mean, 'std': std}
            exec(code, known)
            assert known['input'].shape == (1, 3, crop, crop)
            means.append(float(np.abs(known['input'] - expected).mean() * std))
        assert means[0] < 3.5
        assert means[0] <= means[1]
