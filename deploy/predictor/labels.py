"""The labels of pictures, to measure accuracy: the names of their folders, or a list of lines."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from pathlib import Path
from typing import Iterator, Sequence

from predictor.errors import UserError

UTF_16 = (b'\xff\xfe', b'\xfe\xff')  # which Windows calls Unicode


def find_labels(source: str, pictures: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """The class of each picture: 'folder': that it lies in; or a file of lines `picture class`.

    In a file, paths are relative to its own folder, and a class is a number or a name.
    """
    if source == 'folder':
        # As it is named, not `resolve`: a link says the class, not what it leads to.
        folders = [os.path.basename(os.path.dirname(os.path.abspath(path))) for path in pictures]
        where = (f'{path}, its folder' for path in pictures)
        return [_class(name, place, classes) for name, place in zip(folders, where)]
    named = _read(Path(source), classes)
    missing = [path for path in pictures if path.resolve() not in named]
    if missing:
        others = f' and {len(missing) - 1:,} more' if missing[1:] else ''
        there = f'; its first line is for {next(iter(named))}' if named else ''
        raise UserError(f'{source} has no line for {missing[0]}{others}{there}')
    return [named[path.resolve()] for path in pictures]


def _read(file: Path, classes: Sequence[str]) -> dict[Path, int]:
    """Path -> label. The same lines are understood as in engine/data/lists.py."""
    named: dict[Path, int] = {}
    used: set[str] = set()
    by_number = not any(name.isdecimal() for name in classes)  # or '1' could mean either
    for number, line in _lines(file):
        where = f'{file}, line {number}'
        ways = _readings(line)
        if not ways:
            raise UserError(f'{where}: not a picture and a class')
        known = [way for way in ways if way[1] in classes or (by_number and way[1].isdecimal())]
        picture, name = (known or ways[-1:])[0]
        label = _class(name, where, classes, by_number=by_number)
        if named.setdefault(_place(file.parent, picture), label) != label:
            raise UserError(f'{where}: {picture} is listed before, with another class')
        used.add(name)
    if by_number and named and 0 not in named.values() and all(map(str.isdecimal, used)):
        raise UserError(
            f'{file}: no picture has label 0, but labels count from 0. If these count from 1, '
            'subtract 1 from each; if no picture is of the first class, write names of classes'
        )
    return named


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Those that are not empty, by their numbers."""
    try:
        data = file.read_bytes()
        text = data.decode('utf-16' if data.startswith(UTF_16) else 'utf-8-sig')
    except FileNotFoundError:
        raise UserError(
            f"--labels {file}: there is no such file; 'folder' takes folders' names"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f'--labels {file} is not in UTF-8; save it as UTF-8') from None
    except OSError as error:
        raise UserError(f'--labels {file} cannot be read: {error.strerror}') from None
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield number, line.strip()


def _readings(line: str) -> list[tuple[str, str]]:
    """How a line can be read as a picture and a class; either may hold spaces and commas."""
    parts = [line.split('\t', 1), line.split(None, 1), line.rsplit(None, 1)]
    if ',' in line:
        quoted = _cells(line)
        parts = [parts[0], quoted, line.split(',', 1), line.rsplit(',', 1), *parts[1:]]
    return [(part[0].strip(' \t,'), part[1].strip()) for part in parts if len(part) == 2]


def _cells(line: str) -> list[str]:
    """Of a line of CSV, without quotes; none if it cannot be one."""
    try:
        return next(csv.reader([line]))
    except csv.Error:  # more than 128 KiB between two commas, say
        return []


def _place(folder: Path, picture: str) -> Path:
    """Also of a name with the separators of Windows."""
    path = folder / picture
    if '\\' in picture and not path.exists():
        path = folder / picture.replace('\\', '/')
    return path.resolve()


def _class(name: str, where: str, classes: Sequence[str], *, by_number: bool = False) -> int:
    if by_number and name.isdecimal() and len(name) < 20 and int(name) < len(classes):
        return int(name)
    if name not in classes:
        name = unicodedata.normalize('NFC', name)  # macOS writes é as two characters
    if name not in classes:
        some = ', '.join(classes[:3]) + (' ...' if len(classes) > 3 else '')
        raise UserError(f'{where}: {name[:50]!r} is no class of the model ({some})')
    return classes.index(name)
