"""A weight file of any supported project -> its arrays under our names."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any, Union

from engine.errors import UserError
from engine.files import checksum
from engine.weights import formats, names
from engine.weights.arrays import require_dict
from engine.weights.converted import Converted
from engine.weights.fold import fold_biases
from engine.weights.formats import shards
from engine.weights.official import resolve


def read_weights(path: Union[str, Path]) -> Converted:
    """The arrays of a weight file under our names, and a report of how.

    `path` may be a name in OFFICIAL. UserError if the file is missing, damaged, not a network, or
    would run code.
    """
    path = resolve(path)
    if path.is_dir():
        folder, found = path, shards.file_in(path)
        if found is None:
            raise UserError(f'{folder} is a folder; name the weight file in it (best.pdparams)')
        path = found
    try:
        converted, size = _read_files(path)
    except OSError as error:
        raise UserError(f'cannot read the weights {path}: {error.strerror}') from None
    claimed = sum(array.nbytes for array in converted.arrays.values())
    if claimed > 4 * size:  # more than bfloat16 becoming float32, and a weight shared by two layers
        raise UserError(f'{path} is damaged: {claimed:,} bytes of arrays in a file of {size:,}')
    try:
        converted.folded = fold_biases(converted.arrays)
    except ValueError as error:
        raise UserError(f'{path} has a bias that cannot be folded: {error}') from None
    return converted


def _read_files(path: Path) -> tuple[Converted, int]:
    """The converted content of a file, or of all its parts, and the size in bytes."""
    size, checksums, contents, torch = 0, [], [], False
    with contextlib.ExitStack() as opened:  # until the arrays that are read lazily are converted
        parts = shards.files_of(path)
        for part in parts:
            file = opened.enter_context(part.open('rb'))
            content, torch = formats.read(file, part)
            contents.append(content)
            size += file.seek(0, 2)
            checksums.append(checksum(file))  # of what was read, even if the path changes
        whole: Any = contents[0]
        if len(contents) > 1:
            whole = {}
            for part, content in zip(parts, contents):
                whole.update(require_dict(content, part))
        converted = names.convert(whole, path, torch=torch)
    joined = hashlib.sha256('\n'.join(checksums).encode()).hexdigest()
    converted.sha256 = checksums[0] if len(checksums) == 1 else joined
    return converted, size
