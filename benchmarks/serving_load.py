"""deploy/serve.py under load: 32 clients on the same two cores, each with one image a request.

Claim: gathering requests into batches of up to 16 answers at least 1.3 times as many of them as
running each by itself, and neither makes errors. Falsified by: python3 -m benchmarks serving_load.
The servers with and without batches are both alive and take turns, a minute each in all; latencies
are the clients', who share the cores with the server.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np

from benchmarks.exported import WRN_16_2, WRN_28_10, Network, folder_of
from benchmarks.processes import REPOSITORY, Worker, clean_environment, failure, on_cores
from benchmarks.report import Claim, Result, table

CORES, CLIENTS = 2, 32
KINDS = {'classify': 'PNG to /classify', 'infer': 'binary tensor to infer'}
BATCHED, ALONE = 16, 1  # --max-batch
ROUNDS, TURN_S = 6, 10.0
START_S = 120.0
TARGET = 1.3


@dataclass
class Tally:
    """What one server answered to one kind of request, over all rounds."""

    engine: str
    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    images: float = 0.0  # by the server's own count
    batches: float = 0.0

    @property
    def speed(self) -> float:
        """Images a second."""
        return len(self.latencies) / self.seconds

    def figures(self) -> dict[str, Any]:
        p50, p99 = (1000 * np.percentile(self.latencies or [float('nan')], [50, 99])).tolist()
        return {
            'images_per_second': round(self.speed, 1),
            'p50_ms': round(p50, 2),
            'p99_ms': round(p99, 2),
            'mean_batch': round(self.images / max(1.0, self.batches), 2),
            'answered': len(self.latencies),
            'errors': dict(self.errors),
            'engine': self.engine,
        }


def run(quick: bool, exported: Optional[Path]) -> Result:
    result, rows = Result(figures={'clients': CLIENTS}), []
    for network in (WRN_16_2,) if quick else (WRN_16_2, WRN_28_10):
        with tempfile.TemporaryDirectory() as scratch, on_cores(CORES):
            folder = folder_of(network, Path(scratch), exported).resolve()
            for kind in KINDS:
                rounds, turn_s = (1, 1.0) if quick else (ROUNDS, TURN_S)
                tallies = measure(network, folder, Path(scratch), kind, rounds, turn_s)
                rows += judge(network, kind, tallies, result)
    header = [f'{CLIENTS} clients', 'images/s', 'p50 ms', 'p99 ms']
    header += ['mean batch', 'errors', 'engine']
    result.tables.append(table(header, rows))
    return result


def measure(
    network: Network, folder: Path, scratch: Path, kind: str, rounds: int, turn_s: float
) -> dict[int, Tally]:
    """--max-batch -> what became of the requests."""
    with contextlib.ExitStack() as stack:
        limits = (BATCHED, ALONE)
        servers = {most: stack.enter_context(Server(folder, scratch, most)) for most in limits}
        tallies = {most: Tally(server.engine) for most, server in servers.items()}
        clients = stack.enter_context(Worker('serving_client', {}))
        asked = {'model': network.name, 'kind': kind, 'clients': CLIENTS}
        for server in servers.values():  # to warm up
            clients.ask('load', port=server.port, seconds=0.5, **asked)
        for _ in range(rounds):
            for most, tally in tallies.items():
                before = servers[most].counts()
                [answer] = clients.ask('load', port=servers[most].port, seconds=turn_s, **asked)
                after = servers[most].counts()
                tally.latencies += answer['latencies']
                tally.errors.update(answer['errors'])
                tally.seconds += answer['seconds']
                tally.images += after[0] - before[0]
                tally.batches += after[1] - before[1]
    return tallies


def judge(
    network: Network, kind: str, tallies: dict[int, Tally], result: Result
) -> list[list[str]]:
    """Add figures and claims to the result; the table's rows."""
    title, rows = f'{network.title}, {KINDS[kind]}', []
    ratio = tallies[BATCHED].speed / max(tallies[ALONE].speed, 1e-9)
    errors = sum(sum(tally.errors.values()) for tally in tallies.values())
    figures: dict[str, Any] = {'batched_over_alone': round(ratio, 3)}
    for most, tally in tallies.items():
        found = figures[f'max_batch_{most}'] = tally.figures()
        cells = [f'{found["images_per_second"]:.1f}', f'{found["p50_ms"]:.1f}']
        cells += [f'{found["p99_ms"]:.1f}', f'{found["mean_batch"]:.2f}']
        cells += [str(sum(tally.errors.values())), tally.engine]
        rows.append([f'{title}, --max-batch {most}', *cells])
    result.figures[title] = figures
    result.claims += [
        Claim(f'{title}: in batches / one by one', ratio, TARGET, 'x'),
        Claim(f'{title}: errors', errors, 0, '', at_most=True),
    ]
    return rows


class Server(contextlib.ExitStack):
    """deploy/serve.py as a user starts it, ready to answer."""

    def __init__(self, folder: Path, scratch: Path, max_batch: int) -> None:
        super().__init__()
        self.port = free_port()
        self._output = scratch / f'server{max_batch}'
        command = [sys.executable, 'deploy/serve.py', str(folder)]
        options = ['--port', str(self.port), '--max-batch', str(max_batch)]
        with self._output.open('wb') as file:
            self._process = subprocess.Popen(
                [*command, *options],
                cwd=REPOSITORY,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.callback(self._process.wait)
        self.callback(self._process.kill)
        try:
            self._wait_until_ready()
            self.engine = str(json.loads(self._get('/about'))['engine'])
        except BaseException:
            self.close()
            raise

    def counts(self) -> tuple[float, float]:
        """Images and batches that the network has run so far."""
        text = self._get('/metrics')
        name = 'classifier_batch_images'
        found = [re.search(rf'^{name}_{part} (\S+)$', text, re.M) for part in ('sum', 'count')]
        images, batches = (float(match[1]) if match else 0.0 for match in found)
        return images, batches

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._get('/v2/health/ready')
                return
            time.sleep(0.1)
        raise failure('deploy/serve.py did not get ready', self._output)

    def _get(self, path: str) -> str:
        """HTTPException unless the answer is 200."""
        with contextlib.closing(http.client.HTTPConnection('127.0.0.1', self.port, 10)) as line:
            line.request('GET', path)
            response = line.getresponse()
            text = response.read().decode()
        if response.status != 200:
            raise http.client.HTTPException(f'{path}: {response.status}')
        return text


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return int(free.getsockname()[1])
