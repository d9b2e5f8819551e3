"""One picture file: its bytes -> upright RGB pixels -> the square that the network sees.

simplejpeg (libjpeg-turbo) decodes JPEG: of the decoders here, only it notices damage in the middle
of a file (as far as possible: a JPEG has no checksums). Pillow decodes all else, and CMYK JPEG. The
type of a file is decided by its first bytes, not its name. Every failure is a BadPicture that says
what is wrong, without the file's name.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from typing import Any, Optional

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from engine.data.augmentation import recolour
from engine.data.policies import Policy
from predictor.pictures import (
    MAX_PIXELS,
    PNG,
    BadPicture,
    crops,
    first_line,
    open_image,
    read_picture,
    require_moderate,
)

JPEG, JPEG_END = b'\xff\xd8', b'\xff\xd9'

_EXIF_ORIENTATION = 0x0112
# Orientation -> whether rows and columns are mirrored; from 5 on, after a transposition.
_MIRRORED = {
    2: (False, True),
    3: (True, True),
    4: (True, False),
    5: (False, False),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}
# Warnings of libjpeg for files that are whole. Some cameras leave a byte or two before a marker;
# four and more are left by damaged pixels.
_HARMLESS = re.compile(r'\b[1-3] extraneous bytes before marker|Invalid SOS parameters')

cv2.setNumThreads(1)  # several threads read the pictures of a batch


class Jpeg:
    """A JPEG file that simplejpeg decodes; height and width are the upright picture's."""

    def __init__(self, data: bytes, height: int, width: int) -> None:
        self._data, self._stored = data, (height, width)
        self.orientation = _jpeg_orientation(data)
        turned = self.orientation >= 5
        self.height, self.width = (width, height) if turned else (height, width)

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """uint8 [H, W, 3], each side divided by `shrink` (1, 2, 4 or 8; rounded up)."""
        options: dict[str, Any] = {'colorspace': 'RGB'}
        options['min_height'], options['min_width'] = (-(-side // shrink) for side in self._stored)
        try:
            pixels = simplejpeg.decode_jpeg(self._data, **options)
        except Exception as error:
            if not _HARMLESS.search(str(error)):
                raise BadPicture(f'is damaged ({first_line(error)})') from None
            # simplejpeg stops at a warning; Pillow decodes the rest, and notices a missing end.
            return OtherFormat(self._data, self.height * self.width).pixels()
        return _upright(pixels, self.orientation)


class OtherFormat:
    """A file that Pillow decodes, when its pixels or their upright size are first needed."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        self._data, self._max_pixels = data, max_pixels
        self._pixels: Optional[np.ndarray] = None

    @property
    def height(self) -> int:
        return int(self.pixels().shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels().shape[1])

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """uint8 [H, W, 3] in full size. Of an animation, the first picture."""
        if self._pixels is None:
            if self._data.startswith(PNG):
                _require_sound_png(self._data)
            self._pixels = np.asarray(read_picture(self._data, max_pixels=self._max_pixels))
        return self._pixels


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Jpeg | OtherFormat:
    """The picture in these bytes, not decoded yet. BadPicture, now or later, if it is none."""
    if data.startswith(JPEG):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except ValueError as error:
            raise BadPicture(f'is damaged ({error})') from None
        except KeyError:  # simplejpeg has no name for what it found
            raise BadPicture('is damaged (it ends in its header, or has unknown colours)') from None
        if colours in ('RGB', 'YCbCr', 'Gray'):
            require_moderate(width, height, max_pixels)
            return Jpeg(data, height, width)
    return OtherFormat(data, max_pixels)


def require_header(data: bytes, max_pixels: int) -> None:
    """BadPicture unless these bytes are the beginning of a picture of an allowed size."""
    if isinstance(open_picture(data, max_pixels), OtherFormat):
        open_image(data, max_pixels)


@dataclass(frozen=True)
class TrainView:
    """What training sees of a picture: RandomResizedCrop, flip, and colours.

    RandomResizedCrop is that of Szegedy et al. 2015 (arXiv:1409.4842, section 6): a crop of
    `scale` of the area and an aspect of `ratio`, both drawn, resized bilinearly to `size`. A crop
    that is more than twice too large is decoded at a fraction of its size.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    policy: Optional[Policy] = None
    jitter: tuple[float, ...] = ()
    max_pixels: int = MAX_PIXELS

    def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
        """uint8 [1, size, size, 3]."""
        picture = open_picture(data, self.max_pixels)
        box = self.draw_box(picture.height, picture.width, rng)
        shrink = 1
        while shrink < 8 and min(box[2:]) >= 2 * shrink * self.size:
            shrink *= 2
        pixels = picture.pixels(shrink)
        scale = pixels.shape[0] / picture.height, pixels.shape[1] / picture.width
        top, left = int(box[0] * scale[0]), int(box[1] * scale[1])
        height, width = max(1, round(box[2] * scale[0])), max(1, round(box[3] * scale[1]))
        crop = pixels[top : top + height, left : left + width]
        view = cv2.resize(crop, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        if self.flip and rng.random() < 0.5:
            view = cv2.flip(view, 1)
        return recolour(view, self.policy, self.jitter, rng)[None]

    def draw_box(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Top, left, height, width of a crop; after ten vain attempts the largest in the middle."""
        low, high = (math.log(ratio) for ratio in self.ratio)
        for _ in range(10):
            draws = rng.random(4)
            area = height * width * (self.scale[0] + draws[0] * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + draws[1] * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1)), h, w
        w = max(1, min(width, round(height * self.ratio[1])))
        h = max(1, min(height, round(width / self.ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclass(frozen=True)
class EvalView:
    """What evaluation sees of a picture: the centre, or five crops, as in deploy/ to the pixel."""

    size: int
    resize: int  # the short side before the crop
    five_crops: bool = False
    max_pixels: int = MAX_PIXELS

    def __call__(self, data: bytes, rng: Optional[np.random.Generator] = None) -> np.ndarray:
        """uint8 [1 or 5, size, size, 3]: the centre, and the four corners."""
        pixels = open_picture(data, self.max_pixels).pixels()
        return crops(pixels, size=self.size, resize=self.resize, five=self.five_crops)


def _require_sound_png(data: bytes) -> None:
    """BadPicture if a checksum of pixels is wrong, which Pillow does not check."""
    at = len(PNG)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], 'big')
        written = data[end : end + 4]
        if len(written) < 4:
            return  # truncated; Pillow notices if pixels are missing
        found = zlib.crc32(data[at + 4 : end]).to_bytes(4, 'big')
        if data[at + 4 : at + 8] == b'IDAT' and found != written:
            raise BadPicture('is damaged (a checksum does not match)')
        at = end + 4


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels, rotated as the camera was held."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = _MIRRORED[orientation]
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def _jpeg_orientation(data: bytes) -> int:
    segment = _exif_segment(data)
    if not segment:
        return 1
    exif = Image.Exif()
    try:
        exif.load(segment)
        value = exif.get(_EXIF_ORIENTATION, 1)
    except Exception:  # with damaged EXIF, the picture is still good
        return 1
    return value if value in _MIRRORED else 1


def _exif_segment(data: bytes) -> bytes:
    """The EXIF segment of a JPEG; b'' if it has none."""
    at = 2
    while data[at : at + 1] == b'\xff' and 0xE0 <= data[at + 1] <= 0xEF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
        if data[at + 4 : at + 10] == b'Exif\0\0':
            return data[at + 4 : end]
        at = end
    return b''
