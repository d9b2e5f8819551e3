"""The port that the server listens on, connections that wait in it, and the limit of open files."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Iterator

from predictor.errors import UserError

try:
    import resource
except ImportError:  # Windows, where open files are not limited in this way
    resource = None  # type: ignore[assignment]

BACKLOG = 256  # connections that the system holds until they are accepted
SPARE_FILES = 200  # descriptors for everything but connections


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the port, and doesn't listen yet. UserError if that is not possible."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
        if os.name != 'nt':  # where it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # the latter from a host name that is too long
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'cannot listen on {host}, port {port}: {reason}') from None
    return listener


def listen(listener: socket.socket) -> None:
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another server has bound the port at the same time
        raise UserError(f'cannot listen on {url(listener)}: {error.strerror}') from None


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f'http://[{host}]:{port}/' if ':' in host else f'http://{host}:{port}/'


def accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections in the backlog: closing the listener would reset them."""
    listener.setblocking(False)
    with contextlib.suppress(OSError):  # BlockingIOError: no more
        while True:
            yield listener.accept()[0]


def max_connections(connections: int) -> int:
    """At most `connections`, as many as the limit of open files allows; it is raised if possible.

    Without descriptors to spare, accepting would fail.
    """
    if resource is None:
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    needed = connections + BACKLOG + SPARE_FILES
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(connections, soft - BACKLOG - SPARE_FILES))
