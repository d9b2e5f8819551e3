"""Pictures on disk: which ones an argument means, their labels, and their pixels, read ahead."""

from __future__ import annotations

import glob
import os
import stat
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Optional, Sequence

import numpy as np

from predictor.errors import UserError
from predictor.folder import Input
from predictor.listing import describe_left_out, walk
from predictor.pictures import SUFFIXES, BadPicture, centre, read_picture

MAX_BYTES = 2**30  # of a file: a larger one is an accident
BATCHES_AHEAD = 2


class Picture(NamedTuple):
    path: Path
    pixels: Optional[np.ndarray]  # uint8 [size, size, 3], or None
    error: str = ''  # why there are none


def find_pictures(arguments: Sequence[str], *, tell: Callable[[str], None]) -> list[Path]:
    """Files as they are named, those of folders and below, and what patterns match; in order."""
    found: dict[Path, None] = {}
    for argument in arguments:
        paths = [Path(argument)]
        if not paths[0].exists():
            paths = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
        if not paths:
            raise UserError(f'{argument}: there is nothing')
        for path in paths:
            files = _below(path, tell) if path.is_dir() else [path]
            found.update(dict.fromkeys(files))
    return list(found)


def _below(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    others: list[str] = []
    files = sorted(map(Path, walk(str(folder), SUFFIXES, others)))
    if not files:
        there = f', but {describe_left_out(others)}' if others else ''
        raise UserError(f'{folder} holds no pictures ({", ".join(SUFFIXES)}){there}')
    if others:
        tell(f'left out of {folder}: {describe_left_out(others)}')
    return files


def find_labels(source: str, pictures: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """The class of each picture: 'folder': that it lies in; or a file of lines `picture class`.

    In a file, pictures are named as from its own folder, and a class by number or name.
    """
    if source == 'folder':
        # As it is named, not `resolve`: a link says the class, not what it leads to.
        folders = [os.path.basename(os.path.dirname(os.path.abspath(path))) for path in pictures]
        where = (f'{path}, its folder' for path in pictures)
        return [_class(name, place, classes) for name, place in zip(folders, where)]
    named = _read_labels(Path(source), classes)
    missing = [path for path in pictures if path.resolve() not in named]
    if missing:
        raise UserError(f'{source} has no line for {missing[0]} ({len(missing)} such pictures)')
    return [named[path.resolve()] for path in pictures]


def _read_labels(file: Path, classes: Sequence[str]) -> dict[Path, int]:
    try:
        lines = file.read_text(encoding='utf-8-sig').split('\n')
    except FileNotFoundError:
        raise UserError(
            f"--labels {file}: there is no such file; 'folder' takes folders' names"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'--labels {file} cannot be read: {error}') from None
    named = {}
    by_number = not any(name.isdecimal() for name in classes)  # or '1' could mean either
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        # Either may hold spaces; where both do, a tab tells them apart.
        ways = [text.split('\t', 1), text.split(None, 1), text.rsplit(None, 1)]
        ways = [way for way in ways if len(way) == 2]
        if not ways:
            raise UserError(f'{file}, line {number}: not a picture and a class')
        picture, name = next((way for way in ways if way[1].strip() in classes), ways[-1])
        label = _class(name.strip(), f'{file}, line {number}', classes, by_number=by_number)
        named[(file.parent / picture.strip()).resolve()] = label
    return named


def _class(name: str, where: str, classes: Sequence[str], *, by_number: bool = False) -> int:
    if by_number and name.isdecimal() and int(name) < len(classes):
        return int(name)
    if name not in classes:
        some = ', '.join(classes[:3]) + (' ...' if len(classes) > 3 else '')
        raise UserError(f'{where}: {name!r} is no class of the model ({some})')
    return classes.index(name)


def _content(path: Path) -> bytes:
    """BadPicture instead of waiting for a pipe, or for the end of a device."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadPicture('is not a file')
    if status.st_size > MAX_BYTES:
        raise BadPicture(f'has {status.st_size:,} bytes, more than {MAX_BYTES:,}')
    return path.read_bytes()


def read_ahead(
    paths: Sequence[Path], view: Input, *, batch: int, workers: int
) -> Iterator[list[Picture]]:
    """The pictures in batches; while one is used, the next ones are read by threads."""

    def read(path: Path) -> Picture:
        try:
            image = read_picture(_content(path))
            return Picture(path, centre(image, size=view.size, resize=view.resize))
        except BadPicture as error:
            return Picture(path, None, str(error))
        except OSError as error:
            return Picture(path, None, f'cannot be read ({error.strerror})')

    waiting: deque[list[Future[Picture]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for start in range(0, len(paths), batch):
                waiting.append([pool.submit(read, path) for path in paths[start : start + batch]])
                if len(waiting) > BATCHES_AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:  # the caller may leave early
            for future in (future for futures in waiting for future in futures):
                future.cancel()
