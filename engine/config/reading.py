"""Settings: YAML and KEY=VALUE texts -> a dataclass, each value with its origin.

Settings are a flat map of dotted keys (`optimizer.lr`) to values with the place where they were
written (file and line, or the -o that set them), so that every complaint can say where. What PyYAML
would let pass is refused (a key given twice) or read as meant (5e-4 is a number).
"""

import codecs
import contextlib
import dataclasses
import difflib
import re
import textwrap
import typing
import unicodedata
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, Callable, Literal, Mapping, Optional, Union

import yaml

from engine.config import foreign_keys
from engine.errors import UserError

WIDTH = 80  # columns of --help


def key(
    default: Any,
    doc: str,
    *,
    low: Optional[float] = None,
    below: Optional[float] = None,
    high: Optional[float] = None,
    example: Optional[list[float]] = None,
) -> Any:
    """A config field: its default, a line of help, and bounds (low <= value < below, <= high).

    `example` is shown where a list is wrong; a default that is not empty serves as one.
    """
    bounds = {'low': low, 'below': below, 'high': high}
    return dataclasses.field(default=default, metadata={'doc': doc, 'example': example, **bounds})


@dataclass(frozen=True)
class Setting:
    """A value and where it was written."""

    value: Any
    origin: str


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: PyYAML alone reads 5e-4 as a text, 2024-12-05 as a date and 1:30 as 90."""


class _Dumper(yaml.SafeDumper):
    """Quotes every text that _Loader would read as a number."""


_FLOAT = (
    'tag:yaml.org,2002:float',
    re.compile(r'^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
    list('-+.0123456789'),
)
_BASE_60 = re.compile(r'^[-+]?[\d_]+(:[\d_.]+)+$')  # base 60, which YAML 1.2 has dropped
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != 'tag:yaml.org,2002:timestamp']
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _digit in '-+0123456789':
    _Loader.yaml_implicit_resolvers.setdefault(_digit, []).insert(
        0, ('tag:yaml.org,2002:str', _BASE_60)
    )
_Loader.add_implicit_resolver(*_FLOAT)
_Dumper.add_implicit_resolver(*_FLOAT)


def read_yaml(path: Path, schema: type) -> dict[str, Setting]:
    """Flat map of a YAML file for the dataclass `schema`, refusing unknown and duplicate keys."""
    text = _read_text(path)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = f':{mark.line + 1}' if mark else ''
        problem = getattr(error, 'problem', None) or getattr(error, 'reason', None) or 'unreadable'
        before = text.splitlines()[: mark.line + 1] if mark else []
        sign = _full_width(' '.join(one.partition('#')[0] for one in before))
        raise UserError(f'{path}{line}: not valid YAML: {problem}{sign}') from None
    settings: dict[str, Setting] = {}
    if node is not None and not _is_empty(node):
        _Reader(path, _Loader(text), leaves(schema), settings).flatten(node, '')
    return settings


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f'cannot read the config {path}: {error.strerror}{_siblings(path)}'
        ) from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (
        3 * content.count(0) > len(content)
    ):
        raise UserError(f'cannot read the config {path}: it is UTF-16; save it as UTF-8')
    try:
        return content.decode('utf-8')
    except UnicodeDecodeError:
        problem = 'not a text file'
    with contextlib.suppress(UnicodeDecodeError):
        if all(c.isprintable() or c.isspace() for c in content.decode('gb18030')):
            problem = 'it is not UTF-8 (but GBK?); save it as UTF-8'
    raise UserError(f'cannot read the config {path}: {problem}')


@dataclass
class _Reader:
    """Walks the nodes of one YAML file, which still know their lines."""

    path: Path
    loader: _Loader
    known: 'Mapping[str, Field[Any]]'
    settings: dict[str, Setting]

    def flatten(self, node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            what = prefix.rstrip('.') or 'the file'
            sign = _full_width(str(node.value))
            raise UserError(f'{self._where(node)}: {what} must be a mapping of keys{sign}')
        seen = set()
        for key_node, value_node in node.value:
            name, where = f'{prefix}{key_node.value}', self._where(key_node)
            if name in seen or name in self.settings:  # the latter: as a.b, and in a section a
                raise UserError(f'{where}: duplicate key {name}; keep one of the two')
            seen.add(name)
            if any(known.startswith(f'{name}.') for known in self.known):
                if not _is_empty(value_node):
                    self.flatten(value_node, f'{name}.')
                continue
            foreign = name.lower() in foreign_keys.SECTIONS or (prefix and name not in self.known)
            if foreign and isinstance(value_node, yaml.MappingNode) and value_node.value:
                self.flatten(value_node, f'{name}.')  # which refuses the first of its keys
            _require_known(name, self.known, where)
            try:
                value = self.loader.construct_object(value_node, deep=True)
            except (yaml.YAMLError, ValueError) as error:
                problem = getattr(error, 'problem', None) or error
                raise UserError(f'{where}: {name}: not a plain value: {problem}') from None
            self.settings[name] = Setting(value, where)

    def _where(self, node: yaml.Node) -> str:
        return f'{self.path}:{node.start_mark.line + 1}'


def _is_empty(node: yaml.Node) -> bool:
    """A file of comments after ---, or a section whose keys are all commented out."""
    return isinstance(node, yaml.ScalarNode) and node.tag == 'tag:yaml.org,2002:null'


def read_override(text: str, schema: type) -> tuple[str, Setting]:
    """The dotted key and the value of KEY=VALUE.

    A text is what stands after the =, and null alone means none; other values are read as YAML.
    """
    name, equals, value = text.partition('=')
    origin, keys = f'-o {text}', leaves(schema)
    if not equals:
        hint = _full_width(text)
        raise UserError(f'{origin}: write KEY=VALUE, for example -o optimizer.lr=0.05{hint}')
    _require_known(name, keys, origin)
    kind = _without_none(keys[name].type)
    choices = typing.get_args(kind) if _is_literal(kind) else ()
    if kind is str or (choices and False not in choices):
        return name, Setting(None if value == 'null' else value, origin)
    try:
        return name, Setting(yaml.load(value, Loader=_Loader), origin)
    except (yaml.YAMLError, ValueError):
        raise UserError(f'{origin}: the value is not valid YAML{_full_width(value)}') from None


def dump(values: Mapping[str, Any]) -> str:
    """YAML that read_yaml reads back as it was."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _require_known(name: str, keys: 'Mapping[str, Field[Any]]', origin: str) -> None:
    if name in keys:
        return
    sections = {known.split('.')[0] for known in keys if '.' in known}
    if name in sections:
        inside = ', '.join(known for known in keys if known.startswith(f'{name}.'))
        raise UserError(f'{origin}: {name} is a section; its keys are {inside}')
    raise UserError(f'{origin}: unknown key {name}{hint(name, list(keys))}')


