"""Batches of pictures on disk, read by a pool of threads while the network trains.

Threads, not processes: the decoders and resizers release Python's lock, so that threads keep all
cores busy, nothing is copied between processes, and a small /dev/shm doesn't matter.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Callable, Iterator, NamedTuple, Optional

import cv2
import numpy as np

from engine.data.augmentation import normalised_levels
from engine.data.batches import Array, Batch, BatchOptions, HostBatches, ReadImages, RowsToRead
from engine.data.dataset import Files
from engine.data.file_checks import ADVICE, MAX_REPORTED, Report, read_file
from engine.data.pictures import EvalView, TrainView
from engine.errors import UserError
from predictor.answers import legible
from predictor.pictures import BadPicture

AHEAD = 2  # batches that are being read while one is used
PARTS = 4  # of a batch, a thread: few, because handing over costs time, and enough to share evenly
OTHERS = 8  # images that are tried when a whole batch cannot be read
OF_IMAGE, OF_OTHERS = 1, 2  # kinds of random streams


@dataclass(frozen=True)
class Photos:
    """An ImageSet on disk."""

    files: Files
    view: EvalView
    workers: int = 1
    skip_bad: bool = False  # leave out files that cannot be read
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
        except BadPicture as problem:  # the check at the start found no fault
            raise UserError(f'{legible(path)} {problem}') from None

    def report_bad(self, row: int, problem: str) -> None:
        """Report a file once; UserError instead, if such files are not to be left out."""
        path = self.files.paths[row]
        if not self.skip_bad:
            raise UserError(f'{legible(path)} {problem}; {ADVICE}')
        if path in self.bad:
            return
        self.bad.add(path)
        if len(self.bad) <= MAX_REPORTED:
            self.report(f'left out: {legible(path)} {problem}')
        if len(self.bad) == MAX_REPORTED:
            self.report('more will be left out without a line each')


class PhotoBatches(HostBatches):
    """Each image draws from a generator seeded by (seed, epoch, its place in the set): the same for
    any batch size and any number of processes and threads. When the iterator of an epoch is closed
    early, its threads end.

    With `on_device`, pixels are uploaded as bytes and normalised there, unless something is done to
    normalised images; they are the same to the rounding of float32.
    """

    images: Photos

    def __init__(
        self,
        images: Photos,
        options: BatchOptions,
        *,
        view: TrainView | EvalView,
        on_device: bool = False,
    ) -> None:
        super().__init__(images, options)
        self._view = view
        self._views = 5 if isinstance(view, EvalView) and view.five_crops else 1
        # Pixel value -> what the batch holds, a row a channel.
        self._levels = normalised_levels(options.mean, options.std)
        self._upload: Optional[Callable[[np.ndarray], Array]] = None
        if on_device and not options.augmentation.of_normalised:
            from engine.data.on_device import Normaliser

            self._levels = np.tile(np.arange(256, dtype=np.uint8), (3, 1))
            self._upload = Normaliser(options.mean, options.std).upload

    def _read(self, remaining: Iterator[RowsToRead]) -> Iterator[ReadImages]:
        pool = ThreadPoolExecutor(self.images.workers, 'reader')
        stop = threading.Event()
        buffers = BufferPool(self._levels.dtype)

        def start(rows: np.ndarray, rng: np.random.Generator) -> _Reading:
            size = self._view.size
            images = buffers.take((len(rows), self._views, 3, size, size))
            places = np.array_split(np.arange(len(rows)), PARTS * self.images.workers)
            parts = [
                pool.submit(self._read_part, stop, rows[part], images[part[0] :])
                for part in places
                if len(part)
            ]
            return _Reading(rows, rng, images, parts)

        try:
            for reading in _ahead(itertools.starmap(start, remaining)):
                images, rows = self._readable(reading)
                yield images.reshape(-1, *images.shape[2:]), rows, reading.rng
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _finish(self, images: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        batch = super()._finish(images, rows, rng)
        if self._upload is None or not len(rows):
            return batch
        return batch._replace(images=self._upload(np.asarray(batch.images)))

    def _read_part(
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
            for channel, values, levels in zip(cv2.split(view), channels, self._levels):
                cv2.LUT(channel, levels, dst=values)
        return None

    def _rng(self, row: int, kind: int) -> np.random.Generator:
        # Streams that differ only by zeros at the end are one: the kind is never 0, and its place
        # lies beyond those that Batches uses.
        return np.random.default_rng([self.options.seed, self.epoch, row, 0, kind])

    def _readable(self, reading: _Reading) -> tuple[np.ndarray, np.ndarray]:
        """The images of a batch and their rows, when all are read, without the bad ones."""
        problems = [problem for part in reading.parts for problem in part.result()]
        good = np.array([problem is None for problem in problems], dtype=bool)
        if good.all():
            return reading.images, reading.rows
        for row, problem in zip(reading.rows, problems):
            if problem:
                self.images.report_bad(row, problem)
        return (reading.images[good], reading.rows[good]) if good.any() else self._other(reading)

    def _other(self, reading: _Reading) -> tuple[np.ndarray, np.ndarray]:
        """Instead of a batch of which nothing can be read: one other image, as a step of training
        needs one; none in an evaluation. UserError if the others cannot be read either."""
        rng = self._rng(int(reading.rows[0]), OF_OTHERS)
        for row in rng.integers(0, len(self.images), OTHERS):
            if self._read_one(row, reading.images[0]) is None:
                count = 1 if self.options.shuffle else 0
                return reading.images[:count], np.full(count, row)
        raise UserError('not one image of a batch can be read; is data.root still available?')


class _Reading(NamedTuple):
    """A batch whose images are being read."""

    rows: np.ndarray
    rng: np.random.Generator
    images: np.ndarray
    parts: list[Future[list[Optional[str]]]]


def _ahead(started: Iterator[_Reading]) -> Iterator[_Reading]:
    """The same, with AHEAD of them started before one is used."""
    waiting: deque[_Reading] = deque()
    for reading in started:
        waiting.append(reading)
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


class BufferPool:
    """Arrays for batches. The memory of one is used again when it and all its views are gone.

    New memory of that size comes from the system page by page: without the pool, a core reads a
    fifth fewer packed photographs.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self._free: list[bytearray] = []
        self._dtype = dtype

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of that shape with any content."""
        size = math.prod(shape)
        buffer = self._free.pop() if self._free else bytearray()
        if len(buffer) < size * self._dtype.itemsize:
            buffer = bytearray(size * self._dtype.itemsize)
        # NumPy makes this array, which owns no memory of NumPy's, the base of all its views.
        array = np.frombuffer(buffer, self._dtype, size)
        weakref.finalize(array, self._free.append, buffer).atexit = False
        return array.reshape(shape)
