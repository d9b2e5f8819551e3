"""An exported folder as a function from pictures to probabilities, whatever engine runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Union

from installation import SERVING, require

require(Path(__file__).resolve().parent.parent, SERVING)

import numpy as np

from predictor import devices, engines, machine
from predictor.choice import Choice, choose
from predictor.errors import UserError
from predictor.exported_folder import Description, open_folder
from predictor.setting import Setting


class Predictor:
    """A model that is ready to run, for one thread at a time; `another` makes one for another.

    folder: what export.py wrote, or what `open_folder` made of it
    engine: auto, paddle, tensorrt, onnxruntime or openvino
    device: auto, cpu, gpu, gpu:1, npu ...
    threads: of a CPU; None: as many as the process has cores
    batch: the expected number of images of a call; more are run in parts of that size
    precision: float32; float16 on a GPU or an NPU; int8 of what `export.py --int8` has written
    onednn: whether Paddle uses it on a CPU
    report: gets lines of text: which engines are tried, and why the cpu is used

    UserError if the folder is not whole, or the engine cannot run it here.
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
        self.setting = Setting(
            devices.find_device(device, report),
            threads or machine.cores(),
            batch,
            precision,
            onednn,
        )
        try:
            self._start(engine, report)
        except UserError as error:
            # It may be that no engine starts on the card: CUDA's libraries are missing, say.
            for_cpus = engine != 'tensorrt' and precision != 'float16'
            if device != 'auto' or self.setting.kind == 'cpu' or not for_cpus:
                raise
            report(f'the cpu is used, not {self.setting.device}: {error}')
            self.setting = replace(self.setting, device='cpu')
            self._start(engine, report)

    @property
    def engine(self) -> str:
        return self._choice.engine

    @property
    def reason(self) -> str:
        """Why this engine."""
        return self._choice.reason

    def another(self) -> Predictor:
        """The same again, for another thread; on a card, both have the same weights."""
        twin = object.__new__(Predictor)
        twin.description, twin.setting = self.description, self.setting
        engine: Any = self._engine
        twin._take(
            replace(self._choice, made=None if self.setting.kind == 'cpu' else engine.another())
        )
        return twin

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, size, size, 3] -> the graph's input, normalised unless the graph does that.

        The only method that many threads may call at once.
        """
        image = self.description.input
        if image.type == 'uint8':
            return np.ascontiguousarray(pixels)
        scaled = pixels.transpose(0, 3, 1, 2).astype(np.float32, order='C')
        scaled *= (1.0 / image.std).astype(np.float32).reshape(-1, 1, 1)
        scaled += (-image.mean / image.std).astype(np.float32).reshape(-1, 1, 1)
        return scaled

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The graph's input [N, ...] -> float32 [N, classes]."""
        if not len(images):
            return np.zeros((0, len(self.description.classes)), np.float32)
        part = self._choice.part
        parts = range(0, len(images), part)
        return np.concatenate([self._engine(images[start : start + part]) for start in parts])

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, size, size, 3] -> float32 [N, classes], each row's sum 1."""
        return softmax(self.logits(self.prepare(pixels)))

    def _start(self, engine: str, report: Callable[[str], None]) -> None:
        choice = Choice(engine, self.setting.batch, 'as asked for')
        if engine == 'auto':
            choice = choose(self.description, self.setting, report=report)
        self._take(choice)

    def _take(self, choice: Choice) -> None:
        self._engine = choice.made or engines.make(choice.engine, self.description, self.setting)
        self._choice = replace(choice, made=None)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
