"""The bodies of requests: how many bytes each may have, and all of them together in memory.

A server that runs for months meets uploads that never end, a thousand of them at once, and a few
kilobytes that unpack to gigabytes. Each is refused in one line before it costs memory.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from concurrent.futures import Executor, Future
from typing import Any, Callable, Optional, TypeVar

from starlette.requests import Request

from server.errors import RETRY_AFTER, Refused
from server.limits import Limits

T = TypeVar('T')

ENCODINGS = ('gzip', 'deflate')


class Body:
    """The bytes of a request. They count as held until `close`, and until no thread uses them."""

    def __init__(self, uploads: Uploads) -> None:
        self.data = b''
        self._uploads, self._held = uploads, 0
        self._work: Optional[Future[Any]] = None

    def hold(self, size: int) -> None:
        """Count more bytes as held; Refused if all bodies together then exceed the limit."""
        self._uploads.count(size)
        self._held += size

    def in_thread(self, work: Callable[[bytes], T]) -> asyncio.Future[T]:
        """`work` of the bytes, in a thread, which may run longer than the request.

        The task must not refer to the bytes themselves: the executor keeps a cancelled one in its
        queue.
        """
        run = self._work = self._uploads.threads.submit(lambda: work(self.data))
        return asyncio.wrap_future(run)

    def close(self) -> None:
        self.data = b''
        if self._work is None:
            self._free()
        else:
            self._work.cancel()
            self._work.add_done_callback(self._free)  # at once if it is done

    def _free(self, work: Optional[Future[Any]] = None) -> None:
        self._uploads.count(-self._held)
        self._held = 0


class Uploads:
    """Reads the bodies of requests, within the limits. For one event loop."""

    def __init__(self, limits: Limits, threads: Executor) -> None:
        self.held = 0  # bytes that have arrived: a Content-Length alone reserves nothing
        self.threads = threads
        self._limits = limits
        self._lock = threading.Lock()  # for `held`, which the threads change, too

    async def read(self, request: Request) -> Body:
        """The whole body, unpacked; to be closed.

        Refused: 413 too large, 408 too slow, 415 packed in an unknown way, 400 packed wrongly, 503
        when other bodies fill the memory. starlette's ClientDisconnect if the client leaves.
        """
        encoding = request.headers.get('content-encoding', 'identity').strip().lower()
        if encoding not in ('identity', *ENCODINGS):
            known = ', '.join(ENCODINGS)
            text = f'Content-Encoding: {known} or none'
            raise Refused(415, 'encoding', text, {'Accept-Encoding': known})
        if (
            'transfer-encoding' not in request.headers
            and int(request.headers.get('content-length', '0')) > self._limits.body_bytes
        ):
            raise self._too_large()
        body = Body(self)
        try:
            await asyncio.wait_for(self._receive(request, body), self._limits.body_s)
            if encoding != 'identity':
                body.hold(self._limits.body_bytes)  # it may unpack to that
                body.data = await body.in_thread(self._unpack)
            return body
        except BaseException as error:
            body.close()
            if isinstance(error, asyncio.TimeoutError):
                text = f'the body did not arrive within {self._limits.body_s:g} s'
                raise Refused(408, 'slow_body', text) from None
            raise

    def count(self, size: int) -> None:
        """More bytes in memory, or fewer. Refused if they exceed the limit."""
        with self._lock:
            if size > 0 and self.held + size > self._limits.bodies * self._limits.body_bytes:
                raise Refused(503, 'memory', 'too many uploads at once; try again', RETRY_AFTER)
            self.held += size

    async def _receive(self, request: Request, body: Body) -> None:
        chunks, size = [], 0
        async for chunk in request.stream():
            body.hold(len(chunk))
            size += len(chunk)
            if size > self._limits.body_bytes:
                raise self._too_large()
            chunks.append(chunk)
        body.data = b''.join(chunks)

    def _unpack(self, data: bytes) -> bytes:
        """gzip or zlib, up to the largest body that is allowed."""
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            found = unpacker.decompress(data, self._limits.body_bytes + 1)
        except zlib.error as error:
            raise Refused(400, 'encoding', f'the body cannot be unpacked: {error}') from None
        if len(found) > self._limits.body_bytes:
            raise self._too_large()
        if not unpacker.eof or unpacker.unused_data:
            text = 'the packed body is cut short, or more bytes follow it'
            raise Refused(400, 'encoding', text)
        return found

    def _too_large(self) -> Refused:
        most = self._limits.body_bytes
        return Refused(413, 'too_large', f'the body has more than {most:,} bytes')
