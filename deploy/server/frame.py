"""What every answer has: headers, a count, and for an error one line of JSON."""

from __future__ import annotations

import asyncio
from typing import Any, Optional

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from predictor.pictures import BadPicture
from server.batching import Busy, Closing, Expired, Failed
from server.limits import RETRY_AFTER, App, Limits, Message, Receive, Refused, Send
from server.metrics import Metrics
from server.protocol import BadRequest

HEADERS = {
    'Content-Security-Policy': "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}
EXPECTED = (Refused, BadRequest, BadPicture, Busy, Closing, Expired, Failed, ClientDisconnect)


class Frame:
    """ASGI: headers for every answer, and a count of it."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._headers = [(name.lower().encode(), text.encode()) for name, text in HEADERS.items()]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        status: Optional[int] = None
        if scope['path'].lower().startswith(('http://', 'https://')):  # as to a proxy
            scope['path'] = '/' + ''.join(scope['path'].split('/', 3)[3:])

        async def say(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
                message['headers'] = [*message['headers'], *self._headers]
            await send(message)

        try:
            await self._app(scope, receive, say)
        except asyncio.CancelledError:  # the server ends, and this took too long
            if status is None:
                stopped = error_response(503, 'the server has stopped', RETRY_AFTER)
                await stopped(scope, receive, say)
        finally:
            endpoint = scope.get('endpoint')
            route = 'none' if endpoint is None else endpoint.__name__
            self._metrics.requests.labels(route, str(status)).inc()


def refusal(error: Exception, limits: Limits) -> Refused:
    """Of one of EXPECTED: the status, a reason for the metrics, and the text."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, BadRequest):
        return Refused(400, 'bad_request', str(error))
    if isinstance(error, BadPicture):
        return Refused(400, 'bad_picture', f'the body {error}')
    if isinstance(error, Busy):
        return Refused(503, 'queue', 'too many images are waiting; try again', RETRY_AFTER)
    if isinstance(error, Closing):
        return Refused(503, 'stopping', 'the server is stopping', RETRY_AFTER)
    if isinstance(error, Expired):
        return Refused(504, 'expired', f'no answer within {limits.answer_s:g} s')
    if isinstance(error, Failed):
        return Refused(500, 'failed', 'the network has failed; the log of the server says why')
    return Refused(499, 'gone', 'the client has gone')  # only the metrics show it


def error_response(status: int, text: str, headers: Any) -> JSONResponse:
    return JSONResponse({'error': ' '.join(text.split())}, status_code=status, headers=headers)
