"""Import paddle, with the settings that it reads while it is imported."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, Iterator, Optional

import installation
from predictor.errors import UserError

PLUGIN = re.compile(r'Fail to open library: (\S+) with error: (.*)')
# What Paddle's page on NPUs and PaddleX set; paddle-custom-npu reads them when it is loaded.
NPU_FLAGS = {
    'FLAGS_npu_storage_format': '0',  # no private layout: the plug-in warns of its accuracy
    'FLAGS_npu_jit_compile': '0',  # no compiling of operators while running
    'FLAGS_npu_scale_aclnn': 'True',  # not CANN's old Power operator
    'FLAGS_npu_split_aclnn': 'True',
    'FLAGS_use_stride_kernel': '0',  # its kernels expect contiguous memory
    'FLAGS_allocator_strategy': 'auto_growth',
}
failure: Optional[str] = None  # of the first import; another try fails in an unclear way


def import_paddle() -> Any:
    """UserError if it, or its plug-in for an NPU, does not load."""
    global failure
    if failure is None:
        try:
            return _imported()
        except ImportError as error:
            failure = f'paddle does not load: {error}'
        except ValueError as error:
            failure = plugin_problem(str(error))
            if failure is None:
                raise
    raise UserError(failure)


def _imported() -> Any:
    # Read by Paddle at its import. Without the second, MKL takes a slow path on AMD.
    os.environ.setdefault('GLOG_minloglevel', '2')
    os.environ.setdefault('MKL_DEBUG_CPU_TYPE', '5')
    set_npu_flags()
    with warnings.catch_warnings(), _no_folders(), without_thread_warning():
        warnings.simplefilter('ignore')  # about ccache, with which it compiles plug-ins
        import paddle
        import paddle.inference
    return paddle


@contextlib.contextmanager
def without_thread_warning() -> Iterator[None]:
    """Within, paddle is imported; what it prints about OMP_NUM_THREADS is left out."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        yield
    lines = printed.getvalue().splitlines(keepends=True)
    sys.stderr.writelines(line for line in lines if 'OMP_NUM_THREADS' not in line)


@contextlib.contextmanager
def _no_folders() -> Iterator[None]:
    """Within, paddle is imported; the empty ~/.cache/paddle/dataset that it makes is removed."""
    home = Path(os.path.expanduser('~'))
    path = home / '.cache' / 'paddle' / 'dataset'
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def may_have_npu() -> bool:
    """Whether importing paddle loads device plug-ins: without the variable, those from pip."""
    folder = os.environ.get('CUSTOM_DEVICE_ROOT')
    return installation.version('paddle-custom-npu') is not None if folder is None else folder != ''


def set_npu_flags() -> None:
    """Call it before paddle is imported. The user's own settings are kept."""
    if may_have_npu():
        for name, value in NPU_FLAGS.items():
            os.environ.setdefault(name, value)


def plugin_problem(text: str) -> Optional[str]:
    """What to do about an exception with this text; None if no plug-in raised it."""
    found = PLUGIN.search(text)
    return found and (
        f'the plug-in {found[1]} cannot be loaded: {found[2].strip()}; source the set_env.sh of '
        'CANN and of its nnal/atb (docs/ascend.md), or export CUSTOM_DEVICE_ROOT= to do without it'
    )
