"""Checkpoints that a kill at any instant cannot spoil.

checkpoints/epoch_0010/{model.pdparams, optimizer.pdopt, ema.pdparams, state.json, manifest.json}
checkpoints/latest       one line for people and scripts: the name of the newest

A checkpoint is written into a temporary folder, synced, and renamed; only then does `latest` name
it, and only then do old ones go. The manifest has every file's size and SHA-256, so that damage is
seen before anything is loaded. `epoch_0010` is saved after ten whole epochs,
`epoch_0010_batch_00200` after 200 batches of the eleventh.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

from engine.errors import Diverged, UserError
from engine.files import sync_file, sync_folder, write_atomically
from engine.training.snapshot import Snapshot
from engine.weights import Arrays, first_not_finite, parse_arrays, write_arrays

MODEL, OPTIMIZER, EMA, STATE, MANIFEST = (
    'model.pdparams',
    'optimizer.pdopt',
    'ema.pdparams',
    'state.json',
    'manifest.json',
)


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, name: str, snapshot: Snapshot) -> Path:
        """Write the checkpoint `name`. If that fails, the earlier ones are unchanged.

        Raises Diverged for weights that are not finite, UserError if the disk refuses.
        """
        bad = first_not_finite(snapshot.model)
        if bad is not None:
            raise Diverged(f'{bad} is no longer finite; it was not saved')
        target, temporary = self.folder / name, self.folder / f'.{name}.writing'
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean_up()
            temporary.mkdir()
            _write(temporary, snapshot, saved_at=self._now())
            _replace_folder(target, temporary)
            sync_folder(self.folder)
            write_atomically(self.folder / 'latest', lambda file: file.write(f'{name}\n'.encode()))
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f'cannot save {target}: {error.strerror or error}. {self.describe_last()}'
            ) from None
        for old in list(self._newest_first())[self.keep :]:
            hidden = old.with_name(f'.{old.name}.old')  # a half deleted one must not be found
            with contextlib.suppress(OSError):  # on Windows, one that is being read: next time
                os.replace(old, hidden)
                shutil.rmtree(hidden, ignore_errors=True)
        return target

    def describe_last(self) -> str:
        """A sentence about the checkpoint to resume from."""
        last = next(self._newest_first(), None)
        return f'The last checkpoint is intact: {last}' if last else 'No checkpoint was saved yet'

    @property
    def exist(self) -> bool:
        """Whether there is a checkpoint, sound or not."""
        return next(self._newest_first(), None) is not None

    def newest(self, warn: Callable[[str], None]) -> Optional[Snapshot]:
        """The newest checkpoint that verifies; `warn` gets a line for each that was skipped.

        A run in progress may remove the one that is being read, when it has a newer one.
        """
        bad: set[str] = set()
        missed = 0  # a listing during a save may show neither the old one nor the new one
        while True:
            path = next((path for path in self._newest_first() if path.name not in bad), None)
            if path is None:
                missed += 1
                if missed > 3 or not (self.folder / 'latest').is_file():
                    return None
                continue
            try:
                return load(path)
            except UserError as error:
                if path.is_dir():
                    warn(f'skipped a checkpoint: {error}')
                    bad.add(path.name)

    def _newest_first(self) -> Iterator[Path]:
        found = [path for path in self.folder.glob('epoch_*') if path.is_dir()]
        found += self._moved_aside()
        yield from sorted(found, key=lambda path: (_saved_at(path), path.name), reverse=True)

    def _moved_aside(self) -> list[Path]:
        """Those that a kill has left between the two renames of a replacement."""
        return [
            path
            for path in self.folder.glob('.*.replaced')
            if (path / MANIFEST).exists() and not _original(path).exists()
        ]

    def _clean_up(self) -> None:
        """After a kill: move back what was moved aside, and remove its temporary folders."""
        for path in self._moved_aside():
            os.replace(path, _original(path))
        for left in self.folder.glob('.*'):
            shutil.rmtree(left, ignore_errors=True)

    def _now(self) -> float:
        """The time, but later than every checkpoint's, even if the clock was set back."""
        newest = next(self._newest_first(), None)
        return max(time.time(), _saved_at(newest) + 1e-3 if newest else 0.0)


