"""What every answer has: security headers, a count, and time for a client to read it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Optional

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RETRY_AFTER, error_response
from server.limits import Limits
from server.metrics import Metrics

HEADERS = {
    'Content-Security-Policy': "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}
ENCODED = [(name.lower().encode(), text.encode()) for name, text in HEADERS.items()]


class Middleware:
    """ASGI: wraps the routes."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['path'].lower().startswith(('http://', 'https://')):  # as sent to a proxy
            scope['path'] = '/' + ''.join(scope['path'].split('/', 3)[3:])
        exchange = Exchange(scope, receive, send, self._limits)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:  # the server ends, and this took too long
            if exchange.status is None:
                stopped = error_response(503, 'the server has stopped', RETRY_AFTER)
                await stopped(scope, exchange.receive, exchange.send)
        finally:
            endpoint = scope.get('endpoint')
            route = 'none' if endpoint is None else endpoint.__name__
            self._metrics.requests.labels(route, str(exchange.status)).inc()


class Exchange:
    """A request and its answer.

    A client that is answered while it is still sending gets time to read the answer: closing a
    connection with unread bytes resets it, and uvicorn would read on at full speed. So the rest of
    the upload is thrown away: for `linger_s`, up to the size of a body, and no faster, as a client
    notices the answer when its upload stalls.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        headers = dict(scope['headers'])
        self.status: Optional[int] = None
        self._uploading = (
            headers.get(b'content-length', b'0') != b'0' or b'transfer-encoding' in headers
        )
        self._receive, self._send, self._limits = receive, send, limits

    async def receive(self) -> Message:
        message = await self._receive()
        self._uploading = message['type'] == 'http.request' and message.get('more_body', False)
        return message

    async def send(self, message: Message) -> None:
        if message['type'] == 'http.response.start':
            self.status = message['status']
            close = [(b'connection', b'close')] if self._uploading else []
            message['headers'] = [*message['headers'], *close, *ENCODED]
        elif self._uploading and not message.get('more_body'):
            await self._send({**message, 'more_body': True})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._throw_away(), self._limits.linger_s)
            message = {'type': 'http.response.body', 'body': b''}
        await self._send(message)

    async def _throw_away(self) -> None:
        while self._uploading:
            part = len((await self.receive()).get('body', b'')) / self._limits.body_bytes
            await asyncio.sleep(part * self._limits.linger_s)
