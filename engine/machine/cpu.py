"""Environment variables that Paddle and its libraries read when they are imported.

Call prepare_cpu() before `import paddle`. The user's own settings stay.
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

_ours: set[str] = set()  # variables set by an earlier call


def prepare_cpu() -> str:
    """Set what Paddle's kernels need, before paddle is imported. Returns a line for a log.

    By default the wheel's MKL takes a slow path on AMD, and Paddle uses one thread: together a
    factor of 3 to 5 in training. If paddle is already imported (in a notebook), the number of
    threads is still set.
    """
    if os.environ.get('OMP_NUM_THREADS') == '1' and _set_by_paddle():
        del os.environ['OMP_NUM_THREADS']
    threads = cores_per_process()
    settings = {'OMP_NUM_THREADS': (str(threads), 'the cores of this process')}
    if threads > 1:  # by default they spin for 200 ms, which slows the work of a single thread
        settings['KMP_BLOCKTIME'] = ('1', 'idle threads sleep')
    if _is_amd():
        settings['MKL_DEBUG_CPU_TYPE'] = ('5', 'fast kernels on AMD')
    texts = []
    for name, (value, reason) in settings.items():
        if name in os.environ and name not in _ours:
            reason = 'your setting'
        else:
            _ours.add(name)
        texts.append(f'{name}={os.environ.setdefault(name, value)} ({reason})')
    paddle_import.set_npu_flags()
    if 'paddle' in sys.modules:
        _set_threads_of_imported_paddle()
    _keep_freed_memory()
    return 'CPU: ' + ', '.join(texts)


def describe_cpu(*, onednn: bool = False) -> str:
    """`CPU: 2 threads, oneDNN`, after prepare_cpu, for the console."""
    threads = os.environ['OMP_NUM_THREADS']
    text = '1 thread' if threads == '1' else f'{threads} threads'
    whose = '' if 'OMP_NUM_THREADS' in _ours else ' (your OMP_NUM_THREADS)'
    return f'CPU: {text}{whose}{", oneDNN" if onednn else ""}'


def _set_by_paddle() -> bool:
    """Whether OMP_NUM_THREADS=1 comes from Paddle, and not from the user.

    `import paddle` sets it if it is missing, and child processes inherit it from the launcher, a
    notebook or a script. It is Paddle's if the nearest ancestor that was started without it has
    loaded Paddle.
    """
    if processes.LAUNCHED:
        return True
    process = 'self'
    with contextlib.suppress(OSError, IndexError):  # no Linux, or another user's process
        while b'OMP_NUM_THREADS=' in (PROC / process / 'environ').read_bytes():
            # After the name in brackets, which may hold anything: state, parent.
            process = (PROC / process / 'stat').read_text().rpartition(')')[2].split()[1]
        return 'libpaddle' in (PROC / process / 'maps').read_text()
    return False


def _set_threads_of_imported_paddle() -> None:
    import paddle

    with contextlib.suppress(ValueError):  # a list of numbers, for nested loops
        paddle.base.core.set_num_threads(int(os.environ['OMP_NUM_THREADS']))


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory. It would return each block to the kernel, which must clear new
    ones for the next step: a tenth of WRN-16-2's time.
    """
    if any(name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES' for name in os.environ):
        return  # the user's own settings
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        set_option = ctypes.CDLL(None).mallopt
        # Larger blocks are still returned: the gaps that they leave cost more than the time.
        set_option(M_MMAP_THRESHOLD, 2**25)
        set_option(M_TRIM_THRESHOLD, -1)


def cores_per_process() -> int:
    """The number of cores for this process, if the processes of this machine share them."""
    return max(1, machine.cores() // int(os.environ.get('PADDLE_LOCAL_SIZE', processes.WORLD_SIZE)))


def _is_amd() -> bool:
    cpuinfo = Path('/proc/cpuinfo')
    return cpuinfo.exists() and 'AuthenticAMD' in cpuinfo.read_text(errors='replace')
