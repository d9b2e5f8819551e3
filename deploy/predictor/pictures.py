"""A picture file's bytes -> the square that the network sees, equal to evaluation's in each pixel.

With Pillow alone, whose JPEG library is also that of training.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import math
import re
import warnings
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, _imaging, features

from predictor import listing

MAX_PIXELS = 134_000_000  # larger pictures are mistakes or attacks
MAX_SCANS = 100  # of a JPEG, as in libtiff; usual are 1, and 10 of a progressive one
MAX_COMMENTS = 1000  # of a PPM in plain text; Pillow's time grows with their square
SIXTEEN_BITS = ('I', 'I;16', 'I;16B', 'I;16L')
MARKER = re.compile(rb'\xff([\x02-\xcf\xd9-\xfe])')  # of a JPEG, without those inside its scans
END, SCAN = b'\xd9', b'\xda'
PNG = b'\x89PNG\r\n\x1a\n'
PHOTOMETRIC = 262  # a TIFF tag; 0: white is zero

Image.MAX_IMAGE_PIXELS = None  # here it is an error, not a warning
# 16 bits, big-endian, white is zero: Pillow knows only the little-endian form.
TiffImagePlugin.OPEN_INFO.setdefault((b'MM', 0, (1,), 1, (16,), ()), ('I;16B', 'I;16B'))
warnings.filterwarnings('ignore', module=r'PIL\.')  # about EXIF; damaged pixels are errors
with contextlib.suppress(OSError, AttributeError):  # libtiff also prints what Pillow raises
    _set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    _set_handler.argtypes, _set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    _set_handler(None)


class BadPicture(Exception):
    """The file cannot be read; the text says why, without the file's name."""


def _optional_formats() -> dict[str, str]:
    """The formats of listing.OPTIONAL that can be read here -> Pillow's names."""
    found = {}
    if features.check_codec('jpg_2000'):
        found['JPEG 2000'] = 'JPEG2000'
    with contextlib.suppress(ImportError, AttributeError):  # a Pillow before 11.3
        if importlib.import_module('PIL.AvifImagePlugin').SUPPORTED:
            found['AVIF'] = 'AVIF'
    with contextlib.suppress(ImportError):
        importlib.import_module('pillow_heif').register_heif_opener()
        found['HEIC'] = 'HEIF'
    return found


_OPTIONAL = _optional_formats()
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM', *_OPTIONAL.values())
SUFFIXES = (*listing.SUFFIXES, *(s for name in _OPTIONAL for s in listing.OPTIONAL[name][0]))


def read_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in these bytes (the first of several), upright, RGB. BadPicture if unreadable."""
    try:
        return _read(data, max_pixels)
    except BadPicture:
        # Pillow refuses a PNG if a text is long, or its checksum is wrong.
        plain = essential_chunks(data) if data.startswith(PNG) else data
        if plain == data:
            raise
    return _read(plain, max_pixels)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in these bytes, not decoded yet; the beginning of a file is enough."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        readable = [name for name, own in _OPTIONAL.items() if own in FORMATS]
        raise BadPicture(listing.what_it_is(data, readable)) from None
    except Exception as error:  # a damaged header may raise anything
        raise BadPicture(f'is damaged ({first_line(error)})') from None
    require_moderate(image.width, image.height, max_pixels)
    return image


def require_moderate(width: int, height: int, max_pixels: int) -> None:
    """BadPicture if the picture has more pixels."""
    if width * height > max_pixels:
        raise BadPicture(
            f'has {width} x {height} pixels, more than {max_pixels / 1e6:.0f} million '
            '(max_pixels_million)'
        )


def _read(data: bytes, max_pixels: int) -> Image.Image:
    image = open_image(data, max_pixels)
    if image.format in ('JPEG', 'MPO') and _has_many_scans(data):
        raise BadPicture(f'has more than {MAX_SCANS} scans')
    if data[:2] in (b'P1', b'P2', b'P3') and data.count(b'#') > MAX_COMMENTS:
        raise BadPicture(f'has more than {MAX_COMMENTS} comments')
    inverted = image.mode in SIXTEEN_BITS and white_is_zero(image)
    try:
        image.load()
        image = _upright(image)  # the same name, so that only one is in memory
        return _as_rgb(image, inverted=inverted)
    except BadPicture:
        raise
    except Exception as error:  # so may damaged pixels
        raise BadPicture(f'is damaged ({first_line(error)})') from None


def centre(picture: Image.Image, *, size: int, resize: int) -> np.ndarray:
    """uint8 [size, size, 3]: the short side resized to `resize`, the centre cropped."""
    (view,) = crops(picture, size=size, resize=resize)
    return np.asarray(view)


def crops(
    picture: Image.Image | np.ndarray, *, size: int, resize: int, five: bool = False
) -> np.ndarray:
    """uint8 [1 or 5, size, size, 3]: the centre, and the four corners.

    They are the crops of the picture (an RGB image or its uint8 pixels [H, W, 3]) whose short side
    is resized to `resize` (antialiased, bilinear). Only the crops are computed, each from the part
    of the picture that it depends on.
    """
    width, height = picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]
    tall, wide = resized(height, width, resize)
    down, right = tall - size, wide - size
    corners = [(round(down / 2), round(right / 2))]
    if five:
        corners += [(0, 0), (0, right), (down, 0), (down, right)]
    views = []
    for y, x in corners:
        (top, bottom), (y0, y1) = _span(height, tall, y, size)
        (left, end), (x0, x1) = _span(width, wide, x, size)
        if isinstance(picture, Image.Image):
            part = picture.crop((left, top, end, bottom))
        else:
            part = Image.fromarray(picture[top:bottom, left:end])
        views.append(part.resize((size, size), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1)))
    return np.stack([np.asarray(view) for view in views])


def resized(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width after the short side became `short`, rounded as torchvision does."""
    least = min(height, width)
    return int(short * height / least), int(short * width / least)


