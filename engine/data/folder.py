"""Folders of pictures, a class a folder: found by looking, in the layouts that they come in.

train/<class>/** with val/<class>/** or test/<class>/**     ImageNet, RP2K, most others
train/<class>/** with a flat val/ and a list of its labels  ImageNet as it is downloaded
<class>/**                                                  your own; data.holdout splits it
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Sequence

import numpy as np

from engine.errors import UserError
from predictor import listing
from predictor.pictures import SUFFIXES

TEST_FOLDERS = ('val', 'test', 'valid', 'validation', 'eval')
# Lists of a flat folder's labels: Caffe's and PaddleClas's `name label`, and Kaggle's table.
LABEL_LISTS = ('val.txt', 'val_list.txt', 'val_labels.txt', 'LOC_val_solution.csv')


@dataclass(frozen=True)
class Files:
    """Paths of pictures, and a label each."""

    paths: list[str]
    labels: np.ndarray  # int64 [N]

    def __len__(self) -> int:
        return len(self.paths)

    def only(self, rows: np.ndarray) -> Files:
        return Files([self.paths[row] for row in rows], self.labels[rows])


@dataclass(frozen=True)
class Folder:
    """A data set on disk; `train` is empty where only evaluation was asked for."""

    train: Files
    test: Files
    classes: list[str]


def find_folder(
    root: Path, *, train: bool = True, test_folder: Optional[str] = None, holdout: float = 0.0
) -> Folder:
    """The pictures below `root`. The class list is that of the training folder.

    Raises UserError that names the folder, class or list where something is missing or disagrees.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(f'data.root: {root} is not a folder')
    train_root, test_root = _find_parts(root, test_folder)
    if holdout:
        if test_root is not None:
            raise UserError(
                f'data.holdout is {holdout:g}, but {test_root} holds the test images; '
                'leave one of the two out'
            )
        classes = _class_names(train_root)
        files = _list_classes(train_root, classes)
        test_rows = _hold_out(files, holdout, train_root)
        train_rows = np.setdiff1d(np.arange(len(files)), test_rows)
        return Folder(files.only(train_rows), files.only(test_rows), classes)
    if test_root is None:
        raise UserError(
            f'{root} has no test images: put some into {root / "val"}/<class>/, or let a part of '
            'every class be held out with -o data.holdout=0.2'
        )
    # To measure a network, the training images need not be there.
    classes = _class_names(train_root if train or train_root.is_dir() else test_root)
    none = Files([], np.zeros(0, np.int64))
    files = _list_classes(train_root, classes) if train else none
    return Folder(files, _list_test(root, test_root, classes), classes)


def _find_parts(root: Path, test_folder: Optional[str]) -> tuple[Path, Optional[Path]]:
    """Where the training images are, or would be, and where the test images are."""
    train_root = root / 'train'
    if test_folder is not None:
        if not (root / test_folder).is_dir():
            raise UserError(f'data.test_folder: {root / test_folder} is not a folder')
        return train_root, root / test_folder
    found = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if train_root.is_dir() or found:
        return train_root, found[0] if found else None
    return root, None


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f'there is no {folder}, whose folders would name the classes')
    names = _subfolders(folder)
    if not names:
        raise UserError(f'{folder} has no class folders: put the images into {folder}/<class>/')
    for name in names:  # they are the lines of a run's classes.txt
        if name.splitlines() != [name] or '\udc80' <= max(name) <= '\udcff':
            raise UserError(f'{folder}: rename {name!r}: a class needs a name of one line of UTF-8')
    return names


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if listing.is_folder(entry) and not listing.is_passed_over(entry.name)
    )


def legible(path: str) -> str:
    """A path for a line of text: without line ends, or bytes that are not UTF-8."""
    return path if path.isprintable() else repr(path)


def _list_classes(folder: Path, classes: Sequence[str]) -> Files:
    paths: list[str] = []
    counts = []
    for name in classes:
        others: list[str] = []
        found = sorted(walk(str(folder / name), others))
        if not found:
            there = f', but {listing.describe_left_out(others)}' if others else ''
            raise UserError(f'{folder / name} holds no images ({", ".join(SUFFIXES)}){there}')
        paths += found
        counts.append(len(found))
    return Files(paths, np.repeat(np.arange(len(classes), dtype=np.int64), counts))


