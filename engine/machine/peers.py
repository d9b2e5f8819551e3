"""The processes of a job watch each other: when one fails, all end with its reason.

Collectives do not: nccl and hccl wait half an hour for a process that has died, and a launcher
watches only the processes of its own machine. Here each process keeps a connection to the first
one, which passes failures on. The same connections make a barrier without a time limit (gloo, on a
CPU, gives up on a process that is 30 seconds late).

Lines that are sent: `here WORD`, answered with `go 0` or `go 1` once all have sent theirs, and
`left CODE REASON`.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from dataclasses import dataclass
from typing import Callable, Optional

from engine.machine.connections import Address, accept_all, call_first

DIED = 'died'  # in place of an exit code
FINISHED = 'finished'  # in place of a word
TIMEOUT_S = 60.0  # for all processes to start


@dataclass(frozen=True)
class PeerFailure:
    """Another process has failed."""

    code: Optional[int]  # its exit code; None if it could not send one
    reason: str


class Peers:
    """The connections of this process: of the first to each other one, of the others to the first.

    `address` is where the first one listens: on LOOPBACK for this machine alone. `secret` is shared
    by the processes of the job. `on_failure` is called once, by a thread, when another process has
    ended with a code other than 0 or without one. Raises PeerMissing unless all are connected after
    `timeout_s`.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        address: Address,
        *,
        secret: bytes,
        on_failure: Callable[[PeerFailure], None],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.rank = rank
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._failure: Optional[PeerFailure] = None
        self._left = False
        self._received: queue.SimpleQueue[Optional[str]] = queue.SimpleQueue()
        deadline = time.monotonic() + timeout_s
        self._links = (
            {0: call_first(rank, address, secret, deadline)}
            if rank
            else accept_all(world_size, address, secret, deadline)
        )
        for other, link in self._links.items():
            threading.Thread(target=self._listen, args=(other, link), daemon=True).start()

    @property
    def failed(self) -> bool:
        """Whether another process has failed."""
        return self._failure is not None

    def any(self, flag: bool = False) -> bool:
        """Wait for all processes, without a time limit. Whether the flag of any of them is set."""
        return self._exchange(f'{flag:d}', lambda words: '1' in words)

    def same(self, word: str) -> bool:
        """Wait for all processes. Whether they all have the same word."""
        return self._exchange(word, lambda words: len(set(words)) == 1)

    def leave(self, code: int, reason: str = '') -> None:
        """Report to the others that this process ends, and how."""
        self._left = True
        self._send(f'left {code} {" ".join(reason.split())}')

    def _listen(self, other: int, link: socket.socket) -> None:
        """Receive the lines of another process until it ends."""
        with contextlib.suppress(OSError), link.makefile(encoding='utf-8') as lines:
            for line in lines:
                word, _, rest = line.strip().partition(' ')
                if word in ('here', 'go'):
                    self._received.put(rest)
                elif word == 'left':
                    code, _, reason = rest.partition(' ')
                    if code == '0':
                        self._received.put(FINISHED)
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
            self._received.put(None)
            self._on_failure(failure)

    def _exchange(self, word: str, judge: Callable[[list[str]], bool]) -> bool:
        """What the first process judges of the words of all."""
        if self.rank == 0:
            verdict = judge([word, *(self._next() for _ in self._links)])
            self._send(f'go {verdict:d}')
            return verdict
        self._send(f'here {word}')
        return self._next() == '1'

    def _next(self) -> str:
        received = self._received.get()
        if received == FINISHED:
            self._fail(PeerFailure(1, 'another process has finished, and this one has not'))
        if received in (FINISHED, None):  # on_failure is about to end this process
            threading.Event().wait()
        assert received is not None
        return received

    def _send(self, line: str) -> None:
        for link in self._links.values():
            with contextlib.suppress(OSError):  # that process has ended; its thread notices
                link.sendall(f'{line}\n'.encode())
