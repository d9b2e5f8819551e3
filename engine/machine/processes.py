"""The processes of a job, as paddle.distributed.launch starts them.

After `connect`, no process outlives the failure of another. In a job of one process these functions
do nothing, so that it needs no special case elsewhere.
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
from engine.machine.connections import LOOPBACK, PeerMissing, PortTaken
from engine.machine.peers import PeerFailure, Peers

# Set by paddle.distributed.launch for each process.
LAUNCHED = 'PADDLE_TRAINERS_NUM' in os.environ
RANK = int(os.environ.get('PADDLE_TRAINER_ID', '0'))
WORLD_SIZE = int(os.environ.get('PADDLE_TRAINERS_NUM', '1'))

SECRET = 'TRAIN_JOB_SECRET'  # set by the user, to the same on all machines of a job

GRACE_S = 2.0  # less than the launcher's three seconds

_peers: Optional[Peers] = None


def connect() -> None:
    """Connect with the other processes, before anything slow. Raises Stopped if one is missing."""
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
    address = LOOPBACK if _on_one_machine() else host.strip('[]'), int(port) + taken
    try:
        _peers = Peers(RANK, WORLD_SIZE, address, secret=_secret(endpoints), on_failure=_end_too)
    except PortTaken as problem:
        raise Stopped(f'{problem} by another program; start again') from None
    except PeerMissing as missing:
        raise Stopped(
            f'{missing} of {WORLD_SIZE} cannot be reached; its workerlog has the reason, or a '
            'firewall keeps the ports of the job closed'
        ) from None


def _on_one_machine() -> bool:
    return os.environ.get('PADDLE_LOCAL_SIZE') == str(WORLD_SIZE)


def _secret(endpoints: str) -> bytes:
    """What the processes of this job have in common.

    On one machine, that includes a random name that the launcher passes on. To other machines it
    sends nothing random: there, only a secret that the user has set keeps out a program that knows
    the endpoints.
    """
    name = os.environ.get('POD_NAME', '') if _on_one_machine() else ''
    words = [endpoints, os.environ.get(SECRET, ''), name]
    return hashlib.sha256(' '.join(words).encode()).digest()


def announce_exit(code: int, reason: str = '') -> None:
    """Report the end of this process to the others, which end too unless the code is 0."""
    if _peers is not None:
        _peers.leave(code, f'process {RANK}: {reason}')


def barrier() -> None:
    """Wait for all processes, without a time limit."""
    if _peers is not None:
        _peers.any()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process. A barrier."""
    return flag if _peers is None else _peers.any(flag)


def require_same(what: str, describe: Callable[[], str]) -> None:
    """UserError, with this process's description, unless that of all is the same. A barrier."""
    if _peers is None:
        return
    mine = describe()
    if not _peers.same(hashlib.sha256(mine.encode()).hexdigest()):
        raise UserError(f'{what} is not the same in all processes; process {RANK}: {mine}')


def wait_for_peer_failure() -> None:
    """Does not return if another process has failed. Call it after an error that may be only the
    consequence, such as one of a collective."""
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
    """End this process after a failure of another. Called by a thread: the main one may wait for
    ever in a collective."""
    code, text = failure.code, failure.reason
    program = Path(sys.argv[0]).name
    if code is not None:
        time.sleep(GRACE_S)  # most errors occur in all processes, and each prints its own
    else:
        text += ' (killed, out of memory, or crashed)'
        if program == 'train.py':
            text += '; the same command with --resume continues from the last checkpoint'
    # Not print: the main thread may hold the stream's lock.
    os.write(2, f'{program}: {text}; process {RANK} ends, too\n'.encode())
    os._exit(EXIT_STOPPED if code is None else code)
