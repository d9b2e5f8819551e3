"""Picture files before their pixels are used: read safely, and checked by several threads."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Callable, Iterator, Optional, Sequence, TypeVar

import numpy as np

from engine.data.dataset import Files
from engine.data.pictures import JPEG, JPEG_END, open_picture, require_header
from engine.errors import UserError
from engine.machine import collectives, processes
from predictor.answers import legible
from predictor.pictures import MAX_PIXELS, PNG, BadPicture

QUICK_CHECK_S = 10.0  # how long the check before the first step may take
HEAD = 2**16  # bytes that hold a picture's size, unless its header is huge
ENDS = {JPEG: JPEG_END, PNG: b'IEND'}  # what is among the last bytes, if all are there
MAX_BYTES = 2**30  # of a file: a larger one is an accident
MAX_REPORTED = 100  # bad files that are named on the console
BLOCK = 1000  # tasks that exist at a time, so that a million of them fit into memory
ADVICE = (
    'remove it, or leave such files out with -o data.on_bad_file=skip '
    '(python3 -m engine.data --check DIR finds them all)'
)

Item = TypeVar('Item')
Result = TypeVar('Result')
Report = Callable[[str], None]


def without_bad_files(
    files: Files, *, skip: bool, workers: int, report: Report, max_pixels: int = MAX_PIXELS
) -> Files:
    """Look at the beginning and the end of the files before training.

    Finds what is missing, empty, not a picture, too large or truncated. Raises UserError that names
    one, after some seconds at most; or with `skip` looks at all and returns the rest. The processes
    share the work and the result.
    """

    def check(row: int) -> Optional[str]:
        return check_quickly(files.paths[row], max_pixels)

    bad, unchecked = _check_own_part(
        check, len(files), within_s=None if skip else QUICK_CHECK_S, workers=workers, report=report
    )
    for row in sorted(bad)[:MAX_REPORTED]:
        report(f'bad file: {legible(files.paths[row])} {bad[row]}')
    flags = np.zeros(len(files) + 1)
    flags[list(bad)] = 1
    flags[-1] = unchecked
    flags = collectives.sum_over_ranks(flags)
    good, count, unchecked = np.flatnonzero(flags[:-1] == 0), int(flags[:-1].sum()), int(flags[-1])
    if unchecked and processes.RANK == 0:
        report(
            f'checked files for {QUICK_CHECK_S:.0f} s; {unchecked:,} of {len(files):,} are '
            'left for when they are read (python3 -m engine.data --check DIR checks all)'
        )
    if not count:
        return files
    if not skip:
        row = min(bad, default=int(flags[:-1].argmax()))
        problem = bad.get(row) or check(row)
        more = f', and so are {count - 1:,} more of {len(files):,}' if count > 1 else ''
        raise UserError(f'{legible(files.paths[row])} {problem}{more}; {ADVICE}')
    if not len(good):
        raise UserError(f'none of {len(files):,} files can be read, e.g. {legible(files.paths[0])}')
    if processes.RANK == 0:
        report(f'{count:,} of {len(files):,} files are left out, because they cannot be read')
    return files.only(good)


def _check_own_part(
    check: Callable[[int], Optional[str]],
    count: int,
    *,
    within_s: Optional[float],
    workers: int,
    report: Report,
) -> tuple[dict[int, str], int]:
    """This process's part of `count` files, in random order: row -> problem, and how many files
    the time was too short for. Without a limit, all are checked, however slow the disk is: what is
    left out must not depend on its speed, or a resumed run would see another order."""
    next_report = time.monotonic() + (within_s or QUICK_CHECK_S)
    order = np.random.default_rng(0).permutation(count)
    mine = order[processes.RANK :: processes.WORLD_SIZE].tolist()
    bad: dict[int, str] = {}
    done = 0
    # They wait for the disk most of the time, so more threads than cores.
    with parallel(check, mine, workers=max(8, workers)) as checks:
        for row, problem in checks:
            done += 1
            if problem:
                bad[row] = problem
            if time.monotonic() > next_report:
                if within_s is not None:
                    break
                report(f'checked {done:,} of {len(mine):,} files')
                next_report += 10 * QUICK_CHECK_S
    return bad, len(mine) - done


def check_quickly(path: str, max_pixels: int = MAX_PIXELS) -> Optional[str]:
    """What is wrong with a file, judged by its beginning and its end; None if nothing."""
    try:
        with _open(path) as file:
            head = file.read(HEAD)
            file.seek(max(0, file.seek(0, os.SEEK_END) - 64))
            tail = file.read()
        require_header(head, max_pixels)
        if any(head.startswith(start) and end in tail for start, end in ENDS.items()):
            return None
    except OSError as error:
        return f'cannot be read ({error.strerror})'
    except BadPicture:  # or its header is longer than HEAD
        pass
    return check_fully(path, max_pixels)


def check_fully(path: str, max_pixels: int = MAX_PIXELS) -> Optional[str]:
    """What is wrong with a file, every pixel decoded; None if nothing."""
    try:
        open_picture(read_file(path), max_pixels).pixels()
    except BadPicture as problem:
        return str(problem)
    return None


def read_file(path: str) -> bytes:
    """BadPicture if it is missing or may not be read."""
    try:
        with _open(path) as file:
            return file.read()
    except OSError as error:
        raise BadPicture(f'cannot be read ({error.strerror})') from None


def _open(path: str) -> BinaryIO:
    """BadPicture if it is a pipe, whose opening would wait for ever, or a device, or huge."""

    def without_waiting(path: str, flags: int) -> int:
        return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))  # Windows has no such pipes

    file = open(path, 'rb', opener=without_waiting)  # noqa: SIM115
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES:
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise BadPicture('is not a file')
    raise BadPicture(f'has {status.st_size:,} bytes, more than {MAX_BYTES:,}')


@contextlib.contextmanager
def parallel(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Iterator[tuple[Item, Result]]]:
    """Within the block, each item and the function's result for it, in order.

    Threads: reading, decoding and resizing release Python's lock. Leaving the block early, by an
    error or Ctrl-C, cancels what has not begun.
    """
    pool = ThreadPoolExecutor(workers)

    def results() -> Iterator[tuple[Item, Result]]:
        for start in range(0, len(items), BLOCK):
            block = items[start : start + BLOCK]
            yield from zip(block, pool.map(function, block))

    try:
        yield results()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
