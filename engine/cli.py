"""What the commands share on the command line: -c, -o, --help, and the exit codes.

Nothing here imports paddle, so that --help and a wrong key answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import shlex
import signal
import sys
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional, Sequence

from engine import config as configs
from engine import console
from engine.config import help, hints, reading
from engine.config.recipes import find_config
from engine.errors import EXIT_DIVERGED, EXIT_STOPPED, EXIT_USER, Diverged, Stopped, UserError
from engine.machine import failures, home, processes
from installation import TRAINING, require

EXIT_PIPE = 141  # what a shell says of a program that SIGPIPE has ended; Windows has none
REPOSITORY = Path(__file__).resolve().parent.parent

# The disk or the system says no, which a user can mend; any other OSError is a bug of ours.
REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
)


class Parser(argparse.ArgumentParser):
    """Help of 80 columns that begins with an example; a mistake is one line and exit code 2."""

    def __init__(
        self, description: str, *, example: str = '', epilog: str = '', prog: str = ''
    ) -> None:
        super().__init__(
            prog=prog or None,
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.example = example

    def format_help(self) -> str:
        return f'example: {self.example}\n\n{super().format_help()}'

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; --help shows how to write it')


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=help.WIDTH)


class ConfigParser(Parser):
    """With -c and -o; its --help ends with the config keys that the command reads.

    What people of other suites write (--lr 0.1, --gpus 0,1, a config without -c) is answered with
    what is meant here.
    """

    def __init__(self, description: str, *, example: str, training: bool) -> None:
        super().__init__(
            description,
            example=f'python3 {example}',
            epilog=configs.describe_keys(training=training),
        )
        self.add_argument(
            '-c',
            '--config',
            type=Path,
            metavar='FILE',
            help='recipe, a file or its name in configs/ (default: wrn28_10_cifar10)',
        )
        self.add_argument(
            '-o',
            '--override',
            action='extend',
            nargs='+',
            default=[],
            metavar='KEY=VALUE',
            help='change config keys, e.g. -o optimizer.lr=0.05 -o train.epochs=2',
        )

    def parse_args(  # type: ignore[override]
        self, args: Optional[Sequence[str]] = None, namespace: Any = None
    ) -> argparse.Namespace:
        """UserError for what is not known, with what to write instead."""
        known: argparse.Namespace
        known, rest = self.parse_known_args(args, namespace)
        resume = getattr(known, 'resume', None) or ''
        if '=' in resume and not Path(resume).exists():
            raise UserError(f'--resume takes a path: write --resume -o {shlex.quote(resume)}')
        if rest:
            raise UserError(self._meant(rest[0], rest[1] if len(rest) > 1 else '...'))
        return known

    def _meant(self, word: str, following: str) -> str:
        """What to write for a word that is not known, with the one behind it."""
        option, equals, value = word.partition('=')
        if not equals and not word.startswith('-'):
            return f'{word}: {self._meant_by_value(word)}'
        value = value if equals else '...' if following.startswith('-') else following
        if option in ('--gpus', '--npus', '--devices', '--nproc_per_node', '--nnodes', '--master'):
            command = (
                f'python3 -m paddle.distributed.launch {option} {value} {Path(sys.argv[0]).name}'
            )
            return f'{option} is for the launcher: {command} ...'
        options = [name for name in self._option_string_actions if name.startswith('--')]
        near = difflib.get_close_matches(option, options, n=1, cutoff=0.75)
        unknown = f'unknown {"option" if word.startswith("-") else "key"} {option}'
        if near:
            return f'{unknown}; did you mean {near[0]}?'
        name = option.lstrip('-').replace('-', '_')
        keys = list(configs.all_keys())
        if name in keys:
            return f'{word}: config keys follow -o: write -o {shlex.quote(f"{name}={value}")}'
        hint = hints.for_key(name)
        meant = hint.rpartition('did you mean ')[2].rstrip('?')
        if meant in keys:
            return f'{unknown}: write -o {meant}={_if_fitting(meant, value)}'
        return f'{unknown}{hint}'

    def _meant_by_value(self, word: str) -> str:
        with contextlib.suppress(UserError):
            if find_config(Path(word)).is_file():
                return f'a config follows -c: write -c {shlex.quote(word)}'
        if '--resume' in self._option_string_actions and (Path(word) / 'config.yaml').is_file():
            return f'a run follows --resume: write --resume {shlex.quote(word)}'
        if '--weights' in self._option_string_actions and Path(word).exists():
            return f'weights and runs follow -w: write -w {shlex.quote(word)}'
        return 'it is neither an option nor a config; --help lists the options'


def _if_fitting(name: str, value: str) -> str:
    """The value as one of that key, or ... where it cannot be one (--use_gpu True)."""
    try:
        key, setting = reading.read_override(f'{name}={value}')
        reading.build({key: setting})
    except UserError:
        return '...'
    return shlex.quote(value)


def run(main: Callable[[], None]) -> None:
    """Run a command and leave with its exit code; only our own bugs show a traceback."""
    require(REPOSITORY, TRAINING)  # python3 -m engine.models has a name only now
    console.prepare()
    try:
        with failures.translated():
            home.keep_matplotlib_out()
            main()
        processes.announce_exit(0)
    except (UserError, Diverged) as error:
        _end(f'{_program()}: {error}', EXIT_USER if isinstance(error, UserError) else EXIT_DIVERGED)
    except Stopped as error:  # as all processes do
        print(f'{_program()}: {error}', file=sys.stderr)
        processes.announce_exit(0)
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:  # `eval.py | head`: the reader has gone, which is no error of ours
        sys.stderr.close()
        sys.exit(EXIT_PIPE)
    except KeyboardInterrupt:
        _end('interrupted; what was saved before stays', 128 + signal.SIGINT)
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
