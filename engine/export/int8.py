"""model.int8.onnx: model.onnx in 8 bits, calibrated on training images, and its accuracy.

Weights become integers from -64 to 64 with a scale for each channel, activations uint8 in the range
that they had on the calibration images: ONNX Runtime's static quantisation, in its QDQ form.

Why 7 bits: without VNNI, an x86 CPU adds two products of an activation and a weight in 16 bits
(`vpmaddubsw`), where 2 * 255 * 127 is cut off at 32767, and 2 * 255 * 64 fits. Signed activations
do not help: they are slower, and OpenVINO makes them unsigned. Nothing here imports paddle.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Optional

import numpy as np

from engine.errors import UserError
from engine.export import onnx_model
from engine.export.exported_folder import INPUT, INT8, ONNX
from predictor.onnx_engines import import_onnxruntime

if TYPE_CHECKING:
    from engine.data import DataSet
    from engine.data.batches import ImageSet

CALIBRATION, CHECKED = 256, 2000  # images, of the training set and of the test set
BATCH = 32
MOST_LOST = 0.5  # points of accuracy

Feed = Callable[[np.ndarray], np.ndarray]  # uint8 [N, 3, H, W] -> what the graph takes


def require_quantiser() -> None:
    """UserError without ONNX Runtime."""
    if importlib.util.find_spec('onnxruntime') is None:
        raise UserError('--int8 needs onnxruntime: python3 -m pip install "onnxruntime>=1.16,<2"')


def write(folder: Path, dataset: DataSet, feed: Feed) -> str:
    """Write model.int8.onnx next to model.onnx; a line with the accuracy of both.

    UserError if the new one loses more than MOST_LOST points.
    """
    assert dataset.train is not None
    _quantise(folder, (feed(pixels) for pixels, _ in _batches(dataset.train, CALIBRATION)))
    plain, small = (_accuracy(folder / name, dataset.test, feed) for name in (ONNX, INT8))
    checked = f'{min(CHECKED, len(dataset.test)):,} of {len(dataset.test):,} test images'
    line = f'{INT8}: {small:.2f} % of {checked}, {ONNX}: {plain:.2f} %'
    if plain - small > MOST_LOST:
        raise UserError(
            f'{line}: more than {MOST_LOST} points are lost, so nothing was exported; leave out '
            '--int8'
        )
    return line


def _quantise(folder: Path, images: Iterator[np.ndarray]) -> None:
    import_onnxruntime()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Optional[dict[str, np.ndarray]]:
            batch = next(images, None)
            return None if batch is None else {INPUT: batch}

    folded = folder / 'folded.onnx'  # with the batch norms in the convolutions, as far as they go
    logging.disable(logging.WARNING)  # it advises to do what quant_pre_process has done
    try:
        quant_pre_process(str(folder / ONNX), str(folded), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(folded),
            str(folder / INT8),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    finally:
        logging.disable(logging.NOTSET)
        folded.unlink(missing_ok=True)


def _accuracy(model: Path, images: ImageSet, feed: Feed) -> float:
    """In per cent, of CHECKED images from all over the set."""
    run, right, total = onnx_model.load(model), 0, 0
    for pixels, labels in _batches(images, CHECKED):
        right += int((run(feed(pixels)).argmax(1) == labels).sum())
        total += len(labels)
    return 100 * right / total


def _batches(images: ImageSet, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pixels and labels of `count` images, evenly spaced, as in evaluation."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).astype(int))
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        yield images.pictures(part), images.labels[part]
