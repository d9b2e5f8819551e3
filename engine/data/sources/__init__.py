"""Where images come from: `data.name: digits` is the module digits.py here, and so on.

To add a data set, write a module here that has what `Source` lists, and add its name to `Data.name`
in engine/config/keys.py.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from engine.config import Data
from engine.data.dataset import DataSet, Request


class Source(Protocol):
    """What a module of a data set has."""

    MEAN: tuple[float, float, float]  # of 0-255, per channel: what its pixels are normalised with
    STD: tuple[float, float, float]
    SIZE: int  # what a network sees of its images: height and width

    def load(self, data: Data, request: Request) -> DataSet:
        """The data set. UserError if it is missing or damaged."""


def find_source(name: str) -> Source:
    return cast(Source, importlib.import_module(f'engine.data.sources.{name}'))
