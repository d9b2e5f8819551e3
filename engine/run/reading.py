"""Reading a run, from a path that is or lies in its folder."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

from engine.config import Config, Output, load_config
from engine.config.recipes import DEFAULT_CONFIG, find_config
from engine.errors import UserError
from engine.machine import processes
from engine.run.checkpoint import MANIFEST, load
from engine.run.folder import RunFolder
from engine.training.snapshot import Snapshot

# Two of these make a run, even if the others are missing.
MARKS = ('config.yaml', 'classes.txt', 'train.log', 'metrics.jsonl', 'checkpoints')


def find_run(path: Path) -> Optional[Path]:
    """The run that `path` is, or lies in: its folder, a checkpoint's, or a weight file."""
    given, whole = (path, *list(path.parents)[:3]), path.resolve()
    for folder in (*given, whole, *list(whole.parents)[:3]):
        if is_run(folder):
            return folder
    return None


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, perhaps with files missing."""
    return sum((path / name).exists() for name in MARKS) >= 2


def is_checkpoint(path: Path) -> bool:
    return (path / MANIFEST).is_file()


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


def find_snapshot(resume: str, run: RunFolder, report: Callable[[str], None]) -> Optional[Snapshot]:
    """The checkpoint that --resume names, or the newest sound one of this run.

    None where this run has not saved one yet. UserError where a named one is missing.
    """
    snapshot = read_snapshot(Path(resume) if resume else run.path, report)
    if snapshot is None and resume:
        raise UserError(
            f'--resume {resume}: neither a checkpoint nor a run folder with a sound one'
        )
    if snapshot is None:
        if processes.RANK == 0 and not run.config_file.exists():
            run.require_new()
        report(f'resume: no checkpoint in {run.path}; starting from the beginning')
    return snapshot


def read_snapshot(path: Path, report: Callable[[str], None]) -> Optional[Snapshot]:
    """The checkpoint at `path`, or the newest sound one of the run at `path`.

    `report` gets a line for each that was skipped. UserError if the checkpoint itself is damaged.
    """
    if is_checkpoint(path):
        return load(path)
    return RunFolder(path).checkpoints().newest(report)


def read_classes(run: Path) -> Optional[list[str]]:
    """The classes that a run was trained on, None if they are not recorded."""
    file = RunFolder(run).classes_file
    return file.read_text(encoding='utf-8').splitlines() if file.is_file() else None


def read_records(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without one that a kill left incomplete."""
    file = RunFolder(run).metrics_file
    records = []
    for text in file.read_text(encoding='utf-8').splitlines() if file.is_file() else []:
        with contextlib.suppress(ValueError):
            records.append(json.loads(text))
    return records
