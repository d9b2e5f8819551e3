"""VisualDL's records of a run, in one file: VisualDL shows only the newest file of a folder."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from engine.machine import home


class Scalar(NamedTuple):
    tag: str
    value: float
    step: int  # the epoch, of a tag that begins with EPOCH
    walltime: int  # milliseconds


EPOCH = 'epoch/'
LENGTH = 8  # bytes, of a record's length


def writer(folder: Path, *, step: int, epoch: int) -> Any:
    """A LogWriter whose file begins with what was recorded before that step and epoch.

    The older files of a resumed run are read and removed.
    """
    with home.elsewhere():  # its import writes there
        from visualdl import LogWriter

    old = sorted(folder.glob('*vdlrecords*'))
    kept: dict[tuple[str, int], Scalar] = {}
    for file in old:  # the last one counts, where an older version has left several
        for scalar in _scalars(file):
            if scalar.step < (epoch if scalar.tag.startswith(EPOCH) else step):
                kept[scalar.tag, scalar.step] = scalar
    result = LogWriter(logdir=str(folder), file_name=_next_name(old))
    for scalar in kept.values():
        result.add_scalar(*scalar)
    result.flush()
    for file in old:
        with contextlib.suppress(OSError):
            file.unlink()
    return result


def _next_name(old: list[Path]) -> str:
    """By the time, as VisualDL names its files, but after the existing ones: it would append to a
    file of the same name, and the clock may have been set back."""
    numbers = [int(digits) for file in old for digits in re.findall(r'\d+', file.name)[:1]]
    return f'vdlrecords.{max([int(time.time()), *(number + 1 for number in numbers)]):010d}.log'


def _scalars(file: Path) -> Iterator[Scalar]:
    """The scalars of one file, up to where a kill has truncated or a disk has damaged it."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from visualdl.proto import record_pb2

    with contextlib.suppress(DecodeError, OSError):
        for content in _records(file.read_bytes()):
            for value in record_pb2.Record.FromString(content).values:
                if value.WhichOneof('one_value') == 'value':
                    yield Scalar(value.tag, value.value, value.id, value.timestamp)


def _records(data: bytes) -> Iterator[bytes]:
    """Each is preceded by its length, in 8 bytes. VisualDL's own reader would allocate what a
    damaged length says."""
    start = LENGTH
    while start <= len(data):
        end = start + int.from_bytes(data[start - LENGTH : start], 'little')
        yield data[start:end]
        start = end + LENGTH
