"""TCP connections from each process of a job to the first one, closed to strangers.

Lines that are sent: the first process says `who NONCE`, the other `hello RANK NONCE PROOF`, and the
first `welcome PROOF` or `refused`. The proofs (HMAC) show to both that the other knows the secret
of the job, which is never sent.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import struct
import time

LOOPBACK = '127.0.0.1'
# A machine that has vanished is noticed after 10 + 2 * 5 seconds (Linux), before gloo aborts.
KEEPALIVE = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 2, 'TCP_USER_TIMEOUT': 20_000}

Address = tuple[str, int]


class PeerMissing(Exception):
    """A process could not be reached."""


class PortTaken(Exception):
    """The first process has no port to listen on."""


def accept_all(
    world_size: int, address: Address, secret: bytes, deadline: float
) -> dict[int, socket.socket]:
    """In the first process: {rank: connection} of all others. Raises PeerMissing, PortTaken."""
    links: dict[int, socket.socket] = {}
    with _listening(address, deadline) as server:
        while len(links) < world_size - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                link, _ = server.accept()
                rank = _check_peer(link, secret, deadline)
                if not 0 < rank < world_size:
                    raise ValueError('not a rank of this job')
            except (OSError, ValueError):
                if time.monotonic() < deadline:
                    continue
                missing = sorted({*range(1, world_size)} - {*links})
                raise PeerMissing(f'process {", ".join(map(str, missing))}') from None
            links[rank] = _watched(link)
    return links


def call_first(rank: int, address: Address, secret: bytes, deadline: float) -> socket.socket:
    """In another process: the connection to the first one. Raises PeerMissing."""
    refused = ''
    while True:
        with contextlib.suppress(OSError, ValueError):
            link = socket.create_connection(address, timeout=5.0)
            if link.getsockname() == link.getpeername():
                # TCP has connected the port to itself, where the first process is about to
                # listen. Without a reset, the kernel would keep it for another minute.
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            elif _check_first(link, rank, secret, deadline):
                return _watched(link)
            else:
                refused = ', which belongs to another job or has another secret,'
            link.close()
        if time.monotonic() > deadline:
            raise PeerMissing(f'process 0 at {address[0]}:{address[1]}{refused}')
        time.sleep(0.1)


def _listening(address: Address, deadline: float) -> socket.socket:
    host, port = address
    while True:
        try:
            if host == LOOPBACK:
                return socket.create_server((host, port))
            if socket.has_dualstack_ipv6():
                return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(('', port))
        except OSError:  # another program has the port, perhaps not for long
            if time.monotonic() > deadline:
                raise PortTaken(f'port {port} of this machine is taken') from None
            time.sleep(0.1)


def _check_peer(link: socket.socket, secret: bytes, deadline: float) -> int:
    """The rank of a process of this job; ValueError for a stranger."""
    nonce = secrets.token_hex(16)
    link.sendall(f'who {nonce}\n'.encode())
    # A stranger may send nothing, and the others wait.
    hello, rank, answer, proof = _read_line(link, min(deadline, time.monotonic() + 2.0)).split()
    if hello != 'hello' or not hmac.compare_digest(proof, _proof(secret, nonce, answer, rank)):
        link.sendall(b'refused\n')
        link.close()
        raise ValueError('a stranger')
    link.sendall(f'welcome {_proof(secret, answer, nonce)}\n'.encode())
    return int(rank)


def _check_first(link: socket.socket, rank: int, secret: bytes, deadline: float) -> bool:
    """Whether this is the first process of this job, and it accepts this one."""
    nonce = secrets.token_hex(16)
    who, challenge = _read_line(link, deadline).split()
    if who != 'who':
        return False
    proof = _proof(secret, challenge, nonce, str(rank))
    link.sendall(f'hello {rank} {nonce} {proof}\n'.encode())
    expected = f'welcome {_proof(secret, nonce, challenge)}\n'
    return hmac.compare_digest(_read_line(link, deadline), expected)


def _proof(secret: bytes, *words: str) -> str:
    return hmac.new(secret, ' '.join(words).encode(), 'sha256').hexdigest()


def _read_line(link: socket.socket, deadline: float) -> str:
    """The first line, perhaps of a stranger; ValueError without one before the deadline."""
    line = b''
    while not line.endswith(b'\n'):
        link.settimeout(max(0.01, deadline - time.monotonic()))
        byte = link.recv(1)
        if not byte or len(line) > 200 or time.monotonic() > deadline:
            raise ValueError('no line')
        line += byte
    return line.decode('ascii')


def _watched(link: socket.socket) -> socket.socket:
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link
