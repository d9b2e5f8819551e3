"""The connections under the application: uvicorn, with limits that it lacks, and an orderly end.

uvicorn has no timeout for a request's head or for a client that doesn't read its answer, and
accepts every connection. The limits here override undocumented methods of its protocol class, so
that requirements.txt allows only versions between the oldest and the newest that are tested. It
parses with h11 here, which bounds what it buffers of a head or of a chunk's framing; httptools
doesn't, and would save 0.1 ms a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import signal
import socket
from dataclasses import dataclass
from types import FrameType
from typing import Any, Callable, Iterator, Optional

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.limits import RETRY_AFTER, App, Limits

try:
    import resource
except ImportError:  # Windows, where open files are not limited in this way
    resource = None  # type: ignore[assignment]

BACKLOG = 256  # connections that the system holds until they are accepted
SPARE_FILES = 200  # descriptors for all else than connections
KEEP_ALIVE_S = 5  # uvicorn's own default: between two requests
LAST_S = 0.5  # after a signal, for a client that has connected to send its request
PROBE_S = 0.1  # until the first look whether a client that sends no more still reads
MOST_OF_A_HEAD = 64 << 10  # bytes: uvicorn's own default
BLANK_LINES = re.compile(rb'\A(\r\n)+')
CONTINUE = b'HTTP/1.1 100 Continue\r\n\r\n'


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the port, and doesn't listen yet. OSError if it cannot be had."""
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    server = socket.socket(family, kind, protocol)
    try:
        if os.name != 'nt':  # where it would let two servers have one port
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
    refuse: called with the reason when a connection is dropped
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
            h11_max_incomplete_event_size=MOST_OF_A_HEAD,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=drain_s,
        )
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: Optional[list[socket.socket]] = None) -> None:
        await super().startup(sockets=sockets)
        self._on_ready()

    async def shutdown(self, sockets: Optional[list[socket.socket]] = None) -> None:
        """Answer the clients that have connected, and accept no more."""
        waiting = [link for listener in sockets or () for link in _accepted(listener)]
        for server in self.servers:
            server.close()
        protocol: Any = self.config.http_protocol_class
        make = functools.partial(
            protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        for link in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(make, link)
        await super().shutdown(sockets=sockets)

    def stop(self) -> None:
        """Take no more connections, finish, and return from `serve`."""
        self._on_stop()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: Optional[FrameType]) -> None:
        """In place of uvicorn's, which needs a second SIGINT, and dies of the signal in the end."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self.stop()


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections in the backlog: closing the listener would reset them."""
    listener.setblocking(False)
    with contextlib.suppress(OSError):  # BlockingIOError: no more
        while True:
            yield listener.accept()[0]


def _fitting(connections: int) -> int:
    """How many the limit of open files allows, which is raised if it can be."""
    if resource is None:
        return connections
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
    """The limits of all connections."""

    most: int
    limits: Limits
    refuse: Callable[[str], None]  # called with the reason when one is dropped


class Connection(H11Protocol):
    """uvicorn's, with a limit on how many there are and on how slow they may be."""

    terms: Terms  # of a subclass: it is uvicorn that makes the instances
    _patience: Optional[asyncio.TimerHandle] = None
    _unread: Optional[asyncio.TimerHandle] = None
    _ended = False  # the client sends no more
    _last = False  # the server stops: one more answer at most

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
            if self._last:
                self.cycle.keep_alive = False

    def handle_events(self) -> None:
        """As uvicorn's, but blank lines before a request are passed over: RFC 9112, 2.2."""
        if self.conn.their_state is h11.IDLE:
            waiting, _ = self.conn.trailing_data
            data = BLANK_LINES.sub(b'', waiting)
            if data != waiting:
                self.conn = h11.Connection(h11.SERVER, MOST_OF_A_HEAD)
                if data:  # nothing would mean the end
                    self.conn.receive_data(data)
            if data in (b'', b'\r'):  # or it is half a blank line
                return
        super().handle_events()

    def eof_received(self) -> Any:
        """Whether to keep the connection: a client may end its side and wait for the answer."""
        self._ended = self._in_request() and not self.cycle.more_body
        if self._ended:
            self.cycle.keep_alive = False
            self._probe(PROBE_S)
        return self._ended

    def _probe(self, wait_s: float) -> None:
        """End the connection if the client has closed its side for reading, too.

        Both look alike until something is sent: then only the one that has gone resets.
        """
        if not self._in_request() or self.transport.is_closing():
            return
        if self.transport.get_extra_info('socket').getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if not self.cycle.response_started and self.scope['http_version'] == '1.1':
            self.transport.write(CONTINUE)
        self.loop.call_later(wait_s, self._probe, 2 * wait_s)

    def shutdown(self) -> None:
        """The server stops. What is on its way here is still answered."""
        self._last = True
        if self._in_request():
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LAST_S, self._end_idle)

    def _end_idle(self) -> None:
        if not self._in_request():
            self.transport.close()

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
