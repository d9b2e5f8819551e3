"""Weights in several files, and their folder, as Hugging Face's libraries write them.

The parts are MODEL-00001-of-00003.SUFFIX and so on; MODEL.SUFFIX.index.json lists their arrays.
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
    """The weight file, or the index of several, in such a folder; None in any other folder.

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
    """All files of the weights; `path` is the only one, one of several, or their index."""
    shard = _SHARD.fullmatch(path.name)
    if shard and int(shard[2]) > 1:
        index = path.with_name(shard[1] + shard[3] + _INDEX)
        if not index.is_file():
            raise UserError(
                f'{path} is one of {int(shard[2])} files, and their index {index} is missing'
            )
        path = index
    if not path.name.endswith(_INDEX):
        return [path]
    try:
        names = {*json.loads(path.read_text(encoding='utf-8'))['weight_map'].values()}
        files = [path.with_name(name) for name in sorted(names)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f'{path} is damaged or not an index of weight files ({type(error).__name__})'
        ) from None
    if missing := [str(file) for file in files if not file.is_file()]:
        raise UserError(f'{path} names {missing[0]}, which is missing')
    return files
