"""How much of the server a client may use: bytes, memory, time, connections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The defaults are serve.py's."""

    body_bytes: int = 16 << 20
    pixels: int = 64_000_000
    answer_s: float = 30.0  # after the last byte of the body
    body_s: float = 60.0  # from its first byte: 16 MB at 2.2 Mbit/s
    head_s: float = 10.0  # for the head of a request, and for the client to read its answer
    linger_s: float = 2.0  # for a client that is still sending to read why it is refused
    connections: int = 1000

    @property
    def uploads_bytes(self) -> int:
        """Of all bodies in memory together."""
        return 16 * self.body_bytes
