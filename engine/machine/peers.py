"""The processes of a job, holding on to each other: when one ends, all end, and say why.

Collectives alone don't do that: nccl and hccl wait half an hour for a process that has died, and a
launcher watches only the processes of its own machine. Here every process keeps a TCP connection to
the first one, which tells the others. The same connections make a barrier without a time limit
(gloo, on a CPU, takes a process that is 30 seconds late for dead).

Lines that are sent: `who NONCE`, `hello RANK NONCE PROOF` and `welcome PROOF` or `refused`; then
`here WORD` and the answer `go 0` or `go 1` to the words of all, `left CODE REASON`. The proofs
(HMAC) show to both sides that the other one has the job's secret, which itself is never sent.
"""

from __future__ import annotations

import contextlib
import hmac
import queue
import secrets
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Callable, Optional

DIED = 'died'  # in the place of a code
FINISHED = 'finished'  # in the place of a word
LOOPBACK = '127.0.0.1'
PATIENCE_S = 60.0  # for all processes to start
# A machine that has vanished without a word is noticed after 10 + 2 * 5 seconds (Linux), before
# gloo gives up by aborting.
KEEPALIVE = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 2, 'TCP_USER_TIMEOUT': 20_000}


@dataclass(frozen=True)
class PeerFailure:
    """The end of a process before its time."""

    code: Optional[int]  # what it ends with; None where it had no time to say
    reason: str


class PeerMissing(Exception):
    """A process could not be reached."""


class PortTaken(Exception):
    """The first process has no port to listen on."""


