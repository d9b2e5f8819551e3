"""Runs a command and leaves with its exit code."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Callable, NoReturn

from engine.errors import EXIT_DIVERGED, EXIT_STOPPED, EXIT_USER, Diverged, Stopped, UserError
from engine.machine import failures, home, processes
from installation import TRAINING, require
from predictor.console import REFUSALS, prepare_streams

REPOSITORY = Path(__file__).resolve().parents[2]
EXIT_PIPE = 141  # as a shell reports a program that SIGPIPE has ended; Windows has none


def run(main: Callable[[], None]) -> None:
    """Run a command and exit; only our own bugs show a traceback."""
    require(REPOSITORY, TRAINING)  # python3 -m engine.models has a name only now
    prepare_streams()
    try:
        with failures.translated():
            home.keep_matplotlib_out()
            main()
        processes.announce_exit(0)
    except (UserError, Diverged) as error:
        _end(f'{_program()}: {error}', EXIT_USER if isinstance(error, UserError) else EXIT_DIVERGED)
    except Stopped as error:  # in all processes
        print(f'{_program()}: {error}', file=sys.stderr)
        processes.announce_exit(0)
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:  # `eval.py | head`: head has ended, which is not an error
        sys.stderr.close()
        sys.exit(EXIT_PIPE)
    except KeyboardInterrupt:
        _end('interrupted; earlier checkpoints remain', 128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            _end(f'{_program()}: {error.filename or "writing"}: {error.strerror}', EXIT_USER)
        processes.wait_for_peer_failure()
        processes.announce_exit(1, f'{_program()} failed: {type(error).__name__}, see its log')
        raise


def _end(text: str, code: int) -> NoReturn:
    print(text, file=sys.stderr)
    processes.announce_exit(code, text)
    sys.exit(code)


def _program() -> str:
    """train.py, or engine.data where it was run by python3 -m engine.data."""
    path = Path(sys.argv[0])
    if REPOSITORY not in path.parents or path.parent == REPOSITORY:
        return path.name
    return '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts).replace('.__main__', '')