def load(path: Path) -> Snapshot:
    """Read and verify one checkpoint folder. UserError describes what is wrong."""
    manifest = _read_manifest(path)
    content = {name: _verified(path / name, expected) for name, expected in manifest.items()}
    try:
        arrays = {
            name: parse_arrays(content[name], path / name)
            for name in (MODEL, OPTIMIZER, EMA)
            if name in content
        }
        return Snapshot(
            model=arrays[MODEL],
            optimizer=arrays[OPTIMIZER],
            ema=arrays.get(EMA),
            state=json.loads(content[STATE]),
            path=path,
            sha256={name: entry['sha256'] for name, entry in manifest.items()},
        )
    except KeyError as error:
        raise UserError(f'{path / MANIFEST} does not list {error.args[0]}') from None
    except ValueError as error:
        raise UserError(f'{path / STATE} is not JSON: {error}') from None


def _replace_folder(target: Path, new: Path) -> None:
    """Replace `target` by `new`. On a failure it is restored."""
    aside = target.with_name(f'.{target.name}.replaced')
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(new, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _original(replaced: Path) -> Path:
    """epoch_0010, of .epoch_0010.replaced"""
    return replaced.with_name(replaced.name[1 : -len('.replaced')])


def _as_json(content: Any) -> bytes:
    """Readable: Chinese as it is; only what UTF-8 cannot hold is escaped, as \\udc80."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return text.encode(errors='backslashreplace')


def _write(folder: Path, snapshot: Snapshot, *, saved_at: float) -> None:
    files = {}
    for name, content in _contents(snapshot):
        files[name] = {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
        _write_synced(folder / name, content)
    manifest = {'saved_at': saved_at, 'files': files}
    _write_synced(folder / MANIFEST, _as_json(manifest))
    sync_folder(folder)


def _contents(snapshot: Snapshot) -> Iterator[tuple[str, bytes | memoryview]]:
    """File name and content, one after another: all at once would take twice the memory."""
    yield MODEL, serialised(snapshot.model)
    yield OPTIMIZER, serialised(snapshot.optimizer)
    yield STATE, _as_json(snapshot.state)
    if snapshot.ema is not None:
        yield EMA, serialised(snapshot.ema)


def serialised(arrays: Arrays) -> memoryview:
    """What a checkpoint or best.pdparams holds of these arrays."""
    buffer = io.BytesIO()
    write_arrays(buffer, arrays)
    return buffer.getbuffer()


def _write_synced(path: Path, content: bytes | memoryview) -> None:
    with path.open('wb') as file:
        file.write(content)
        sync_file(file)


def _read_manifest(path: Path) -> dict[str, Any]:
    """File name -> {'bytes': int, 'sha256': str}."""
    try:
        files = json.loads((path / MANIFEST).read_bytes())['files']
        sound = all(
            type(entry['bytes']) is int and type(entry['sha256']) is str for entry in files.values()
        )
    except OSError as error:
        raise UserError(f'{path / MANIFEST}: {error.strerror}') from None
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f'{path / MANIFEST} is damaged')
    return dict(files)


def _verified(path: Path, expected: Any) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None
    if len(content) != expected['bytes']:
        raise UserError(f'{path} has {len(content):,} bytes instead of {expected["bytes"]:,}')
    if hashlib.sha256(content).hexdigest() != expected['sha256']:
        raise UserError(f'{path} was changed: its SHA-256 is not the one in {MANIFEST}')
    return content


def _saved_at(path: Path) -> float:
    """Names alone don't order checkpoints: a run may have been resumed from an earlier one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((path / MANIFEST).read_bytes())['saved_at'])
    with contextlib.suppress(OSError):  # removed by a run in progress
        return path.stat().st_mtime
    return 0.0
