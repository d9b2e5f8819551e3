"""The processes of a job, as paddle.distributed.launch starts them.

From `connect` on, none outlives another's failure. A job of one process needs no special case
elsewhere: these functions then do nothing, or say what that one says. (Tensors are summed over the
processes in engine/machine/collectives.py.)
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Callable, Optional

from engine.errors import EXIT_STOPPED, Stopped, UserError
from engine.machine.peers import LOOPBACK, PeerFailure, PeerMissing, Peers, PortTaken

# What paddle.distributed.launch tells each process.
LAUNCHED = 'PADDLE_TRAINERS_NUM' in os.environ
RANK = int(os.environ.get('PADDLE_TRAINER_ID', '0'))
WORLD_SIZE = int(os.environ.get('PADDLE_TRAINERS_NUM', '1'))

SECRET = 'TRAIN_JOB_SECRET'  # set by the user, to the same on all machines of a job

GRACE_S = 2.0  # less than the launcher's three seconds

_peers: Optional[Peers] = None


def connect() -> None:
    """At once: connect with the other processes.

    Raises Stopped if they don't all come.
    """
    global _peers
    if WORLD_SIZE == 1:
        return
    endpoints = os.environ.get('PADDLE_TRAINER_ENDPOINTS')
    if endpoints is None:
        raise UserError(
            'PADDLE_TRAINERS_NUM is set, but PADDLE_TRAINER_ENDPOINTS is not: start several '
            'processes with python3 -m paddle.distributed.launch'
        )
    host, port = endpoints.split(',')[0].rsplit(':', 1)
    # The launcher has reserved a port for each process, and collectives use the master's alone.
    taken = os.environ.get('PADDLE_MASTER') == f'{host}:{port}'
    if os.environ.get('PADDLE_LOCAL_SIZE') == str(WORLD_SIZE):  # one machine: no other can connect
        host = LOOPBACK
    try:
        address = host.strip('[]'), int(port) + taken
        _peers = Peers(RANK, WORLD_SIZE, address, secret=_secret(endpoints), on_failure=_end_too)
    except PortTaken as problem:
        raise Stopped(f'{problem} by another program; start again') from None
    except PeerMissing as missing:
        raise Stopped(
            f'{missing} of {WORLD_SIZE} cannot be reached; the workerlog there says why, or a '
            'firewall keeps the ports of the job closed'
        ) from None


def _secret(endpoints: str) -> bytes:
    """What the processes of this job have in common.

    The launcher makes nothing up that it sends to other machines: there, only a secret that the
    user has set keeps out who knows the endpoints. On one machine it passes on a random name.
    """
    alone = os.environ.get('PADDLE_LOCAL_SIZE') == str(WORLD_SIZE)
    words = [endpoints, os.environ.get(SECRET, ''), os.environ.get('POD_NAME', '') * alone]
    return hashlib.sha256(' '.join(words).encode()).digest()


def announce_exit(code: int, reason: str = '') -> None:
    """Tell the other processes that this one ends. They end, too, unless the code is 0."""
    if _peers is not None:
        _peers.leave(code, f'process {RANK}: {reason}')


def barrier() -> None:
    """Return when all processes have come here, however long it takes them."""
    if _peers is not None:
        _peers.any()


def require_same(what: str, describe: Callable[[], str]) -> None:
    """UserError unless all processes describe it in the same way; each says its own."""
    if _peers is None:
        return
    mine = describe()
    if not _peers.same(hashlib.sha256(mine.encode()).hexdigest()):
        raise UserError(f'{what} is not the same in all processes; process {RANK}: {mine}')


def any_rank(flag: bool) -> bool:
    """Whether the flag is up in any process; waits for all."""
    return flag if _peers is None else _peers.any(flag)


def wait_for_peer_failure() -> None:
    """Does not return if another process has died: a collective that fails here is then only a
    consequence."""
    if _peers is not None:
        time.sleep(1.0)
        if _peers.failed:
            time.sleep(2 * GRACE_S)


def handle_sigterm(number: int, frame: Optional[FrameType]) -> None:
    """While there is nothing to save: end, but print the reason first.

    The launcher sends this as soon as a process has failed, and kills three seconds later.
    """
    if _peers is None or not _peers.failed:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _end_too(failure: PeerFailure) -> None:
    """Another process has ended before its time. A thread calls this: the main one may wait for
    ever in a collective."""
    if failure.code is not None:
        time.sleep(GRACE_S)  # most errors occur in all processes, and each prints its own
    program, says = Path(sys.argv[0]).name, failure.reason
    if failure.code is None:
        says += ' (killed, out of memory, or crashed)'
    if failure.code is None and program == 'train.py':
        says += '; train.py --resume goes on from what was saved'
    # Not print: the main thread may hold the stream's lock.
    os.write(2, f'{program}: {says}; process {RANK} ends, too\n'.encode())
    os._exit(EXIT_STOPPED if failure.code is None else failure.code)
