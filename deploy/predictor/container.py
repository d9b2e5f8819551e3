"""The limits of the container, or of other control groups, that this process runs in (Linux)."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Iterator

PROC, CGROUP = Path('/proc'), Path('/sys/fs/cgroup')


def cpu_limit() -> float:
    """The number of cores (docker run --cpus 2); infinite without a limit."""
    limit = math.inf
    for folder, version in _groups('cpu'):
        names = ['cpu.max'] if version == 2 else ['cpu.cfs_quota_us', 'cpu.cfs_period_us']
        with contextlib.suppress(OSError, ValueError):  # ValueError: 'max'
            texts = ' '.join((folder / name).read_text() for name in names)
            quota, period = map(float, texts.split())
            if quota > 0:
                limit = min(limit, quota / period)
    return limit


def memory_left() -> float:
    """Bytes below the limit (docker run -m 2g); infinite without one."""
    left = math.inf
    for folder, version in _groups('memory'):
        names, prefix = ('memory.max', 'memory.current'), ''
        if version == 1:
            names, prefix = ('memory.limit_in_bytes', 'memory.usage_in_bytes'), 'total_'
        with contextlib.suppress(OSError, ValueError):  # ValueError: 'max'
            limit, used = (int((folder / name).read_text()) for name in names)
            stat = dict(s.split() for s in (folder / 'memory.stat').read_text().splitlines())
            kinds = f'{prefix}active_file', f'{prefix}inactive_file'
            cached = sum(int(stat.get(kind, 0)) for kind in kinds)  # the kernel can drop these
            left = min(left, max(0, limit - used + cached))
    return left


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of this process's groups and those around them, with their version, 2 or 1."""
    paths = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / 'self' / 'cgroup').read_text().splitlines():
            _, names, path = line.split(':', 2)
            paths.update(dict.fromkeys(names.split(','), path.strip('/')))
    for root, name, version in ((CGROUP, '', 2), (CGROUP / controller, controller, 1)):
        own = root / paths.get(name, '')
        for folder in (own, *own.parents):
            yield folder, version
            if folder == root:
                break
