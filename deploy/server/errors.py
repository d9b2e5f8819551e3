"""Every error that a client may get: a status, one line of JSON, and a reason for the metrics."""

from __future__ import annotations

from typing import Mapping, Optional

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from predictor.pictures import BadPicture
from server.batching import DeadlineExceeded, NetworkFailed, QueueFull, Stopping
from server.limits import Limits

RETRY_AFTER = {'Retry-After': '1'}
TEXTS: dict[type[Exception], tuple[int, str, str]] = {
    BadPicture: (400, 'bad_picture', 'the body {error}'),
    QueueFull: (503, 'queue', 'too many images are waiting; try again'),
    Stopping: (503, 'stopping', 'the server is stopping'),
    DeadlineExceeded: (504, 'expired', 'no answer within {limits.answer_s:g} s'),
    NetworkFailed: (500, 'failed', 'the network failed; see the log of the server'),
    ClientDisconnect: (499, 'gone', 'the client has disconnected'),  # only the metrics show it
}


class Refused(Exception):
    """A request that is not answered: the status, a reason for the metrics, and one line why."""

    def __init__(
        self, status: int, reason: str, text: str, headers: Optional[Mapping[str, str]] = None
    ) -> None:
        super().__init__(text)
        self.status, self.reason, self.headers = status, reason, headers


class BadRequest(Refused):
    """The client has made a mistake; the text says which."""

    def __init__(self, text: str) -> None:
        super().__init__(400, 'bad_request', text)


def require(condition: bool, text: str) -> None:
    """BadRequest unless the condition holds."""
    if not condition:
        raise BadRequest(text)


def refusal(error: Exception, limits: Limits) -> Refused:
    """What the client gets for a Refused, or for one of TEXTS."""
    if isinstance(error, Refused):
        return error
    status, reason, text = TEXTS[type(error)]
    headers = RETRY_AFTER if status == 503 else None
    return Refused(status, reason, text.format(error=error, limits=limits), headers)


def error_response(status: int, text: str, headers: Optional[Mapping[str, str]]) -> JSONResponse:
    return JSONResponse({'error': ' '.join(text.split())}, status_code=status, headers=headers)
