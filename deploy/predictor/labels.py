"""Labels of pictures, to measure accuracy: the names of their folders, or a file of lines."""

from __future__ import annotations

import csv
import functools
import io
import os
import re
import unicodedata
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence

from predictor.errors import UserError

UTF_16 = (b'\xff\xfe', b'\xfe\xff')  # which Windows calls Unicode
# Of ImageNet's LOC_val_solution.csv: name, class and box, or several of these.
KAGGLE_HEADER = 'ImageId,'
KAGGLE_LINE = re.compile(r'([^\s,]+),(\S+)(?: \d+){4}(?: \S+(?: \d+){4})*')


def find_labels(source: str, pictures: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """The class of each picture. source: 'folder', or a file of lines `picture class`.

    With 'folder', the class is the name of the folder that the picture is in. In a file, paths are
    relative to the file's own folder, and a class is a number or a name.
    """
    if source == 'folder':
        numbers = _Numbers(classes, by_number=False)
        folders = [os.path.basename(os.path.dirname(os.path.abspath(path))) for path in pictures]
        where = (f'{path}, its folder' for path in pictures)
        return [numbers.require(name, place) for name, place in zip(folders, where)]
    file = Path(source)
    if not file.exists():
        raise UserError(f"--labels {file}: no such file; use 'folder' for the names of folders")
    named = read_list(file, classes, key=lambda picture: _listed(file.parent, picture))
    places = [_place(path) for path in pictures]
    missing = [path for path, place in zip(pictures, places) if place not in named]
    if missing:
        others = f' and {len(missing) - 1:,} more' if missing[1:] else ''
        there = f'; its first line is for {next(iter(named))}' if named else ''
        raise UserError(f'{source} has no line for {missing[0]}{others}{there}')
    return [named[place] for place in places]


def read_list(file: Path, classes: Sequence[str], *, key: Callable[[str], str]) -> dict[str, int]:
    """key(picture) -> label, of lines such as `val/a.jpg 65`, `a.jpg,cat`, or those of Kaggle.

    UserError that names the line. Numbers count from 0; without a 0 among them, they are likely to
    count from 1, which would shift every label.
    """
    named: dict[str, int] = {}
    used: set[str] = set()
    by_number = not any(name.isdecimal() for name in classes)  # or '1' could mean either
    numbers = _Numbers(classes, by_number=by_number)
    for number, line in _lines(file):
        where = f'{file}, line {number}'
        ways = readings(line)
        if not ways:
            raise UserError(f'{where}: not a picture and a class')
        known = [way for way in ways if numbers.get(way[1]) is not None]
        picture, name = (known or ways[-1:])[0]
        label = numbers.require(name, where)
        if named.setdefault(key(picture), label) != label:
            raise UserError(f'{where}: {picture} is listed before, with another class')
        used.add(name)
    if by_number and named and 0 not in named.values() and all(map(str.isdecimal, used)):
        raise UserError(
            f'{file}: no picture has label 0, but labels count from 0. If these count from 1, '
            'subtract 1 from each; if no picture is of the first class, write names of classes'
        )
    return named


def decoded(data: bytes, errors: str = 'strict') -> str:
    """The text of a list in UTF-8 or, as Windows writes it, with a mark of its encoding."""
    return data.decode('utf-16' if data.startswith(UTF_16) else 'utf-8-sig', errors)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    try:
        text = decoded(file.read_bytes())
    except UnicodeDecodeError:
        raise UserError(f'{file} is not in UTF-8; save it as UTF-8') from None
    except OSError as error:
        raise UserError(f'{file} cannot be read: {error.strerror}') from None
    if '\0' in text:
        raise UserError(f'{file} is not a list of lines: it contains zero bytes')
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip() and not line.startswith(KAGGLE_HEADER):
            yield number, line.strip()


def readings(line: str) -> list[tuple[str, str]]:
    """The ways to read a line as a picture and a class; both may contain spaces and commas."""
    kaggle = KAGGLE_LINE.fullmatch(line)
    if kaggle:
        return [(f'{kaggle[1]}.JPEG', kaggle[2])]
    parts = [line.split('\t', 1), line.split(None, 1), line.rsplit(None, 1)]
    if ',' in line:
        quoted = _cells(line)
        parts = [parts[0], quoted, line.split(',', 1), line.rsplit(',', 1), *parts[1:]]
    return [(part[0].strip(' \t,'), part[1].strip()) for part in parts if len(part) == 2]


def _cells(line: str) -> list[str]:
    """The cells of a line of CSV, without quotes; none if it is not CSV."""
    try:
        return next(csv.reader([line]))
    except csv.Error:  # more than 128 KiB between two commas, say
        return []


def _listed(folder: Path, picture: str) -> str:
    """The place of a picture in a list, which may use the separators of Windows."""
    path = folder / picture
    if '\\' in picture and not os.path.exists(path):
        path = folder / picture.replace('\\', '/')
    return _place(path)


def _place(path: Path) -> str:
    """The path of a picture, without links to folders. A link to a picture is a picture."""
    folder, name = os.path.split(path)
    return os.path.join(_without_links(os.path.join(os.getcwd(), folder)), name)


@functools.lru_cache(maxsize=1000)  # for 50,000 pictures, a second instead of ten
def _without_links(folder: str) -> str:
    return os.path.realpath(folder)


class _Numbers:
    """Labels by the names of classes and, with `by_number`, by numbers."""

    def __init__(self, classes: Sequence[str], *, by_number: bool) -> None:
        self._by_name = {name: number for number, name in enumerate(classes)}
        self._by_number = by_number

    def get(self, name: str) -> Optional[int]:
        if self._by_number and name.isdecimal():
            return int(name) if len(name) < 20 and int(name) < len(self._by_name) else None
        # macOS writes é as two characters.
        return self._by_name.get(name, self._by_name.get(unicodedata.normalize('NFC', name)))

    def require(self, name: str, where: str) -> int:
        label = self.get(name)
        if label is None:
            some = ', '.join([*self._by_name][:3]) + (' ...' if len(self._by_name) > 3 else '')
            what = 'a class or its number' if self._by_number else 'a class'
            raise UserError(f'{where}: {name[:50]!r} is not {what} ({some})')
        return label
