"""Which files below a folder are pictures, and what other files are.

Training lists its folders with this, so that both skip the same files.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Iterator, Optional, Sequence

JPEG_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.jfi', '.jif', '.pjpeg', '.pjp')
OTHER_SUFFIXES = ('.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm')
SUFFIXES = (*JPEG_SUFFIXES, *OTHER_SUFFIXES)  # always readable; pictures.SUFFIXES has more

# Readable if Pillow, or a plug-in for it, supports them: format -> suffixes, and what is needed.
OPTIONAL = {
    'AVIF': (('.avif',), 'Pillow 11.3 or later'),
    'JPEG 2000': (('.jp2', '.j2k', '.jpf', '.jpx', '.j2c'), 'a Pillow with OpenJPEG'),
    'HEIC': (('.heic', '.heif', '.hif'), 'the package pillow-heif'),
}

# Folders and files of an operating system or a NAS, in lower case; besides these, whatever begins
# with a dot (.AppleDouble, .ipynb_checkpoints, ._photo.jpg, .DS_Store, .Trash-1000).
SYSTEM_NAMES = frozenset(
    [
        *('@eadir', '#recycle', '#snapshot', '@tmp', '@sharebin'),  # Synology
        *('@synoeastream', '@synoresource', '@recycle', '@recently-snapshot', '@__thumb'),  # QNAP
        *('$recycle.bin', 'recycler', 'recycled', 'system volume information'),  # Windows
        *('thumbs.db', 'ehthumbs.db', 'desktop.ini', 'msdownld.tmp', 'wpsystem'),
        *('__macosx', 'icon\r', 'network trash folder', 'temporary items'),  # macOS
        *('lost+found', '~snapshot', '__pycache__'),  # Linux, NetApp, Python
    ]
)
_CHKDSK = re.compile(r'found\.\d{3}')

# Offset, bytes at that offset, and what the file is: pictures, then others.
_PICTURES = (
    (4, rb'ftyp(avif|avis)', 'AVIF'),
    (4, rb'ftyp(hei[cxms]|hev[cxms]|mif1|msf1)', 'HEIC'),
    (0, rb'\0\0\0\x0cjP  |\xff\x4f\xff\x51', 'JPEG 2000'),
    (0, rb'\xff\x0a|\0\0\0\x0cJXL ', 'JPEG XL'),
    (0, rb'\0\0[\x01\x02]\0', 'ICO'),
    (0, rb'8BPS', 'Photoshop'),
    (128, rb'DICM', 'DICOM'),
    (0, rb'(\xef\xbb\xbf)?\s*(<\?xml[^\0]*)?<svg', 'SVG'),
)
_OTHERS = (
    (0, rb'(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html)', 'a web page'),
    (0, rb'%PDF-', 'a PDF'),
    (0, rb'version https://git-lfs', 'a pointer of Git LFS; fetch it with git lfs pull'),
    (4, rb'ftyp', 'a film'),
)


def is_passed_over(name: str) -> bool:
    """Hidden, or an operating system's own: neither a picture nor a class."""
    lower = name.lower()
    return name[:1] == '.' or lower in SYSTEM_NAMES or bool(_CHKDSK.fullmatch(lower))


def what_it_is(data: bytes, readable: Sequence[str]) -> str:
    """What a file is that cannot be decoded, by its first bytes: 'is HEIC, which ...'.

    readable: names of formats in OPTIONAL that can be read here; such a file is damaged
    """
    if not data:
        return 'is empty'
    for start, pattern, name in _PICTURES:
        if re.match(pattern, data[start : start + 1024]):
            if name in readable:
                return f'is damaged ({name} that cannot be decoded)'
            return f'is {name}, which is not read here; convert it to JPEG or PNG'
    for start, pattern, name in _OTHERS:
        if re.match(pattern, data[start : start + 1024]):
            return f'is not a picture but {name}'
    return 'is not a picture'


def walk(
    folder: str, suffixes: tuple[str, ...], left_out: Optional[list[str]] = None
) -> Iterator[str]:
    """Pictures at any depth, in the disk's order. OSError if a folder cannot be read.

    Links to folders are followed, but not in circles, and not to a folder that contains this one:
    that would include the pictures beside it. `left_out` gets the paths of other files.
    """
    above = frozenset(
        identity
        for path in (Path(os.path.abspath(folder)), Path(folder).resolve())
        for identity in map(_identity, path.parents)
    )
    return _walk(folder, above, suffixes, left_out)


def _walk(
    folder: str,
    above: frozenset[tuple[int, int]],
    suffixes: tuple[str, ...],
    left_out: Optional[list[str]],
) -> Iterator[str]:
    here = above | {_identity(folder)}
    for entry in list(os.scandir(folder)) if len(here) > len(above) else ():
        if is_passed_over(entry.name):
            continue
        if is_folder(entry):
            yield from _walk(entry.path, here, suffixes, left_out)
        elif entry.name.lower().endswith(suffixes):
            yield entry.path
        elif left_out is not None:
            left_out.append(entry.path)


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def describe_left_out(paths: list[str]) -> str:
    """'3 .heic (HEIC needs the package pillow-heif), 2 .txt, 1 without a suffix'; '' if none."""
    suffixes = sorted(os.path.splitext(path)[1].lower() for path in paths)
    most = Counter(suffixes).most_common(8)
    parts = []
    for suffix, count in most:
        needs = [
            f' ({name} needs {what}; or convert to JPEG or PNG)'
            for name, (own, what) in OPTIONAL.items()
            if suffix in own
        ]
        parts.append(f'{count:,} {suffix or "without a suffix"}{"".join(needs)}')
    rest = len(paths) - sum(count for _, count in most)
    return ', '.join(parts) + (f', {rest:,} others' if rest else '')


def counted(pictures: int) -> str:
    """1 picture, 2,000 pictures."""
    return '1 picture' if pictures == 1 else f'{pictures:,} pictures'
