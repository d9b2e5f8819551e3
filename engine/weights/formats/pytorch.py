"""PyTorch's files, read without PyTorch and without running code.

Since PyTorch 1.6 a file is a ZIP archive: NAME/data.pkl, and NAME/data/KEY for each storage, never
compressed. Before, it was a row of pickles followed by the bytes of the storages. Tensors become
`pytorch_pickle.Tensor`.
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Optional

from engine.errors import UserError
from engine.safe_pickle import Unpickler, guarded
from engine.weights.formats.pytorch_pickle import Storage, TorchUnpickler, itemsize

MAGIC = b'l\xfc\x9cF\xf9 j\xa8P\x19'  # the first number of the format before 1.6
ADVICE = 'of a whole model, save its state_dict()'


def read_zip(file: BinaryIO, path: Path) -> Any:
    """The content of an archive as PyTorch has written it since 1.6; tensors are `Tensor`."""
    try:
        archive = zipfile.ZipFile(file)
        entries = {entry.filename: entry for entry in archive.infolist()}
        size = file.seek(0, 2)
    except Exception as error:  # zipfile raises more than BadZipFile for what is damaged
        raise UserError(f'{path} is damaged: an incomplete ZIP archive ({error})') from None
    folders = [name[: -len('data.pkl')] for name in entries if name.endswith('/data.pkl')]
    if not folders:
        raise UserError(
            f'{path} is a ZIP archive, but none of PyTorch: it has no data.pkl (if the weights are '
            'a file inside, unpack it)'
        )
    folder = min(folders, key=len)
    if any(name.startswith((f'{folder}code/', f'{folder}constants.pkl')) for name in entries):
        raise UserError(
            f'{path} is a TorchScript archive, a program: save the state_dict() of its model'
        )
    if sum(entry.file_size for entry in entries.values()) > size:
        raise UserError(f'{path} is damaged: its entries are larger than the file')

    def read(name: str, expected: Optional[int] = None) -> bytes:
        try:
            content = archive.read(entries[folder + name])
        except Exception as error:
            raise UserError(f'{path} is damaged: {name}: {error}') from None
        if expected is not None and len(content) != expected:
            raise UserError(
                f'{path} is damaged: {name} has {len(content):,} bytes, not {expected:,}'
            )
        return content

    if f'{folder}byteorder' in entries and read('byteorder') != b'little':
        raise UserError(f'{path} was written by a big-endian machine, which is not read')
    pickled = io.BytesIO(read('data.pkl'))
    unpickler = TorchUnpickler(pickled, lambda key, size: read(f'data/{key}', size))
    return guarded(unpickler, str(path), advice=ADVICE)


def read_legacy(file: BinaryIO, path: Path) -> Any:
    """The content of a file as PyTorch wrote it before 1.6; tensors are `Tensor`."""
    places: dict[str, int] = {}

    def read(key: str, size: int) -> bytes:
        file.seek(places[key])
        content = file.read(size)
        if len(content) != size:
            raise UserError(f'{path} is damaged: it ends inside of storage {key}')
        return content

    unpickler = TorchUnpickler(file, read)
    _, version, system = (guarded(Unpickler(file, {}), str(path)) for _ in range(3))
    if version != 1001 or not isinstance(system, dict):
        raise UserError(f'{path} is damaged, or of an unknown version of PyTorch')
    if system.get('little_endian') is not True:
        raise UserError(f'{path} was written by a big-endian machine, which is not read')
    content = guarded(unpickler, str(path), advice=ADVICE)
    keys = guarded(Unpickler(file, {}), str(path))
    if not isinstance(keys, list) or {*map(str, keys)} != {*unpickler.storages}:
        raise UserError(f'{path} is damaged: its list of storages is not of its tensors')
    _locate(file, path, [unpickler.storages[str(key)] for key in keys], places)
    return content


def _locate(file: BinaryIO, path: Path, storages: list[Storage], places: dict[str, int]) -> None:
    """Find where the bytes of every storage are: each is preceded by its count of numbers."""
    position, end = file.tell(), file.seek(0, 2)
    for storage in storages:
        file.seek(position)
        head = file.read(8)
        count = storage.size // itemsize(storage.kind)
        if len(head) < 8 or struct.unpack('<q', head)[0] != count:
            raise UserError(f'{path} is damaged: storage {storage.key} is not where it should be')
        places[storage.key] = position + 8
        position += 8 + storage.size
    if position > end:
        raise UserError(f'{path} is damaged: it ends {position - end:,} bytes too early')