def walk(folder: str, left_out: Optional[list[str]] = None) -> Iterator[str]:
    """`listing.walk`, whose failure is the user's."""
    try:
        yield from listing.walk(folder, SUFFIXES, left_out)
    except OSError as error:
        raise UserError(f'cannot read {error.filename or folder}: {error.strerror}') from None


def _list_test(root: Path, folder: Path, classes: list[str]) -> Files:
    own = _subfolders(folder)
    if not own:
        return _list_flat(root, folder, classes)
    if own != classes:
        raise UserError(
            f'{folder} has other classes than the training images: {differing(own, classes)}'
        )
    return _list_classes(folder, classes)


def differing(there: Sequence[str], here: Sequence[str]) -> str:
    """How two lists of classes differ: 'only there: cat; missing there: dog, ...'."""
    parts = []
    for what, names in (
        ('only there', sorted(set(there) - set(here))),
        ('missing there', sorted(set(here) - set(there))),
    ):
        if names:
            parts.append(f'{what}: {", ".join(names[:5])}{", ..." if len(names) > 5 else ""}')
    return '; '.join(parts) or 'the same in another order'


def _list_flat(root: Path, folder: Path, classes: list[str]) -> Files:
    """The images of a folder without class folders, by a list of labels beside or in it."""
    places = [base / name for name in LABEL_LISTS for base in (folder, root)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f'{folder} has neither class folders nor a list of labels ({", ".join(LABEL_LISTS)}; '
            'a line an image: its name, and a class name or its number from 0)'
        )
    listed = _read_labels(found, classes)
    paths = sorted(walk(str(folder)))
    unlisted = [path for path in paths if os.path.basename(path) not in listed]
    if unlisted or len(paths) < len(listed):
        missing = set(listed) - {os.path.basename(path) for path in paths}
        what = f'no label for {unlisted[0]}' if unlisted else f'no image {min(missing)}'
        raise UserError(f'{found} lists {len(listed)} images, {folder} has {len(paths)}: {what}')
    labels = [listed[os.path.basename(path)] for path in paths]
    return Files(paths, np.array(labels, dtype=np.int64))


def _read_labels(path: Path, classes: list[str]) -> dict[str, int]:
    """File name -> label, of lines such as `val/a.jpg 65`, `a.jpg n01440764` or Kaggle's."""
    numbers = {name: number for number, name in enumerate(classes)}
    if not any(name.isdecimal() for name in classes):  # else '1' could mean the one or the other
        numbers.update((str(number), number) for number in range(len(classes)))
    listed: dict[str, int] = {}
    for line, ways in _label_lines(path):
        known = [(name, numbers[label]) for name, label in ways if label in numbers]
        if not known:
            what = 'a number from 0 or the name' if '0' in numbers else 'the name'
            raise UserError(
                f'{path}:{line}: {ways[-1][1]!r} is not {what} of one of the {len(classes)} classes'
            )
        name, value = os.path.basename(known[0][0]), known[0][1]
        if listed.setdefault(name, value) != value:
            raise UserError(f'{path}:{line}: {name} is listed before, with another label')
    return listed


def _label_lines(path: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Line numbers and `readings` of the lines that are not empty."""
    try:
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as a list of labels ({error})') from None
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
    return [(part[0], part[1].strip() if part[1:] else '') for part in parts if part]


def held_out(count: int, share: float) -> int:
    """How many of a class's images are for testing: at least one, and not all; 0 if it has one."""
    return min(max(1, round(share * count)), count - 1)


def _hold_out(files: Files, share: float, folder: Path) -> np.ndarray:
    """Rows of the test images: of each class those with the lowest checksums of their names.

    So the choice is random, the same each time, and nearly the same after images were added.
    """
    beyond = len(str(folder / 'x')) - 1
    keys = np.array([zlib.crc32(os.fsencode(path[beyond:])) for path in files.paths])
    held: list[int] = []
    starts = np.flatnonzero(np.diff(files.labels, prepend=-1))  # the labels are in order
    for rows in np.split(np.arange(len(files)), starts[1:]):
        count = held_out(len(rows), share)
        if count < 1:
            raise UserError(
                f'{os.path.dirname(files.paths[rows[0]])} holds one image: data.holdout needs two'
            )
        held += rows[np.argsort(keys[rows], kind='stable')][:count].tolist()
    return np.array(sorted(held))
