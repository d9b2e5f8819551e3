"""Reads a config: a YAML file and KEY=VALUE overrides -> Config, each value checked.

In between, settings are a flat map of dotted keys (`optimizer.lr`) to values with the place where
they were written (file and line, or the -o), which every error message names.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence, Union

import yaml

from engine.config import foreign_keys, hints, yaml_text
from engine.config.checks import check
from engine.config.keys import Config, Output, all_keys
from engine.config.values import WrongValue, choices, convert, without_none
from engine.errors import UserError


@dataclass(frozen=True)
class Setting:
    """A value and where it was written."""

    value: Any
    origin: str


def load_config(path: Union[str, Path], overrides: Sequence[str] = ()) -> Config:
    """Read one YAML file, apply `key=value` overrides, check, and freeze.

    Raises UserError that names the file, line and key, and the nearest valid name.
    """
    path = Path(path)
    settings = read_yaml(path)
    settings.update(read_override(text) for text in overrides)
    config: Config = build(settings)
    folder = Path(config.output.dir or Path('output') / path.stem).expanduser()
    config = dataclasses.replace(config, output=Output(dir=str(folder)))
    check(config, lambda name: settings[name].origin if name in settings else str(path))
    return _scale_values(config, settings)


def build(settings: Mapping[str, Setting], section: type = Config, prefix: str = '') -> Any:
    """The config with these settings. UserError for a value of a wrong type or out of bounds."""
    values: dict[str, Any] = {}
    for each in dataclasses.fields(section):
        name = prefix + each.name
        if dataclasses.is_dataclass(each.default):
            values[each.name] = build(settings, type(each.default), f'{name}.')
        elif name in settings:
            value, origin = settings[name].value, settings[name].origin
            try:
                values[each.name] = convert(value, each)
            except WrongValue as expected:
                sign = hints.for_sign(str(value))
                raise UserError(
                    f'{origin}: {name} must be {expected}, not {value!r}{sign}'
                ) from None
    return section(**values)


def _scale_values(config: Config, settings: Mapping[str, Setting]) -> Config:
    """schedule.values start at optimizer.lr: scale them where -o has changed that.

    Here, so that config.yaml has the rates that are used. What depends on the global batch size is
    scaled in engine/training/schedule.py, peak_lr.
    """
    values, lr = config.schedule.values, config.optimizer.lr
    if config.schedule.name != 'piecewise' or not values or values[0] == lr:
        return config
    if 'optimizer.lr' not in settings or not settings['optimizer.lr'].origin.startswith('-o'):
        raise UserError(
            f'{settings["schedule.values"].origin}: schedule.values starts at {values[0]:g}, but '
            f'optimizer.lr is {lr:g}: give both the same (-o optimizer.lr alone scales the values)'
        )
    if lr == 0:
        raise UserError(f'{settings["optimizer.lr"].origin}: optimizer.lr must be above 0')
    # The first is lr itself: lr * value / value may round, and the resolved config must load again.
    scaled = (lr, *(lr * value / values[0] for value in values[1:]))
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, values=scaled))


def read_override(text: str) -> tuple[str, Setting]:
    """The dotted key and the value of KEY=VALUE.

    Keys of texts take what follows the =, and null alone means none; other values are YAML.
    """
    name, equals, value = text.partition('=')
    origin = f'-o {text}'
    if not equals:
        sign = hints.for_sign(text)
        raise UserError(f'{origin}: write KEY=VALUE, for example -o optimizer.lr=0.05{sign}')
    _require_known(name, origin)
    kind = without_none(all_keys()[name].type)
    known = choices(kind)
    if kind is str or (known and 'false' not in known):
        return name, Setting(None if value == 'null' else value, origin)
    try:
        return name, Setting(yaml_text.parse(value), origin)
    except (yaml.YAMLError, ValueError):
        sign = hints.for_sign(value)
        raise UserError(f'{origin}: the value is not valid YAML{sign}') from None


def read_yaml(path: Path) -> dict[str, Setting]:
    """The settings of a file. UserError for unknown and duplicate keys."""
    text = _read_text(path)
    try:
        node = yaml.compose(text, Loader=yaml_text.Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = f':{mark.line + 1}' if mark else ''
        problem = getattr(error, 'problem', None) or getattr(error, 'reason', None) or 'unreadable'
        before = text.splitlines()[: mark.line + 1] if mark else []
        sign = hints.for_sign(' '.join(one.partition('#')[0] for one in before))
        raise UserError(f'{path}{line}: not valid YAML: {problem}{sign}') from None
    reader = _Reader(path, yaml_text.Loader(text))
    if node is not None and not _is_empty(node):
        reader.flatten(node, '')
    return reader.settings


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = _nearest_file(path)
        raise UserError(f'cannot read the config {path}: {error.strerror}{hint}') from None
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


def _nearest_file(path: Path) -> str:
    if path.exists():
        return ''
    beside = sorted(p.name for p in path.parent.glob('*.yaml')) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f'; did you mean {path.parent / near[0]}?' if near else ''


@dataclass
class _Reader:
    """Walks the nodes of one YAML file, which know their lines."""

    path: Path
    loader: yaml_text.Loader
    settings: dict[str, Setting] = field(default_factory=dict)

    def flatten(self, node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            what = prefix.rstrip('.') or 'the file'
            sign = hints.for_sign(str(node.value))
            raise UserError(f'{self._where(node)}: {what} must be a mapping of keys{sign}')
        seen = set()
        for key_node, value_node in node.value:
            name, where = f'{prefix}{key_node.value}', self._where(key_node)
            if name in seen or name in self.settings:  # the latter: as a.b, and in a section a
                raise UserError(f'{where}: duplicate key {name}; keep one of the two')
            seen.add(name)
            if any(known.startswith(f'{name}.') for known in all_keys()):
                if not _is_empty(value_node):
                    self.flatten(value_node, f'{name}.')
            else:
                self._add(name, value_node, where, nested=bool(prefix))

    def _add(self, name: str, node: yaml.Node, where: str, *, nested: bool) -> None:
        foreign = name.lower() in foreign_keys.SECTIONS or (nested and name not in all_keys())
        if foreign and isinstance(node, yaml.MappingNode) and node.value:
            self.flatten(node, f'{name}.')  # which refuses the first of its keys
        _require_known(name, where)
        try:
            value = self.loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            problem = getattr(error, 'problem', None) or error
            raise UserError(f'{where}: {name}: not a plain value: {problem}') from None
        self.settings[name] = Setting(value, where)

    def _where(self, node: yaml.Node) -> str:
        return f'{self.path}:{node.start_mark.line + 1}'


def _is_empty(node: yaml.Node) -> bool:
    """A file of comments after ---, or a section whose keys are all commented out."""
    return isinstance(node, yaml.ScalarNode) and node.tag == 'tag:yaml.org,2002:null'


def _require_known(name: str, origin: str) -> None:
    keys = all_keys()
    if name in keys:
        return
    inside = [known for known in keys if known.startswith(f'{name}.')]
    if inside:
        raise UserError(f'{origin}: {name} is a section; its keys are {", ".join(inside)}')
    raise UserError(f'{origin}: unknown key {name}{hints.for_key(name)}')
