"""What may be meant by a key that does not exist, or by the signs of a Chinese keyboard."""

from __future__ import annotations

import difflib
import unicodedata

from engine.config import foreign_keys
from engine.config.keys import all_keys

_SIGNS = {'\u3002': '.', '\u3001': ',', '\u2018': "'", '\u2019': "'", '\u201c': '"', '\u201d': '"'}
_SIGNS.update({'\u3010': '[', '\u3011': ']', '\u2212': '-', '\u2014': '-', '\u00a0': ' '})


def for_key(name: str) -> str:
    """`; did you mean optimizer.lr?`"""
    if sign := for_sign(name):
        return sign
    keys = list(all_keys())
    sections = {known.split('.')[0] for known in keys if '.' in known}
    meant = foreign_keys.meaning(name)
    near = [] if '.' in name else difflib.get_close_matches(name, sections, n=1, cutoff=0.7)
    if not near and (meant is None or name.split('.')[0] in sections):
        # The right word in the wrong section (train.lr) is nearer than letters can tell.
        alike = [known for known in keys if known.split('.')[-1] == name.split('.')[-1]]
        cutoff = 0 if alike else 0.8 if meant else 0.5
        near = difflib.get_close_matches(name, alike or keys, n=1, cutoff=cutoff)
    if near and foreign_keys.WHOLE.get(name.lower()) is None:
        return f'; did you mean {near[0]}?'
    if meant is not None:
        return f'; did you mean {meant}?' if meant.split()[0] in keys else f'; {meant}'
    return '; --help lists the keys'


def for_sign(text: str) -> str:
    """Names the first full-width sign or blank, which YAML reads as a letter."""
    for sign in text:
        wide = '\uff01' <= sign <= '\uff5e' or sign == '\u3000'
        plain = unicodedata.normalize('NFKC', sign) if wide else _SIGNS.get(sign)
        if plain == ' ':
            return f'; it has a blank U+{ord(sign):04X}, write a plain one'
        if plain is not None:
            return f'; it has the full-width sign {sign}, write {plain}'
    return ''
