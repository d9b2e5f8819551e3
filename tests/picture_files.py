"""Small picture files of every kind, whole and damaged, each with the pixels that it must give.

What a file must give never comes from the decoders under test: it is the array from which the file
was made, turned, or reduced to 8 bits, with NumPy.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
ADAM7 += ((1, 0, 2, 1),)

# Of a picture that is upright, what a camera stores that writes this EXIF orientation.
STORED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@dataclass(frozen=True)
class Whole:
    """A file that must be read."""

    data: bytes
    pixels: np.ndarray  # uint8 [H, W, 3]
    tolerance: float = 0.0  # mean difference in grey levels, for lossy formats


def smooth(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: no symmetry, and little that JPEG would lose."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.sin(x * rng.uniform(1, 4) / width + y * rng.uniform(1, 4) / height + rng.uniform(0, 6))
        for _ in range(3)
    ]
    return np.round(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(pixels: np.ndarray | Image.Image, *, orientation: int | None = None, **options) -> bytes:
    if orientation is not None:
        options['exif'] = Image.Exif()
        options['exif'][0x0112] = orientation
    return encode(pixels, 'JPEG', **{'quality': 95, **options})


def png(values: np.ndarray, *, interlaced: bool = False) -> bytes:
    """Grey or RGB of 8 or 16 bits, which Pillow cannot all write."""
    height, width = values.shape[:2]
    depth, colour = 8 * values.itemsize, 0 if values.ndim == 2 else 2
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, interlaced)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [values[top::down, left::right] for top, left, down, right in passes]
    big = [part.astype(part.dtype.newbyteorder('>')) for part in parts if part.size]
    rows = b''.join(b'\0' + row.tobytes() for part in big for row in part)
    return png_of(header, zlib.compress(rows))


def png_of(header: bytes, packed: bytes) -> bytes:
    chunks = [(b'IHDR', header), (b'IDAT', packed), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*one) for one in chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def white_is_zero(values: np.ndarray, order: str) -> bytes:
    """A TIFF of 16-bit grey pixels, 0 the brightest; order: '<' or '>'."""
    height, width = values.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 0), (273, 8), (277, 1)]
    tags += [(278, height), (279, 2 * values.size)]
    pixels = (65535 - values).astype(f'{order}u2').tobytes()
    directory = struct.pack(f'{order}H', len(tags))
    directory += b''.join(struct.pack(f'{order}HHII', tag, 4, 1, value) for tag, value in tags)
    head = {'<': b'II', '>': b'MM'}[order] + struct.pack(f'{order}HI', 42, 8 + len(pixels))
    return head + pixels + directory + bytes(4)


def whole_files() -> dict[str, Whole]:
    """File name -> a file that must be read right."""
    rgb = smooth()
    grey = rgb[..., 0]
    as_rgb = np.stack([grey] * 3, -1)
    deep = grey.astype(np.uint16) * 257 - np.uint16(40)
    deep_rgb = rgb.astype(np.uint16) * 256 + np.uint16(99)
    y, x = np.mgrid[0:40, 0:60]
    index = ((y // 4 + x // 3) % 5).astype(np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (5, 3), np.uint8)
    palette = Image.fromarray(index)
    palette.putpalette(colours.tobytes())
    frames = [palette.copy(), palette.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    alpha = np.where(x < 30, 0, 255).astype(np.uint8)
    bits = index > 2
    files = {
        'baseline.jpg': Whole(jpeg(rgb, subsampling=2), rgb, 3),
        '444.jpeg': Whole(jpeg(rgb, subsampling=0), rgb, 2),
        'progressive.JPG': Whole(jpeg(rgb, progressive=True), rgb, 3),
        'grey.jpg': Whole(jpeg(grey), as_rgb, 2),
        'cmyk.jpg': Whole(jpeg(Image.fromarray(rgb).convert('CMYK')), rgb, 3),
        'palette.png': Whole(encode(palette, 'PNG'), colours[index]),
        'palette_transparent.png': Whole(encode(palette, 'PNG', transparency=2), colours[index]),
        'rgba.png': Whole(encode(np.dstack([rgb, alpha]), 'PNG'), rgb),
        'la.png': Whole(encode(np.dstack([grey, alpha]), 'PNG'), as_rgb),
        'one_bit.png': Whole(
            encode(Image.fromarray(bits), 'PNG'), np.stack([bits * np.uint8(255)] * 3, -1)
        ),
        'grey16.png': Whole(png(deep), np.stack([(deep >> 8).astype(np.uint8)] * 3, -1)),
        'rgb16.png': Whole(png(deep_rgb), rgb),
        'interlaced.png': Whole(png(rgb, interlaced=True), rgb),
        'a_png_named.JPEG': Whole(encode(rgb, 'PNG'), rgb),
        'a_jpeg_named.png': Whole(jpeg(rgb), rgb, 3),
        'animated.gif': Whole(
            encode(frames[0], 'GIF', save_all=True, append_images=frames[1:]), colours[index]
        ),
        'lossless.webp': Whole(encode(rgb, 'WEBP', lossless=True), rgb),
        'plain.bmp': Whole(encode(rgb, 'BMP'), rgb),
        'plain.ppm': Whole(encode(rgb, 'PPM'), rgb),
        'plain.tif': Whole(encode(rgb, 'TIFF'), rgb),
        'grey16.tiff': Whole(
            cv2.imencode('.tiff', deep)[1].tobytes(),
            np.stack([(deep >> 8).astype(np.uint8)] * 3, -1),
        ),
        'wrong_exif.jpg': Whole(jpeg(rgb, exif=b'Exif\0\0no EXIF'), rgb, 3),
        'wrong_exif.png': Whole(encode(rgb, 'PNG', exif=b'Exif\0\0no EXIF'), rgb),
    }
    for orientation, store in STORED.items():
        stored = np.ascontiguousarray(store(rgb))
        files[f'exif{orientation}.jpg'] = Whole(jpeg(stored, orientation=orientation), rgb, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.ascontiguousarray(STORED[6](rgb))
    files['exif6.png'] = Whole(encode(turned, 'PNG', exif=exif), rgb)
    files['exif6.tif'] = Whole(encode(turned, 'TIFF', exif=exif), rgb)
    return files


def odd_files() -> dict[str, Whole]:
    """Sound files that Pillow by itself refuses, or reads wrong."""
    rgb = smooth()
    deep = rgb[..., 0].astype(np.uint16) * 257
    as_rgb = np.stack([rgb[..., 0]] * 3, -1)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(np.ascontiguousarray(STORED[6](rgb)), 'PNG', exif=exif)
    text = chunk(b'zTXt', b'Raw profile\0\0' + zlib.compress(bytes(2**21)))
    wrong = chunk(b'tEXt', b'Comment\0one')[:-1] + b'?'
    head = turned.index(b'IHDR') + 21  # where the next chunk begins
    end = turned.index(b'IEND') - 4
    return {
        'long_text.png': Whole(turned[:head] + text + turned[head:], rgb),
        'long_text_at_the_end.png': Whole(turned[:end] + text + turned[end:], rgb),
        'wrong_text.png': Whole(turned[:head] + wrong + turned[head:], rgb),
        'white_is_zero.tif': Whole(white_is_zero(deep, '<'), as_rgb),
        'white_is_zero_big_endian.tif': Whole(white_is_zero(deep, '>'), as_rgb),
    }


def overwritten(data: bytes, share: float = 0.5, count: int = 200) -> bytes:
    """Some bytes in the middle lost, as of a bad sector: they are zeros."""
    at = int(share * len(data))
    assert len(data) > at + count
    return data[:at] + bytes(count) + data[at + count :]


def noisy(height: int = 64, width: int = 64) -> np.ndarray:
    """Much for a JPEG to hold, so that it has a middle."""
    return np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)


def claiming(data: bytes, side: int = 50_000) -> bytes:
    """A JPEG whose header claims to be `side` x `side`."""
    at = data.index(b'\xff\xc0') + 5
    return data[:at] + struct.pack('>HH', side, side) + data[at + 4 :]


def damaged_files() -> dict[str, bytes]:
    """File name -> a file that cannot be read."""
    photo, picture = jpeg(noisy()), png(noisy())
    files = {
        'empty.jpg': b'',
        'empty.png': b'',
        'text.jpg': b'<html>404 Not Found</html>\n',
        'zeros.jpg': bytes(5000),
        'only_soi.jpg': b'\xff\xd8',
        'sector_lost.jpg': overwritten(photo),
        'sector_lost.png': overwritten(picture),
        'huge.jpg': claiming(photo),
        'huge.png': png_of(
            struct.pack('>IIBBBBB', 50_000, 50_000, 8, 2, 0, 0, 0), zlib.compress(b'')
        ),
        'header_gone.jpg': photo[200:],
        'truncated.gif': encode(noisy(), 'GIF')[:-1500],
        'truncated.webp': encode(noisy(), 'WEBP')[:-100],
        'truncated.bmp': encode(noisy(), 'BMP')[:-100],
        'truncated.tif': encode(noisy(), 'TIFF')[:9000],
        'truncated_cmyk.jpg': jpeg(Image.fromarray(noisy()).convert('CMYK'))[:-500],
    }
    for percent in (1, 5, 20, 50, 80, 95, 99):
        files[f'truncated{percent}.jpg'] = photo[: len(photo) * percent // 100]
        files[f'truncated{percent}.png'] = picture[: len(picture) * percent // 100]
    files['two_bytes_short.jpg'] = photo[:-2]
    return files


def put_what_is_no_file(folder: Path) -> list[str]:
    """Names, in `folder`, of links that lead nowhere, and of what would make a reader wait."""
    (folder / 'broken_link.jpg').symlink_to('nowhere.jpg')
    (folder / 'link_to_itself.jpg').symlink_to('link_to_itself.jpg')
    os.mkfifo(folder / 'pipe.jpg')
    (folder / 'endless.jpg').symlink_to('/dev/zero')
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # a socket's path must be short
        server.bind('socket.jpg')
        os.chdir(here)
    return ['broken_link.jpg', 'link_to_itself.jpg', 'pipe.jpg', 'endless.jpg', 'socket.jpg']


def write_set(root: Path, *, classes: int = 2, train: int = 8, test: int = 4) -> Path:
    """train/<class>/ and val/<class>/ of plain PNGs of 40 x 60, all different."""
    for part, count in (('train', train), ('val', test)):
        for label in range(classes):
            folder = root / part / f'class{label}'
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 1000 * label + number + (500 if part == 'val' else 0)
                (folder / f'{number:03d}.png').write_bytes(encode(smooth(seed=seed), 'PNG'))
    return root
