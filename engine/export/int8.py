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
from typing import TYPE_CHECKING, Iterator, Optional

import numpy as np

from engine.errors import UserError
from engine.export import onnx_model
from engine.export.exported_folder import INT8, ONNX
from predictor.exported_folder import Input
from predictor.onnx_engines import import_onnxruntime

if TYPE_CHECKING:
    from engine.data import DataSet
    from engine.data.dataset import ImageSet

CALIBRATION_IMAGES, TEST_IMAGES = 256, 2000
BATCH = 32
LARGEST_LOSS = 0.5  # points of accuracy


def require_quantiser() -> None:
    """UserError without ONNX Runtime."""
    if importlib.util.find_spec('onnxruntime') is None:
        raise UserError('--int8 needs onnxruntime: python3 -m pip install "onnxruntime>=1.16,<2"')


def write(folder: Path, dataset: DataSet, image: Input) -> str:
    """Write model.int8.onnx next to model.onnx; a line with the accuracy of both.

    UserError if the new one loses more than LARGEST_LOSS points.
    """
    assert dataset.train is not None
    calibration = (batch for batch, _ in _batches(dataset.train, image, CALIBRATION_IMAGES))
    _quantise(folder, image, calibration)
    before, after = (_accuracy(folder / name, dataset.test, image) for name in (ONNX, INT8))
    tested = f'{min(TEST_IMAGES, len(dataset.test)):,} of {len(dataset.test):,} test images'
    line = f'{INT8}: {after:.2f} % of {tested}, {ONNX}: {before:.2f} %'
    if before - after > LARGEST_LOSS:
        raise UserError(
            f'{line}: more than {LARGEST_LOSS} points are lost, so nothing was exported; leave out '
            '--int8'
        )
    return line


def _quantise(folder: Path, image: Input, calibration: Iterator[np.ndarray]) -> None:
    import_onnxruntime()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Optional[dict[str, np.ndarray]]:
            images = next(calibration, None)
            return None if images is None else {image.name: images}

    folded = folder / 'folded.onnx'  # with most batch norms folded into the convolutions
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


def _accuracy(model: Path, images: ImageSet, image: Input) -> float:
    """In per cent, of TEST_IMAGES images from the whole set."""
    run, correct, total = onnx_model.load(model), 0, 0
    for batch, labels in _batches(images, image, TEST_IMAGES):
        correct += int((run(batch).argmax(1) == labels).sum())
        total += len(labels)
    return 100 * correct / total


def _batches(images: ImageSet, image: Input, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the graph takes of `count` images, evenly spaced, as in evaluation; and their labels."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).astype(int))
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        pixels = images.pictures(part).transpose(0, 2, 3, 1)
        yield image.prepare(pixels), images.labels[part]