def _span(
    side: int, goal: int, first: int, size: int
) -> tuple[tuple[int, int], tuple[float, float]]:
    """The pixels of `side` that a crop depends on, and the crop's ends within them.

    The crop is the pixels from `first` to `first + size` after `side` is resized to `goal`.
    """
    factor = side / goal
    low, high = first * factor, (first + size) * factor
    reach = math.ceil(max(factor, 1.0)) + 1  # of the filter, beyond the crop
    start, stop = max(0, math.floor(low) - reach), min(side, math.ceil(high) + reach)
    return (start, stop), (low - start, high - start)


def essential_chunks(data: bytes) -> bytes:
    """A PNG without texts, colour profiles and the like; EXIF stays if its checksum is right."""
    kept, at = [PNG], len(PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], 'big')
        kind, checksum = data[at + 4 : at + 8], data[end - 4 : end]
        sound = zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, 'big') == checksum
        if kind[:1].isupper() or (kind == b'eXIf' and sound):
            kept.append(data[at:end])
        at = end
    return b''.join(kept)


def white_is_zero(image: Image.Image) -> bool:
    """For a TIFF that is not loaded yet. Pillow inverts such pixels of 8 bits, but not of 16."""
    tags = getattr(image, 'tag_v2', {})
    return image.format == 'TIFF' and tags.get(PHOTOMETRIC) == 0


def _has_many_scans(data: bytes) -> bool:
    """Whether a JPEG has so many scans that decoding takes hours: each needs only 10 bytes."""
    if data.count(b'\xff' + SCAN) <= MAX_SCANS:
        return False
    # Some may be in other parts, or after the end, where telephones put videos.
    scans, found = 0, MARKER.search(data)
    while found is not None and found[1] != END and scans <= MAX_SCANS:
        scans += found[1] == SCAN
        length = int.from_bytes(data[found.end() : found.end() + 2], 'big')
        found = MARKER.search(data, found.end() + length)
    return scans > MAX_SCANS


def _upright(image: Image.Image) -> Image.Image:
    """Rotated by its EXIF, if that is not damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _as_rgb(image: Image.Image, *, inverted: bool) -> Image.Image:
    if image.mode == 'F':
        raise BadPicture('has floating-point pixels')
    if image.mode in SIXTEEN_BITS:  # convert() would clip them to 8 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadPicture('has pixels of more than 16 bits')
        values = (values >> 8).astype(np.uint8)
        image = Image.fromarray(255 - values if inverted else values)
    if image.mode == 'P' and 'transparency' in image.info:
        image = image.convert('RGBA')
    return image if image.mode == 'RGB' else image.convert('RGB')


def first_line(error: Any) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
