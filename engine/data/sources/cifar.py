"""Reads CIFAR-10 and CIFAR-100 in every layout that they come in.

python  cifar-10-python.tar.gz, cifar-10-batches-py/        pickled dicts
binary  cifar-10-binary.tar.gz, cifar-10-batches-bin/       label byte(s) + 3072 pixels a record
split   train/ + eval/, or cifar-10-batches-bin/ + cifar-10-verify-bin/     as MindSpore has it

and CIFAR-100's equivalents; also in nested or renamed folders, and archives with other names. If
nothing is found, the python archive is downloaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from engine import safe_pickle
from engine.config import Data
from engine.data.dataset import DataSet, Images, Request
from engine.data.sources.cifar_layouts import VARIANTS, Encoding, Variant
from engine.download import download
from engine.errors import UserError
from engine.files import beside
from engine.locks import locked

PIXELS = 3 * 32 * 32
ENDING = '.tar.gz'
MOST_FOLDERS = 200  # that are looked into where the usual ones are not there
MIRRORS = ('https://dataset.bj.bcebos.com/cifar/', 'https://www.cs.toronto.edu/~kriz/')
TRAIN_FOLDERS = ('', 'train')
TEST_FOLDERS = ('', 'eval', 'test', 'val', 'cifar-10-verify-bin', '../cifar-10-verify-bin')

Arrays = tuple[np.ndarray, np.ndarray]
# File name -> its content; None if there is no such file.
Read = Callable[[str], Optional[bytes]]
# How the files are written, readers of the training and of the test files, and where they are.
Found = tuple[Encoding, Read, Read, str]


def load(data: Data, request: Request) -> DataSet:
    root = Path(data.root).expanduser()
    train, test, classes, origin = load_cifar(data.name, root, fetch=data.download)
    mean, std = request.preparation.mean, request.preparation.std
    return DataSet(Images(*train), Images(*test), classes, mean, std, origin)


def load_cifar(name: str, root: Path, *, fetch: bool) -> tuple[Arrays, Arrays, list[str], str]:
    """((train images, labels), (test images, labels), class names, where they were found).

    Images are uint8 [N, 3, 32, 32], labels int64 [N]. `fetch` allows a download into `root`.
    Raises UserError naming the file that is missing, damaged or mislabelled.
    """
    variant = VARIANTS[name]
    found = _find(variant, root)
    downloads = os.path.expanduser('~/.cache/paddle/dataset/cifar')  # of Paddle
    if found is None and os.access(downloads, os.R_OK):
        found = _find(variant, Path(downloads))
    if found is None and fetch:
        found = _fetch(variant, root)
    if found is None:
        raise UserError(_not_found(variant, root))
    encoding, train_at, test_at, where = found
    train = [_parse(variant, encoding, train_at, file, where) for file in encoding.train]
    test = _parse(variant, encoding, test_at, encoding.test, where)
    images, labels = (np.concatenate(part) for part in zip(*train))
    names = _class_names(variant, encoding, train_at, where)
    if (len(labels), len(test[1])) != variant.sizes:  # a subset for trials, or records were lost
        where += f' (the whole of {variant.title} is {variant.sizes[0]:,} + {variant.sizes[1]:,})'
    return (images, labels), test, names, where


# ------------------------------------------------------------------ finding


def _find(variant: Variant, root: Path) -> Optional[Found]:
    """The first place with any training file, and how to read it."""
    encodings = (variant.python, variant.binary)
    if root.is_file():
        return _in_archive(variant, root)
    for encoding in encodings:
        found = _in_folder(encoding, root) or _in_folder(encoding, root / encoding.folder)
        if found is not None:
            return found
        for archive in _archives(root, encoding):
            return _in_archive(variant, archive)
    nested = (  # or renamed
        _in_folder(encoding, folder)
        for folder in _below(root)
        for encoding in encodings
        if (folder / encoding.names).is_file()
    )
    return next(filter(None, nested), None)


def _in_folder(encoding: Encoding, base: Path) -> Optional[Found]:
    train = _first_with(base, TRAIN_FOLDERS, encoding.train)
    if train is None:
        return None
    test = _first_with(base, (*TEST_FOLDERS, *TRAIN_FOLDERS), (encoding.test,))
    at = _folder_reader(train)
    return encoding, at, _folder_reader(test) if test else at, str(train)


def _below(root: Path) -> list[Path]:
    """Some folders below `root`, the upper ones first."""
    found = [root]
    for folder in found:
        if len(found) > MOST_FOLDERS:
            break
        with contextlib.suppress(OSError):
            found += sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    return found[1:MOST_FOLDERS]


def _archives(root: Path, encoding: Encoding) -> list[Path]:
    """Unpacked by a browser (.tar), or a second copy (` (1)`), or Keras's (named as the folder)."""
    archive = encoding.archive[: -len(ENDING)]
    stems = '|'.join(map(re.escape, (archive, encoding.folder)))
    names = re.compile(rf'({stems})( ?\(\d+\))?\.(tar|tgz|tar\.gz)')
    paths = root.iterdir() if root.is_dir() else ()
    found = [path for path in paths if names.fullmatch(path.name) and path.is_file()]
    return sorted(found, key=lambda path: (path.name != encoding.archive, path.name))


def _in_archive(variant: Variant, archive: Path) -> Found:
    content = _unpacked(variant, archive)
    for encoding in (variant.python, variant.binary):
        if any(file in content for file in encoding.train):
            return encoding, content.get, content.get, str(archive)
    raise UserError(
        f'{archive} has no file of {variant.title}, such as {variant.python.train[0]}; it has '
        f'{", ".join(sorted(content)[:3]) or "none at all"}'
    )


