"""Whether an exported folder gives the network's logits, read back on the CPU in every way.

It needs no data set: scikit-learn's wheel has two photographs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import paddle
from paddle import nn
from sklearn.datasets import load_sample_images

from engine.errors import UserError
from engine.export import onnx_model
from engine.export.exported_folder import ONNX
from engine.export.static_model import (
    Logits,
    by_inference,
    by_jit,
    graph_file,
    has_onednn,
    in_memory,
)
from predictor.errors import in_a_line
from predictor.exported_folder import Input
from predictor.onnx_engines import import_onnxruntime
from predictor.paddle_engine import quiet
from predictor.pictures import crops

TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is smaller
BATCHES = (1, 8)
# Rows and columns of a photograph: the whole, its left part, its right part, a detail.
PARTS = [
    np.s_[:, :],
    np.s_[:, :427],
    np.s_[:, 213:],
    np.s_[100:330, 200:430],
]


@dataclass(frozen=True)
class Comparison:
    """Of the logits found with the expected ones, for each of some batches."""

    found: list[np.ndarray]
    expected: list[np.ndarray]

    @property
    def scale(self) -> float:
        return max(float(np.abs(logits).max()) for logits in self.expected)

    @property
    def difference(self) -> float:
        largest = [np.abs(one - other).max() for one, other in zip(self.found, self.expected)]
        return float(np.nan_to_num(largest, nan=np.inf).max())

    def is_close(self) -> bool:
        return self.difference <= TOLERANCE * max(1.0, self.scale)

    def __str__(self) -> str:
        same = self.found[-1].argmax(1) == self.expected[-1].argmax(1)
        count = f'all {same.size}' if same.all() else f'{same.sum()} of {same.size}'
        return (
            f'logits differ by at most {self.difference:.2g} (the largest is {self.scale:.3g}), '
            f'same first class on {count} photographs'
        )


def verify(model: nn.Layer, folder: Path, image: Input) -> list[str]:
    """A line for each way to read the files: how far its logits are from the model's.

    All run on the CPU: another device's kernels may round more than an export may change. UserError
    above TOLERANCE, except with oneDNN: that is another implementation, with bugs of its own, and
    users can turn it off.
    """
    pixels, graph = photographs(image), graph_file(folder).name
    with _on_cpu(model):
        expected = _of_batches(in_memory(model), replace(image, type='float32').prepare(pixels))
        if not all(np.isfinite(logits).all() for logits in expected):
            raise UserError("the network's logits are not finite; nothing was exported")
        sample = _Sample(image.prepare(pixels), expected)
        lines = [
            sample.require(f'{graph} through paddle.jit.load', partial(by_jit, folder)),
            sample.require(f'{graph} through paddle.inference', partial(by_inference, folder)),
            sample.try_onednn(f'{graph} through paddle.inference with oneDNN', folder),
        ]
        if (folder / ONNX).exists():
            lines.append(sample.require_onnx(folder / ONNX))
    return lines


@dataclass(frozen=True)
class _Sample:
    """What goes in, and the logits that are expected of each of BATCHES."""

    images: np.ndarray
    expected: list[np.ndarray]

    def compare(self, load: Callable[[], Logits]) -> Comparison:
        return Comparison(_of_batches(load(), self.images), self.expected)

    def require(self, form: str, load: Callable[[], Logits]) -> str:
        """UserError if it differs, or cannot be read: Paddle does not notice a full disk."""
        try:
            comparison = self.compare(load)
        except Exception as error:  # each reader has errors of its own
            raise UserError(
                f'the exported model cannot be read back ({in_a_line(error)}); nothing was '
                'exported. Is the disk full?'
            ) from None
        if not comparison.is_close():
            raise UserError(
                f'{form} is another network: its logits differ by {comparison.difference:.2g} (the '
                f'largest is {comparison.scale:.3g}); nothing was exported'
            )
        return f'{form}: {comparison}'

    def require_onnx(self, file: Path) -> str:
        """A warning without onnxruntime."""
        try:
            form = f'{ONNX} through onnxruntime {import_onnxruntime().__version__}'
        except ImportError as error:
            reason = in_a_line(error)
            return f'warning: {ONNX} was not run: onnxruntime is missing ({reason})'
        return self.require(form, partial(onnx_model.load, file))

    def try_onednn(self, form: str, folder: Path) -> str:
        """A warning, not an error, if it fails or differs: the files are sound all the same."""
        if not has_onednn():
            return f'{form}: this Paddle was built without it'
        off = 'config.disable_mkldnn() turns it off'
        try:
            with quiet(1, 2):  # it prints what the CPU supports
                comparison = self.compare(partial(by_inference, folder, onednn=True))
        except Exception as error:  # of any kind, from C++
            return f'warning: {form} fails ({in_a_line(error)}); {off}'
        if comparison.is_close():
            return f'{form}: {comparison}'
        return f'warning: {form}: {comparison}; {off}'


def _of_batches(run: Logits, images: np.ndarray) -> list[np.ndarray]:
    return [run(images[:count]) for count in BATCHES]


def photographs(image: Input) -> np.ndarray:
    """uint8 [8, size, size, 3]: what evaluation sees of parts of two photographs."""
    parts = [photograph[part] for photograph in load_sample_images().images for part in PARTS]
    views = [crops(part, size=image.size, resize=image.resize) for part in parts]
    return np.concatenate(views)


@contextlib.contextmanager
def _on_cpu(model: nn.Layer) -> Iterator[None]:
    device = paddle.get_device()
    try:
        paddle.set_device('cpu')
        model.to('cpu')
        yield
    finally:
        paddle.set_device(device)
        model.to(device)
