"""How an engine runs (`Setting`), and what an engine is (`Engine`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Setting:
    """How an engine runs; nothing is 'auto' here."""

    device: str  # cpu, gpu:0, npu:0
    threads: int  # of a CPU
    batch: int  # the largest; TensorRT refuses larger ones
    precision: str  # float32, float16 or int8
    onednn: bool

    @property
    def kind(self) -> str:
        return self.device.partition(':')[0]

    @property
    def number(self) -> int:
        return int(self.device.partition(':')[2] or 0)


class Engine(Protocol):
    """Used by one thread at a time."""

    def __call__(self, images: np.ndarray) -> np.ndarray: ...
