"""Weights in several files, and their folder, as Hugging Face's libraries write them.

MODEL-00001-of-00003.SUFFIX and so on, and MODEL.SUFFIX.index.json, which says what is where.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Optional

from engine.errors import UserError

_IN_FOLDERS = ('model.safetensors', 'pytorch_model.bin')
_INDEX = '.index.json'
_SHARD = re.compile(r'(.+)-\d{5}-of-(\d{5})(\.\w+)')


def file_in(folder: Path) -> Optional[Path]:
    """The weight file, or the index of several, in a folder of that kind; None in any other.

    UserError if it is an exported network.
    """
    if (folder / 'inference.pdiparams').is_file():
        raise UserError(
            f'{folder} is an exported network, whose arrays have no names: take the run, '
            'checkpoint or weight file that was exported'
        )
    names = [name + suffix for name in _IN_FOLDERS for suffix in ('', _INDEX)]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def files_of(path: Path) -> list[Path]:
    """The files that make up the weights of which `path` is the file, a shard, or the index."""
    shard = _SHARD.fullmatch(path.name)
    if shard and int(shard[2]) > 1:
        index = path.with_name(shard[1] + shard[3] + _INDEX)
        if not index.is_file():
            raise UserError(
                f'{path} is one of {int(shard[2])} files, and their index {index} is not there'
            )
        path = index
    if not path.name.endswith(_INDEX):
        return [path]
    try:
        names = {*json.loads(path.read_text(encoding='utf-8'))['weight_map'].values()}
        files = [path.with_name(name) for name in sorted(names)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{path} is damaged, or no index of weight files ({type(error).__name__})'
        ) from None
    if missing := [str(file) for file in files if not file.is_file()]:
        raise UserError(f'{path} names {missing[0]}, which is not there')
    return files
