"""An Ascend without an Ascend: builds fake_npu.cc, and runs commands on a machine that has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import paddle
import pytest

SOURCE = Path(__file__).resolve().with_name('fake_npu.cc')

# Empty rather than unset: unset, Paddle loads the plugins that pip has installed.
NO_PLUGIN = {'CUSTOM_DEVICE_ROOT': '', 'CUDA_VISIBLE_DEVICES': ''}


def build(
    folder: Path, *, half: bool = False, include: Path | None = None, version: str | None = None
) -> dict[str, str]:
    """Compile the plugin into `folder`; returns the environment in which Paddle finds it.

    With `half`, it has the float16 kernels of fake_npu_half.cc. `include` and `version` are those
    of another Paddle than this process's. Skips the test where there is no compiler.
    """
    compiler = shutil.which('g++')
    if compiler is None:
        pytest.skip('the fake npu needs g++')
    include = include or Path(paddle.sysconfig.get_include())
    command = [compiler, '-shared', '-fPIC', '-O1', '-std=c++17', f'-I{include}', str(SOURCE)]
    command += [f'-DPADDLE_MAJOR={(version or paddle.__version__)[0]}']
    if half:
        command += ['-DPADDLE_WITH_CUSTOM_DEVICE', f'-I{include / "third_party"}']
        command += [str(SOURCE.with_name('fake_npu_half.cc')), f'-L{include.parent / "libs"}']
        command += ['-l:libphi_core.so', '-l:libcommon.so']
    command += ['-o', str(folder / 'libfake_npu.so')]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {**NO_PLUGIN, 'CUSTOM_DEVICE_ROOT': str(folder)}


def run(
    folder: Path, machine: dict[str, str], *arguments: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, in `folder`, on a machine given by its environment."""
    return subprocess.run(
        [python, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, 'PYTHONUNBUFFERED': '1', **machine},
    )
