"""For notebooks: `%load_ext engine.notebook` gives %shell, which runs a command as a terminal does.

    %shell python3 train.py -c configs/quickstart.yaml

IPython's own `!` kills a command 0.2 seconds after the stop button, too early to save. Here the
command has a session of its own, the stop button sends Ctrl-C, and the cell waits until the command
has ended. A command that fails stops the notebook. Nothing here needs more than IPython.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from typing import Any

from IPython.core.error import UsageError


def load_ipython_extension(ipython: Any) -> None:
    ipython.register_magic_function(shell, magic_name='shell')


def shell(command: str) -> None:
    """Run it; `python3` is the notebook's own Python. UsageError unless it ends with 0."""
    program, *arguments = shlex.split(command)
    print(f'$ {shlex.join([program, *arguments])}', flush=True)
    with subprocess.Popen(
        [sys.executable if program.startswith('python') else program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding='utf-8',
        errors='replace',
        start_new_session=True,
    ) as process:
        while process.poll() is None:
            try:
                for line in process.stdout or ():
                    print(line, end='', flush=True)
                process.wait()
            except KeyboardInterrupt:  # the stop button; a second one ends training at once
                process.send_signal(signal.SIGINT)
    if process.returncode:
        raise UsageError(f'exit code {process.returncode}: {command}')