def hint(name: str, keys: list[str]) -> str:
    """What may be meant by an unknown key: `; did you mean optimizer.lr?`"""
    if sign := _full_width(name):
        return sign
    sections = {known.split('.')[0] for known in keys if '.' in known}
    meant = foreign_keys.meaning(name)
    near = [] if '.' in name else difflib.get_close_matches(name, sections, n=1, cutoff=0.7)
    if not near and (meant is None or name.split('.')[0] in sections):
        # The right word in the wrong section (train.lr) is nearer than letters can tell.
        alike = [known for known in keys if known.split('.')[-1] == name.split('.')[-1]]
        cutoff = 0 if alike else 0.8 if meant else 0.5
        near = difflib.get_close_matches(name, alike or keys, n=1, cutoff=cutoff)
    if near and foreign_keys.WHOLE.get(name.lower()) is None:
        return f'; did you mean {near[0]}?'
    if meant is not None:
        return f'; did you mean {meant}?' if meant.split()[0] in keys else f'; {meant}'
    return '; --help lists the keys'


_SIGNS = {'\u3002': '.', '\u3001': ',', '\u2018': "'", '\u2019': "'", '\u201c': '"', '\u201d': '"'}
_SIGNS.update({'\u3010': '[', '\u3011': ']', '\u2212': '-', '\u2014': '-', '\u00a0': ' '})


