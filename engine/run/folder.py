"""The folder of a run: its files, and what is written there.

output/<config name>/{config.yaml, classes.txt, train.log, metrics.jsonl, first_batch.png,
curves.png, best.pdparams, vdl/, checkpoints/, eval/}
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Callable, Sequence

from engine.config import Config, to_yaml
from engine.errors import UserError
from engine.files import sha256_of, write_atomically
from engine.machine import processes
from engine.run.checkpoint import Checkpoints, serialised
from engine.run.lock import RunLock
from engine.training.progress import Progress
from engine.training.snapshot import Snapshot
from engine.weights import Arrays

# What a start writes before there is anything that must be kept.
BEGUN = (
    *('.lock', 'config.yaml', 'classes.txt', 'train.log', 'metrics.jsonl'),
    *('first_batch.png', 'vdl', 'checkpoints'),
)


class RunFolder:
    """The paths of a run's files, and the rules for writing them."""

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
        self.lock = RunLock(path)

    def checkpoints(self, *, keep: int = 2) -> Checkpoints:
        return Checkpoints(self.path / 'checkpoints', keep=keep)

    def adopt(self, snapshot: Snapshot, progress: Progress) -> None:
        """If the snapshot is of another run, this run must be new (else UserError), and the best is
        forgotten: its weights are in the folder of the other."""
        assert snapshot.path is not None
        if self.path.resolve() not in snapshot.path.resolve().parents:
            if processes.RANK == 0:
                self.require_new()
            progress.forget_best()

    def save(self, name: str, snapshot: Snapshot, *, keep: int) -> None:
        """Write a checkpoint in the first process, while the others wait."""
        if processes.RANK == 0:
            self.require_ours()
            self.checkpoints(keep=keep).save(name, snapshot)
        processes.barrier()

    def save_if_best(self, weights: Callable[[], Arrays], *, best: bool) -> str:
        """In the first process, write the weights to best.pdparams if they are the best so far.

        Returns their SHA-256, as they are saved here or in a checkpoint; '' in other processes.
        """
        if processes.RANK:
            return ''
        content = serialised(weights())
        self.require_ours()
        if best:
            write_atomically(self.best_file, lambda file: file.write(content))
        return hashlib.sha256(content).hexdigest()

    def restore_best(self, progress: Progress, weights: Callable[[], Arrays]) -> list[str]:
        """Check that best.pdparams is what a checkpoint calls best: it may be of an epoch that will
        run again. If it is, write `weights`, those of the checkpoint, or forget the best.

        Returns lines about a change.
        """
        best = self.best_file
        if progress.best_epoch is None:
            return []
        if best.is_file() and sha256_of(best) == progress.best_sha256:
            return []
        content = serialised(weights())
        if hashlib.sha256(content).hexdigest() == progress.best_sha256:
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

    def open(self, config: Config, classes: Sequence[str], *, new: bool = False) -> None:
        """Create the folder, lock it for this process, write config.yaml and classes.txt.

        With `new`, UserError if another process has trained there since `require_new`.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            if new:
                self.require_new()
            self.lock.sign()
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
        self.lock.release()

    def require_ours(self) -> None:
        """UserError if the folder was deleted or moved, or taken by another process."""
        if not (self.lock.is_ours() and self.config_file.is_file()):
            raise UserError(
                f'{self.path} was deleted, moved or taken by another process during training: '
                'this one ends, and writes nothing more'
            )
