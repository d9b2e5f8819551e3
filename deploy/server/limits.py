"""How much of anything a client may have: bytes, memory, time.

A server that runs for months meets uploads that never end, ten thousand at once, and pictures that
unpack to gigabytes. Each is refused in one line before it costs memory. listening.py does the same
for connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import zlib
from collections.abc import MutableMapping
from concurrent.futures import Executor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Awaitable, Callable, Optional, TypeVar

from starlette.requests import Request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
T = TypeVar('T')

PACKINGS = ('gzip', 'deflate')
RETRY_AFTER = {'Retry-After': '1'}


@dataclass(frozen=True)
class Limits:
    """The defaults are serve.py's."""

    body_bytes: int = 16 << 20
    pixels: int = 64_000_000
    answer_s: float = 30.0  # from a body's last byte
    body_s: float = 60.0  # from its first: 16 MB at 2.2 Mbit/s
    head_s: float = 10.0  # for a request's head, and for a client to read its answer
    linger_s: float = 2.0  # for a client to read why its upload is refused
    connections: int = 1000

    @property
    def bodies_bytes(self) -> int:
        """Of all bodies in memory at a time."""
        return 16 * self.body_bytes


class Refused(Exception):
    """A request that is not answered: the status and one line why. `reason` is for the metrics."""

    def __init__(
        self, status: int, reason: str, text: str, headers: Optional[dict[str, str]] = None
    ) -> None:
        super().__init__(text)
        self.status, self.reason, self.headers = status, reason, headers


class Body:
    """A request's bytes. They count as held until the block ends and no thread uses them."""

    def __init__(self, bodies: Bodies) -> None:
        self.data = b''
        self._bodies, self._held = bodies, 0
        self._users, self._released = 0, False

    def hold(self, size: int) -> None:
        """Count more bytes as held; Refused if all bodies together then exceed the limit."""
        self._bodies.reserve(size)
        self._held += size

    def release(self) -> None:
        with self._bodies.lock:
            self.data, self._released = b'', True
            self._settle()

    def use(self, work: Callable[[bytes], T]) -> T:
        """`work` of the bytes, for a worker thread, which may run longer than the request.

        A task must not refer to the bytes while it waits for a thread: the executor keeps it in its
        queue after it was cancelled. `work` gets b'' if the body was released before.
        """
        with self._bodies.lock:
            self._users += 1
        try:
            return work(self.data)
        finally:
            with self._bodies.lock:
                self._users -= 1
                self._settle()

    def _settle(self) -> None:
        if self._released and not self._users:
            self._bodies.held -= self._held
            self._held = 0

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.release()


class Bodies:
    """Reads the bodies of requests, within the limits. For one event loop."""

    def __init__(self, limits: Limits, workers: Executor) -> None:
        self.held = 0  # bytes that have come: a Content-Length alone reserves nothing
        self.lock = threading.Lock()  # for `held`, which worker threads change, too
        self._limits = limits
        self._workers = workers

    async def read(self, request: Request) -> Body:
        """The whole body, unpacked.

        Refused: 413 too large, 408 too slow, 415 packed in an unknown way, 400 packed badly, 503
        when the others' bodies fill the memory. starlette's ClientDisconnect if the client goes.
        """
        packing = request.headers.get('content-encoding', 'identity').strip().lower()
        if packing not in ('identity', *PACKINGS):
            known = ', '.join(PACKINGS)
            raise Refused(
                415, 'encoding', f'Content-Encoding: {known} or none', {'Accept-Encoding': known}
            )
        most = self._limits.body_bytes
        size = _announced_size(request)
        if size is not None and size > most:
            raise self._too_large()
        body = Body(self)
        try:
            body.data = await self._receive(request, body)
            if packing != 'identity':
                body.hold(most)  # it may unpack to that
                loop = asyncio.get_running_loop()
                body.data = await loop.run_in_executor(self._workers, body.use, self._unpack)
        except BaseException:
            body.release()
            raise
        return body

    def reserve(self, size: int) -> None:
        with self.lock:
            if self.held + size > self._limits.bodies_bytes:
                raise Refused(503, 'memory', 'too many uploads at once; try again', RETRY_AFTER)
            self.held += size

    async def _receive(self, request: Request, body: Body) -> bytes:
        try:
            return await asyncio.wait_for(self._collect(request, body), self._limits.body_s)
        except asyncio.TimeoutError:
            text = f'the body was not there after {self._limits.body_s:g} s'
            raise Refused(408, 'slow_body', text) from None

    async def _collect(self, request: Request, body: Body) -> bytes:
        chunks, size = [], 0
        async for chunk in request.stream():
            body.hold(len(chunk))
            size += len(chunk)
            if size > self._limits.body_bytes:
                raise self._too_large()
            chunks.append(chunk)
        return b''.join(chunks)

    def _unpack(self, data: bytes) -> bytes:
        """Of gzip or zlib, up to the largest body that is allowed."""
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            found = unpacker.decompress(data, self._limits.body_bytes + 1)
        except zlib.error as error:
            raise Refused(400, 'encoding', f'the body cannot be unpacked: {error}') from None
        if len(found) > self._limits.body_bytes:
            raise self._too_large()
        if not unpacker.eof or unpacker.unused_data:
            raise Refused(400, 'encoding', 'the packed body is cut short, or something follows it')
        return found

    def _too_large(self) -> Refused:
        most = self._limits.body_bytes
        return Refused(413, 'too_large', f'the body has more than {most:,} bytes')


class Linger:
    """ASGI: answers a client that is still sending, and gives it time to see the answer.

    Closing a connection with unread bytes resets it, and the client may lose what it was told. So
    the answer goes out, and what comes is thrown away: for `linger_s`, up to the size of a body,
    and no faster, as a client notices the answer when it is held up.
    """

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope['headers'])
        sending = headers.get(b'content-length', b'0') != b'0' or b'transfer-encoding' in headers

        async def hear() -> Message:
            nonlocal sending
            message = await receive()
            sending = message['type'] == 'http.request' and message.get('more_body', False)
            return message

        async def say(message: Message) -> None:
            if sending and message['type'] == 'http.response.start':
                message['headers'] = [*message['headers'], (b'connection', b'close')]
            if not sending or message['type'] != 'http.response.body' or message.get('more_body'):
                await send(message)
                return
            await send({**message, 'more_body': True})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(throw_away(), self._limits.linger_s)
            await send({'type': 'http.response.body', 'body': b''})

        async def throw_away() -> None:
            while sending:
                share = len((await hear()).get('body', b'')) / self._limits.body_bytes
                await asyncio.sleep(share * self._limits.linger_s)

        await self._app(scope, hear, say)


def _announced_size(request: Request) -> Optional[int]:
    """Bytes; None if the client doesn't say."""
    if 'transfer-encoding' in request.headers:
        return None
    return int(request.headers.get('content-length', '0'))
