"""Worker: clients of a server, each with a connection of its own and the next request always ready.

It writes HTTP itself: a client library would take more of the cores than the server.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import time
from collections import Counter
from typing import Iterator

import numpy as np
from PIL import Image

from benchmarks.processes import Answer, serve

SIDE, PICTURES = 32, 64
PATIENCE_S, PAUSE_S = 60.0, 0.05  # for an answer; after an error


def main() -> None:
    serve({'load': lambda **arguments: asyncio.run(load(**arguments))})


async def load(port: int, model: str, kind: str, clients: int, seconds: float) -> Answer:
    """Latencies of the requests that were answered by 200, and what became of the others."""
    requests = itertools.cycle(pictures() if kind == 'classify' else tensors(model))
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    start = time.perf_counter()
    end = start + seconds
    await asyncio.gather(*(client(port, requests, end, latencies, errors) for _ in range(clients)))
    return {
        'latencies': latencies,
        'errors': dict(errors),
        'seconds': time.perf_counter() - start,
    }


async def client(
    port: int, requests: Iterator[bytes], end: float, latencies: list[float], errors: Counter[str]
) -> None:
    while time.perf_counter() < end:
        try:
            reader, writer = await asyncio.open_connection('127.0.0.1', port)
            try:
                while time.perf_counter() < end:
                    start = time.perf_counter()
                    writer.write(next(requests))
                    status = await asyncio.wait_for(answer(reader), PATIENCE_S)
                    if status == 200:
                        latencies.append(time.perf_counter() - start)
                    else:
                        errors[str(status)] += 1
                        await asyncio.sleep(PAUSE_S)
            finally:
                writer.close()
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            errors[type(error).__name__] += 1
            await asyncio.sleep(PAUSE_S)


async def answer(reader: asyncio.StreamReader) -> int:
    """The status of a response, whose body is read to its end. ValueError if it has no length."""
    head = (await reader.readuntil(b'\r\n\r\n')).lower()
    before, found, after = head.partition(b'\r\ncontent-length:')
    if not found:
        raise ValueError('no Content-Length')
    await reader.readexactly(int(after.split(b'\r\n')[0]))
    return int(before.split()[1])


def pictures() -> list[bytes]:
    """Requests to /classify, each with another PNG."""
    requests = []
    for pixels in _pixels():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, 'PNG')
        requests.append(_post('/classify', file.getvalue(), 'Content-Type: image/png'))
    return requests


def tensors(model: str) -> list[bytes]:
    """Requests to infer, each with another image as binary float32, which also want binary."""
    requests = []
    for pixels in _pixels():
        image = (pixels.transpose(2, 0, 1) / 64 - 2).astype('<f4').tobytes()
        entry = {'name': 'image', 'shape': [1, 3, SIDE, SIDE], 'datatype': 'FP32'}
        head = json.dumps(
            {
                'inputs': [{**entry, 'parameters': {'binary_data_size': len(image)}}],
                'outputs': [{'name': 'logits', 'parameters': {'binary_data': True}}],
            }
        ).encode()
        length = f'Inference-Header-Content-Length: {len(head)}'
        kind = 'Content-Type: application/octet-stream'
        requests.append(_post(f'/v2/models/{model}/infer', head + image, kind, length))
    return requests


def _pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (PICTURES, SIDE, SIDE, 3), np.uint8)


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = (
        f'POST {path} HTTP/1.1',
        'Host: 127.0.0.1',
        f'Content-Length: {len(body)}',
        *headers,
    )
    return '\r\n'.join([*lines, '', '']).encode() + body


if __name__ == '__main__':
    main()
