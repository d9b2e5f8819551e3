"""Names of classes: read from folders, compared, and completed."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from pathlib import Path
from typing import Iterable, Sequence

from engine.errors import UserError


def class_name(folder: Path, name: str) -> str:
    """A folder's name as a line of a run's classes.txt; macOS writes é as two characters."""
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of another encoding, such as GBK
        raise _not_utf8(folder, name) from None
    if name.splitlines() != [name]:
        raise UserError(f'{folder}: rename {name!r}: a class needs a name of one line')
    return unicodedata.normalize('NFC', name)


def _not_utf8(folder: Path, name: str) -> UserError:
    """The error for a name that is not in UTF-8, with what to do."""
    with contextlib.suppress(UnicodeError):
        read = os.fsencode(name).decode('utf-8')
        here = sys.getfilesystemencoding()
        return UserError(
            f'{folder}: Python reads the name of the class {read} in {here} here: export '
            'PYTHONUTF8=1, or set LC_ALL to a locale in UTF-8'
        )
    advice = ''
    with contextlib.suppress(UnicodeError):
        read = os.fsencode(name).decode('gbk')
        advice = f' (in GBK: {read}; unpack anew with unzip -O GBK, or convmv -f gbk -t utf8)'
    return UserError(f'{folder}: rename {name!r}{advice}: a class needs a name in UTF-8')


def differing(there: Iterable[str], here: Iterable[str]) -> str:
    """How two lists of classes differ: 'only there: cat; missing there: dog, ...'."""
    parts = []
    for what, names in (
        ('only there', sorted(set(there) - set(here))),
        ('missing there', sorted(set(here) - set(there))),
    ):
        if names:
            parts.append(f'{what}: {", ".join(names[:5])}{", ..." if len(names) > 5 else ""}')
    return '; '.join(parts) or 'the same in another order'


def numbered(names: Sequence[str], count: int) -> list[str]:
    """The names of `count` outputs: those without a name are numbered."""
    return [*names, *(str(index) for index in range(len(names), count))]
