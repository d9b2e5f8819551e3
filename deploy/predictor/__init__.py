"""An exported folder as a function from pictures to probabilities, whatever engine runs it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Union

from installation import SERVING, require

require(Path(__file__).resolve().parent.parent, SERVING)

import numpy as np

from predictor import devices, engines, machine
from predictor.errors import UserError
from predictor.exported_folder import Description, open_folder
from predictor.setting import Setting


class Predictor:
    """A model that is ready to run, for one thread at a time; `another` makes one for another.

    folder: what export.py wrote, or what `open_folder` made of it
    engine: auto, or a name in `engines.ENGINES`
    device: auto, cpu, gpu, gpu:1, npu ...
    threads: of a CPU; None: as many as the process has cores
    batch: the expected number of images of a call; more are run in parts of that size
    precision: float32; float16 on a GPU or an NPU; int8 of what `export.py --int8` has written
    onednn: whether Paddle uses it on a CPU
    report: called with a line of text, such as why the CPU is used

    After construction, `engine` is the engine's name and `reason` says why it was chosen.
    UserError if the folder is incomplete, or the engine cannot run it here.
    """

    def __init__(
        self,
        folder: Union[str, Path, Description],
        *,
        engine: str = 'auto',
        device: str = 'auto',
        threads: int | None = None,
        batch: int = 1,
        precision: str = 'float32',
        onednn: bool = True,
        report: Callable[[str], None] = print,
    ) -> None:
        self.description = folder if isinstance(folder, Description) else open_folder(folder)
        found = devices.find_device(device, report)
        self.setting = Setting(found, threads or machine.cores(), batch, precision, onednn)
        try:
            self._start(engine)
        except UserError as error:
            # Perhaps no engine starts on the card, because CUDA's libraries are missing.
            for_cpus = engine != 'tensorrt' and precision != 'float16'
            if device != 'auto' or self.setting.kind == 'cpu' or not for_cpus:
                raise
            report(f'the cpu is used, not {self.setting.device}: {error}')
            self.setting = replace(self.setting, device='cpu')
            self._start(engine)

    def _start(self, engine: str) -> None:
        self._engine: Any
        if engine == 'auto':
            self.engine, self._engine, self.reason = engines.choose(self.description, self.setting)
        else:
            self.engine, self.reason = engine, 'as asked for'
            self._engine = engines.make(engine, self.description, self.setting)

    def another(self) -> Predictor:
        """The same again, for another thread; on a card, both have the same weights."""
        twin = copy.copy(self)
        if self.setting.kind == 'cpu':
            twin._engine = engines.make(self.engine, self.description, self.setting)
        else:
            twin._engine = self._engine.another()
        return twin

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, size, size, 3] -> the graph's input, normalised unless the graph does that.

        The only method that many threads may call at once.
        """
        return self.description.input.prepare(pixels)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The graph's input [N, ...] -> float32 [N, classes]."""
        if not len(images):
            return np.zeros((0, len(self.description.classes)), np.float32)
        batch = self.setting.batch
        starts = range(0, len(images), batch)
        return np.concatenate([self._engine(images[start : start + batch]) for start in starts])

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, size, size, 3] -> float32 [N, classes], each row's sum 1."""
        return softmax(self.logits(self.prepare(pixels)))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
