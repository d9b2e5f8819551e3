"""The folder of a run: what lies where, who may write there, and finding it from a path.

output/<config name>/{config.yaml, classes.txt, train.log, metrics.jsonl, first_batch.png,
curves.png, best.pdparams, vdl/, checkpoints/, eval/}
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, Sequence

from engine.checkpoint import MANIFEST, Checkpoints, Snapshot, load
from engine.config import Config, Output, load_config, to_yaml
from engine.errors import UserError
from engine.files import write_atomically


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
        self._lock: Optional[BinaryIO] = None

    def checkpoints(self, *, keep: int = 2) -> Checkpoints:
        return Checkpoints(self.path / 'checkpoints', keep=keep)

    def require_new(self) -> None:
        """UserError if anything is there already: a run is never overwritten."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f'output.dir: {self.path} is a file')
        if self.path.is_dir() and any(self.path.iterdir()):
            what = 'holds a run already' if self.config_file.exists() else 'is not empty'
            raise UserError(
                f'{self.path} {what}: continue it with --resume, or choose another folder with '
                '-o output.dir=DIR'
            )

    def open(self, config: Config, classes: Sequence[str]) -> None:
        """Create the folder, lock it for this process, write config.yaml and classes.txt."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / '.lock').open('wb')
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_atomically(self.config_file, lambda file: file.write(to_yaml(config).encode()))
            names = ''.join(f'{name}\n' for name in classes)
            write_atomically(self.classes_file, lambda file: file.write(names.encode()))
        except BlockingIOError:
            raise UserError(f'another process is training in {self.path}') from None
        except OSError as error:
            raise UserError(f'cannot write in output.dir {self.path}: {error.strerror}') from None


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
    config = load_config(run / 'config.yaml', overrides)
    if any(text.startswith('output.dir=') for text in overrides):
        return config
    return dataclasses.replace(config, output=Output(dir=str(run)))


def find_run(path: Path) -> Optional[Path]:
    """The run that `path` is, or lies in: its folder, a checkpoint's, or a weight file."""
    for folder in (path, *list(path.parents)[:3]):
        if (folder / 'config.yaml').is_file() and (folder / 'train.log').is_file():
            return folder
    return None


def read_snapshot(path: Path, warn: Callable[[str], None]) -> Optional[Snapshot]:
    """The checkpoint at `path`, or the newest sound one of the run at `path`.

    `warn` hears of those that were skipped. UserError if the checkpoint itself is damaged.
    """
    if (path / MANIFEST).is_file():
        return load(path)
    return RunFolder(path).checkpoints().newest(warn)
