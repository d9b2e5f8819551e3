"""engine/machine/peers.py: the processes of a job, here as threads that talk over the loopback."""

from __future__ import annotations

import contextlib
import hmac
import os
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Iterator, Optional

import pytest
from conftest import REPOSITORY
from launching import free_port

from engine.machine.connections import PeerMissing, PortTaken
from engine.machine.peers import DIED, PeerFailure, Peers

JOB = 'job1'
SOON = 10.0  # seconds in which everything here should have happened, on a busy machine too


class Job:
    """The processes of a job; `failures` are the reports of each."""

    def __init__(self, world: int, *, job: str = JOB, port: Optional[int] = None) -> None:
        self.world, self.word = world, job
        self.port = port or free_port()
        self.failures: list[list[PeerFailure]] = [[] for _ in range(world)]
        self.peers: list[Peers] = []
        self._pool = ThreadPoolExecutor(world)

    def start(self, rank: int, *, timeout_s: float = SOON) -> Future[Peers]:
        return self._pool.submit(
            Peers,
            rank,
            self.world,
            ('127.0.0.1', self.port),
            secret=self.word.encode(),
            on_failure=self.failures[rank].append,
            timeout_s=timeout_s,
        )

    def connect(self) -> Job:
        started = [self.start(rank) for rank in range(self.world)]
        self.peers = [future.result(SOON) for future in started]
        return self

    def at_once(self, what: Callable[[Peers], object]) -> list[Future]:
        return [self._pool.submit(what, peers) for peers in self.peers]

    def all(self, flags: list[bool]) -> list[bool]:
        """What any() says to each, which come with these flags."""
        answers = [self._pool.submit(peers.any, flag) for peers, flag in zip(self.peers, flags)]
        return [answer.result(SOON) for answer in answers]

    def die(self, rank: int) -> None:
        """As a kill does: the connections are closed, and nothing is sent or received."""
        self.peers[rank]._failure = PeerFailure(None, 'itself')  # or its threads would continue
        for link in self.peers[rank]._links.values():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The threads that listen end with their connections."""
        for rank, peers in enumerate(self.peers):
            peers.leave(0)
            self.die(rank)
        self._pool.shutdown(wait=False)


@pytest.fixture
def job() -> Iterator[Callable[..., Job]]:
    """A job of that many processes, all connected."""
    jobs: list[Job] = []

    def start(world: int, **options) -> Job:
        jobs.append(Job(world, **options))
        return jobs[-1]

    yield start
    for one in jobs:
        one.close()


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def stays(true: Callable[[], bool], seconds: float = 0.3) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not true():
            return False
        time.sleep(0.01)
    return True


WORLDS = pytest.mark.parametrize('world', [2, 3, 8])


# ------------------------------------------------------------------ the barrier


@WORLDS
def test_any_is_true_in_all_processes_if_one_flag_is_set(job, world):
    processes = job(world).connect()
    assert processes.all([False] * world) == [False] * world
    for rank in range(world):
        flags = [other == rank for other in range(world)]
        assert processes.all(flags) == [True] * world
        assert processes.all([False] * world) == [False] * world, 'a flag has stayed up'
    assert processes.all([True] * world) == [True] * world


@WORLDS
@pytest.mark.parametrize('late', ['first', 'last'])
def test_any_waits_for_the_last_process(job, world, late):
    processes = job(world).connect()
    missing = 0 if late == 'first' else world - 1
    early = [
        processes._pool.submit(peers.any)
        for rank, peers in enumerate(processes.peers)
        if rank != missing
    ]
    assert stays(lambda: not any(answer.done() for answer in early))
    assert processes.peers[missing].any(True) is True
    assert [answer.result(SOON) for answer in early] == [True] * (world - 1)


@WORLDS
def test_many_rounds_stay_in_step(job, world):
    """However the processes race: each draws its own pauses and flags."""
    processes = job(world).connect()
    rounds = 200
    flags = [
        [random.Random(f'{rank} {number}').random() < 0.3 / world for number in range(rounds)]
        for rank in range(world)
    ]
    expected = [any(column) for column in zip(*flags)]
    assert 0 < sum(expected) < rounds

    def go(peers: Peers) -> list[bool]:
        answers = []
        for number, flag in enumerate(flags[peers.rank]):
            if random.Random(f'pause {peers.rank} {number}').random() < 0.05:
                time.sleep(0.002)
            answers.append(peers.any(flag))
        return answers

    for answers in processes.at_once(go):
        assert answers.result(60) == expected


# ------------------------------------------------------------------ ends


@WORLDS
def test_leaving_with_code_0_is_not_a_failure(job, world):
    processes = job(world).connect()
    for peers in reversed(processes.peers):
        peers.leave(0)
    for rank in range(world):
        processes.die(rank)
    assert stays(lambda: not any(processes.failures))


@WORLDS
def test_one_process_that_leaves_with_code_0_does_not_end_the_others(job, world):
    processes = job(world).connect()
    processes.peers[-1].leave(0)
    processes.die(world - 1)
    assert stays(lambda: not any(processes.failures))


@WORLDS
@pytest.mark.parametrize('who', ['first', 'last'])
def test_an_error_reaches_all_others_with_its_code_and_text(job, world, who):
    processes = job(world).connect()
    rank = 0 if who == 'first' else world - 1
    text = 'process 1: train.py: data/größe.png is damaged;\n  remove it 100 %'
    processes.peers[rank].leave(2, text)
    processes.die(rank)
    others = [other for other in range(world) if other != rank]
    wait_until(lambda: all(processes.failures[other] for other in others))
    expected = PeerFailure(2, 'process 1: train.py: data/größe.png is damaged; remove it 100 %')
    assert [processes.failures[other] for other in others] == [[expected]] * (world - 1)


@WORLDS
@pytest.mark.parametrize('who', ['first', 'last'])
def test_a_killed_process_is_reported_to_all(job, world, who):
    processes = job(world).connect()
    rank = 0 if who == 'first' else world - 1
    processes.die(rank)
    others = [other for other in range(world) if other != rank]
    wait_until(lambda: all(processes.failures[other] for other in others))
    expected = PeerFailure(None, f'process {rank} has died')
    assert [processes.failures[other] for other in others] == [[expected]] * (world - 1)


@WORLDS
def test_any_does_not_return_after_a_failure(job, world):
    """on_failure ends the process; an answer would be made up."""
    processes = job(world).connect()
    waiting = []
    for peers in processes.peers[:-1]:
        thread = threading.Thread(target=lambda p=peers: waiting.append(p.any()), daemon=True)
        thread.start()
    processes.peers[-1].leave(3, 'the loss became nan')
    wait_until(lambda: all(processes.failures[:-1]))
    assert stays(lambda: not waiting)
    for failures in processes.failures[:-1]:
        assert failures == [PeerFailure(3, 'the loss became nan')]


def test_only_the_first_failure_is_reported(job):
    processes = job(8).connect()
    processes.peers[3].leave(2, 'the first')
    wait_until(
        lambda: all(failures for rank, failures in enumerate(processes.failures) if rank != 3)
    )
    for rank in (3, 5, 6):
        processes.die(rank)
    processes.peers[7].leave(1, 'the second')
    processes.die(7)
    time.sleep(0.3)
    for rank in (0, 1, 2, 4):
        assert processes.failures[rank] == [PeerFailure(2, 'the first')]


@WORLDS
@pytest.mark.parametrize('code', [0, 2])
@pytest.mark.parametrize('who', ['first', 'last'])
def test_a_process_that_has_left_gets_no_report_of_a_failure(job, world, code, who):
    """Neither of its own, as the first process reports it, nor of the others, which end because of
    it: while Python winds up, on_failure would give it another code."""
    processes = job(world).connect()
    rank = 0 if who == 'first' else world - 1
    processes.peers[rank].leave(code, 'a reason')
    for other in range(world):
        if other != rank:
            if code:
                wait_until(lambda other=other: processes.failures[other])
            processes.die(other)
    time.sleep(0.2)
    assert processes.failures[rank] == []


@pytest.mark.parametrize('world', [2, 3])
def test_same_compares_the_words_of_all_processes(job, world):
    running = job(world).connect()
    for words in (['a'] * world, ['a'] * (world - 1) + ['b'], ['b'] + ['a'] * (world - 1)):
        answers = [
            running._pool.submit(peers.same, word) for peers, word in zip(running.peers, words)
        ]
        assert {answer.result(SOON) for answer in answers} == {len(set(words)) == 1}
    assert running.all([True] + [False] * (world - 1)) == [True] * world


@pytest.mark.parametrize('waiting', [0, 1])
def test_waiting_for_a_finished_process_is_a_failure(job, waiting):
    running = job(2).connect()
    threading.Thread(target=running.peers[waiting].any, daemon=True).start()
    running.peers[1 - waiting].leave(0)
    wait_until(lambda: running.failures[waiting])
    (failure,) = running.failures[waiting]
    assert failure.code == 1
    assert 'has finished' in failure.reason


def test_an_error_and_the_end_of_the_connection_are_one_failure(job):
    processes = job(3).connect()
    processes.peers[2].leave(2, 'a reason')
    processes.die(2)
    wait_until(lambda: processes.failures[0] and processes.failures[1])
    time.sleep(0.2)
    assert processes.failures[:2] == [[PeerFailure(2, 'a reason')]] * 2


def test_an_error_without_a_reason_is_reported(job):
    processes = job(2).connect()
    processes.peers[1].leave(130)
    wait_until(lambda: processes.failures[0])
    assert processes.failures[0] == [PeerFailure(130, '')]


PROCESS = """
import os, sys, threading
from engine.machine.peers import Peers