class Peers:
    """This process's connections: of the first process to each other one, of those to the first.

    `address` is where the first one listens: on LOOPBACK for this machine alone. `secret` is what
    all have in common, and strangers don't know. `on_failure` is called once, by a thread, when
    another process has ended with a code other than 0 or without a word. Raises PeerMissing
    unless all are connected after `patience` seconds.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        address: tuple[str, int],
        *,
        secret: bytes,
        on_failure: Callable[[PeerFailure], None],
        patience: float = PATIENCE_S,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._failure: Optional[PeerFailure] = None
        self._left = False
        self._heard: queue.SimpleQueue[Optional[str]] = queue.SimpleQueue()
        deadline = time.monotonic() + patience
        connect = self._accept if rank == 0 else self._call
        self._links = connect(address, secret, deadline)
        for other, link in self._links.items():
            threading.Thread(target=self._listen, args=(other, link), daemon=True).start()

    @property
    def failed(self) -> bool:
        """Whether another process has ended before its time."""
        return self._failure is not None

    def any(self, flag: bool = False) -> bool:
        """Wait for all processes, however long it takes; whether any of them came with a flag."""
        return self._exchange(f'{flag:d}', lambda words: '1' in words)

    def same(self, word: str) -> bool:
        """Wait for all processes; whether they all came with the same word."""
        return self._exchange(word, lambda words: len(set(words)) == 1)

    def leave(self, code: int, reason: str = '') -> None:
        """Tell the others that this process ends, and how."""
        self._left = True
        self._send(f'left {code} {" ".join(reason.split())}')

    def _accept(
        self, address: tuple[str, int], secret: bytes, deadline: float
    ) -> dict[int, socket.socket]:
        links: dict[int, socket.socket] = {}
        with _listening(address, deadline) as server:
            while len(links) < self.world_size - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    link, _ = server.accept()
                    rank = _recognise(link, secret, deadline)
                    if not 0 < rank < self.world_size:
                        raise ValueError('no rank of this job')
                except (OSError, ValueError):
                    if time.monotonic() < deadline:
                        continue
                    missing = sorted(set(range(1, self.world_size)) - set(links))
                    raise PeerMissing(f'process {", ".join(map(str, missing))}') from None
                links[rank] = _watched(link)
        return links

    def _call(
        self, address: tuple[str, int], secret: bytes, deadline: float
    ) -> dict[int, socket.socket]:
        refused = ''
        while True:
            with contextlib.suppress(OSError, ValueError):
                link = socket.create_connection(address, timeout=5.0)
                if link.getsockname() == link.getpeername():
                    # TCP has connected the port to itself, where the first process is about to
                    # listen: without a reset, the kernel would keep it for another minute.
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                elif _introduce(link, self.rank, secret, deadline):
                    return {0: _watched(link)}
                else:
                    refused = ', which belongs to another job or has another secret,'
                link.close()
            if time.monotonic() > deadline:
                raise PeerMissing(f'process 0 at {address[0]}:{address[1]}{refused}')
            time.sleep(0.1)

    def _listen(self, other: int, link: socket.socket) -> None:
        """Hear what one other process says until it has left."""
        with contextlib.suppress(OSError), link.makefile(encoding='utf-8') as lines:
            for line in lines:
                word, _, rest = line.strip().partition(' ')
                if word in ('here', 'go'):
                    self._heard.put(rest)
                elif word == 'left':
                    code, _, reason = rest.partition(' ')
                    if code == '0':
                        self._heard.put(FINISHED)
                    else:
                        self._fail(PeerFailure(None if code == DIED else int(code), reason))
                    return
        self._fail(PeerFailure(None, f'process {other} has died'))

    def _fail(self, failure: PeerFailure) -> None:
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
        if self.rank == 0:
            self._send(f'left {DIED if failure.code is None else failure.code} {failure.reason}')
        if not self._left:
            self._heard.put(None)
            self._on_failure(failure)

    def _exchange(self, word: str, judge: Callable[[list[str]], bool]) -> bool:
        if self.rank == 0:
            verdict = judge([word, *(self._next() for _ in self._links)])
            self._send(f'go {verdict:d}')
            return verdict
        self._send(f'here {word}')
        return self._next() == '1'

    def _next(self) -> str:
        heard = self._heard.get()
        if heard == FINISHED:
            self._fail(PeerFailure(1, 'another process has finished, and this one has not'))
        if heard in (FINISHED, None):  # on_failure is about to end this process
            threading.Event().wait()
        assert heard is not None
        return heard

    def _send(self, line: str) -> None:
        for link in self._links.values():
            with contextlib.suppress(OSError):  # it has ended, which its thread notices
                link.sendall(f'{line}\n'.encode())


def _listening(address: tuple[str, int], deadline: float) -> socket.socket:
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


def _recognise(link: socket.socket, secret: bytes, deadline: float) -> int:
    """The rank of a process of this job; ValueError for anything else that connects."""
    nonce = secrets.token_hex(16)
    link.sendall(f'who {nonce}\n'.encode())
    # A stranger may keep silent, and the others wait.
    hello, rank, answer, proof = _read_line(link, min(deadline, time.monotonic() + 2.0)).split()
    if hello != 'hello' or not hmac.compare_digest(proof, _proof(secret, nonce, answer, rank)):
        link.sendall(b'refused\n')
        link.close()
        raise ValueError('a stranger')
    link.sendall(f'welcome {_proof(secret, answer, nonce)}\n'.encode())
    return int(rank)


def _introduce(link: socket.socket, rank: int, secret: bytes, deadline: float) -> bool:
    """Whether the first process of this job is there, and has recognised this one."""
    nonce = secrets.token_hex(16)
    who, asked = _read_line(link, deadline).split()
    if who != 'who':
        return False
    link.sendall(f'hello {rank} {nonce} {_proof(secret, asked, nonce, str(rank))}\n'.encode())
    return hmac.compare_digest(
        _read_line(link, deadline), f'welcome {_proof(secret, nonce, asked)}\n'
    )


def _proof(secret: bytes, *words: str) -> str:
    return hmac.new(secret, ' '.join(words).encode(), 'sha256').hexdigest()


def _watched(link: socket.socket) -> socket.socket:
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _read_line(link: socket.socket, deadline: float) -> str:
    """The first line of a connection that may be a stranger's; ValueError if it is none."""
    line = b''
    while not line.endswith(b'\n'):
        link.settimeout(max(0.01, deadline - time.monotonic()))
        byte = link.recv(1)
        if not byte or len(line) > 200 or time.monotonic() > deadline:
            raise ValueError('no line')
        line += byte
    return line.decode('ascii')
