"""One exported network as the routes use it: its batches, its threads, its limits, its metrics."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Awaitable, Callable, Sequence, TypeVar

from starlette.requests import ClientDisconnect, Request

from predictor import Predictor, machine
from server.batching import Batcher, DeadlineExceeded, Stopping
from server.limits import Limits
from server.metrics import Metrics
from server.uploads import Body, Uploads

T = TypeVar('T')

MAX_DECODERS = 4  # threads: a large picture takes a gigabyte while it is decoded


class Service:
    """predictors: one for each thread that runs the network"""

    def __init__(self, predictors: Sequence[Predictor], limits: Limits) -> None:
        self.predictor = predictors[0]
        self.description = self.predictor.description
        self.limits = limits
        self.stopping = False
        self.metrics = Metrics(max_batch=limits.max_batch)
        self.batcher = Batcher(
            [predictor.logits for predictor in predictors],
            max_batch=limits.max_batch,
            max_delay_s=limits.max_delay_s,
            capacity=limits.queue,
            on_batch=self.metrics.count_batch,
        )
        threads = min(machine.cores(), MAX_DECODERS)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix='decoder')
        self.uploads = Uploads(limits, self._threads)
        gauge = self.metrics.add_gauge
        gauge('classifier_queue_images', 'Images waiting', lambda: self.batcher.depth)
        gauge('classifier_bodies_bytes', 'Bodies in memory', lambda: self.uploads.held)

    def stop(self) -> None:
        """Be no longer ready. Clients that have connected are still answered."""
        self.stopping = True

    def require_ready(self) -> None:
        if self.stopping:
            raise Stopping

    def close(self, *, timeout_s: float) -> bool:
        """Answer what waits, and end the threads; whether that was done in time."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        return self.batcher.close(timeout_s=timeout_s)

    def deadline(self) -> float:
        """Of a request whose body has arrived now."""
        return time.monotonic() + self.limits.answer_s

    async def in_thread(self, work: Callable[[bytes], T], body: Body, deadline: float) -> T:
        """`work` of the bytes of the body, in a thread."""
        try:
            return await asyncio.wait_for(body.in_thread(work), deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise DeadlineExceeded from None


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`. When the client leaves, it is cancelled: ClientDisconnect."""

    async def disconnected() -> None:
        while (await request.receive())['type'] != 'http.disconnect':
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
