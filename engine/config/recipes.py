"""The recipes of configs/, and which file -c names."""

from __future__ import annotations

import difflib
from pathlib import Path

from engine.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / 'configs'
DEFAULT_CONFIG = FOLDER / 'wrn28_10_cifar10.yaml'


def find_config(path: Path) -> Path:
    """The config that -c names: a file, or a name in configs/ of this repository.

    UserError with the nearest name where there is none.
    """
    if path.is_file():
        return path
    names = [path.name, f'{path.name}.yaml']
    places = [path.parent / names[1]]
    if str(path.parent) in ('.', 'config', 'configs'):
        places += [FOLDER / name for name in names]
    found = [place for place in places if place.is_file()]
    if found:
        return found[0]
    if (path / 'config.yaml').is_file():
        raise UserError(f'-c {path} is a folder; did you mean {path / "config.yaml"}?')
    ours = {file.stem: file.stem for file in FOLDER.glob('*.yaml')}
    beside = path.parent.glob('*.yaml') if path.parent.is_dir() else ()
    there = {**ours, **{file.stem: str(file) for file in beside}}
    near = difflib.get_close_matches(path.stem, there, n=1)
    hint = f'did you mean {there[near[0]]}?' if near else f'configs/ has {", ".join(sorted(ours))}'
    raise UserError(f'-c {path}: no such file; {hint}')
