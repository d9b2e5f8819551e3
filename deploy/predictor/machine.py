"""The machine: processor, cores that this process may use, and the folder of our cache."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from pathlib import Path

from predictor import container

_HOME = os.path.expanduser('~')  # '~' for a container's user without a home
_CACHES = Path('/' if _HOME == '~' else _HOME, '.cache')
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or _CACHES) / 'wide-resnet-resnext'


def cores() -> int:
    """The number that this process may use."""
    if not hasattr(os, 'sched_getaffinity'):  # macOS
        return os.cpu_count() or 1
    return math.ceil(min(len(os.sched_getaffinity(0)), container.cpu_limit()))


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
