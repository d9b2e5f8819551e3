"""deploy/server/batching.py: which requests run together, when, and which are refused."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any, Optional

import numpy as np
import pytest

from server.batching import Answer, Batcher, DeadlineExceeded, NetworkFailed, QueueFull, Stopping

PATIENCE_S = 20.0  # seconds; nothing here should ever wait for that long


class Network:
    """Doubles its input. Runs when `go` is set."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.go, self.called = threading.Event(), threading.Event()
        self.error: Optional[BaseException] = None
        self.go.set()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(images[:, 0].tolist())
        self.called.set()
        assert self.go.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return 2 * images


@contextlib.contextmanager
def batcher(*networks: Any, **options: Any):
    given = {'max_batch': 4, 'max_delay_s': 0.0, 'capacity': 8, **options}
    made = Batcher(networks, **given)
    try:
        yield made
    finally:
        for network in networks:
            if isinstance(network, Network):
                network.go.set()
        assert made.close(timeout_s=PATIENCE_S)


def images(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


async def ask(made: Batcher, *values: float, timeout_s: float = PATIENCE_S) -> Answer:
    with made.reserve(len(values), deadline=time.monotonic() + timeout_s) as slot:
        return await slot.run(images(*values))


async def until(true: Any) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError('the condition did not become true in time')


async def behind(network: Network, made: Batcher) -> asyncio.Task[Answer]:
    """Keep the network busy with an image of value 0, until its `go` is set."""
    network.go.clear()
    network.called.clear()
    task = asyncio.ensure_future(ask(made, 0))
    await until(network.called.is_set)
    return task


def test_lone_request_is_answered_at_once():
    """However long a batch may wait for others: none is being decoded."""

    async def main() -> None:
        with batcher(Network(), max_delay_s=PATIENCE_S) as made:
            answer = await asyncio.wait_for(ask(made, 1, 2, 3), 2)
        assert answer.logits[:, 0].tolist() == [2, 4, 6]
        assert answer.batch == 3
        assert 0 <= answer.queue_s < 1
        assert 0 <= answer.network_s < 1

    asyncio.run(main())


def test_batch_waits_for_images_being_decoded():
    async def main() -> None:
        network = Network()
        with batcher(network, max_delay_s=PATIENCE_S) as made:
            with made.reserve(1, deadline=time.monotonic() + PATIENCE_S) as decoding:
                first = asyncio.ensure_future(ask(made, 1))
                await asyncio.sleep(0.1)
                assert network.batches == []
                second = await decoding.run(images(2))
            assert (await first).batch == second.batch == 2
        assert network.batches == [[1, 2]]

    asyncio.run(main())


def test_failed_decoding_ends_the_wait():
    async def main() -> None:
        with batcher(Network(), max_delay_s=PATIENCE_S) as made:
            with made.reserve(1, deadline=time.monotonic() + PATIENCE_S):
                first = asyncio.ensure_future(ask(made, 1))
                await asyncio.sleep(0.05)
                assert not first.done()
            assert (await asyncio.wait_for(first, 2)).batch == 1

    asyncio.run(main())


def test_wait_is_at_most_the_delay():
    async def main() -> None:
        deadline = time.monotonic() + PATIENCE_S
        with batcher(Network(), max_delay_s=0.2) as made, made.reserve(1, deadline=deadline):
            answer = await asyncio.wait_for(ask(made, 1), 5)
        assert 0.19 < answer.queue_s < 2
        assert answer.batch == 1

    asyncio.run(main())


def test_full_batch_does_not_wait():
    async def main() -> None:
        deadline = time.monotonic() + PATIENCE_S
        with batcher(Network(), max_delay_s=PATIENCE_S) as made, made.reserve(1, deadline=deadline):
            assert (await asyncio.wait_for(ask(made, 1, 2, 3, 4), 2)).batch == 4

    asyncio.run(main())


def test_queue_runs_in_order_and_batches_stay_within_the_limit():
    async def main() -> None:
        network = Network()
        with batcher(network) as made:
            busy = await behind(network, made)
            sizes = ((1, 2), (3,), (4, 5), (6, 7, 8))
            waiting = [asyncio.ensure_future(ask(made, *values)) for values in sizes]
            await until(lambda: made.depth == 8)
            network.go.set()
            answers = await asyncio.gather(busy, *waiting)
        assert network.batches == [[0], [1, 2, 3], [4, 5], [6, 7, 8]]
        assert [answer.batch for answer in answers] == [1, 3, 3, 2, 3]
        assert answers[4].logits[:, 0].tolist() == [12, 14, 16]

    asyncio.run(main())


def test_each_request_gets_its_own_rows():
    async def main() -> None:
        rng = np.random.default_rng(0)
        requests = [rng.normal(size=rng.integers(1, 5)).astype(np.float32) for _ in range(300)]
        with batcher(Network(), Network(), capacity=2000, max_delay_s=0.001) as made:
            answers = await asyncio.gather(*(ask(made, *values) for values in requests))
            assert made.depth == 0
        for values, answer in zip(requests, answers):
            np.testing.assert_array_equal(answer.logits[:, 0], 2 * values)

    asyncio.run(main())


def test_networks_run_in_parallel():
    async def main() -> None:
        both = threading.Barrier(2)

        def network(given: np.ndarray) -> np.ndarray:
            both.wait(PATIENCE_S)
            return given

        with batcher(network, network, max_batch=1) as made:
            await asyncio.wait_for(asyncio.gather(ask(made, 1), ask(made, 2)), 5)

    asyncio.run(main())


def test_full_queue_raises_at_once_and_counts_images():
    async def main() -> None:
        network = Network()
        with batcher(network) as made:
            busy = await behind(network, made)  # it runs, and is not in the queue
            waiting = [asyncio.ensure_future(ask(made, 1, 2, 3)) for _ in range(2)]
            await until(lambda: made.depth == 6)
            with pytest.raises(QueueFull):
                await ask(made, 1, 2, 3)
            with made.reserve(
                2, deadline=time.monotonic() + PATIENCE_S
            ):  # one that is being decoded
                with pytest.raises(QueueFull):
                    await ask(made, 1)
                assert made.depth == 8
            assert made.depth == 6
            network.go.set()
            await asyncio.gather(busy, *waiting)
            assert made.depth == 0

    asyncio.run(main())


def test_expired_request_raises_in_time_and_is_not_run():
    async def main() -> None:
        network = Network()
        with batcher(network) as made:
            busy = await behind(network, made)
            start = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await ask(made, 1, timeout_s=0.1)
            assert time.monotonic() - start < 2
            with pytest.raises(DeadlineExceeded):
                await ask(made, 2, timeout_s=-1.0)
            assert made.depth == 0
            network.go.set()
            await busy
            await ask(made, 3)
        assert network.batches == [[0], [3]]

    asyncio.run(main())


def test_thread_checks_the_deadline_itself():
    """It doesn't rely on the event loop, which may be late."""

    async def main() -> None:
        network = Network()
        with batcher(network) as made:
            busy = await behind(network, made)
            late = asyncio.ensure_future(ask(made, 1, timeout_s=0.05))
            await asyncio.sleep(0)
            time.sleep(0.1)  # blocks the event loop, so the request is not cancelled
            network.go.set()
            time.sleep(0.2)
            with pytest.raises(DeadlineExceeded):
                await late
            await busy
        assert network.batches == [[0]]

    asyncio.run(main())


def test_cancelled_request_is_not_run():
    async def main() -> None:
        network = Network()
        with batcher(network) as made:
            busy = await behind(network, made)
            gone, stays = (asyncio.ensure_future(ask(made, value)) for value in (1, 2))
            await until(lambda: made.depth == 2)
            gone.cancel()
            await until(lambda: made.depth == 1)
            network.go.set()
            assert (await stays).batch == 1
            await busy
        assert network.batches == [[0], [2]]

    asyncio.run(main())


@pytest.mark.parametrize('error', [RuntimeError('out of memory'), SystemExit(1)])
def test_failing_network_fails_only_its_batch(error, caplog):
    async def main() -> None:
        network = Network()
        with batcher(network) as made:
            network.error = error
            with pytest.raises(NetworkFailed):
                await ask(made, 1)
            network.error = None
            assert (await ask(made, 2)).logits.tolist() == [[4]]

    asyncio.run(main())
    (record,) = caplog.records
    assert record.exc_info[1] is error


def test_wrong_number_of_logits_is_a_failure():
    async def main() -> None:
        with batcher(lambda given: given[:1]) as made:
            with pytest.raises(NetworkFailed):
                await ask(made, 1, 2)
            await ask(made, 1)

    asyncio.run(main())


def test_close_answers_reserved_slots_and_takes_nothing_new():
    async def main() -> None:
        network = Network()
        made = Batcher([network], max_batch=4, max_delay_s=0, capacity=8)
        busy = await behind(network, made)
        queued = asyncio.ensure_future(ask(made, 1))
        await until(lambda: made.depth == 1)
        with made.reserve(1, deadline=time.monotonic() + PATIENCE_S) as decoding:
            closing = asyncio.ensure_future(asyncio.to_thread(made.close, timeout_s=PATIENCE_S))
            await asyncio.sleep(0.1)
            with pytest.raises(Stopping):
                await ask(made, 2)
            network.go.set()
            assert (await busy).batch == (await queued).batch == 1
            assert not closing.done()
            assert (await decoding.run(images(3))).batch == 1
        assert await closing is True

    asyncio.run(main())


def test_close_gives_up_on_a_hanging_network():
    async def main() -> None:
        network = Network()
        made = Batcher([network], max_batch=4, max_delay_s=0, capacity=8)
        busy = await behind(network, made)
        start = time.monotonic()
        assert made.close(timeout_s=0.1) is False
        assert time.monotonic() - start < 2
        network.go.set()
        await busy

    asyncio.run(main())


def test_closed_event_loop_does_not_end_the_thread():
    network = Network()
    with batcher(network) as made:

        async def leave() -> None:
            await behind(network, made)

        asyncio.run(leave())
        network.go.set()
        assert asyncio.run(ask(made, 1)).logits.tolist() == [[2]]


def test_callback_gets_every_batch():
    batches = []
    with batcher(
        Network(), on_batch=lambda count, seconds: batches.append((count, seconds))
    ) as made:
        asyncio.run(ask(made, 1, 2))
    ((count, seconds),) = batches
    assert count == 2
    assert 0 <= seconds < 1


def test_wrong_number_of_images_is_a_value_error():
    with batcher(Network()) as made:
        for size in (0, 5):
            with pytest.raises(ValueError), made.reserve(size, deadline=0.0):
                pass

        async def more() -> None:
            with made.reserve(1, deadline=time.monotonic() + PATIENCE_S) as slot:
                await slot.run(images(1, 2))

        with pytest.raises(ValueError):
            asyncio.run(more())
        assert made.depth == 0
