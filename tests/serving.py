"""What the tests of the server share: a tiny exported network, servers, and a client."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import resource
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence

import numpy as np
from conftest import REPOSITORY

from predictor.exported_folder import open_folder
from server import sockets
from server.limits import Limits
from server.listening import Server
from server.routes import make_app
from server.service import Service

MODEL, SIZE, CLASSES = 'wide_resnet10_1', 16, 7
SERVE = str(REPOSITORY / 'deploy' / 'serve.py')


def export_tiny(folder: Path) -> Path:
    """A network whose logits depend on the picture, as export.py writes it."""
    from exporting import export_file

    from engine import models
    from engine.weights import write_arrays

    rng = np.random.default_rng(0)
    state = models.build(MODEL, num_classes=CLASSES).state_dict()
    arrays = {key: tensor.numpy().astype(np.float32) for key, tensor in state.items()}
    arrays['fc.weight'] = rng.normal(size=arrays['fc.weight'].shape).astype(np.float32)
    with (folder / 'tiny.pdparams').open('wb') as file:
        write_arrays(file, arrays)
    export_file(folder / 'tiny.pdparams', MODEL, SIZE, folder / 'inference')
    return folder / 'inference'


class Fake:
    """A Predictor with known logits, as slow and as broken as a test needs."""

    engine, reason = 'fake', 'a test'

    def __init__(self, folder: Path, *, type: str = 'float32') -> None:
        described = open_folder(folder)
        self.description = replace(described, input=replace(described.input, type=type))
        self.seen: list[int] = []
        self.go = threading.Event()  # the network runs while it is set
        self.go.set()
        self.running = threading.Event()  # set when the network is called
        self.error: Optional[Exception] = None

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return pixels.transpose(0, 3, 1, 2).astype(np.float32)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """An image's mean, times 0, 1, 2 ..."""
        self.seen.append(len(images))
        self.running.set()
        assert self.go.wait(20)
        if self.error is not None:
            raise self.error
        mean = images.reshape(len(images), -1).astype(np.float32).mean(axis=1)
        return mean[:, None] * np.arange(CLASSES, dtype=np.float32)


class Reply:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line of JSON of an error."""
        (error,) = self.json.values()
        assert list(self.json) == ['error']
        assert '\n' not in error
        return error


class Client:
    """A server's port, and ways to talk to it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Optional[dict[str, str]] = None,
        *,
        timeout_s: float = 20,
    ) -> Reply:
        link = http.client.HTTPConnection('127.0.0.1', self.port, timeout=timeout_s)
        with contextlib.closing(link):
            link.request(method, path, body, headers or {})
            response = link.getresponse()
            return Reply(response.status, response.headers, response.read())

    def get(self, path: str) -> Reply:
        return self.ask('GET', path)

    def classify(self, body: Any, path: str = '/classify', **headers: str) -> Reply:
        named = {name.replace('_', '-'): text for name, text in headers.items()}
        return self.ask('POST', path, body, named)

    def infer(self, request: Any, rest: bytes = b'', **headers: str) -> Reply:
        head = request if isinstance(request, bytes) else json.dumps(request).encode()
        named = {name.replace('_', '-'): text for name, text in headers.items()}
        if rest:
            named['Inference-Header-Content-Length'] = str(len(head))
        return self.ask('POST', f'/v2/models/{MODEL}/infer', head + rest, named)

    def link(self, *, timeout_s: float = 20) -> socket.socket:
        return socket.create_connection(('127.0.0.1', self.port), timeout=timeout_s)

    def raw(self, data: bytes, *, timeout_s: float = 20) -> bytes:
        """The response, read until the server closes the connection."""
        with self.link(timeout_s=timeout_s) as link:
            link.sendall(data)
            return read_all(link)

    def metric(self, line: str) -> float:
        """A value of /metrics by the beginning of its line; 0.0 if it is missing."""
        text = self.get('/metrics').body.decode()
        found = re.search(rf'^{re.escape(line)} (\S+)$', text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0


class InThread(Client):
    """A whole server, without signals and the command line."""

    def __init__(self, predictors: list[Any], limits: Limits, origins: Sequence[str] = ()) -> None:
        ready = threading.Event()
        self.service = Service(predictors, limits)
        self.server = Server(
            make_app(self.service, origins),
            limits,
            on_ready=ready.set,
            on_stop=self.service.stop,
            refuse=self.service.metrics.count_refusal,
        )
        listener = sockets.bind('127.0.0.1', 0)
        sockets.listen(listener)
        super().__init__(listener.getsockname()[1])
        serving = self.server.serve(sockets=[listener])
        self.thread = threading.Thread(target=asyncio.run, args=(serving,), daemon=True)
        self.thread.start()
        assert ready.wait(20)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        assert self.service.close(timeout_s=10)


@contextlib.contextmanager
def in_thread(
    predictors: list[Any],
    limits: Optional[Limits] = None,
    *,
    origins: Sequence[str] = (),
    **more: Any,
) -> Iterator[InThread]:
    """more: limits other than the tests' own"""
    given = {'max_batch': 4, 'queue': 16, 'drain_s': 5, **more}
    server = InThread(predictors, replace(limits or Limits(), **given), origins)
    try:
        yield server
    finally:
        for predictor in predictors:
            if isinstance(predictor, Fake):
                predictor.go.set()
        server.stop()


class Command(Client):
    """serve.py itself."""

    def __init__(
        self, folder: Path, *options: str, files: Optional[int] = None, through: Sequence[str] = ()
    ) -> None:
        arguments = [sys.executable, *through, SERVE, str(folder), '--port', '0']
        arguments += ['--engine', 'paddle']
        self.process = subprocess.Popen(
            [*arguments, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=None if files is None else lambda: _allow_files(files),
        )
        assert self.process.stdout is not None
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(r'http://127\.0\.0\.1:(\d+)/', line)
            if found:
                super().__init__(int(found.group(1)))
                return
        raise AssertionError(self.process.communicate()[1])

    def resident(self) -> int:
        """Bytes of memory."""
        text = Path(f'/proc/{self.process.pid}/status').read_text()
        return 1024 * int(text.partition('VmRSS:')[2].split()[0])

    def end(self, *, timeout_s: float = 30) -> tuple[int, str, str]:
        """Exit code, and the output of both streams since it was ready."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err


@contextlib.contextmanager
def command(
    folder: Path, *options: str, files: Optional[int] = None, through: Sequence[str] = ()
) -> Iterator[Command]:
    """files: its limit of open files; through: a script that runs it"""
    server = Command(folder, *options, files=files, through=through)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def _allow_files(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def read_all(link: socket.socket) -> bytes:
    data = b''
    with contextlib.suppress(ConnectionError):
        while chunk := link.recv(65536):
            data += chunk
    return data


def read_answer(link: socket.socket) -> bytes:
    """One response, from a connection that may stay open."""
    data = b''
    while b'\r\n\r\n' not in data:
        data += link.recv(65536)
    found = re.search(rb'(?i)\r\ncontent-length: (\d+)', data)
    assert found
    while len(data.partition(b'\r\n\r\n')[2]) < int(found.group(1)):
        data += link.recv(65536)
    return data


def status_of(data: bytes) -> int:
    """Of a raw response."""
    assert data.startswith(b'HTTP/1.1 '), data[:200]
    return int(data[9:12])


def eventually(true: Callable[[], bool], *, timeout_s: float = 10) -> None:
    ended = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if true():
            return
        ended.wait(0.01)
    raise AssertionError('the condition did not become true in time')
