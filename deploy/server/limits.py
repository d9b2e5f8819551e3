"""How much of the server its clients may use: bytes, memory, time, connections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The defaults are serve.py's."""

    max_batch: int = 16  # images a batch, and the most that a request may have
    max_delay_s: float = 0.002  # a batch waits for pictures that are being decoded
    queue: int = 256  # images that may wait
    pixels: int = 64_000_000  # of a picture
    body_bytes: int = 16 << 20
    bodies: int = 16  # of that size, in memory together
    body_s: float = 60.0  # from its first byte: 16 MB at 2.2 Mbit/s
    answer_s: float = 30.0  # after the last byte of the body
    head_s: float = 10.0  # for the head of a request, and for the client to read its answer
    linger_s: float = 2.0  # for a client that is still sending to read why it is refused
    connections: int = 1000
    drain_s: int = 20  # after SIGTERM; Kubernetes kills after 30
