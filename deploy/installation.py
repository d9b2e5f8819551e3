"""Which packages are installed, and which the commands need. What is missing is one line.

`engine` and `predictor` call `require` when they are imported, before they import any package that
may be missing. So this file imports none of them, and runs on Python 3.7.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Mapping, Optional

PYTHON, PADDLE = (3, 9), (2, 6, 2)  # the oldest supported
DEV = Path('/dev')

# Modules by the command that needs them; 'all': every command of that folder.
TRAINING = {
    'all': ('numpy', 'yaml', 'PIL', 'cv2', 'simplejpeg', 'tqdm', 'safetensors'),
    'train.py': ('paddle', 'setuptools', 'sklearn', 'matplotlib', 'visualdl'),
    'eval.py': ('paddle', 'setuptools', 'sklearn', 'matplotlib'),
    'export.py': ('paddle', 'setuptools', 'sklearn'),
    'engine.models': ('paddle', 'setuptools'),
}
SERVING = {
    'all': ('numpy', 'yaml', 'PIL'),
    'serve.py': ('uvicorn', 'starlette', 'prometheus_client'),
}
ENGINES = ('paddle', 'onnxruntime', 'openvino')  # for deploy/ one of them is enough


def require(root: Path, needed: Mapping[str, tuple[str, ...]]) -> None:
    """Exit with one line and code 2 if a command of ours, in `root`, cannot run.

    Other programs that import our modules get Python's own ImportError.
    """
    path = Path(sys.argv[0] if sys.argv else '')
    # python3 -m engine.data, which Python is still looking for
    as_module = str(path) == '-m' and needed is TRAINING
    name = 'engine' if as_module else path.name
    if name == '__main__.py':
        name = f'engine.{path.parent.name}'
    is_command = name in needed or path.resolve().parent == Path(__file__).resolve().parent
    if not as_module and not (root in path.resolve().parents and is_command):
        return
    modules = needed['all'] + needed.get(name, ())
    problem = find_problem(root, modules, ENGINES if needed is SERVING else ())
    if problem is not None:
        sys.stderr.write(f'{name}: {problem}\n')
        raise SystemExit(2)


def find_problem(root: Path, modules: tuple[str, ...], one_of: tuple[str, ...]) -> Optional[str]:
    """What is missing or too old, and the command that fixes it; None if nothing is."""
    python = shlex.quote(sys.executable or 'python3')
    if sys.version_info[:2] < PYTHON:
        found = '.'.join(map(str, sys.version_info[:3]))
        command = f'{_newer_python()} -m venv .venv && .venv/bin/python -m pip install -r'
        return (
            f'Python {found} ({python}) is too old; 3.9 to 3.13 will do: '
            f'{command} {_requirements(root)}'
        )
    missing = [name for name in modules if not installed(name)]
    if one_of and not any(map(installed, one_of)):
        missing.append(f'all of {", ".join(one_of)} (one is enough)')
    if missing:
        own = root / '.venv' / 'bin' / 'python'  # what make quickstart sets up
        other = f', or start it with {_shown(own)}' if own.exists() else ''
        command = f'{python} -m pip install -r {_requirements(root)}'
        return f'{python} lacks {", ".join(missing)}: {command}{other}'
    return paddle_problem() if 'paddle' in modules else None


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def version(*packages: str) -> Optional[str]:
    """Of the first of these packages that is installed."""
    from importlib import metadata

    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def paddle_problem() -> Optional[str]:
    """A line if the installed Paddle is too old."""
    found, package = paddle_version(), 'paddlepaddle'
    numbers = tuple(int(part) for part in re.findall(r'\d+', found)[:3])
    if numbers >= PADDLE or not any(numbers):  # 0.0.0: built from its sources
        return None
    package += '' if built_for('cpu') else '-gpu'
    python = shlex.quote(sys.executable)
    return (
        f'Paddle {found} of {python} is too old; 2.6.2 and 3 will do: '
        f'{python} -m pip install -U "{package}>=2.6.2,<4"'
    )


def paddle_version() -> str:
    """Of the installed Paddle, without importing it; 0.0.0 if unknown."""
    found = re.search(r"^full_version *= *'([\d.]+)", _about_paddle(), re.M)
    return found.group(1) if found else '0.0.0'


def built_for(device: str) -> bool:
    """Whether the installed Paddle is for cpu or for gpu, without importing it."""
    found = re.search(r"^cuda_version *= *'([\d.]+)", _about_paddle(), re.M)
    return (device == 'gpu') == (found is not None)


def _about_paddle() -> str:
    package = importlib.util.find_spec('paddle')
    if package is None or package.origin is None:
        return ''
    file = Path(package.origin).with_name('version') / '__init__.py'
    return file.read_text(encoding='utf-8') if file.is_file() else ''


def unused_card() -> Optional[str]:
    """A line about a card that the installed Paddle cannot use; None if all can be used."""
    python = shlex.quote(sys.executable)
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES', '0') in ('', '-1')
    if (DEV / 'nvidia0').exists() and built_for('cpu') and not hidden:
        return (
            f'this machine has an NVIDIA GPU, but the Paddle of {python} is for CPUs: {python} -m '
            f'pip uninstall -y paddlepaddle && {python} -m pip install paddlepaddle-gpu'
        )
    plugged = os.environ.get('CUSTOM_DEVICE_ROOT') or version('paddle-custom-npu')
    if (DEV / 'davinci0').exists() and not plugged:
        return (
            f'this machine has an Ascend NPU, but {python} lacks paddle-custom-npu: '
            f'{python} -m pip install paddle-custom-npu'
        )
    return None


def _newer_python() -> str:
    names = [f'python3.{minor}' for minor in range(13, 8, -1)]
    return next(filter(None, map(shutil.which, names)), 'python3.11')


def _requirements(root: Path) -> str:
    return _shown(root / 'requirements.txt')


def _shown(path: Path) -> str:
    """From here, if that is shorter; quoted for a shell."""
    text = str(path)
    return shlex.quote(min(text, os.path.relpath(text), key=len))
