"""Threads for work whose libraries release Python's lock: reading files, decoding, resizing."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator, Sequence, TypeVar

BLOCK = 1000  # tasks that exist at a time, so that a million of them fit into memory

Item = TypeVar('Item')
Result = TypeVar('Result')


@contextlib.contextmanager
def parallel(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Iterator[tuple[Item, Result]]]:
    """Within the block, each item and what the function made of it, in order.

    Whoever leaves the block early, by an error or Ctrl-C, cancels what has not begun.
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
