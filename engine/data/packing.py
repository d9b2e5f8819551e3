"""python3 -m engine.data --check DIR and --pack DIR OUT: every picture below a folder, once."""

from __future__ import annotations

import os
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import simplejpeg
from PIL import Image
from tqdm import tqdm

from engine.console import can_redraw
from engine.data.file_checks import check_fully, parallel, read_file
from engine.data.pictures import Jpeg, open_picture
from engine.data.sources.folder import LABEL_LISTS, TEST_WORDS, file_name, split_word, walk
from engine.errors import UserError
from engine.files import LONGEST_NAME, write_atomically
from predictor.answers import legible
from predictor.labels import decoded, readings
from predictor.listing import counted, describe_left_out
from predictor.pictures import MAX_PIXELS, BadPicture, resized

JPEG_SIDE = 65500  # libjpeg's limit


def check(folder: Path, *, workers: int, max_pixels: int = MAX_PIXELS) -> None:
    """Decode every picture and name those that cannot be read; UserError if there are any."""
    paths, _ = _pictures(folder)
    bad = _run(partial(check_fully, max_pixels=max_pixels), paths, workers=workers, complaint='')
    if bad:
        raise UserError(f'{len(bad):,} of {counted(len(paths))} below {folder} cannot be read')
    print(f'{counted(len(paths))} below {folder}: all can be read')


def pack(
    source: Path,
    target: Path,
    *,
    size: int,
    quality: int,
    workers: int,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write each picture again as a JPEG of short side `size`, which is several times as quick to
    read; bad ones are named and left out. Training then sees somewhat softer, twice compressed
    crops, and evaluation the same pixels but for the compression.

    `target` appears when everything is in it. After an interruption, the same command continues.
    """
    # One with another size or quality must not be continued.
    unfinished = target.with_name(_short(f'{target.name}.partial-{size}-{quality}'))
    _check_folders(source, target, unfinished)
    paths, lists = _pictures(source)
    names = [os.path.relpath(path, source) for path in paths]
    packed: dict[str, Optional[str]] = dict(zip(names, _packed_names(names)))

    def one(path: str) -> Optional[str]:
        written = unfinished / (packed[os.path.relpath(path, source)] or '')
        if written.exists():
            return None
        try:
            data = _packed(read_file(path), size, quality, max_pixels)
        except BadPicture as problem:
            return str(problem)
        _write(written, data)
        return None

    bad = _run(one, paths, workers=workers, complaint='left out: ')
    if len(bad) == len(paths):
        raise UserError(f'no picture below {source} can be read')
    packed.update((os.path.relpath(path, source), None) for path in bad)
    for path in lists:
        name = os.path.relpath(path, source)
        _write(unfinished / name, _packed_list(Path(path).read_bytes(), name, packed))
    unfinished.rename(target)
    print(f'wrote {counted(len(paths) - len(bad))} of short side {size} to {target}')


def _check_folders(source: Path, target: Path, unfinished: Path) -> None:
    if target.exists():
        raise UserError(f'{target} exists already; choose another folder')
    if source.resolve() in target.resolve().parents:
        raise UserError(f'{target} lies inside {source}; choose a folder elsewhere')
    if source.resolve() == unfinished.resolve():
        raise UserError(f'{source} is what an interrupted --pack has left')


def _run(
    job: Callable[[str], Optional[str]], paths: list[str], *, workers: int, complaint: str
) -> list[str]:
    """Do the job with every path; returns those with which something is wrong, and names them."""
    bad = []
    with parallel(job, paths, workers=workers) as results:
        for path, problem in tqdm(results, total=len(paths), disable=not can_redraw(sys.stderr)):
            if problem:
                bad.append(path)
                tqdm.write(f'{complaint}{legible(path)} {problem}', file=sys.stdout)
    return bad


def _packed_names(names: list[str]) -> list[str]:
    """a.png -> a.png.jpg, but not where there is a picture of that name already."""
    jpegs = {name for name in names if name.lower().endswith(('.jpg', '.jpeg'))}
    taken, packed = set(jpegs), []
    for name in names:
        folder, new = os.path.split(name)
        path = name
        while name not in jpegs and (path == name or path in taken):
            new = _short(f'{new}.jpg')
            path = os.path.join(folder, new)
        taken.add(path)
        packed.append(path)
    return packed


def _short(name: str) -> str:
    """A name that is longer than file systems allow, its beginning made a checksum."""
    data = os.fsencode(name)
    return name if len(data) <= LONGEST_NAME else f'{zlib.crc32(data):08x}{name[-32:]}'


def _packed_list(data: bytes, listed: str, packed: dict[str, Optional[str]]) -> bytes:
    """A list of labels with the new names, and without what was left out (None)."""
    new = {
        os.path.basename(name): os.path.basename(written) if written else None
        for name, written in packed.items()
        if _listed_in(os.path.dirname(listed), os.path.dirname(name))
    }
    text = decoded(data, 'surrogateescape')
    lines = [_packed_line(line, new) for line in text.split('\n')]
    return '\n'.join(line for line in lines if line is not None).encode(errors='surrogateescape')


def _listed_in(folder: str, place: str) -> bool:
    """Whether a list in `folder` may be of the pictures there."""
    above, name = os.path.split(place)
    return place == folder or (above == folder and split_word(name) in TEST_WORDS)


def _packed_line(line: str, new: dict[str, Optional[str]]) -> Optional[str]:
    """The line of a list, its picture's name the new one; None where that was left out."""
    for name, _ in readings(line.strip()):
        old = file_name(name)
        written = new.get(old, old)
        if written is None:
            return None
        if written != old:
            return line.replace(old, written, 1)
    return line


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))


def _packed(data: bytes, size: int, quality: int, max_pixels: int) -> bytes:
    """The picture as a JPEG; as it is, if it is a small one already."""
    picture = open_picture(data, max_pixels)
    pixels = picture.pixels()
    height, width = pixels.shape[:2]
    if min(height, width) > size:
        shape = resized(height, width, size)
        image = Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    elif isinstance(picture, Jpeg) and picture.orientation == 1:
        return data
    if max(pixels.shape) > JPEG_SIDE:
        raise BadPicture(f'is too long for a JPEG, whose sides are at most {JPEG_SIDE}')
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling='420'))


def _pictures(folder: Path) -> tuple[list[str], list[str]]:
    """The pictures below a folder, and the lists of labels."""
    if not folder.is_dir():
        raise UserError(f'{folder} is not a folder')
    others: list[str] = []
    paths = sorted(walk(str(folder), others))
    lists = sorted(path for path in others if os.path.basename(path) in LABEL_LISTS)
    others = [path for path in others if path not in lists]
    if not paths:
        there = f', but {describe_left_out(others)}' if others else ''
        raise UserError(f'no pictures below {folder}{there}')
    if others:
        print(f'left out of {folder}: {describe_left_out(others)}')
    return paths, lists
