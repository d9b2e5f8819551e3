"""The pictures that predict.py's arguments name: which files, and their pixels, read ahead."""

from __future__ import annotations

import glob
import stat
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Optional, Sequence

import numpy as np

from predictor.errors import UserError
from predictor.exported_folder import Input
from predictor.listing import describe_left_out, walk
from predictor.pictures import MAX_PIXELS, SUFFIXES, BadPicture, centre, read_picture

MAX_BYTES = 2**30  # of a file
BATCHES_AHEAD = 2
STANDARD_INPUT = Path('-')  # a file of this name is ./-


class Picture(NamedTuple):
    path: Path
    pixels: Optional[np.ndarray]  # uint8 [size, size, 3], or None
    error: str = ''  # why there are none


def find_pictures(arguments: Sequence[str], *, report: Callable[[str], None]) -> list[Path]:
    """What arguments name, in order: files, all pictures below folders, matches of patterns.

    What is missing stays in the list, and reading it is an error. UserError if all are missing.
    """
    found: dict[Path, None] = {}
    problems: dict[Path, str] = {}
    for argument in arguments:
        matches = [Path(argument)]
        if not matches[0].exists() and matches[0] != STANDARD_INPUT:
            matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
        if not matches:
            matches = [Path(argument)]
            problems[matches[0]] = f'{argument}: no such file or folder'
        for path in matches:
            files, others = [path], list[str]()
            if path.is_dir():
                files = sorted(map(Path, walk(str(path), SUFFIXES, others)))
            if files and others:
                report(f'left out of {path}: {describe_left_out(others)}')
            if not files:
                text = f', but {describe_left_out(others)}' if others else ''
                problems[path] = f'{path} has no pictures ({", ".join(SUFFIXES)}){text}'
            found.update(dict.fromkeys(files or [path]))
    if len(problems) == len(found):
        raise UserError(next(iter(problems.values())))
    return list(found)


def _content(path: Path) -> bytes:
    """BadPicture for what never ends, such as a pipe or a device, and for what is too large."""
    if path == STANDARD_INPUT:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise BadPicture(f'has more than {MAX_BYTES:,} bytes')
        return data
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise BadPicture('has no pictures')
    if not stat.S_ISREG(status.st_mode):
        raise BadPicture('is not a file')
    if status.st_size > MAX_BYTES:
        raise BadPicture(f'has {status.st_size:,} bytes, more than {MAX_BYTES:,}')
    return path.read_bytes()


def read_ahead(
    paths: Sequence[Path], view: Input, *, batch: int, workers: int, max_pixels: int = MAX_PIXELS
) -> Iterator[list[Picture]]:
    """The pictures in batches; while one is used, threads read the next ones."""

    def read(path: Path) -> Picture:
        try:
            image = read_picture(_content(path), max_pixels=max_pixels)
            return Picture(path, centre(image, size=view.size, resize=view.resize))
        except BadPicture as error:
            return Picture(path, None, str(error))
        except OSError as error:
            return Picture(path, None, f'cannot be read ({error.strerror})')

    def start(path: Path) -> Future[Picture]:
        if path != STANDARD_INPUT:
            return pool.submit(read, path)
        done: Future[Picture] = Future()  # a thread that waits for input cannot be interrupted
        done.set_result(read(path))
        return done

    waiting: deque[list[Future[Picture]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for first in range(0, len(paths), batch):
                waiting.append([start(path) for path in paths[first : first + batch]])
                if len(waiting) > BATCHES_AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:  # the caller may leave early
            for future in (future for futures in waiting for future in futures):
                future.cancel()
