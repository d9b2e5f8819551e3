"""What the commands share on the command line: -c, -o, --help, and the exit codes.

Nothing here imports paddle, so that --help and a wrong key answer at once.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from pathlib import Path
from typing import Callable, NoReturn, Optional

from engine import config as configs
from engine import job
from engine.errors import EXIT_DIVERGED, EXIT_STOPPED, EXIT_USER, Diverged, Stopped, UserError
from engine.run_folder import find_run, is_checkpoint, load_run_config

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = REPOSITORY / 'configs' / 'wrn28_10_cifar10.yaml'

# The disk or the system says no, which a user can mend; any other OSError is a bug of ours.
REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
)


def parser(description: str) -> argparse.ArgumentParser:
    """Parser with -c and -o; its --help ends with every config key, default and meaning."""
    result = argparse.ArgumentParser(
        description=description,
        epilog=configs.describe_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument(
        '-c',
        '--config',
        type=Path,
        metavar='FILE',
        help='recipe (default: configs/wrn28_10_cifar10.yaml)',
    )
    result.add_argument(
        '-o',
        '--override',
        action='extend',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='change config keys, e.g. -o optimizer.lr=0.05 -o train.epochs=2',
    )
    return result


def load_settled(args: argparse.Namespace, path: Optional[Path]) -> configs.Config:
    """The config of the run that `path` lies in, if -c names no other; with the overrides on top.

    UserError if that config is gone: another one's data and network would be taken for its own.
    """
    if path is not None and args.config is None:
        run = find_run(path)
        if run is not None:
            return load_run_config(run, args.override)
        if is_checkpoint(path):
            raise UserError(f'{path}: a checkpoint without its run; name its config with -c FILE')
    return configs.load_config(args.config or DEFAULT_CONFIG, args.override)


def run(main: Callable[[], None]) -> None:
    """Run a command and leave with its exit code; only our own bugs show a traceback."""
    try:
        main()
        job.leave(0)
    except (UserError, Diverged) as error:
        _end(f'{_program()}: {error}', EXIT_USER if isinstance(error, UserError) else EXIT_DIVERGED)
    except Stopped as error:  # as all processes do
        print(f'{_program()}: {error}', file=sys.stderr)
        job.leave(0)
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:  # `train.py | head`: the reader has gone, which is no error of ours
        sys.stderr.close()
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        _end('interrupted; what was saved before stays', 128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            _end(f'{_program()}: {error.filename or "writing"}: {error.strerror}', EXIT_USER)
        job.hear_of_losses()
        job.leave(1, f'{_program()} failed: {type(error).__name__}, see its log')
        raise


def _end(text: str, code: int) -> NoReturn:
    print(text, file=sys.stderr)
    job.leave(code, text)
    sys.exit(code)


def _program() -> str:
    """train.py, or engine.data where it was run by python3 -m engine.data."""
    path = Path(sys.argv[0])
    inside = path.parent.relative_to(REPOSITORY) if REPOSITORY in path.parents else path.parent
    return '.'.join(inside.parts) if path.name == '__main__.py' else path.name
