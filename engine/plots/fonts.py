"""Fonts for the names of classes, which may be in any script.

Matplotlib knows fonts by name, from a list that it made when it was first used. Here the fonts
that are installed now are searched for the characters that are needed.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from typing import Any, Iterable, Iterator, NamedTuple, Optional

import matplotlib
from matplotlib.font_manager import FontEntry, findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font

FIRST = 'DejaVu Sans'  # comes with Matplotlib
# In the names of fonts without serifs, which are legible when small.
PLAIN = ('sans', 'hei', 'gothic', 'pingfang', 'hiragino', 'droid', 'gulim', 'dotum')
NAMED = 8  # missing characters that are listed
PACKAGES = 'fonts-noto-cjk (apt), google-noto-sans-cjk-fonts (dnf)'


class _Face(NamedTuple):
    path: str
    face: int  # in a collection (.ttc)
    regular: bool
    plain: bool
    characters: frozenset[str]  # of those that are needed


def choose(texts: Iterable[str]) -> Optional[str]:
    """Make Matplotlib use the installed fonts that have the characters of these texts.

    Returns a line about those that no font has, which are drawn as boxes; None if there are none.
    """
    # Without control characters, spaces, and marks that modify the letter before them.
    needed = {c for c in set().union(*texts) if unicodedata.category(c)[0] not in 'CZM'}
    missing = frozenset(needed - {chr(code) for code in FT2Font(findfont(FIRST)).get_charmap()})
    families, missing = _families(missing) if missing else ((), missing)
    matplotlib.rcParams['font.family'] = [FIRST, *families]
    if not missing:
        return None
    some = ' '.join(sorted(missing)[:NAMED]) + (' ...' if len(missing) > NAMED else '')
    return (
        f'pictures: no installed font has the characters {some}: they are drawn as boxes. For '
        f'Chinese, Japanese and Korean install {PACKAGES}, or copy a .ttf or .ttc into ~/.fonts'
    )


@functools.cache
def _families(missing: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of fonts that Matplotlib now knows for them, and the characters that no font has."""
    families = []
    faces = [face for path in sorted(findSystemFonts()) for face in _faces(path, missing)]
    while missing and faces:
        best = max(faces, key=lambda f: (len(f.characters & missing), f.regular, f.plain))
        if not best.characters & missing:
            break
        entry: dict[str, Any] = {'index': best.face} if best.face else {}
        # A name of our own: Matplotlib's list may have another font of the same name.
        families.append(f'{best.path}#{best.face}')
        fontManager.ttflist.append(
            FontEntry(fname=best.path, name=families[-1], weight=400, size='scalable', **entry)
        )
        missing -= best.characters
    return tuple(families), missing


def _faces(path: str, needed: frozenset[str]) -> Iterator[_Face]:
    """The faces of a font file that can be drawn; none of a damaged file, or of a bitmap font."""
    for index in itertools.count():
        options: dict[str, Any] = {'face_index': index} if index else {}
        try:
            font = FT2Font(path, **options)
            known = font.get_charmap()
        except (OSError, RuntimeError, TypeError):  # TypeError: before Matplotlib 3.11, face 0 only
            return
        if font.scalable:
            name = font.family_name.lower()
            regular = font.style_name.lower() in ('regular', 'book', 'normal', 'medium')
            plain = any(word in name for word in PLAIN)
            has = frozenset(c for c in needed if ord(c) in known)
            yield _Face(path, index, regular, plain, has)
        if index + 1 >= font.num_faces:
            return
