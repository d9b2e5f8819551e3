"""The connections under the application: uvicorn, with limits that it lacks, and an orderly end.

uvicorn waits for ever for a request's head and for a client that doesn't read its answer, and
accepts every connection. It parses with h11 here, which bounds what it buffers of a head or of a
chunk's framing; httptools doesn't, and would save 0.1 ms a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import socket
from dataclasses import dataclass
from types import FrameType
from typing import Any, Callable, Optional

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.limits import RETRY_AFTER, App, Limits

BACKLOG = 256  # connections that the system holds until they are accepted
SPARE_FILES = 200  # descriptors for all else than connections
KEEP_ALIVE_S = 5  # uvicorn's own default: between two requests


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the port, and doesn't listen yet. OSError if it cannot be had."""
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    server = socket.socket(family, kind, protocol)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
    except OSError:
        server.close()
        raise
    return server


def url(server: socket.socket) -> str:
    host, port = server.getsockname()[:2]
    return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'


class Server(uvicorn.Server):
    """Listens on `socket` until SIGTERM or Ctrl-C; a second signal ends the process at once.

    on_ready: called when it listens
    on_stop: called at the first signal; what is in flight has `drain_s` to be answered
    refuse: hears why a connection was dropped
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        *,
        drain_s: int,
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
        refuse: Callable[[str], None],
    ) -> None:
        terms = Terms(_fitting(limits.connections), limits, refuse)
        config = uvicorn.Config(
            app,
            http=type('Limited', (Connection,), {'terms': terms}),
            ws='none',
            lifespan='off',
            log_config=None,
            log_level='error',
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=drain_s,
        )
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: Optional[list[socket.socket]] = None) -> None:
        await super().startup(sockets=sockets)
        self._on_ready()

    def stop(self) -> None:
        """Take no more connections, finish, and return from `serve`."""
        self._on_stop()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: Optional[FrameType]) -> None:
        """In place of uvicorn's, which needs a second SIGINT, and dies of the signal in the end."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self.stop()


def _fitting(connections: int) -> int:
    """As many of them as there may be open files, for which the limit is raised if need be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    wanted = connections + BACKLOG + SPARE_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(connections, soft - BACKLOG - SPARE_FILES))


@dataclass(frozen=True)
class Terms:
    """On which connections are taken."""

    most: int
    limits: Limits
    refuse: Callable[[str], None]  # hears why one was dropped


class Connection(H11Protocol):
    """uvicorn's, with a limit on how many there are and on how slow they may be."""

    terms: Terms  # of a subclass: it is uvicorn that makes the instances
    _patience: Optional[asyncio.TimerHandle] = None
    _unread: Optional[asyncio.TimerHandle] = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.terms.most:
            self.terms.refuse('connections')
            self._end(503, 'too many connections; try again', RETRY_AFTER)

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except (h11.ProtocolError, ValueError):  # a Content-Length of 5,000 digits, in h11 0.14
            self.send_400_response('')
        if self._in_request():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_request():
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.terms.limits.head_s, self._give_up)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self.terms.refuse('malformed')
        self._end(400, 'not a valid HTTP request', {})

    def _in_request(self) -> bool:
        """Whether the application has it: a head is complete, and its answer isn't."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        """For the next complete head, and for the client to read the last of an answer."""
        self._stop_waiting()
        self._patience = self.loop.call_later(self.terms.limits.head_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self.terms.refuse('slow_client')
        self.transport.abort()

    def _end(self, status: int, error: str, headers: dict[str, str]) -> None:
        if self._in_request() and self.cycle.response_started:
            self.transport.abort()
            return
        body = json.dumps({'error': error})
        given = {'Content-Type': 'application/json', 'Connection': 'close', **headers}
        lines = [f'HTTP/1.1 {status} {error}', f'Content-Length: {len(body)}']
        lines += [f'{name}: {value}' for name, value in given.items()]
        self.transport.write('\r\n'.join([*lines, '', body]).encode())
        self.transport.close()


async def serve(server: Server, listener: socket.socket) -> None:
    """Until a signal has come and all is answered. The socket listens already."""
    with contextlib.closing(listener):
        await server.serve(sockets=[listener])
