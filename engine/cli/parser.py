"""The command line: -c, -o, --help, and answers to what people of other suites write."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Optional, Sequence

from engine.config import all_keys, describe_keys, hints, key_help, reading
from engine.config.recipes import find_config
from engine.errors import UserError


class Parser(argparse.ArgumentParser):
    """Help of 80 columns that begins with an example; a mistake is one line and exit code 2."""

    def __init__(
        self, description: str, *, example: str = '', epilog: str = '', prog: Optional[str] = None
    ) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=key_help.WIDTH),
            allow_abbrev=False,
        )
        self.example = example

    def format_help(self) -> str:
        return f'example: {self.example}\n\n{super().format_help()}'

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; --help shows how to write it')


class ConfigParser(Parser):
    """With -c and -o; its --help ends with the config keys that the command reads.

    Options of other suites (--lr 0.1, --gpus 0,1, a config without -c) are answered with ours.
    """

    def __init__(self, description: str, *, example: str, training: bool) -> None:
        super().__init__(
            description,
            example=f'python3 {example}',
            epilog=describe_keys(training=training),
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
        """UserError for an unknown word, with what to write instead."""
        known: argparse.Namespace
        known, rest = self.parse_known_args(args, namespace)
        resume = getattr(known, 'resume', None) or ''
        if '=' in resume and not Path(resume).exists():
            raise UserError(f'--resume takes a path: write --resume -o {shlex.quote(resume)}')
        if rest:
            raise UserError(self._meant(rest[0], rest[1] if len(rest) > 1 else '...'))
        return known

    def _meant(self, word: str, following: str) -> str:
        """What to write instead of an unknown word and the one that follows it."""
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
        keys = list(all_keys())
        if name in keys:
            return f'{word}: config keys follow -o: write -o {shlex.quote(f"{name}={value}")}'
        hint = hints.for_key(name)
        meant = hint.rpartition('did you mean ')[2].rstrip('?')
        if meant in keys:
            return f'{unknown}: write -o {meant}={_if_valid(meant, value)}'
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


def _if_valid(name: str, value: str) -> str:
    """The value if it is valid for that key, else ... (--use_gpu True)."""
    try:
        key, setting = reading.read_override(f'{name}={value}')
        reading.build({key: setting})
    except UserError:
        return '...'
    return shlex.quote(value)
