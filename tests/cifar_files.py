"""Writes small CIFAR-10 and CIFAR-100 sets in the formats of the real ones.

The images are random. The pickles are what Python 2 wrote (protocol 2, byte strings, NumPy's old
module names): that is what the real archives hold, and Python 3 alone would write something else.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

CIFAR10_NAMES = [
    *['airplane', 'automobile', 'bird', 'cat', 'deer'],
    *['dog', 'frog', 'horse', 'ship', 'truck'],
]


@dataclass(frozen=True)
class Names:
    """What the files of one variant are called."""

    python_archive: str
    python_folder: str
    python_train: tuple[str, ...]
    python_test: str
    python_meta: str
    binary_archive: str
    binary_folder: str
    binary_train: tuple[str, ...]
    binary_test: str
    binary_meta: str


FILES = {
    'cifar10': Names(
        python_archive='cifar-10-python.tar.gz',
        python_folder='cifar-10-batches-py',
        python_train=tuple(f'data_batch_{i}' for i in (1, 2, 3, 4, 5)),
        python_test='test_batch',
        python_meta='batches.meta',
        binary_archive='cifar-10-binary.tar.gz',
        binary_folder='cifar-10-batches-bin',
        binary_train=tuple(f'data_batch_{i}.bin' for i in (1, 2, 3, 4, 5)),
        binary_test='test_batch.bin',
        binary_meta='batches.meta.txt',
    ),
    'cifar100': Names(
        python_archive='cifar-100-python.tar.gz',
        python_folder='cifar-100-python',
        python_train=('train',),
        python_test='test',
        python_meta='meta',
        binary_archive='cifar-100-binary.tar.gz',
        binary_folder='cifar-100-binary',
        binary_train=('train.bin',),
        binary_test='test.bin',
        binary_meta='fine_label_names.txt',
    ),
}


@dataclass(frozen=True)
class Part:
    """The content of one file."""

    pixels: np.ndarray  # uint8 [N, 3, 32, 32]
    labels: np.ndarray  # int64 [N]

    @property
    def rows(self):
        return self.pixels.reshape(len(self.pixels), -1)

    @property
    def coarse(self):
        return self.labels // 5


@dataclass(frozen=True)
class SmallCifar:
    """A small set; each write_* puts it into a folder and returns the places to look for it."""

    name: str
    train: tuple[Part, ...]
    test: Part
    classes: list[str]

    @property
    def files(self):
        return FILES[self.name]

    @property
    def train_pixels(self):
        return np.concatenate([part.pixels for part in self.train])

    @property
    def train_labels(self):
        return np.concatenate([part.labels for part in self.train])

    def with_labels(self, labels):
        """The same set, with these labels in the last training file."""
        last = Part(self.train[-1].pixels[: len(labels)], np.asarray(labels))
        return replace(self, train=(*self.train[:-1], last))

    # -------------------------------------------------------------- python

    def write_python(self, base: Path) -> list[Path]:
        folder = base / self.files.python_folder
        folder.mkdir(parents=True)
        for index, (file, part) in enumerate(zip(self.files.python_train, self.train)):
            batch = self.python_batch(part, f'training batch {index + 1} of {len(self.train)}')
            (folder / file).write_bytes(python2_pickle(batch))
        batch = self.python_batch(self.test, 'testing batch 1 of 1')
        (folder / self.files.python_test).write_bytes(python2_pickle(batch))
        (folder / self.files.python_meta).write_bytes(python2_pickle(self.python_names()))
        return [base, folder]

    def write_python_archive(self, base: Path) -> list[Path]:
        self.write_python(base)
        return pack(base, self.files.python_folder, self.files.python_archive)

    def python_batch(self, part: Part, title: str) -> dict:
        batch = {
            b'batch_label': title.encode(),
            b'data': part.rows,
            b'filenames': [b'image_%06d.png' % i for i in range(len(part.labels))],
        }
        if self.name == 'cifar10':
            return {**batch, b'labels': part.labels.tolist()}
        return {
            **batch,
            b'coarse_labels': part.coarse.tolist(),
            b'fine_labels': part.labels.tolist(),
        }

    def python_names(self) -> dict:
        names = [name.encode() for name in self.classes]
        if self.name == 'cifar10':
            return {b'num_cases_per_batch': 10000, b'label_names': names, b'num_vis': 3072}
        return {b'fine_label_names': names, b'coarse_label_names': [b'group'] * 20}

    # -------------------------------------------------------------- binary

    def write_binary(self, base: Path) -> list[Path]:
        folder = base / self.files.binary_folder
        self._write_binary_train(folder)
        self._write_binary_test(folder)
        return [base, folder]

    def write_binary_archive(self, base: Path) -> list[Path]:
        self.write_binary(base)
        return pack(base, self.files.binary_folder, self.files.binary_archive)

    def write_split(self, base: Path) -> list[Path]:
        """train/ and eval/, as the CIFAR recipes of MindSpore want them."""
        self._write_binary_train(base / 'train')
        self._write_binary_test(base / 'eval')
        return [base]

    def write_verify_split(self, base: Path) -> list[Path]:
        """cifar-10-batches-bin/ and, beside it, cifar-10-verify-bin/."""
        self._write_binary_train(base / self.files.binary_folder)
        self._write_binary_test(base / 'cifar-10-verify-bin')
        return [base, base / self.files.binary_folder]

    def binary_records(self, part: Part) -> bytes:
        columns = [part.labels[:, None], part.rows]
        if self.name == 'cifar100':
            columns.insert(0, part.coarse[:, None])
        return np.concatenate(columns, axis=1).astype(np.uint8).tobytes()

    def _write_binary_train(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for file, part in zip(self.files.binary_train, self.train):
            (folder / file).write_bytes(self.binary_records(part))
        # The real list ends with an empty line.
        (folder / self.files.binary_meta).write_text('\n'.join([*self.classes, '', '']))

    def _write_binary_test(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.files.binary_test).write_bytes(self.binary_records(self.test))


def small_cifar(name: str, *, images: int = 4, seed: int = 0) -> SmallCifar:
    """`images` a file, of random pixels; the lowest and the highest label are among the labels."""
    classes = CIFAR10_NAMES if name == 'cifar10' else [f'kind_{i:02}' for i in range(100)]
    rng = np.random.default_rng(seed)

    def part() -> Part:
        pixels = rng.integers(0, 256, (images, 3, 32, 32), np.uint8)
        labels = rng.integers(0, len(classes), images)
        labels[:2] = 0, len(classes) - 1
        return Part(pixels, labels)

    train = tuple(part() for _ in FILES[name].python_train)
    return SmallCifar(name, train, part(), list(classes))


def pack(base: Path, folder: str, archive: str) -> list[Path]:
    """Move a folder into a .tar.gz beside it."""
    with tarfile.open(base / archive, 'w:gz') as tar:
        tar.add(base / folder, arcname=folder)
    for file in (base / folder).iterdir():
        file.unlink()
    (base / folder).rmdir()
    return [base, base / archive]


def python2_pickle(value) -> bytes:
    """`value` as Python 2 and NumPy 1 pickled it with protocol 2; str and bytes are its str."""
    stream = io.BytesIO()
    _Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b'cnumpy._core.', b'cnumpy.core.')


def _save_string(pickler, text) -> None:
    raw = text if isinstance(text, bytes) else text.encode('latin-1')
    if len(raw) < 256:
        pickler.write(pickle.SHORT_BINSTRING + bytes([len(raw)]) + raw)
    else:
        pickler.write(pickle.BINSTRING + struct.pack('<i', len(raw)) + raw)
    pickler.memoize(text)


class _Python2Pickler(pickle._Pickler):
    dispatch: ClassVar = {**pickle._Pickler.dispatch, str: _save_string, bytes: _save_string}
