"""Start and stop: a uvicorn server that drops no request when it stops."""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
from types import FrameType
from typing import Any, Callable, Optional

import uvicorn
from starlette.types import ASGIApp

from server.connection import MAX_HEAD, Connection
from server.limits import Limits
from server.sockets import BACKLOG, accept_all, max_connections

KEEP_ALIVE_S = 5  # between two requests


class Server(uvicorn.Server):
    """`serve(sockets=[listener])` until SIGTERM or Ctrl-C; a second signal ends it at once.

    on_ready: called when it listens
    on_stop: called when it stops; requests in flight have `limits.drain_s` to be answered
    refuse: a callback with the reason why a connection is refused or dropped
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        *,
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
        refuse: Callable[[str], None],
    ) -> None:
        most = max_connections(limits.connections)
        connection: Any = functools.partial(Connection, limits=limits, most=most, refuse=refuse)
        config = uvicorn.Config(
            app,
            http=connection,
            ws='none',
            lifespan='off',
            log_config=None,
            log_level='error',
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=limits.drain_s,
        )
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: Optional[list[socket.socket]] = None) -> None:
        await super().startup(sockets=sockets)
        self._on_ready()

    async def shutdown(self, sockets: Optional[list[socket.socket]] = None) -> None:
        """Accept no more connections, but answer those that the system has: uvicorn resets them."""
        self._on_stop()
        pending = [link for listener in sockets or () for link in accept_all(listener)]
        for server in self.servers:
            server.close()
        connection: Any = self.config.http_protocol_class
        make = functools.partial(
            connection,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        for link in pending:
            await asyncio.get_running_loop().connect_accepted_socket(make, link)
        await super().shutdown(sockets=sockets)

    def handle_exit(self, sig: int, frame: Optional[FrameType]) -> None:
        """uvicorn's ignores a second SIGTERM, and ends the process by the signal, not with 0."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self.should_exit = True