def _first_with(base: Path, folders: tuple[str, ...], files: tuple[str, ...]) -> Optional[Path]:
    for folder in folders:
        if any((base / folder / file).is_file() for file in files):
            return base / folder
    return None


def _folder_reader(folder: Path) -> Read:
    def read(file: str) -> Optional[bytes]:
        try:
            return (folder / file).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f'cannot read {folder / file}: {error.strerror}') from None

    return read


def _unpacked(variant: Variant, archive: Path) -> dict[str, bytes]:
    """File name, without its folders -> content; every member once, as seeking back in a gzip
    stream would unpack it again and again."""
    content: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    content.setdefault(member.name.rpartition('/')[2], file.read())
            while tar.fileobj and tar.fileobj.read(1 << 20):
                pass  # gzip compares its checksum only at the very end
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        problem = str(error).partition('\n')[0].rstrip(':')
        advice = f'put {variant.python.archive} in its place'
        if archive.name == variant.python.archive:
            advice = 'delete it and run again to download it'
        raise UserError(
            f'{archive} is damaged, incomplete or not a tar archive ({problem}); {advice}'
        ) from None
    return content


# ------------------------------------------------------------------ reading


def _parse(variant: Variant, encoding: Encoding, read: Read, file: str, where: str) -> Arrays:
    name = f'{where}: {file}'
    data = read(file)
    if data is None:
        raise UserError(
            f'{name} is missing; {variant.title} has {", ".join(encoding.train)} and '
            f'{encoding.test}'
        )
    parse = _parse_python if encoding is variant.python else _parse_binary
    pixels, labels = parse(variant, data, name)
    wrong = np.flatnonzero((labels < 0) | (labels >= variant.classes))
    if wrong.size:
        raise UserError(
            f'{name}: image {wrong[0]} has label {labels[wrong[0]]}; {variant.title} has labels 0 '
            f'to {variant.classes - 1}. Is it the file of another data set?'
        )
    return pixels.reshape(-1, 3, 32, 32), labels


def _parse_python(variant: Variant, data: bytes, name: str) -> Arrays:
    batch = _with_bytes_keys(safe_pickle.loads(data, name, encoding='bytes'))
    try:
        pixels, labels = batch[b'data'], np.asarray(batch[variant.label_key])
    except (TypeError, LookupError, ValueError):
        key = variant.label_key.decode()
        raise UserError(f'{name} is not a {variant.title} batch: it lacks data or {key}') from None
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in 'iu'):
        raise UserError(f'{name}: its labels are not a list of integers')
    if getattr(pixels, 'dtype', None) != np.uint8 or pixels.shape != (len(labels), PIXELS):
        shape = getattr(pixels, 'shape', None)
        raise UserError(
            f'{name} has pixels {shape} for {len(labels)} labels, not N x {PIXELS} bytes'
        )
    if not len(labels):
        raise UserError(f'{name} has no images')
    return pixels, labels.astype(np.int64)


def _with_bytes_keys(value: Any) -> Any:
    """A dict as Python 2 has pickled it; one that was pickled anew has keys of text."""
    if not isinstance(value, dict):
        return value
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}


def _parse_binary(variant: Variant, data: bytes, name: str) -> Arrays:
    record = variant.label_bytes + PIXELS
    if not data or len(data) % record:
        raise UserError(
            f'{name} has {len(data):,} bytes, not a multiple of a record of {record}: it is '
            'truncated or of another data set'
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    return records[:, variant.label_bytes :], records[:, variant.label_bytes - 1].astype(np.int64)


def _class_names(variant: Variant, encoding: Encoding, read: Read, where: str) -> list[str]:
    data = read(encoding.names)
    if data is None:
        return [str(i) for i in range(variant.classes)]
    if encoding is variant.binary:
        names = data.decode(errors='replace').split()
    else:
        meta = safe_pickle.loads(data, f'{where}: {encoding.names}', encoding='bytes')
        meta = _with_bytes_keys(meta)
        given = meta.get(variant.names_key) if isinstance(meta, dict) else None
        if not isinstance(given, list) or not all(isinstance(n, (bytes, str)) for n in given):
            key = variant.names_key.decode()
            raise UserError(f'{where}: {encoding.names} has no list of {key}')
        names = [n.decode(errors='replace') if isinstance(n, bytes) else n for n in given]
    if len(names) != variant.classes:
        raise UserError(
            f'{where}: {encoding.names} names {len(names)} classes, not {variant.classes}'
        )
    return names


# ------------------------------------------------------------------ downloading


def _fetch(variant: Variant, root: Path) -> Optional[Found]:
    """Download the python archive; a process that waited for the download of another uses that."""
    name = variant.python.archive
    target = root if root.name == name else root / name
    urls = [mirror + target.name for mirror in MIRRORS]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(beside(target, 'lock')):
            found = _find(variant, root)
            if found is None:
                download(urls, target, md5=variant.md5)
                found = _find(variant, root)
            return found
    except OSError as error:
        raise UserError(f'{_not_found(variant, root)} (download failed: {error})') from None


def _not_found(variant: Variant, root: Path) -> str:
    return (
        f'{variant.title} is not in {root}: put {variant.python.archive} there, or give its place '
        f'or the folder with {variant.python.train[0]} or {variant.binary.train[0]} with '
        '-o data.root=...; to try without it: python3 train.py -c configs/quickstart.yaml'
    )
