"""A config as plain values: for config.yaml and checkpoints, and to compare two of them."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, Mapping, Sequence

from engine.config import yaml_text
from engine.config.keys import Config


def to_dict(config: Config) -> dict[str, Any]:
    """A nested dict, with lists for tuples."""
    return dataclasses.asdict(config, dict_factory=_with_lists)


def _with_lists(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}


def to_yaml(config: Config) -> str:
    return yaml_text.dump(to_dict(config))


def chosen(config: Config, *, but: Sequence[str] = ()) -> dict[str, Any]:
    """{'optimizer.lr': 0.05} for every key that differs from its default, except those of `but`."""
    changed = _changes(to_dict(Config()), to_dict(config))
    return {name: value for name, (_, value) in changed.items() if name not in but}


def fingerprint(config: Config) -> str:
    """What all processes of a job must have in common: the keys that differ from their defaults,
    and a checksum of the defaults, which another version may have changed."""
    changed = chosen(config, but=('device', 'output.dir', 'data.root'))
    defaults = zlib.crc32(to_yaml(Config()).encode())
    keys = [f'{name}={value}' for name, value in changed.items()]
    return ', '.join([*keys, f'defaults {defaults:08x}'])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'optimizer.lr: 0.1 -> 0.05' for every key whose value differs."""
    return [f'{key}: {before} -> {value}' for key, (before, value) in _changes(old, new).items()]


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ''
) -> dict[str, tuple[Any, Any]]:
    found = {}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            found.update(_changes(before, value, f'{prefix}{name}.'))
        elif before != value:
            found[f'{prefix}{name}'] = before, value
    return found
