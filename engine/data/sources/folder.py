"""Folders of pictures, one folder for each class, in the layouts that they come in.

train/<class>/** with val/<class>/** or test/<class>/**     ImageNet, RP2K, most others
train/<class>/** with a flat val/ and a list of its labels  ImageNet as it is downloaded
<class>/**                                                  your own; data.holdout splits it

Training, seg_test, VAL and the like are train and test folders, too.
"""

from __future__ import annotations

import os
import re
import shlex
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, Optional, Sequence

import numpy as np

from engine.config import Data
from engine.data.class_names import class_name, differing
from engine.data.dataset import DataSet, Files, Request, count_held_out
from engine.data.file_checks import without_bad_files
from engine.data.photo_batches import Photos
from engine.data.pictures import EvalView
from engine.errors import UserError
from engine.machine import cpu, processes
from predictor import listing
from predictor.labels import read_list
from predictor.pictures import SUFFIXES

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet
SIZE = 224
TRAIN_WORDS = ('train', 'training', '训练集')
# The first that exists is used.
TEST_WORDS = (
    *('val', 'test', 'valid', 'validation', 'eval', 'testing', 'evaluation'),
    *('验证集', '测试集'),
)
# Of labels, for a flat folder: Caffe's and PaddleClas's `name label`, and Kaggle's table.
LABEL_LISTS = ('val.txt', 'val_list.txt', 'val_labels.txt', 'LOC_val_solution.csv')
# Of which pictures are for training or testing: train_list.txt, val.csv and the like.
_SPLIT_LIST = re.compile(r'(train|test|val)\w*\.(txt|csv|lst)', re.IGNORECASE)
_SPLIT = re.compile(
    rf'(?:seg[-_ ])?({"|".join((*TRAIN_WORDS, *TEST_WORDS))})(?:[-_ ]?(?:set|data|images|split))?',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Folder:
    """A data set on disk; `train` is empty where only evaluation was asked for."""

    train: Files
    test: Files
    classes: list[str]
    notes: list[str]  # lines that the user should read


def load(data: Data, request: Request) -> DataSet:
    """UserError if it is missing, or if it has bad files and data.on_bad_file is `stop`."""
    prepared, report = request.preparation, request.report
    found = find_folder(
        Path(data.root),
        train=request.train,
        train_folder=data.train_folder,
        test_folder=data.test_folder,
        holdout=data.holdout,
        known=request.classes,
    )
    for note in found.notes if processes.RANK == 0 else ():
        report(note)
    max_pixels = data.max_pixels_million * 1_000_000
    view = EvalView(size=prepared.size, resize=prepared.resize, max_pixels=max_pixels)
    workers = data.workers or cpu.cores_per_process()
    skip = data.on_bad_file == 'skip'

    def photos(files: Files) -> Photos:
        processes.require_same('the data set', lambda: f'{len(files):,} files')
        good = without_bad_files(
            files, skip=skip, workers=workers, report=report, max_pixels=max_pixels
        )
        return Photos(good, view, workers=workers, skip_bad=skip, report=report)

    return DataSet(
        photos(found.train) if request.train else None,
        photos(found.test),
        found.classes,
        prepared.mean,
        prepared.std,
        data.root,
    )


def find_folder(
    root: Path,
    *,
    train: bool = True,
    train_folder: Optional[str] = None,
    test_folder: Optional[str] = None,
    holdout: float = 0.0,
    known: Optional[Sequence[str]] = None,
) -> Folder:
    """The pictures below `root`. The class list is that of the training folder. If there are only
    test images, it is `known`, the classes of the weights, if these include all of their classes.

    Raises UserError that names the folder, class or list where something is missing or disagrees.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(f'data.root: {root} is not a folder')
    train_root, test_root = _find_parts(root, train_folder, test_folder)
    notes: list[str] = []
    if holdout:
        if test_root is not None:
            raise UserError(
                f'data.holdout is {holdout:g}, but {test_root} has the test images; '
                'leave one of the two out'
            )
        classes = _class_folders(train_root)
        parts = _hold_out(_list_classes(classes, notes), holdout, train_root)
    else:
        if test_root is None:
            raise _no_test_images(root, train_root)
        # An evaluation needs no training images.
        classes = _class_folders(train_root if train or train_root.is_dir() else test_root)
        if not train_root.is_dir() and known and classes.keys() <= set(known):
            classes = {name: test_root / name for name in known}
        none = Files([], np.zeros(0, np.int64))
        files = _list_classes(classes, notes) if train else none
        parts = files, _list_test(root, test_root, list(classes), notes)
    if train and len(classes) == 1:
        notes.append(f'{train_root} has one class, {next(iter(classes))}: nothing can be learned')
    return Folder(*parts, list(classes), notes)


# ------------------------------------------------------------------ the parts of a set


def split_word(name: str) -> Optional[str]:
    """One of TRAIN_WORDS or TEST_WORDS, of names such as VAL, Training_set and seg_train."""
    found = _SPLIT.fullmatch(name)
    return found[1].lower() if found else None


def _find_parts(
    root: Path, train_folder: Optional[str], test_folder: Optional[str]
) -> tuple[Path, Optional[Path]]:
    """The folders of the training images (it may be missing) and of the test images."""
    if train_folder is None and test_folder is None:
        root = _unpacked(root)
    given: list[Optional[Path]] = []
    for key, name in (('train_folder', train_folder), ('test_folder', test_folder)):
        if name is not None and not (root / name).is_dir():
            raise UserError(f'data.{key}: {root / name} is not a folder')
        given.append(None if name is None else root / name)
    train_root = given[0] or _split(root, TRAIN_WORDS, 'data.train_folder')
    test_root = given[1] or _split(root, TEST_WORDS, 'data.test_folder')
    if train_root is None:
        train_root = root / 'train' if test_root is not None else root
    return _unpacked(train_root), test_root and _unpacked(test_root)


def _split(root: Path, words: Sequence[str], key: str) -> Optional[Path]:
    """The folder of `root` with the training or the test images, by its name."""
    names = _subfolders(root)
    for word in words:
        own = [name for name in names if split_word(name) == word]
        if len(own) > 1 and word not in own:
            raise UserError(
                f'{root} has {" and ".join(own)}: choose with -o {key}={shlex.quote(own[0])}'
            )
        if own:
            return root / (word if word in own else own[0])
    return None


def _unpacked(folder: Path) -> Path:
    """The inner folder of seg_train/seg_train or x/x/train, as unpacked archives often have.

    That is a folder's only folder, if it has folders, and has the same name or kind, or contains
    the parts of a set, or again such a folder.
    """
    names = _subfolders(folder) if folder.is_dir() else []
    if len(names) != 1:
        return folder
    inner, outer_name = folder / names[0], folder.absolute().name
    below, innermost = _subfolders(inner), _unpacked(inner)
    same = names[0].lower() == outer_name.lower()
    same = same or split_word(outer_name) == split_word(names[0]) is not None
    left_behind = below and (same or any(map(split_word, below)) or innermost != inner)
    return innermost if left_behind else folder


def _no_test_images(root: Path, train_root: Path) -> UserError:
    if _subfolders(train_root):
        _list_classes(_class_folders(train_root), [])  # an error in it is reported first
    above = root.absolute().parent
    if split_word(root.absolute().name) and _split(above, TEST_WORDS, 'data.test_folder'):
        return UserError(f'{root} is a part of a set; use its parent: -o data.root={above}')
    return UserError(
        f'{root} has no test images: put some into {root / "val"}/<class>/, name their folder with '
        '-o data.test_folder, or hold out a part of every class with -o data.holdout=0.2'
    )


# ------------------------------------------------------------------ classes


def _class_folders(folder: Path) -> dict[str, Path]:
    """Class -> its folder, in the order of the labels."""
    if not folder.is_dir():
        raise UserError(f'{folder} not found: its folders would be the classes')
    names = _subfolders(folder)
    if not names:
        raise UserError(f'{folder} has no class folders: put the images into {folder}/<class>/')
    lists = sorted(filter(_SPLIT_LIST.fullmatch, os.listdir(folder)))
    if lists and split_word(folder.absolute().name) is None:
        raise UserError(
            f'{folder} has {", ".join(lists[:3])} beside its folders, and such lists are not read: '
            'sort the pictures into train/<class>/ and val/<class>/ by them; or, if the folders '
            'are the classes, move the lists away'
        )
    found: dict[str, Path] = {}
    for name in names:
        composed = class_name(folder, name)
        if composed in found:
            raise UserError(
                f'{folder} has two folders that read {composed}, in different Unicode forms; move '
                'the pictures of both into one'
            )
        found[composed] = folder / name
    return dict(sorted(found.items()))


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if listing.is_folder(entry) and not listing.is_passed_over(entry.name)
    )


def _list_classes(classes: Mapping[str, Path], notes: list[str]) -> Files:
    paths: list[str] = []
    counts, left_out = [], []
    for folder in classes.values():
        others: list[str] = []
        found = sorted(walk(str(folder), others))
        if not found:
            there = f', but {listing.describe_left_out(others)}' if others else ''
            raise UserError(f'{folder} has no images ({", ".join(SUFFIXES)}){there}')
        beyond = len(str(folder)) + 1
        if all(os.sep in path[beyond:] for path in found):
            raise UserError(
                f'{folder} has only folders ({", ".join(_subfolders(folder)[:3])}), no pictures. '
                'If those are the classes, set data.root to the folder that contains them, or '
                'data.train_folder and data.test_folder; if they are parts of one class, move '
                'their pictures up'
            )
        paths += found
        left_out += others
        counts.append(len(found))
    if left_out:
        above = next(iter(classes.values())).parent
        notes.append(f'left out of {above}: {listing.describe_left_out(left_out)}')
    return Files(paths, np.repeat(np.arange(len(classes), dtype=np.int64), counts))


def walk(folder: str, left_out: Optional[list[str]] = None) -> Iterator[str]:
    """`listing.walk` with a UserError if a folder cannot be read."""
    try:
        yield from listing.walk(folder, SUFFIXES, left_out)
    except OSError as error:
        raise UserError(f'cannot read {error.filename or folder}: {error.strerror}') from None


def _list_test(root: Path, folder: Path, classes: list[str], notes: list[str]) -> Files:
    """The test images, with labels by `classes`; a class may have no test image."""
    if not _subfolders(folder):
        return _list_flat(root, folder, classes)
    own = _class_folders(folder)
    if not own.keys() <= set(classes):
        raise UserError(
            f'{folder} has other classes than the training images: {differing(own, classes)}'
        )
    filled = {name: path for name, path in own.items() if any(walk(str(path)))}
    if not filled:
        raise UserError(f'{folder} has no images ({", ".join(SUFFIXES)})')
    missing = [name for name in classes if name not in filled]
    if missing:
        some = ', '.join(missing[:5]) + (', ...' if len(missing) > 5 else '')
        notes.append(
            f'{folder} has no image of {len(missing)} of {len(classes)} classes: {some}; accuracy '
            'is for the others'
        )
    files = _list_classes(filled, notes)
    places = np.array([classes.index(name) for name in filled])
    return Files(files.paths, places[files.labels])


def _list_flat(root: Path, folder: Path, classes: list[str]) -> Files:
    """The images of a folder without class folders, by a list of labels beside or in it."""
    places = [base / name for name in LABEL_LISTS for base in (folder, root)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f'{folder} has neither class folders nor a list of labels ({", ".join(LABEL_LISTS)}; '
            'one line per image: its name, and a class name or its number from 0)'
        )
    listed = read_list(found, classes, key=file_name)
    paths = sorted(walk(str(folder)))
    unlisted = [path for path in paths if os.path.basename(path) not in listed]
    if unlisted or len(paths) < len(listed):
        missing = set(listed) - {os.path.basename(path) for path in paths}
        what = f'no label for {unlisted[0]}' if unlisted else f'no image {min(missing)}'
        raise UserError(f'{found} lists {len(listed)} images, {folder} has {len(paths)}: {what}')
    labels = [listed[os.path.basename(path)] for path in paths]
    return Files(paths, np.array(labels, dtype=np.int64))


def file_name(name: str) -> str:
    """Without its folders, also as Windows writes them."""
    return re.split(r'[/\\]', name)[-1]


def _hold_out(files: Files, fraction: float, folder: Path) -> tuple[Files, Files]:
    """Files to train and to test with: of each class, test files have the lowest name checksums.

    So the choice is random, always the same, and nearly the same after images were added.
    """
    beyond = len(str(folder / 'x')) - 1
    keys = np.array([zlib.crc32(os.fsencode(path[beyond:])) for path in files.paths])
    held: list[int] = []
    starts = np.flatnonzero(np.diff(files.labels, prepend=-1))  # the labels are in order
    for rows in np.split(np.arange(len(files)), starts[1:]):
        count = count_held_out(len(rows), fraction)
        if count < 1:
            raise UserError(
                f'{os.path.dirname(files.paths[rows[0]])} has one image: data.holdout needs two'
            )
        held += rows[np.argsort(keys[rows], kind='stable')][:count].tolist()
    return files.only(np.setdiff1d(np.arange(len(files)), held)), files.only(np.array(sorted(held)))
