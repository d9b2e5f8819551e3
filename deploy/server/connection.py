"""A client's connection: uvicorn's, with limits that uvicorn lacks.

uvicorn has no time limit for the head of a request, nor for a client that doesn't read its answer;
its `limit_concurrency` counts a connection only when its head has arrived, and answers in plain
text. The limits here override undocumented methods of its protocol class, so requirements.txt
allows only versions between the oldest and the newest that are tested. h11 parses, as it bounds
what it buffers of a head or of a chunk's framing; httptools doesn't, and would save 0.1 ms a
request.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import Any, Callable, Mapping, Optional

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import RETRY_AFTER
from server.limits import Limits

LAST_S = 0.5  # when the server stops: for a client that has connected to send its request
PROBE_S = 0.1  # until the first check whether a client that sends no more still reads
MAX_HEAD = 64 << 10  # bytes
BLANK_LINES = re.compile(rb'\A(\r\n)+')
CONTINUE = b'HTTP/1.1 100 Continue\r\n\r\n'


class Connection(H11Protocol):
    """most: how many connections the server has at a time
    refuse: a callback with the reason why a client is refused or dropped
    """

    def __init__(
        self, *args: Any, limits: Limits, most: int, refuse: Callable[[str], None], **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self._limits, self._most, self._refuse = limits, most, refuse
        self._timer: Optional[asyncio.TimerHandle] = None
        self._stopping = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_timer()
        if len(self.connections) > self._most:
            self._end(503, 'connections', 'too many connections; try again', RETRY_AFTER)

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except (h11.ProtocolError, ValueError):  # a Content-Length of 5,000 digits, in h11 0.14
            self.send_400_response('')
        if self._in_request():
            if not self.flow.write_paused:
                self._stop_timer()
            if self._stopping:
                self.cycle.keep_alive = False

    def handle_events(self) -> None:
        """As uvicorn's, but blank lines before a request are ignored: RFC 9112, 2.2."""
        if self.conn.their_state is h11.IDLE:
            waiting, _ = self.conn.trailing_data
            data = BLANK_LINES.sub(b'', waiting)
            if data != waiting:
                self.conn = h11.Connection(h11.SERVER, MAX_HEAD)
                if data:  # an empty one would mean the end
                    self.conn.receive_data(data)
            if data in (b'', b'\r'):  # half a blank line
                return
        super().handle_events()

    def eof_received(self) -> Any:
        """Whether to keep the connection: a client may end its side and wait for the answer."""
        if not self._in_request() or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        self._probe(PROBE_S)
        return True

    def _probe(self, wait_s: float) -> None:
        """End the connection if the client has closed its side for reading, too.

        Both look the same until something is sent: only a client that has left resets then.
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
        """The server stops: one more answer. uvicorn would close before a request on its way."""
        self._stopping = True
        if self._in_request():
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LAST_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self._in_request():
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_request():
            self._start_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._in_request():
            self._stop_timer()

    def send_400_response(self, msg: str) -> None:
        self._end(400, 'malformed', 'not a valid HTTP request', {})

    def _in_request(self) -> bool:
        """Whether the application has it: its head is complete, and its answer isn't."""
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        """For the next complete head, and for the client to read an answer."""
        self._stop_timer()
        self._timer = self.loop.call_later(self._limits.head_s, self._drop)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _drop(self) -> None:
        self._refuse('slow_client')
        self.transport.abort()

    def _end(self, status: int, reason: str, text: str, headers: Mapping[str, str]) -> None:
        self._refuse(reason)
        if self._in_request() and self.cycle.response_started:
            self.transport.abort()
            return
        body = json.dumps({'error': text})
        given = {'Content-Type': 'application/json', 'Connection': 'close', **headers}
        lines = [f'HTTP/1.1 {status} {text}', f'Content-Length: {len(body)}']
        lines += [f'{name}: {value}' for name, value in given.items()]
        self.transport.write('\r\n'.join([*lines, '', body]).encode())
        self.transport.close()
