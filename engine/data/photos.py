"""Batches of pictures on disk, read by a pool of threads while the network trains.

Threads, not processes: the decoders and resizers release Python's lock, so that threads keep all
cores busy, and nothing is copied between processes, no worker can die unseen, and a small /dev/shm
doesn't matter.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Callable, Iterator, Optional

import cv2
import numpy as np

from engine.data.batches import Array, Batch, Batches
from engine.data.buffers import Memory
from engine.data.class_names import legible
from engine.data.parallel import parallel
from engine.data.pictures import (
    JPEG,
    JPEG_END,
    PNG,
    EvalView,
    TrainView,
    open_picture,
    require_header,
)
from engine.data.sources.folder import Files
from engine.errors import UserError
from engine.machine import collectives, processes
from predictor.pictures import MAX_PIXELS, BadPicture

AHEAD = 2  # batches that are being read while one is used
PARTS = 4  # of a batch, a thread: few, because handing over costs time, and enough to share evenly
QUICK_CHECK_S = 10.0  # how long the check before the first step may take
HEAD = 2**16  # bytes that hold a picture's size, unless its header is huge
ENDS = {JPEG: JPEG_END, PNG: b'IEND'}  # what is among the last bytes, if all are there
MAX_BYTES = 2**30  # of a file: a larger one is an accident
MAX_REPORTED = 100  # bad files that are named on the console
OTHERS = 8  # images that are tried when a whole batch cannot be read
OF_IMAGE, OF_OTHERS = 1, 2  # kinds of random streams

Report = Callable[[str], None]


@dataclass(frozen=True)
class Photos:
    """An ImageSet on disk."""

    files: Files
    view: EvalView
    workers: int = 1
    skip_bad: bool = False  # go on without files that cannot be read
    report: Report = print  # gets a line for each of those
    bad: set[str] = field(default_factory=set)  # those found while reading

    @property
    def labels(self) -> np.ndarray:
        return self.files.labels

    def __len__(self) -> int:
        return len(self.files)

    def pictures(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._picture(self.files.paths[row]) for row in rows])

    def _picture(self, path: str) -> np.ndarray:
        try:
            return np.asarray(self.view(read_file(path))[0].transpose(2, 0, 1))
        except BadPicture as problem:  # it was good when it was measured
            raise UserError(f'{legible(path)} {problem}') from None


class PhotoBatches(Batches):
    """Each image draws from a generator seeded by (seed, epoch, its place in the set): the same for
    any batch size and any number of processes and threads. Of an epoch that is not used to its end,
    nothing goes on in the background.

    With `on_device`, pixels go up as bytes and are normalised there, unless something is to be done
    to normalised images; they are the same to the rounding of float32.
    """

    images: Photos

    def __init__(
        self,
        images: Photos,
        *,
        view: TrainView | EvalView,
        on_device: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(images, **options)
        self._view = view
        self._views = 5 if isinstance(view, EvalView) and view.five_crops else 1
        # Pixel value -> what the batch holds, a row a channel.
        grey = np.arange(256)
        self._table = ((grey - self.mean[:, None]) / self.std[:, None]).astype(np.float32)
        self._upload: Optional[Callable[[np.ndarray], Array]] = None
        if on_device and not self.augmentation.of_normalised:
            from engine.data.on_device import Normaliser

            self._table = np.tile(grey.astype(np.uint8), (3, 1))
            self._upload = Normaliser(self.mean, self.std).upload

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.images.workers, 'reader')
        stop = threading.Event()
        waiting: deque[_Reading] = deque()
        memory = Memory(self._table.dtype)
        try:
            for rows, rng in self.remaining():
                images = memory.take((len(rows), self._views, 3, self._view.size, self._view.size))
                waiting.append(self._start(pool, stop, rows, rng, images))
                if len(waiting) > AHEAD:
                    yield self._end(waiting.popleft())
            while waiting:
                yield self._end(waiting.popleft())
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _start(
        self,
        pool: ThreadPoolExecutor,
        stop: threading.Event,
        rows: np.ndarray,
        rng: np.random.Generator,
        images: np.ndarray,
    ) -> _Reading:
        parts = np.array_split(np.arange(len(rows)), PARTS * self.images.workers)
        readers = [
            pool.submit(self._read, stop, rows[part], images[part[0] :])
            for part in parts
            if len(part)
        ]
        return _Reading(rows, rng, images, readers)

    def _read(
        self, stop: threading.Event, rows: np.ndarray, out: np.ndarray
    ) -> list[Optional[str]]:
        """Read, crop and normalise some pictures into `out`; what is wrong with each, or None."""
        return [self._read_one(row, to) for row, to in zip(rows, out) if not stop.is_set()]

    def _read_one(self, row: int, out: np.ndarray) -> Optional[str]:
        path = self.images.files.paths[row]
        try:
            data = read_file(path)
            views = self._view(data, self._rng(row, OF_IMAGE))
        except BadPicture as problem:
            return str(problem)
        except Exception as error:
            raise RuntimeError(f'while reading {legible(path)}') from error
        for view, channels in zip(views, out):
            for channel, values, table in zip(cv2.split(view), channels, self._table):
                cv2.LUT(channel, table, dst=values)
        return None

    def _rng(self, row: int, kind: int) -> np.random.Generator:
        # Streams that differ only by zeros at the end are one: the kind is never 0, and its place
        # lies beyond those that Batches uses.
        return np.random.default_rng([self.seed, self.epoch, row, 0, kind])

    def _end(self, reading: _Reading) -> Batch:
        problems = [problem for reader in reading.readers for problem in reader.result()]
        good = np.array([problem is None for problem in problems], dtype=bool)
        images, rows = reading.images, reading.rows
        if not good.all():
            self._report(rows[~good], [problem for problem in problems if problem])
            images, rows = (images[good], rows[good]) if good.any() else self._other(reading)
        batch = self.finish(images.reshape(-1, *images.shape[2:]), rows, reading.rng)
        if self._upload is None or not len(rows):
            return batch
        return batch._replace(images=self._upload(np.asarray(batch.images)))

    def _other(self, reading: _Reading) -> tuple[np.ndarray, np.ndarray]:
        """Instead of a batch of which nothing can be read: one other image, as a step of training
        needs one; none in an evaluation. UserError if the others cannot be read either."""
        rng = self._rng(int(reading.rows[0]), OF_OTHERS)
        for row in rng.integers(0, len(self.images), OTHERS):
            if self._read_one(row, reading.images[0]) is None:
                count = 1 if self.shuffle else 0
                return reading.images[:count], np.full(count, row)
        raise UserError('not one image of a batch can be read; is data.root still there?')

    def _report(self, rows: np.ndarray, problems: list[str]) -> None:
        bad, report = self.images.bad, self.images.report
        for row, problem in zip(rows, problems):
            path = self.images.files.paths[row]
            if not self.images.skip_bad:
                raise UserError(f'{legible(path)} {problem}; {_ADVICE}')
            if path in bad:
                continue
            bad.add(path)
            if len(bad) <= MAX_REPORTED:
                report(f'left out: {legible(path)} {problem}')
            if len(bad) == MAX_REPORTED:
                report('more will be left out without a line each')


@dataclass(frozen=True)
class _Reading:
    """A batch whose images are being read."""

    rows: np.ndarray
    rng: np.random.Generator
    images: np.ndarray
    readers: list[Future[list[Optional[str]]]]


_ADVICE = (
    'remove it, or go on without such files with -o data.on_bad_file=skip '
    '(python3 -m engine.data --check DIR finds them all)'
)


def read_file(path: str) -> bytes:
    """BadPicture if it is not there or may not be read."""
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


def without_bad_files(
    files: Files, *, skip: bool, workers: int, report: Report, max_pixels: int = MAX_PIXELS
) -> Files:
    """Look at the beginning and the end of the files before training.

    Finds what is missing, empty, no picture, too large or cut off. Raises UserError that names
    one, after some seconds at most; or with `skip` looks at all and returns the rest. The processes
    share the work and the result.
    """
    deadline = time.monotonic() + QUICK_CHECK_S
    shuffled = np.random.default_rng(0).permutation(len(files))
    mine = shuffled[processes.RANK :: processes.WORLD_SIZE].tolist()
    bad: dict[int, str] = {}
    done = 0

    def check(row: int) -> Optional[str]:
        return check_quickly(files.paths[row], max_pixels)

    # They wait for the disk most of the time, so more threads than cores.
    threads = max(8, workers)
    with parallel(check, mine, workers=threads) as checks:
        for row, problem in checks:
            done += 1
            if problem:
                bad[row] = problem
            if time.monotonic() > deadline:
                if not skip:
                    break
                # What is left out must not depend on the speed of a disk, or a resumed run would
                # see its images in another order.
                report(f'checked {done:,} of {len(mine):,} files')
                deadline += 10 * QUICK_CHECK_S
    for row in sorted(bad)[:MAX_REPORTED]:
        report(f'bad file: {legible(files.paths[row])} {bad[row]}')
    flags = np.zeros(len(files) + 1)
    flags[list(bad)] = 1
    flags[-1] = len(mine) - done
    flags = collectives.sum_over_ranks(flags)
    good, count, left = np.flatnonzero(flags[:-1] == 0), int(flags[:-1].sum()), int(flags[-1])
    if left and processes.RANK == 0:
        report(
            f'checked files for {QUICK_CHECK_S:.0f} s; {left:,} of {len(files):,} are '
            'left for when they are read (python3 -m engine.data --check DIR checks all)'
        )
    if not count:
        return files
    if not skip:
        row = min(bad, default=int(flags[:-1].argmax()))
        problem = bad.get(row) or check(row)
        more = f', and so are {count - 1:,} more of {len(files):,}' if count > 1 else ''
        raise UserError(f'{legible(files.paths[row])} {problem}{more}; {_ADVICE}')
    if not len(good):
        raise UserError(
            f'none of {len(files):,} files can be read, {legible(files.paths[0])} for one'
        )
    if processes.RANK == 0:
        report(f'{count:,} of {len(files):,} files are left out, because they cannot be read')
    return files.only(good)


def check_quickly(path: str, max_pixels: int = MAX_PIXELS) -> Optional[str]:
    """What is wrong with a file as far as its beginning and its end tell; None if nothing."""
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
