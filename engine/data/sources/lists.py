"""Lists of labels: lines of a picture's name and its class, in the forms that they come in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, Sequence

from engine.errors import UserError

UTF_16 = (b'\xff\xfe', b'\xfe\xff')  # as Windows calls Unicode
# Of a flat folder's labels: Caffe's and PaddleClas's `name label`, and Kaggle's table.
LABEL_LISTS = ('val.txt', 'val_list.txt', 'val_labels.txt', 'LOC_val_solution.csv')


def read_labels(path: Path, classes: Sequence[str]) -> dict[str, int]:
    """File name -> label, of lines such as `val/a.jpg 65`, `a.jpg n01440764` or Kaggle's.

    UserError that names the line. Numbers count from 0; without a 0 among them, they are likely to
    count from 1, which would shift every label.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    by_number = not any(name.isdecimal() for name in classes)  # else '1' could mean either
    if by_number:
        numbers.update((str(number), number) for number in range(len(classes)))
    listed: dict[str, int] = {}
    used: set[str] = set()
    for line, ways in _lines(path):
        known = [(name, label) for name, label in ways if label in numbers]
        if not known:
            what = 'a number from 0 or the name' if by_number else 'the name'
            raise UserError(
                f'{path}:{line}: {ways[-1][1]!r} is not {what} of one of the {len(classes)} classes'
            )
        name, label = file_name(known[0][0]), known[0][1]
        used.add(label)
        if listed.setdefault(name, numbers[label]) != numbers[label]:
            raise UserError(f'{path}:{line}: {name} is listed before, with another label')
    if by_number and used and '0' not in used and all(label.isdecimal() for label in used):
        raise UserError(
            f'{path}: no picture has label 0, but labels count from 0. If these count from 1, '
            'subtract 1 from each; if no picture is of the first class, write names of classes'
        )
    return listed


def decoded(data: bytes, errors: str = 'strict') -> str:
    """The text of a list in UTF-8 or, as Windows writes it, with a mark of its encoding."""
    return data.decode('utf-16' if data.startswith(UTF_16) else 'utf-8-sig', errors)


def file_name(name: str) -> str:
    """Without its folders, also as Windows writes them."""
    return re.split(r'[/\\]', name)[-1]


def _lines(path: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Line numbers and `readings` of the lines that are not empty."""
    try:
        text = decoded(path.read_bytes())
    except UnicodeDecodeError:
        raise UserError(
            f'{path} cannot be read as a list of labels: it is not in UTF-8; save it as UTF-8'
        ) from None
    except OSError as error:
        raise UserError(f'{path} cannot be read as a list of labels ({error.strerror})') from None
    for number, line in enumerate(text.split('\n'), 1):
        if line.strip() and not line.startswith('ImageId,'):
            yield number, readings(line, kaggle=path.suffix == '.csv')


def readings(line: str, *, kaggle: bool) -> list[tuple[str, str]]:
    """How a line can be read as a name and a label, either of which may hold spaces."""
    if kaggle:  # ILSVRC2012_val_00000001,n01751748 111 108 356 341
        name, _, prediction = line.partition(',')
        parts = [[f'{name}.JPEG', *prediction.split()[:1]]]
    else:
        parts = [line.split(None, 1), line.rsplit(None, 1)]
        if ',' in line:
            parts = [*parts, line.strip().split(',', 1), line.strip().rsplit(',', 1)]
    return [(part[0].strip(' \t,'), part[1].strip() if part[1:] else '') for part in parts if part]


def is_list(name: str) -> bool:
    """Of which pictures are for training or testing: train_list.txt, val.csv and the like."""
    return re.fullmatch(r'(?i)(train|test|val)\w*\.(txt|csv|lst)', name) is not None