def end_too(failure):
    print(failure.code, failure.reason, flush=True)
    os._exit(0)

rank, world, port = map(int, sys.argv[1:])
peers = Peers(rank, world, ('127.0.0.1', port), secret=b'job', on_failure=end_too)
peers.any()
print('together', flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize('killed', [0, 1, 2])
def test_a_kill_of_a_real_process_ends_the_others(killed):
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', PROCESS, str(rank), '3', str(port)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == 'together\n'
        processes[killed].kill()
        for rank, process in enumerate(processes):
            out, _ = process.communicate(timeout=SOON)
            if rank != killed:
                assert out == f'None process {killed} has died\n'
    finally:
        for process in processes:
            process.kill()
            process.wait()


# ------------------------------------------------------------------ coming together


FAILING = """
import os, time
from engine import cli
from engine.machine import processes
from engine.errors import UserError

def main():
    processes.connect()
    if processes.RANK == 0:
        raise UserError('the data is not there')
    time.sleep(0.3)
    raise RuntimeError('what a collective raises when another process has ended')

cli.run(main)
"""


def test_a_collective_that_fails_after_an_error_elsewhere_shows_that_error():
    endpoints = f'127.0.0.1:{free_port()},127.0.0.1:{free_port()}'
    job = {'PADDLE_TRAINERS_NUM': '2', 'PADDLE_TRAINER_ENDPOINTS': endpoints}
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', FAILING],
            cwd=REPOSITORY,
            env={**os.environ, **job, 'PADDLE_TRAINER_ID': str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert 'process 0: -c: the data is not there; process 1 ends, too' in errors[1]
    assert 'Traceback' not in errors[1]


def test_the_first_process_may_come_last(job):
    processes = job(3)
    started = [processes.start(rank) for rank in (2, 1)]
    time.sleep(0.4)
    assert not any(future.done() for future in started)
    started.append(processes.start(0))
    processes.peers = sorted((future.result(SOON) for future in started), key=lambda p: p.rank)
    assert processes.all([False, False, True]) == [True] * 3


@pytest.mark.parametrize(
    ('world', 'here', 'named'),
    [(2, [], '1'), (3, [1], '2'), (3, [], '1, 2'), (8, [1, 2, 4, 5, 7], '3, 6')],
)
def test_missing_processes_are_named_after_the_timeout(job, world, here, named):
    processes = job(world)
    for rank in here:
        processes.start(rank)
    start = time.monotonic()
    with pytest.raises(PeerMissing) as error:
        processes.start(0, timeout_s=0.7).result(SOON)
    assert str(error.value) == f'process {named}'
    assert 0.6 < time.monotonic() - start < 5


def test_without_the_first_process_its_address_is_named(job):
    processes = job(3)
    with pytest.raises(PeerMissing) as error:
        processes.start(1, timeout_s=0.5).result(SOON)
    assert str(error.value) == f'process 0 at 127.0.0.1:{processes.port}'


def test_a_port_taken_by_another_program_is_named(job):
    processes = job(2)
    taken = f'port {processes.port} of this machine is taken'
    with socket.create_server(('', processes.port)), pytest.raises(PortTaken, match=taken):
        processes.start(0, timeout_s=0.3).result(SOON)


def test_a_port_that_has_connected_to_itself_is_free_for_the_first_process(job, monkeypatch):
    """TCP does that where a connection happens to start from the port that it asks for."""
    processes = job(2)
    itself = threading.Event()

    def connect(address, timeout, create=socket.create_connection):
        source = None if itself.is_set() else address
        connection = create(address, timeout, source_address=source)
        itself.set()
        return connection

    monkeypatch.setattr('engine.machine.connections.socket.create_connection', connect)
    late = processes.start(1)
    assert itself.wait(SOON)
    early = processes.start(0)
    processes.peers = [early.result(SOON), late.result(SOON)]
    assert not processes.failures[1]


def call(port: int) -> socket.socket:
    """A stranger's connection, as soon as somebody listens."""
    end = time.monotonic() + SOON
    while True:
        try:
            return socket.create_connection(('127.0.0.1', port), timeout=SOON)
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.01)


STRANGERS = {
    'nothing': b'',
    'random bytes': random.Random(0).randbytes(5000),
    'random bytes in lines': b'\n'.join([b'\xff\xfe', b'\x80' * 40, b'']),
    'a browser': b'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
    'no proof': b'hello 1\n',
    'no rank': b'hello one ' + b'0' * 32 + b' ' + b'0' * 64 + b'\n',
    'a made-up proof': b'hello 1 ' + b'0' * 32 + b' ' + b'0' * 64 + b'\n',
    'letters in the proof': 'hello 1 0 größer\n'.encode(),
    'more words': b'hello 1 0 0 please\n',
    'another word': b'left 1 0 0\n',
    'an empty line': b'\n',
}


@pytest.mark.parametrize('name', STRANGERS)
def test_a_stranger_neither_joins_nor_stops_the_others(job, name):
    processes = job(3)
    first = processes.start(0)
    with call(processes.port) as stranger:
        with contextlib.suppress(OSError):
            stranger.sendall(STRANGERS[name])
        if name == 'nothing':
            stranger.close()
        started = [processes.start(rank) for rank in (1, 2)]
        processes.peers = [future.result(SOON) for future in (first, *started)]
    assert sorted(processes.peers[0]._links) == [1, 2]
    assert processes.all([False, True, False]) == [True] * 3
    assert stays(lambda: not any(processes.failures), 0.1)


class Stranger:
    """A host that knows the endpoints, and all lines that were sent, but not the secret."""

    def __init__(self, port: int) -> None:
        self.link = call(port)
        self.lines = self.link.makefile('r')
        self.challenge = self.lines.readline().split()[1]

    def answer(self, rank: int, nonce: str, proof: str) -> str:
        self.link.sendall(f'hello {rank} {nonce} {proof}\n'.encode())
        return self.lines.readline()


def proof(secret: str, *words: str) -> str:
    return hmac.new(secret.encode(), ' '.join(words).encode(), 'sha256').hexdigest()


@pytest.mark.parametrize('rank', [1, 2])
def test_a_host_without_the_secret_cannot_take_a_rank(job, rank):
    processes = job(3)
    first = processes.start(0)
    for secret in ('job', 'job2', '', processes.word):
        stranger = Stranger(processes.port)
        right = proof(secret, stranger.challenge, 'n', str(rank))
        if secret != processes.word:
            assert stranger.answer(rank, 'n', right) == 'refused\n'
            continue
        # What was right once is wrong for another rank and another connection.
        assert stranger.answer(3 - rank, 'n', right) == 'refused\n'
        assert Stranger(processes.port).answer(rank, 'n', right) == 'refused\n'
    started = [processes.start(other) for other in (1, 2)]
    processes.peers = [future.result(SOON) for future in (first, *started)]
    assert processes.all([False, True, False]) == [True] * 3


@pytest.mark.parametrize('sent', ['', 'who abc\n', 'who abc\nwelcome 0\n', 'nonsense\n\n'])
def test_a_host_without_the_secret_is_not_accepted_as_the_first_process(job, sent):
    processes = job(2)

    def pretend(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = server.accept()
                with link:
                    link.sendall(sent.encode())
                    link.recv(1000)

    with socket.create_server(('127.0.0.1', processes.port)) as server:
        threading.Thread(target=pretend, args=(server,), daemon=True).start()
        with pytest.raises(PeerMissing, match='process 0 at '):
            processes.start(1, timeout_s=0.7).result(SOON)
        server.shutdown(socket.SHUT_RDWR)


def test_another_secret_is_named_as_a_reason(job):
    ours, others = job(2), job(2, job='job2')
    others.port = ours.port
    first = ours.start(0)
    with pytest.raises(PeerMissing, match='belongs to another job or has another secret'):
        others.start(1, timeout_s=0.7).result(SOON)
    second = ours.start(1)
    ours.peers = [first.result(SOON), second.result(SOON)]


@pytest.mark.parametrize(('host', 'reached'), [('127.0.0.1', False), ('0.0.0.0', True)])
def test_a_job_of_one_machine_cannot_be_reached_from_another(host, reached):
    """Another address of this machine stands for it: 127.0.0.2 is one on Linux."""
    if sys.platform != 'linux':
        pytest.skip('needs 127.0.0.2')
    from engine.machine.connections import _listening

    port = free_port()
    with _listening((host, port), time.monotonic() + SOON):
        try:
            socket.create_connection(('127.0.0.2', port), timeout=SOON).close()
        except ConnectionRefusedError:
            assert not reached
        else:
            assert reached


def test_the_secret_of_a_job(monkeypatch):
    """Of the launcher's random name on one machine, of the user's own on several."""
    from engine.machine import processes

    def secret(**environment: str) -> bytes:
        for name in (processes.SECRET, 'POD_NAME', 'PADDLE_LOCAL_SIZE'):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return processes._secret('10.0.0.1:7000,10.0.0.2:7000')

    monkeypatch.setattr(processes, 'WORLD_SIZE', 2)
    alone = {'PADDLE_LOCAL_SIZE': '2'}
    assert secret(POD_NAME='abcdef', **alone) != secret(POD_NAME='ghijkl', **alone)
    several = {'PADDLE_LOCAL_SIZE': '1'}
    assert secret(POD_NAME='abcdef', **several) == secret(POD_NAME='ghijkl', **several)
    ours = secret(TRAIN_JOB_SECRET='ours', POD_NAME='abcdef', **several)
    assert ours == secret(TRAIN_JOB_SECRET='ours', POD_NAME='ghijkl', **several)
    assert len({ours, secret(TRAIN_JOB_SECRET='other', **several), secret(**several)}) == 3


@pytest.mark.parametrize('sent', [b'', b'hello 1 jo'], ids=['nothing', 'half'])
def test_a_stranger_without_a_complete_line_delays_others_only_briefly(job, sent):
    """Five seconds, and then the others' turn comes."""
    processes = job(2)
    first = processes.start(0, timeout_s=30)
    with call(processes.port) as stranger:
        stranger.sendall(sent)
        second = processes.start(1, timeout_s=30)
        processes.peers = [future.result(20) for future in (first, second)]
    assert processes.all([True, False]) == [True] * 2


def test_a_line_without_an_end_is_cut_off(job):
    """Not read for ever."""
    processes = job(2)
    first = processes.start(0)
    with call(processes.port) as stranger:
        with contextlib.suppress(OSError):
            stranger.sendall(b'hello ' * 100_000)
        start = time.monotonic()
        second = processes.start(1)
        processes.peers = [future.result(SOON) for future in (first, second)]
        assert time.monotonic() - start < 4
    assert processes.all([False, False]) == [False] * 2


@pytest.mark.parametrize('sent', STRANGERS, ids=str)
def test_strangers_are_not_accepted_as_processes(job, sent):
    processes = job(2)
    first = processes.start(0, timeout_s=0.5)
    with call(processes.port) as stranger:
        with contextlib.suppress(OSError):
            stranger.sendall(STRANGERS[sent])
        with pytest.raises(PeerMissing) as error:
            first.result(SOON)
    assert str(error.value) == 'process 1'


def test_two_jobs_on_one_port_do_not_mix(job):
    """The second process of another job, that has the wrong port, waits for its own in vain."""
    ours = job(2)
    theirs = job(2, job='job2', port=ours.port)
    first = ours.start(0)
    theirs.start(1)
    time.sleep(0.2)
    assert not first.done()
    second = ours.start(1)
    ours.peers = [first.result(SOON), second.result(SOON)]
    assert ours.all([False, True]) == [True, True]


def test_died_is_not_an_exit_code():
    with pytest.raises(ValueError):
        int(DIED)
