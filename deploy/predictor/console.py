"""What predict.py, serve.py and benchmark.py share: options, exit codes, lines for the user."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, NoReturn

from predictor.engines import ENGINES
from predictor.errors import UserError

# Errors of the disk or the system that a user can fix; any other OSError is a bug of ours.
REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EADDRINUSE),
)
SIGPIPE = 13  # missing from `signal` on Windows
Group = Any  # argparse's own is private


class Parser(argparse.ArgumentParser):
    """For a command whose first argument is an exported folder.

    Its help has 80 columns and starts with an example; a wrong option is one line, exit code 2.
    """

    def __init__(self, description: str, *, example: str) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, width=80),
        )
        self.example = example
        self.add_argument('folder', type=Path, help='what export.py has written')

    def format_help(self) -> str:
        return f'example: python3 deploy/{self.example}\n\n{super().format_help()}'

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; --help shows how to write it')


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('engine')
    group.add_argument(
        '--engine',
        choices=['auto', *ENGINES],
        default='auto',
        help='auto: the first that runs here',
    )
    group.add_argument(
        '--threads', type=positive, metavar='N', help='of a CPU (default: one a core)'
    )
    group.add_argument('--no-onednn', action='store_true', help="Paddle's own CPU kernels, slower")
    add_device_options(group)


def add_device_options(group: Group) -> None:
    group.add_argument('--device', default='auto', help='auto, cpu, gpu, gpu:1, npu ...')
    group.add_argument(
        '--precision',
        choices=('float32', 'float16', 'int8'),
        default='float32',
        help='float16 needs a GPU, or an NPU with Paddle 2.6; int8 what export.py --int8 writes',
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """For Predictor(...)."""
    return {
        'engine': args.engine,
        'device': args.device,
        'threads': args.threads,
        'precision': args.precision,
        'onednn': not args.no_onednn,
    }


def positive(text: str) -> int:
    """An argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a whole number above 0')
    return int(text)


def positive_number(text: str) -> float:
    """An argparse type."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e6:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text} is not a number above 0')


def report(text: str) -> None:
    """On standard error: standard output is for answers."""
    print(text, file=sys.stderr, flush=True)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code; only our own bugs show a traceback."""
    name = Path(sys.argv[0]).name
    prepare_streams()
    try:
        code = main()
        sys.stdout.flush()  # here, where an error can still be handled
        sys.exit(code)
    except UserError as error:
        print(f'{name}: {error}', file=sys.stderr)
    except BrokenPipeError:  # `predict.py ... | head`: not an error
        _abandon_output()
        sys.exit(128 + SIGPIPE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        print(f'{name}: {error.filename or "writing"}: {error.strerror}', file=sys.stderr)
        _abandon_output()
    sys.exit(2)


def prepare_streams() -> None:
    """Before anything is printed: open closed streams, replace characters that cannot be encoded.

    Python has None for a stream that the shell has closed (`train.py >&-`), and the next file to be
    opened would get its number. The name of a class may have letters that the encoding of the
    terminal (GBK, Latin-1, ASCII) lacks.
    """
    number = 0
    while number <= 2:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding='utf-8'))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')


def _abandon_output() -> None:
    """Otherwise Python flushes again at its end, fails again, and changes the exit code."""
    with contextlib.suppress(OSError):  # write what can still be written
        sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
