"""Images of many requests gathered into batches: a bounded queue, and a thread for each network.

    batcher = Batcher([predictor.logits], max_batch=16, max_delay_s=0.002, capacity=256)
    with batcher.place(1, deadline=time.monotonic() + 30) as place:    # or Busy, at once
        images = ...                                                   # read, decode
        answer = await place.run(images)

Nothing here knows of HTTP. A place is taken before the images are decoded, so that a request that
cannot be answered costs nothing, and so that a thread knows whether waiting for more makes sense:
only while somebody holds a place and is still decoding. A lone request is never held up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Callable, Iterator, Optional, Sequence, Union

import numpy as np

logger = logging.getLogger(__name__)

Network = Callable[[np.ndarray], np.ndarray]  # [N, ...] -> float32 [N, classes]


class Busy(Exception):
    """The queue is full."""


class Closing(Exception):
    """Nothing new is taken."""


class Expired(Exception):
    """The deadline has passed."""


class Failed(Exception):
    """The network raised; the log has the traceback."""


@dataclass(frozen=True)
class Answer:
    """What became of one request's images."""

    logits: np.ndarray  # float32 [N, classes]
    queue_s: float
    network_s: float  # of the whole batch
    batch: int  # images that ran together


class Place:
    """Room in the queue for some images, from `Batcher.place`."""

    def __init__(self, batcher: Batcher, size: int, deadline: float) -> None:
        self.size = size
        self.deadline = deadline
        self.images: Optional[np.ndarray] = None  # None while they are still to come
        self.since = 0.0
        self.future: Optional[asyncio.Future[Answer]] = None
        self._batcher = batcher

    async def run(self, images: np.ndarray) -> Answer:
        """The network's answer to as many images as were announced. To be called once.

        Expired when the deadline comes first, Failed if the network raises.
        """
        if len(images) != self.size:
            raise ValueError(f'{len(images)} images in a place for {self.size}')
        self.future = asyncio.get_running_loop().create_future()
        self.since = time.monotonic()
        self._batcher._enter(self, images)
        try:
            return await asyncio.wait_for(self.future, self.deadline - self.since)
        except asyncio.TimeoutError:
            raise Expired from None

    def wanted(self, now: float) -> bool:
        """Whether anybody still waits for the answer."""
        return self.future is not None and not self.future.done() and now < self.deadline


class Batcher:
    """Runs each of `networks` in a thread of its own, on batches from one queue.

    max_batch: images a batch, and the most that one request may have
    max_delay_s: how long the first of a batch may wait for others that are on their way
    capacity: images that may wait, those on their way included
    on_batch: hears of each batch's images and seconds; called by the threads
    """

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        max_batch: int,
        max_delay_s: float,
        capacity: int,
        on_batch: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._capacity = capacity
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._queue: deque[Place] = deque()
        self._held = 0  # images, of the queue and of those that are coming
        self._coming = 0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(network,), daemon=True, name='network')
            for network in networks
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Images that hold a place and do not run yet."""
        return self._held

    @contextlib.contextmanager
    def place(self, size: int, *, deadline: float) -> Iterator[Place]:
        """Room for that many images until the block ends. Busy or Closing if there is none.

        deadline: of time.monotonic()
        """
        if not 1 <= size <= self.max_batch:
            raise ValueError(f'{size} images, of at most {self.max_batch}')
        place = Place(self, size, deadline)
        with self._changed:
            if self._closing:
                raise Closing
            if self._held + size > self._capacity:
                raise Busy
            self._held += size
            self._coming += size
        try:
            yield place
        finally:
            self._leave(place)

    def close(self, *, timeout_s: float) -> bool:
        """Take nothing new and answer what has a place; whether that was done in time.

        Blocks, so an event loop that waits for answers must not be the one that calls it.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _enter(self, place: Place, images: np.ndarray) -> None:
        with self._changed:
            place.images = images
            self._coming -= place.size
            self._queue.append(place)
            self._changed.notify_all()

    def _leave(self, place: Place) -> None:
        """Give back what the place still holds: nothing if it has been run."""
        with self._changed:
            if place.images is None:
                self._coming -= place.size
                self._held -= place.size
            elif place in self._queue:
                self._queue.remove(place)
                self._held -= place.size
            self._changed.notify_all()

    def _work(self, network: Network) -> None:
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            _deliver(batch, self._run(network, batch))

    def _next_batch(self) -> Optional[list[Place]]:
        """Wait for one; None when all is closed and done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or (self._closing and not self._held))
                if not self._queue:
                    return None
                self._let_more_come()
                batch = self._take()
                if batch:
                    return batch

    def _let_more_come(self) -> None:
        until = self._queue[0].since + self._max_delay_s
        while self._queue and self._coming and self._held - self._coming < self.max_batch:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> list[Place]:
        """From the queue's head as much as fits; what nobody waits for any more is dropped."""
        batch: list[Place] = []
        images, now = 0, time.monotonic()
        while self._queue and images + self._queue[0].size <= self.max_batch:
            place = self._queue.popleft()
            self._held -= place.size
            if place.wanted(now):
                batch.append(place)
                images += place.size
        return batch

    def _run(self, network: Network, batch: list[Place]) -> Union[list[Answer], Failed]:
        """An answer for each place. Whatever the network does, its thread lives on."""
        start = time.monotonic()
        try:
            images = np.concatenate([place.images for place in batch if place.images is not None])
            logits = network(images)
            if len(logits) != len(images):
                raise ValueError(f'{len(logits)} rows of logits for {len(images)} images')
            seconds = time.monotonic() - start
            self._on_batch(len(images), seconds)
        except BaseException:
            logger.exception('a batch of %d requests failed', len(batch))
            return Failed()
        ends = np.cumsum([place.size for place in batch])
        return [
            Answer(logits[end - place.size : end], start - place.since, seconds, len(images))
            for place, end in zip(batch, ends)
        ]


def _deliver(batch: list[Place], outcome: Union[list[Answer], Failed]) -> None:
    """Hand over to the event loop that all of the batch's requests wait in."""
    assert batch[0].future is not None
    loop = batch[0].future.get_loop()
    with contextlib.suppress(RuntimeError):  # it is closed, and nobody waits any more
        loop.call_soon_threadsafe(_settle, batch, outcome)


def _settle(batch: list[Place], outcome: Union[list[Answer], Failed]) -> None:
    for number, place in enumerate(batch):
        if place.future is None or place.future.done():
            continue
        if isinstance(outcome, Failed):
            place.future.set_exception(Failed())
        else:
            place.future.set_result(outcome[number])
