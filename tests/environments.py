"""Python environments of their own, with other packages than this one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def install(folder: Path, *packages: str, without_dependencies: bool = False) -> str:
    """The python of a new environment with these. Skips the test where they cannot be had."""
    subprocess.run([sys.executable, '-m', 'venv', str(folder)], check=True)
    python = str(folder / 'bin' / 'python')
    options = ['--no-deps'] if without_dependencies else []
    command = [python, '-m', 'pip', 'install', '--quiet', *options, *packages]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f'{" ".join(packages)}: {result.stderr.strip().splitlines()[-1]}')
    return python


def answer(python: str, code: str, **environment: str):
    """What `code` prints last, as JSON."""
    result = subprocess.run(
        [python, '-c', code],
        capture_output=True,
        text=True,
        env={'PATH': '/usr/bin:/bin', **environment},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])
