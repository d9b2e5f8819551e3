"""Memory for batches, used again and again."""

from __future__ import annotations

import math

import numpy as np


class Memory:
    """Arrays for batches, each used again when no reference to it or to a view of it is left.

    Fresh memory of that size comes from the system page by page, and that takes time.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self._free: list[np.ndarray] = []
        self._dtype = dtype

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of that shape with any content."""
        size = math.prod(shape)
        array = self._free.pop() if self._free else np.empty(size, self._dtype)
        if array.size < size:
            array = np.empty(size, self._dtype)
        return np.asarray(_Lent(array, self._free))[:size].reshape(shape)


class _Lent:
    """The owner of a lent array as NumPy sees it: all views keep it, and at its end, which is
    theirs, the array is free again."""

    def __init__(self, array: np.ndarray, free: list[np.ndarray]) -> None:
        self._array, self._free = array, free
        self.__array_interface__ = array.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._array)
