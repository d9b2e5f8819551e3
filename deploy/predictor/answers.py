"""What the network says of pictures, written as a table, as JSON or as CSV, line by line."""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
import unicodedata
from pathlib import Path
from typing import Iterable, NamedTuple, Protocol, Sequence, TextIO

import numpy as np

PATH_WIDTH, CLASS_WIDTH = 80, 24  # of the table at most; longer ones stick out


class Answer(NamedTuple):
    """The likeliest classes of a picture, the first one first; or an error."""

    path: Path
    indices: list[int]
    probabilities: list[float]
    error: str = ''

    def of_the_first(self, top: int) -> Answer:
        """The same, with no more classes than that."""
        return self._replace(indices=self.indices[:top], probabilities=self.probabilities[:top])


def best(path: Path, probabilities: np.ndarray, top: int) -> Answer:
    order = np.argsort(-probabilities, kind='stable')[:top]
    return Answer(path, order.tolist(), probabilities[order].tolist())


class Writer(Protocol):
    """Begins when it is made, and must be ended."""

    def write(self, answer: Answer) -> None: ...

    def end(self) -> None: ...


class Table:
    """Columns as wide as the paths and the class names, for a person."""

    def __init__(self, classes: Sequence[str], paths: Iterable[Path], top: int) -> None:
        self._classes = classes
        self._path = min(PATH_WIDTH, max(width(legible(path)) for path in ('picture', *paths)))
        self._class = min(CLASS_WIDTH, max(width(name) for name in classes))
        places = (f'{f"top {place}":{self._class + 9}}' for place in range(1, top + 1))
        print(f'{"picture":{self._path}}', *places, sep='  ')

    def write(self, answer: Answer) -> None:
        cells = (
            f'{padded(self._classes[index], self._class)} {100 * probability:6.2f} %'
            for index, probability in zip(answer.indices, answer.probabilities)
        )
        if not answer.error:
            print(padded(legible(answer.path), self._path), *cells, sep='  ', flush=True)

    def end(self) -> None:
        pass


class Json:
    """One array; a picture a line."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes, self._stream, self._separator = classes, sys.stdout, '[\n'

    def write(self, answer: Answer) -> None:
        line: dict[str, object] = {'picture': str(answer.path)}
        if answer.error:
            line['error'] = answer.error
        else:
            line['classes'] = [
                {'name': self._classes[i], 'index': i, 'probability': round(probability, 6)}
                for i, probability in zip(answer.indices, answer.probabilities)
            ]
        text = json.dumps(line, ensure_ascii=self._stream.encoding.lower() != 'utf-8')
        self._stream.write(self._separator + text)
        self._separator = ',\n'

    def end(self) -> None:
        self._stream.write('\n]\n')


class Csv:
    """A picture a line, with a class and its probability for each place, and an error or ''."""

    def __init__(self, classes: Sequence[str], top: int) -> None:
        self._classes, self._top = classes, top
        if _is_new_file(sys.stdout) and sys.stdout.encoding.lower() == 'utf-8':
            sys.stdout.write('\ufeff')  # or Excel takes it for the system's encoding, such as GBK
        self._writer = csv.writer(sys.stdout, lineterminator='\n')
        places = [(f'class{place}', f'probability{place}') for place in range(1, top + 1)]
        self._writer.writerow(['picture', *(name for pair in places for name in pair), 'error'])

    def write(self, answer: Answer) -> None:
        pairs = [
            (self._classes[index], f'{probability:.6f}')
            for index, probability in zip(answer.indices, answer.probabilities)
        ] or [('', '')] * self._top
        row = [str(answer.path), *(cell for pair in pairs for cell in pair), answer.error]
        self._writer.writerow(row)

    def end(self) -> None:
        pass


def _is_new_file(stream: TextIO) -> bool:
    """Not a terminal, nor a pipe to another program."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # of a stream in memory
        return False
    return stat.S_ISREG(status.st_mode) and not status.st_size


def legible(path: object) -> str:
    """For a line of text: without line ends, or bytes that are not UTF-8."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def width(text: str) -> int:
    """In columns of a terminal, where Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in 'WF' else 1 for letter in text)


def padded(text: str, columns: int) -> str:
    return text + ' ' * (columns - width(text))
