"""What Paddle and its libraries read from the environment when they are imported.

prepare_cpu() comes before `import paddle`. What the user has set stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from engine.machine import processes
from predictor import machine, paddle_import

PROC = Path('/proc')
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h

_ours: set[str] = set()  # variables that an earlier call has set


def prepare_cpu() -> str:
    """Set what Paddle's kernels need, before paddle is imported; returns a line for a log.

    The wheel's MKL takes a slow path on AMD unless told otherwise, and Paddle uses one thread
    unless told otherwise: together a factor of 3 to 5 in training. Where paddle is imported already
    (in a notebook), the number of threads is still set.
    """
    if os.environ.get('OMP_NUM_THREADS') == '1' and _set_by_paddle():
        del os.environ['OMP_NUM_THREADS']
    threads = cores_per_process()
    wanted = {'OMP_NUM_THREADS': (str(threads), 'the cores of this process')}
    if threads > 1:  # by default they spin for 200 ms, which slows what one thread does in between
        wanted['KMP_BLOCKTIME'] = ('1', 'idle threads sleep')
    if _is_amd():
        wanted['MKL_DEBUG_CPU_TYPE'] = ('5', 'fast kernels on AMD')
    told = []
    for name, (value, reason) in wanted.items():
        if name in os.environ and name not in _ours:
            reason = 'your setting'
        else:
            _ours.add(name)
        told.append(f'{name}={os.environ.setdefault(name, value)} ({reason})')
    paddle_import.set_npu_flags()
    if 'paddle' in sys.modules:
        _set_threads_of_imported_paddle()
    _keep_freed_memory()
    return 'CPU: ' + ', '.join(told)


def describe_cpu(*, onednn: bool = False) -> str:
    """`CPU: 2 threads, oneDNN`, for the console, once prepare_cpu has been called."""
    threads = os.environ['OMP_NUM_THREADS']
    text = '1 thread' if threads == '1' else f'{threads} threads'
    whose = '' if 'OMP_NUM_THREADS' in _ours else ' (your OMP_NUM_THREADS)'
    return f'CPU: {text}{whose}{", oneDNN" if onednn else ""}'


def _set_by_paddle() -> bool:
    """Whether OMP_NUM_THREADS=1 comes from Paddle, and not from the user.

    `import paddle` sets it where it is missing, and child processes inherit it: of the launcher, of
    a notebook, of a script. The nearest ancestor that was started without it decides: Paddle's, if
    that has loaded it.
    """
    if processes.LAUNCHED:
        return True
    process = 'self'
    with contextlib.suppress(OSError, IndexError):  # no Linux, or another user's process
        while b'OMP_NUM_THREADS=' in (PROC / process / 'environ').read_bytes():
            # Behind the name in brackets, which may hold anything: state, parent.
            process = (PROC / process / 'stat').read_text().rpartition(')')[2].split()[1]
        return 'libpaddle' in (PROC / process / 'maps').read_text()
    return False


def _set_threads_of_imported_paddle() -> None:
    import paddle

    with contextlib.suppress(ValueError):  # a list of numbers, for nested loops
        paddle.base.core.set_num_threads(int(os.environ['OMP_NUM_THREADS']))


def _keep_freed_memory() -> None:
    """Let glibc keep what tensors leave: it would give each block back to the kernel, which must
    then clear as much again for the next step, a tenth of WRN-16-2's time.
    """
    if any(name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES' for name in os.environ):
        return  # the user's own settings
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        set_option = ctypes.CDLL(None).mallopt
        # Larger blocks are given back: they would leave gaps that cost more than the time is worth.
        set_option(M_MMAP_THRESHOLD, 2**25)
        set_option(M_TRIM_THRESHOLD, -1)


def cores_per_process() -> int:
    """The cores that this process may use, when all processes of this machine share them."""
    return max(1, machine.cores() // int(os.environ.get('PADDLE_LOCAL_SIZE', processes.WORLD_SIZE)))


def _is_amd() -> bool:
    cpuinfo = Path('/proc/cpuinfo')
    return cpuinfo.exists() and 'AuthenticAMD' in cpuinfo.read_text(errors='replace')
