"""A value from YAML as the type of its key, within its bounds; or what is expected instead."""

from __future__ import annotations

import difflib
import typing
from dataclasses import Field
from typing import Any, Literal, Union

_AS_YAML = {'None': 'null', 'True': 'true', 'False': 'false'}
_KINDS = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a text'}


class WrongValue(Exception):
    """The text is what is expected instead: `a whole number`."""


def as_yaml(value: Any) -> str:
    return _AS_YAML.get(str(value), str(value))


def without_none(kind: Any) -> Any:
    """X of Optional[X]."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Union else kind


def choices(kind: Any) -> list[str]:
    """Those of a Literal, as YAML; [] for other types."""
    is_literal = typing.get_origin(kind) is Literal
    return [as_yaml(choice) for choice in typing.get_args(kind)] if is_literal else []


def convert(value: Any, field: Field[Any]) -> Any:
    """The value for this field of a section. Raises WrongValue."""
    if value is None and typing.get_origin(field.type) is Union:
        return None
    kind: Any = without_none(field.type)
    if known := choices(kind):
        if value not in typing.get_args(kind):
            near = difflib.get_close_matches(str(value), known, n=1)
            raise WrongValue(f'one of {", ".join(known)}' + (f' ({near[0]}?)' if near else ''))
        return value
    if typing.get_origin(kind) is tuple:
        return _convert_list(value, field, typing.get_args(kind)[0])
    if kind is float and _is_number(value):
        value = float(value)
    if type(value) is not kind or (kind is float and not _is_number(value)):  # .nan or .inf
        raise WrongValue(_KINDS[kind])
    _require_bounds(value, **field.metadata['bounds'])
    return value


def _convert_list(value: Any, field: Field[Any], kind: type) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or not all(_is_number(item, kind) for item in value):
        default: Any = field.default
        example = list(default or ()) or field.metadata['example'] or [60, 120]
        whole = ' whole' if kind is int else ''
        raise WrongValue(f'a list of{whole} numbers, such as {example}')
    return tuple(kind(item) for item in value)


def _is_number(value: Any, kind: type = float) -> bool:
    kinds: Any = (int, float) if kind is float else kind
    return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 1e30


def _require_bounds(value: Any, *, low: Any, below: Any, high: Any) -> None:
    if low is not None and value < low:
        raise WrongValue(f'{low} or more')
    if below is not None and value >= below:
        raise WrongValue(f'less than {below}')
    if high is not None and value > high:
        raise WrongValue(f'{high} or less')
