"""How an engine is to run, and what an engine is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Setting:
    """How an engine is to run: never 'auto'."""

    device: str  # cpu, gpu:0, npu:0
    threads: int  # of a CPU
    batch: int  # the largest that will come; others run too, except with TensorRT
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
