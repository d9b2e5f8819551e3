"""The folder of a run: its files, who may write there, and how it is found from a path.

output/<config name>/{config.yaml, classes.txt, train.log, metrics.jsonl, first_batch.png,
curves.png, best.pdparams, vdl/, checkpoints/, eval/}
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import socket
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

from engine import files
from engine.config import Config, Output, load_config, to_yaml
from engine.config.recipes import DEFAULT_CONFIG, find_config
from engine.errors import UserError
from engine.files import write_atomically
from engine.machine import processes
from engine.run.checkpoint import MANIFEST, Checkpoints, load, serialised
from engine.training.progress import Progress
from engine.training.snapshot import Snapshot
from engine.weights import Arrays

# What a start writes before there is anything to keep.
BEGUN = (
    *('.lock', 'config.yaml', 'classes.txt', 'train.log', 'metrics.jsonl'),
    *('first_batch.png', 'vdl', 'checkpoints'),
)
# Two of these make a run, even if the others are gone.
MARKS = ('config.yaml', 'classes.txt', 'train.log', 'metrics.jsonl', 'checkpoints')


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / 'config.yaml'
        self.classes_file = path / 'classes.txt'
        self.log_file = path / 'train.log'
        self.metrics_file = path / 'metrics.jsonl'
        self.first_batch_file = path / 'first_batch.png'
        self.curves_file = path / 'curves.png'
        self.best_file = path / 'best.pdparams'
        self.vdl_folder = path / 'vdl'
        self._lock_file = path / '.lock'
        self._lock: Optional[int] = None  # its descriptor, from `open` to `close`
        self._holder = b''  # the content that this process has written

    def checkpoints(self, *, keep: int = 2) -> Checkpoints:
        return Checkpoints(self.path / 'checkpoints', keep=keep)

    def find_snapshot(self, resume: str, report: Callable[[str], None]) -> Optional[Snapshot]:
        """The checkpoint that --resume names, or the newest sound one of this run.

        None where this run has not saved one yet. UserError where a named one is missing.
        """
        snapshot = read_snapshot(Path(resume) if resume else self.path, report)
        if snapshot is None and resume:
            raise UserError(
                f'--resume {resume}: neither a checkpoint nor a run folder with a sound one'
            )
        if snapshot is None:
            if processes.RANK == 0 and not self.config_file.exists():
                self.require_new()
            report(f'resume: no checkpoint in {self.path}; starting from the beginning')
        return snapshot

    def contains(self, path: Path) -> bool:
        return self.path.resolve() in path.resolve().parents

    def save(self, name: str, snapshot: Snapshot, *, keep: int) -> None:
        """Write a checkpoint in the first process, while the others wait."""
        if processes.RANK == 0:
            self.require_ours()
            self.checkpoints(keep=keep).save(name, snapshot)
        processes.barrier()

    def keep_evaluated(self, weights: Callable[[], Arrays], *, best: bool) -> str:
        """In the first process, write the weights to best.pdparams if they are the best so far.

        Returns their SHA-256, as they are saved here or in a checkpoint; '' in other processes.
        """
        if processes.RANK:
            return ''
        content, sha256 = serialised(weights())
        self.require_ours()
        if best:
            write_atomically(self.best_file, lambda file: file.write(content))
        return sha256

    def restore_best(self, progress: Progress, weights: Callable[[], Arrays]) -> list[str]:
        """Check that best.pdparams is what a checkpoint calls best: it may be of an epoch that will
        run again. If it is, write `weights`, those of the checkpoint, or forget the best.

        Returns lines about a change.
        """
        best = self.best_file
        if progress.best_epoch is None:
            return []
        if best.is_file() and files.sha256_of(best) == progress.best_sha256:
            return []
        content, sha256 = serialised(weights())
        if sha256 == progress.best_sha256:
            write_atomically(best, lambda file: file.write(content))
            return [f'{best} was of an epoch that runs again; written again']
        progress.forget_best()
        return [f'{best} is not of the epochs before this; the best is chosen again']

    def require_new(self) -> None:
        """UserError if there is anything to lose: a run is never overwritten.

        What is left of a start that was killed before it saved anything does not count.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f'output.dir: {self.path} is a file')
        if self.path.is_dir() and not self._only_begun():
            what = 'holds a run already' if self.config_file.exists() else 'is not empty'
            raise UserError(
                f'{self.path} {what}: continue it with --resume, or choose another folder with '
                '-o output.dir=DIR'
            )

    def _only_begun(self) -> bool:
        names = {path.name for path in self.path.iterdir() if path.suffix != '.writing'}
        records = self.metrics_file.exists() and self.metrics_file.stat().st_size
        return names <= set(BEGUN) and not records and not self.checkpoints().exist

    def require_free(self) -> None:
        """UserError if another process is training there; checked before anything slow."""
        if self._lock_file.is_file():
            with contextlib.suppress(OSError):  # `open` will say what is wrong
                descriptor = os.open(self._lock_file, os.O_RDWR)
                try:
                    self._take(descriptor)
                finally:
                    os.close(descriptor)

    def open(self, config: Config, classes: Sequence[str], *, new: bool = False) -> None:
        """Create the folder, lock it for this process, write config.yaml and classes.txt.

        With `new`, UserError if another process has trained there since `require_new`.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._take(self._lock)
            except OSError as error:
                files.warn_of_no_lock(self._lock_file, error)
            if new:
                self.require_new()
            # A line's end is another on Windows.
            self._holder = f'{os.getpid()} {socket.gethostname()}'.encode()
            os.truncate(self._lock, 0)
            os.write(self._lock, self._holder)
            write_atomically(self.config_file, lambda file: file.write(to_yaml(config).encode()))
            names = ''.join(f'{name}\n' for name in classes)
            write_atomically(self.classes_file, lambda file: file.write(names.encode()))
        except UserError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise UserError(f'cannot write in output.dir {self.path}: {error.strerror}') from None

    def close(self) -> None:
        """Release the lock, if this process has it: a notebook's process lives longer."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def require_ours(self) -> None:
        """UserError if the folder was deleted or moved, or begun anew by another process."""
        try:
            ours = self._lock_file.read_bytes() == self._holder
        except OSError:
            ours = False
        if not (ours and self.config_file.is_file()):
            raise UserError(
                f'{self.path} was deleted, moved or taken by another process during training: '
                'this one ends, and writes nothing more'
            )

    def _take(self, descriptor: int) -> None:
        """Lock the open lock file. UserError if another process has; OSError if the disk cannot."""
        try:
            files.lock(descriptor)
        except files.Busy:
            raise UserError(
                f'another process is training in {self.path}{self._describe_holder()}'
            ) from None

    def _describe_holder(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            number, host = self._lock_file.read_text(encoding='utf-8').split()
            if host != socket.gethostname():
                return f': process {int(number)} on {host}'
            return f': process {int(number)}; kill {number} makes it save and end'
        return ''


def read_classes(run: Path) -> Optional[list[str]]:
    """The classes that a run was trained on, None if they are not recorded."""
    file = RunFolder(run).classes_file
    return file.read_text(encoding='utf-8').splitlines() if file.is_file() else None


def read_records(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, less one that a kill left half written."""
    file = RunFolder(run).metrics_file
    records = []
    for text in file.read_text(encoding='utf-8').splitlines() if file.is_file() else []:
        with contextlib.suppress(ValueError):
            records.append(json.loads(text))
    return records


def load_run_config(run: Path, overrides: Sequence[str]) -> Config:
    """The resolved config of a run, wherever its folder is now, with overrides on top."""
    if not (run / 'config.yaml').is_file():
        raise UserError(
            f'{run}: config.yaml of this run is missing; name the config that it was trained with: '
            '-c FILE'
        )
    config = load_config(run / 'config.yaml', overrides)
    if any(text.startswith('output.dir=') for text in overrides):
        return config
    return dataclasses.replace(config, output=Output(dir=str(run)))


def resolve_config(args: argparse.Namespace, path: Optional[Path]) -> Config:
    """The config that -c names; without -c, that of the run that `path` lies in, if it lies in one.

    UserError if that run's config is missing: any other has other data or another network.
    """
    if path is not None and args.config is None:
        run = find_run(path)
        if run is not None:
            return load_run_config(run, args.override)
        if is_checkpoint(path):
            raise UserError(f'{path}: a checkpoint without its run; name its config with -c FILE')
    return load_config(find_config(args.config or DEFAULT_CONFIG), args.override)


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, perhaps with files missing."""
    return sum((path / name).exists() for name in MARKS) >= 2


def is_checkpoint(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def find_run(path: Path) -> Optional[Path]:
    """The run that `path` is, or lies in: its folder, a checkpoint's, or a weight file."""
    given, whole = (path, *list(path.parents)[:3]), path.resolve()
    for folder in (*given, whole, *list(whole.parents)[:3]):
        if is_run(folder):
            return folder
    return None


def read_snapshot(path: Path, warn: Callable[[str], None]) -> Optional[Snapshot]:
    """The checkpoint at `path`, or the newest sound one of the run at `path`.

    `warn` gets a line for each that was skipped. UserError if the checkpoint itself is damaged.
    """
    if is_checkpoint(path):
        return load(path)
    return RunFolder(path).checkpoints().newest(warn)
