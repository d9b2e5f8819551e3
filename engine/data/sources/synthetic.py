"""Random pixels and labels of ten classes, for benchmarks."""

from __future__ import annotations

import numpy as np

from engine.config import Data
from engine.data.dataset import DataSet, Images, Request

MEAN = STD = (127.5, 127.5, 127.5)  # grey
SIZE = 32


def load(data: Data, request: Request) -> DataSet:
    rng = np.random.default_rng(0)
    prepared = request.preparation
    shape = (data.num_images, 3, prepared.size, prepared.size)
    train, test = (
        Images(rng.integers(0, 256, shape, np.uint8), rng.integers(0, 10, data.num_images))
        for _ in range(2)
    )
    classes = [str(number) for number in range(10)]
    return DataSet(train, test, classes, prepared.mean, prepared.std, 'random images')