def _full_width(text: str) -> str:
    """A hint at the first sign or blank of a Chinese keyboard, which YAML takes for a letter."""
    for sign in text:
        wide = '\uff01' <= sign <= '\uff5e' or sign == '\u3000'
        plain = unicodedata.normalize('NFKC', sign) if wide else _SIGNS.get(sign)
        if plain == ' ':
            return f'; there is a blank U+{ord(sign):04X} in it, write a plain one'
        if plain is not None:
            return f'; it has the full-width sign {sign}, write {plain}'
    return ''


def leaves(cls: type, prefix: str = '') -> 'dict[str, Field[Any]]':
    """Dotted key -> field, of a dataclass whose sections are dataclasses."""
    found: dict[str, Field[Any]] = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default):
            found.update(leaves(type(field.default), f'{prefix}{field.name}.'))
        else:
            found[prefix + field.name] = field
    return found


_AS_YAML = {'None': 'null', 'True': 'true', 'False': 'false'}


def describe(schema: type, wanted: Callable[[str], bool]) -> list[str]:
    """Some lines of help for each key that is wanted."""
    lines: list[str] = []
    for name, field in leaves(schema).items():
        if not wanted(name):
            continue
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        default = _AS_YAML.get(str(default), default)
        choices = ' | '.join(_choices(field.type)) if _is_literal(field.type) else ''
        meaning = '; '.join(filter(None, [field.metadata['doc'], choices]))
        text = f'{name} ({default}): {meaning}'.rstrip(': ')
        lines += textwrap.wrap(text, WIDTH, initial_indent='  ', subsequent_indent=6 * ' ')
    return lines


def build(cls: type, settings: Mapping[str, Setting], prefix: str = '') -> Any:
    """The dataclass with these settings, each checked against its field's type and bounds."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        if dataclasses.is_dataclass(field.default):
            values[field.name] = build(type(field.default), settings, f'{name}.')
        elif name in settings:
            values[field.name] = _convert(name, field, settings[name])
    return cls(**values)


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _without_none(hint: Any) -> Any:
    """X of Optional[X]."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Union else hint


def _choices(hint: Any) -> list[str]:
    return [_AS_YAML.get(str(choice), str(choice)) for choice in typing.get_args(hint)]


def _convert(name: str, field: 'Field[Any]', setting: Setting) -> Any:
    hint: Any = field.type
    value = setting.value

    def refuse(wanted: str) -> UserError:
        sign = _full_width(str(setting.value))
        return UserError(f'{setting.origin}: {name} must be {wanted}, not {setting.value!r}{sign}')

    if typing.get_origin(hint) is Union and value is None:
        return None
    hint = _without_none(hint)
    if _is_literal(hint):
        if value not in typing.get_args(hint):
            choices = _choices(hint)
            near = difflib.get_close_matches(str(value), choices, n=1)
            raise refuse(f'one of {", ".join(choices)}' + (f' ({near[0]}?)' if near else ''))
        return value
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)) or not all(
            _is_number(item, kind) for item in value
        ):
            default: Any = field.default
            example = list(default or ()) or field.metadata['example'] or [60, 120]
            raise refuse(f'a list of{" whole" if kind is int else ""} numbers, such as {example}')
        return tuple(kind(item) for item in value)
    if hint is float and _is_number(value):
        value = float(value)
    if type(value) is not hint or (hint is float and not _is_number(value)):  # nor .nan nor .inf
        words = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a text'}
        raise refuse(words[hint])
    low, below, high = (field.metadata[bound] for bound in ('low', 'below', 'high'))
    if low is not None and value < low:
        raise refuse(f'{low} or more')
    if below is not None and value >= below:
        raise refuse(f'less than {below}')
    if high is not None and value > high:
        raise refuse(f'{high} or less')
    return value


def _is_number(value: Any, kind: type = float) -> bool:
    kinds: Any = (int, float) if kind is float else kind
    return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 1e30


def _siblings(path: Path) -> str:
    if path.exists():
        return ''
    here = sorted(p.name for p in path.parent.glob('*.yaml')) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, here, n=1)
    return f'; did you mean {path.parent / near[0]}?' if near else ''
