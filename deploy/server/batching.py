"""Images of many requests gathered into batches: a bounded queue, and a thread for each network.

    batcher = Batcher([predictor.logits], max_batch=16, max_delay_s=0.002, capacity=256)
    with batcher.reserve(1, deadline=time.monotonic() + 30) as slot:   # or QueueFull, at once
        images = ...                                                   # read, decode
        answer = await slot.run(images)

Nothing here depends on HTTP. A slot is reserved before the images are decoded. So a request that
cannot be answered costs nothing, and a thread knows when waiting for a larger batch makes sense:
while other requests have a slot and are being decoded. A lone request never waits.
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


class QueueFull(Exception):
    """There is no room for the images."""


class Stopping(Exception):
    """The server stops, and takes nothing new."""


class DeadlineExceeded(Exception):
    """There was no answer in time."""


class NetworkFailed(Exception):
    """The network raised; the log has the traceback."""


@dataclass(frozen=True)
class Answer:
    """To the images of one request."""

    logits: np.ndarray  # float32 [N, classes]
    queue_s: float
    network_s: float  # of the whole batch
    batch: int  # images that ran together


class Slot:
    """Room in the queue for some images, from `Batcher.reserve`."""

    def __init__(self, batcher: Batcher, size: int, deadline: float) -> None:
        self.size = size
        self.deadline = deadline
        self.images: Optional[np.ndarray] = None  # None until `run`
        self.since = 0.0  # of time.monotonic(), when it entered the queue
        self.future: Optional[asyncio.Future[Answer]] = None  # from `run` on
        self._batcher = batcher

    async def run(self, images: np.ndarray) -> Answer:
        """The network's answer to as many images as were reserved. To be called once.

        DeadlineExceeded when the deadline comes first, NetworkFailed if the network raises.
        """
        if len(images) != self.size:
            raise ValueError(f'{len(images)} images in a slot for {self.size}')
        self.future = asyncio.get_running_loop().create_future()
        self._batcher._enqueue(self, images)
        try:
            return await asyncio.wait_for(self.future, self.deadline - self.since)
        except asyncio.TimeoutError:
            raise DeadlineExceeded from None

    def resolve(self, outcome: Union[Answer, NetworkFailed]) -> None:
        if self.future is None or self.future.done():
            return
        if isinstance(outcome, Answer):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)


class Batcher:
    """Runs each of `networks` in a thread of its own, on batches from one queue.

    max_batch: images a batch, and the most that one request may have
    max_delay_s: how long the first request of a batch may wait for others that are being decoded
    capacity: images that may wait, those that are being decoded included
    on_batch: a callback with each batch's images and seconds; called by the threads
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
        self._queue: deque[Slot] = deque()
        self._queued = 0  # images
        self._decoding = 0  # images that have a slot and are not in the queue yet
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, args=(network,), daemon=True, name='network')
            for network in networks
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Images that have a slot and do not run yet."""
        return self._queued + self._decoding

    @contextlib.contextmanager
    def reserve(self, size: int, *, deadline: float) -> Iterator[Slot]:
        """Room for `size` images until the block ends. QueueFull or Stopping if there is none.

        deadline: of time.monotonic()
        """
        if not 1 <= size <= self.max_batch:
            raise ValueError(f'{size} images, of at most {self.max_batch}')
        slot = Slot(self, size, deadline)
        with self._changed:
            if self._stopping:
                raise Stopping
            if self.depth + size > self._capacity:
                raise QueueFull
            self._decoding += size
        try:
            yield slot
        finally:
            self._release(slot)

    def close(self, *, timeout_s: float) -> bool:
        """Take nothing new and answer what has a slot; whether that was done in time.

        It blocks, so the event loop that waits for answers must not call it.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _enqueue(self, slot: Slot, images: np.ndarray) -> None:
        with self._changed:
            slot.images, slot.since = images, time.monotonic()
            self._decoding -= slot.size
            self._queued += slot.size
            self._queue.append(slot)
            self._changed.notify_all()

    def _release(self, slot: Slot) -> None:
        """Give back what the slot still holds: nothing if it has been run."""
        with self._changed:
            if slot.images is None:
                self._decoding -= slot.size
            elif slot in self._queue:
                self._queue.remove(slot)
                self._queued -= slot.size
            self._changed.notify_all()

    def _work(self, network: Network) -> None:
        while batch := self._next_batch():
            _resolve(batch, self._run(network, batch))

    def _next_batch(self) -> list[Slot]:
        """Wait for one; empty when the batcher is closed and nothing has a slot."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or (self._stopping and not self.depth))
                if not self._queue:
                    return []
                self._wait_for_more()
                if batch := self._take():
                    return batch

    def _wait_for_more(self) -> None:
        end = self._queue[0].since + self._max_delay_s
        while self._queue and self._decoding and self._queued < self.max_batch:
            left = end - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> list[Slot]:
        """As many slots from the queue's head as fit; cancelled and late ones are dropped."""
        batch: list[Slot] = []
        images, now = 0, time.monotonic()
        while self._queue and images + self._queue[0].size <= self.max_batch:
            slot = self._queue.popleft()
            self._queued -= slot.size
            if now < slot.deadline and slot.future is not None and not slot.future.done():
                batch.append(slot)
                images += slot.size
        return batch

    def _run(self, network: Network, batch: list[Slot]) -> Sequence[Union[Answer, NetworkFailed]]:
        """An answer for each slot. Whatever the network raises, its thread continues."""
        start = time.monotonic()
        try:
            images = np.concatenate([slot.images for slot in batch if slot.images is not None])
            logits = network(images)
            if len(logits) != len(images):
                raise ValueError(f'{len(logits)} rows of logits for {len(images)} images')
            seconds = time.monotonic() - start
            self._on_batch(len(images), seconds)
        except BaseException:
            logger.exception('a batch of %d requests failed', len(batch))
            return [NetworkFailed() for _ in batch]
        ends = np.cumsum([slot.size for slot in batch])
        return [
            Answer(logits[end - slot.size : end], start - slot.since, seconds, len(images))
            for slot, end in zip(batch, ends)
        ]


def _resolve(batch: list[Slot], outcomes: Sequence[Union[Answer, NetworkFailed]]) -> None:
    """In the event loop that waits for the batch, in one call: each costs a switch of threads."""

    def resolve() -> None:
        for slot, outcome in zip(batch, outcomes):
            slot.resolve(outcome)

    assert batch[0].future is not None
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits any more
        batch[0].future.get_loop().call_soon_threadsafe(resolve)
