"""Readers of weight files, one a format. The content of a file decides which one reads it.

Each returns the nested containers and arrays that the file holds, without running code from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from engine.errors import UserError
from engine.safe_pickle import Unpickler, guarded
from engine.weights.formats import mindspore, pytorch, safetensors
from engine.weights.formats.pickled_classes import OTHER_CLASSES

# Files that are mistaken for weights: by how they begin, and by their suffixes.
_OTHER_CONTENT = {
    'is a gzip archive: unpack it': (b'\x1f\x8b',),
    'is an HDF5 file (of Keras?), which is not read': (b'\x89HDF',),
    'is only a pointer of Git LFS: fetch the file with git lfs pull': (b'version https://git-lfs',),
    'is a web page: the download has not delivered the weights': (
        *(b'<!DOCTYPE', b'<!doctype', b'<html'),
    ),
    # AES-GCM, and AES-CBC and SM4-CBC
    'is encrypted by MindSpore: save it without enc_key': (b'\xd8^:\x7f', b'\xd9^:\x7f'),
}
_OTHER_SUFFIXES = {
    'describes a model': ('.json', '.yml', '.yaml'),
    'is an exported model': ('.onnx', '.pdmodel', '.mindir', '.air', '.om'),
    "is an exported model's parameters without their names": ('.pdiparams',),
    "is an optimizer's state": ('.pdopt',),
    'is the state of a training run': ('.pdstates',),
    'is a file of Torch 7 (Lua), which is not read': ('.t7',),
}


def read(file: BinaryIO, path: Path) -> tuple[Any, bool]:
    """The content of a file, and whether it is in one of PyTorch's formats.

    UserError if the file is damaged, of another kind, or would run code.
    """
    head, size = file.read(512), file.seek(0, 2)
    file.seek(0)
    for what, beginnings in _OTHER_CONTENT.items():
        if head.startswith(beginnings):
            raise UserError(f'{path} is damaged or not a weight file: it {what}')
    if head[257:262] == b'ustar':
        raise UserError(f'{path} is a tar archive: unpack it, and name the weight file inside')
    if head.startswith((b'PK\x03\x04', b'PK\x05\x06')):
        return pytorch.read_zip(file, path), True
    if pytorch.MAGIC in head[:32]:
        return pytorch.read_legacy(file, path), True
    try:
        format_name = 'safetensors file'
        if path.suffix == '.safetensors' or safetensors.looks_like_one(head, size):
            return safetensors.read(file), False
        format_name = 'MindSpore checkpoint'
        if mindspore.looks_like_one(head):
            return mindspore.read(file), False
    except ValueError as error:
        raise UserError(f'{path} is damaged or not a {format_name} ({error})') from None
    for what, suffixes in _OTHER_SUFFIXES.items():
        if path.suffix in suffixes:
            raise UserError(f'{path} is not a weight file: it {what}')
    return guarded(Unpickler(file, OTHER_CLASSES), str(path)), False
