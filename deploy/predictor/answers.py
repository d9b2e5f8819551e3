"""How answers are shown: as a table, as JSON or as CSV, line by line, on standard output."""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
import unicodedata
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence, TextIO

import numpy as np

PATH_WIDTH, CLASS_WIDTH = 80, 24  # of the table at most; longer ones stick out


class Answer(NamedTuple):
    """Of one picture: the most probable classes, best first; or an error."""

    path: Path
    indices: Sequence[int] = ()
    probabilities: Sequence[float] = ()
    error: str = ''

    def best(self, count: int) -> Iterator[tuple[int, float]]:
        """That many classes, as (index, probability)."""
        return zip(self.indices[:count], self.probabilities)


def answer(path: Path, probabilities: np.ndarray, top: int) -> Answer:
    order = np.argsort(-probabilities, kind='stable')[:top]
    return Answer(path, order.tolist(), probabilities[order].tolist())


class Writer:
    """Starts when it is made, and must be ended."""

    def __init__(self, classes: Sequence[str], top: int, paths: Sequence[Path]) -> None:
        self._classes, self._top = classes, top

    def write(self, answer: Answer) -> None:
        raise NotImplementedError

    def end(self) -> None:
        pass


class Table(Writer):
    """Columns as wide as the paths and the class names, for a person."""

    def __init__(self, classes: Sequence[str], top: int, paths: Sequence[Path]) -> None:
        super().__init__(classes, top, paths)
        self._path = min(PATH_WIDTH, max(width(legible(path)) for path in ('picture', *paths)))
        self._class = min(CLASS_WIDTH, max(map(width, classes)))
        places = (f'{f"top {place}":{self._class + 9}}' for place in range(1, top + 1))
        print(f'{"picture":{self._path}}', *places, sep='  ')

    def write(self, answer: Answer) -> None:
        cells = (
            f'{padded(self._classes[index], self._class)} {100 * probability:6.2f} %'
            for index, probability in answer.best(self._top)
        )
        if not answer.error:
            print(padded(legible(answer.path), self._path), *cells, sep='  ', flush=True)


class Json(Writer):
    """One array; a picture a line."""

    def __init__(self, classes: Sequence[str], top: int, paths: Sequence[Path]) -> None:
        super().__init__(classes, top, paths)
        self._stream, self._separator = sys.stdout, '[\n'

    def write(self, answer: Answer) -> None:
        line: dict[str, object] = {'picture': str(answer.path)}
        if answer.error:
            line['error'] = answer.error
        else:
            line['classes'] = [
                {'name': self._classes[i], 'index': i, 'probability': round(probability, 6)}
                for i, probability in answer.best(self._top)
            ]
        text = json.dumps(line, ensure_ascii=self._stream.encoding.lower() != 'utf-8')
        self._stream.write(self._separator + text)
        self._separator = ',\n'

    def end(self) -> None:
        self._stream.write('\n]\n')


class Csv(Writer):
    """A picture a line: a class and its probability for each place, and an error or ''."""

    def __init__(self, classes: Sequence[str], top: int, paths: Sequence[Path]) -> None:
        super().__init__(classes, top, paths)
        if _is_new_file(sys.stdout) and sys.stdout.encoding.lower() == 'utf-8':
            sys.stdout.write('\ufeff')  # or Excel takes it for the system's encoding, such as GBK
        self._writer = csv.writer(sys.stdout, lineterminator='\n')
        places = [(f'class{place}', f'probability{place}') for place in range(1, top + 1)]
        self._writer.writerow(['picture', *sum(places, ()), 'error'])

    def write(self, answer: Answer) -> None:
        cells = [(self._classes[i], f'{chance:.6f}') for i, chance in answer.best(self._top)]
        if answer.error:
            cells = [('', '')] * self._top
        self._writer.writerow([str(answer.path), *sum(cells, ()), answer.error])


FORMATS: dict[str, type[Writer]] = {'table': Table, 'json': Json, 'csv': Csv}


def _is_new_file(stream: TextIO) -> bool:
    """Neither a terminal nor a pipe to another program."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # a stream in memory
        return False
    return stat.S_ISREG(status.st_mode) and not status.st_size


def legible(path: object) -> str:
    """For one line of text: without line ends, or bytes that are not UTF-8."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def width(text: str) -> int:
    """In columns of a terminal, where a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in 'WF' else 1 for letter in text)


def padded(text: str, columns: int) -> str:
    return text + ' ' * (columns - width(text))
