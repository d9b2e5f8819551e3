"""The configuration: frozen dataclasses, filled from YAML and -o overrides, each value checked.

A config is a flat map of dotted keys (`optimizer.lr`) to values with their origin (file and line, or
the -o that set it), so that every complaint can say where. Precedence: default < YAML < -o.
This module never imports paddle: a wrong key is answered in a few milliseconds.
"""

import dataclasses
import difflib
import re
import typing
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, Callable, Literal, Mapping, Optional, Sequence, Union

import yaml

from engine.errors import UserError


def key(default: Any, doc: str, *, low: Optional[float] = None, below: Optional[float] = None) -> Any:
    """A config field: its default, one line of help, and its bounds (low <= value < below)."""
    return dataclasses.field(default=default, metadata={'doc': doc, 'low': low, 'below': below})


@dataclass(frozen=True)
class Model:
    name: str = key('wide_resnet28_10', 'wide_resnet{depth}_{widen factor}; depth is 6n + 4')
    num_classes: Optional[int] = key(None, 'outputs; null takes the number of classes', low=1)
    dropout: float = key(0.0, 'between the two convolutions of a block', low=0, below=1)
    pretrained: Optional[str] = key(None, 'weights to start from (.pdparams, .safetensors)')


@dataclass(frozen=True)
class Data:
    name: Literal['cifar10', 'cifar100', 'digits', 'synthetic'] = key('cifar10', 'the data set')
    root: str = key('data', 'folder or archive that holds it')
    download: bool = key(True, 'fetch CIFAR into data.root when it is nowhere to be found')
    batch_size: int = key(128, 'training images in a batch, per card', low=1)
    mean: Optional[tuple[float, ...]] = key(None, 'per channel, 0-255; null: the data set\'s own')
    std: Optional[tuple[float, ...]] = key(None, 'per channel, 0-255; null: the data set\'s own')
    flip: bool = key(True, 'mirror half of the training images')
    crop_padding: int = key(4, 'pad by so many pixels, then crop at random', low=0)
    padding_mode: Literal['zero', 'reflect'] = key('zero', 'what the padding holds')
    cutout: int = key(0, 'side of a square set to the mean, in pixels; 0: off', low=0)
    num_images: int = key(1024, 'synthetic only: training images, and as many test images', low=1)
    image_size: int = key(32, 'synthetic only: height and width', low=1)


@dataclass(frozen=True)
class Optimizer:
    lr: float = key(0.1, 'the schedule\'s first value; the peak of one_cycle', low=0)
    momentum: float = key(0.9, '', low=0, below=1)
    nesterov: bool = key(False, 'Nesterov\'s momentum')
    weight_decay: float = key(5e-4, 'L2 penalty', low=0)
    decay_bn_and_bias: bool = key(True, 'false: no weight decay on batch norms and biases')
    clip_norm: Optional[float] = key(None, 'largest global gradient norm; null: no clipping', low=0)


@dataclass(frozen=True)
class Schedule:
    name: Literal['piecewise', 'step', 'cosine', 'exponential', 'one_cycle', 'constant'] = key(
        'constant', 'learning rate over time'
    )
    boundaries: tuple[float, ...] = key((), 'piecewise: epochs at which the rate changes')
    values: tuple[float, ...] = key((), 'piecewise: the rates, one more; scaled so that lr is first')
    step_size: float = key(30.0, 'step: epochs between changes', low=0)
    gamma: float = key(0.1, 'factor of step, of exponential (per epoch), of piecewise w/o values')
    end_lr: float = key(0.0, 'last rate of cosine and one_cycle', low=0)
    phase_pct: float = key(0.3, 'one_cycle: share of the steps that rises', low=0, below=1)
    divide_factor: float = key(25.0, 'one_cycle: peak / first rate', low=1)
    anneal_strategy: Literal['cos', 'linear'] = key('cos', 'one_cycle: form of the two ramps')
    warmup_epochs: float = key(0.0, 'linear rise before any of them', low=0)
    warmup_start_lr: float = key(0.0, 'where that rise starts', low=0)


@dataclass(frozen=True)
class Train:
    epochs: int = key(200, '', low=1)
    max_steps: Optional[int] = key(None, 'stop after so many optimizer steps; for trials', low=1)
    label_smoothing: float = key(0.0, '', low=0, below=1)
    ema: float = key(0.0, 'decay of the averaged weights, e.g. 0.999; 0: off', low=0, below=1)
    log_every: int = key(10, 'steps between two iter: lines', low=1)
    save_every: int = key(1, 'epochs between checkpoints (the last epoch is always saved)', low=1)
    save_every_steps: Optional[int] = key(None, 'also save inside epochs, every so many steps', low=1)
    keep: int = key(2, 'checkpoints kept', low=1)


@dataclass(frozen=True)
class Eval:
    every: int = key(1, 'epochs between evaluations (the last epoch is always evaluated)', low=1)
    start: int = key(0, 'first epoch that is evaluated', low=0)
    batch_size: int = key(200, '', low=1)


@dataclass(frozen=True)
class Output:
    dir: str = key('', 'run folder; empty: output/<config name>')


@dataclass(frozen=True)
class Config:
    seed: int = key(0, 'decides everything that is random', low=0)
    device: Literal['auto', 'cpu', 'gpu', 'npu'] = key('auto', 'auto: gpu, else npu, else cpu')
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    train: Train = Train()
    eval: Eval = Eval()
    output: Output = Output()


@dataclass(frozen=True)
class Setting:
    """A value and where it was written."""

    value: Any
    origin: str


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: PyYAML alone reads 5e-4 as a string."""


_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(r'^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
    list('-+.0123456789'),
)


def load_config(path: Union[str, Path], overrides: Sequence[str] = ()) -> Config:
    """Read one YAML file, apply `key=value` overrides, check, and freeze.

    Raises UserError that names the file, line and key, and the nearest valid name.
    """
    path = Path(path)
    settings = {**read_yaml(path), **dict(map(_read_override, overrides))}
    config = _build(Config, settings, '')
    if not config.output.dir:
        folder = dataclasses.replace(config.output, dir=str(Path('output') / path.stem))
        config = dataclasses.replace(config, output=folder)
    _check(config, lambda name: settings[name].origin if name in settings else str(path))
    return config


def read_yaml(path: Path) -> dict[str, Setting]:
    """Flat map of a YAML file, refusing unknown and duplicate keys."""
    try:
        text = path.read_text(encoding='utf-8')
        node = yaml.compose(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'cannot read the config {path}: {_reason(error)}{_siblings(path)}') from None
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = f':{mark.line + 1}' if mark else ''
        problem = getattr(error, 'problem', None) or error
        raise UserError(f'{path}{line}: not valid YAML: {problem}') from None
    settings: dict[str, Setting] = {}
    if node is not None:
        _flatten(node, '', path, _Loader(text), settings)
    return settings


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dict for config.yaml and checkpoints (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    result = plain(dataclasses.asdict(config))
    assert isinstance(result, dict)
    return result


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = '') -> list[str]:
    """'optimizer.lr: 0.1 -> 0.05' for every key whose value differs."""
    lines = []
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            lines += differences(before, value, f'{prefix}{name}.')
        elif before != value:
            lines.append(f'{prefix}{name}: {before} -> {value}')
    return lines


def describe_keys() -> str:
    """The table of keys that closes --help."""
    rows = ['config keys (default): meaning']
    for name, field in _leaves(Config).items():
        default = 'null' if field.default is None else field.default
        default = list(default) if isinstance(default, tuple) else default
        choices = typing.get_args(field.type) if _is_literal(field.type) else ()
        doc = '; '.join(filter(None, [field.metadata['doc'], ' | '.join(choices)]))
        rows.append(f'  {name} ({default}): {doc}')
    return '\n'.join(rows)


# ------------------------------------------------------------------ reading


def _flatten(
    node: yaml.Node, prefix: str, path: Path, loader: _Loader, into: dict[str, Setting]
) -> None:
    where = f'{path}:{node.start_mark.line + 1}'
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f'{where}: {prefix.rstrip(".") or "the file"} must be a mapping of keys')
    sections = {name.rsplit('.', 1)[0] for name in _leaves(Config) if '.' in name}
    for key_node, value_node in node.value:
        name = f'{prefix}{key_node.value}'
        where = f'{path}:{key_node.start_mark.line + 1}'
        if name in into or any(known.startswith(f'{name}.') for known in into):
            raise UserError(f'{where}: duplicate key {name}; keep one of the two')
        if name in sections:
            _flatten(value_node, f'{name}.', path, loader, into)
        else:
            _known(name, where)
            into[name] = Setting(loader.construct_object(value_node, deep=True), where)  # type: ignore[no-untyped-call]


def _read_override(text: str) -> tuple[str, Setting]:
    name, equals, value = text.partition('=')
    origin = f'-o {text}'
    if not equals:
        raise UserError(f'{origin}: write KEY=VALUE, for example -o optimizer.lr=0.05')
    _known(name, origin)
    try:
        return name, Setting(yaml.load(value, Loader=_Loader), origin)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError:
        raise UserError(f'{origin}: the value is not valid YAML') from None


def _known(name: str, origin: str) -> None:
    keys = _leaves(Config)
    if name in keys:
        return
    near = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
    # The right word in the wrong section (train.lr) is nearer than letters can tell.
    near = [k for k in keys if k.split('.')[-1] == name.split('.')[-1]][:1] or near
    hint = f'; did you mean {near[0]}?' if near else '; --help lists the keys'
    raise UserError(f'{origin}: unknown key {name}{hint}')


def _leaves(cls: type, prefix: str = '') -> 'dict[str, Field[Any]]':
    found: 'dict[str, Field[Any]]' = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default):
            found.update(_leaves(type(field.default), f'{prefix}{field.name}.'))
        else:
            found[prefix + field.name] = field
    return found


def _build(cls: type, settings: Mapping[str, Setting], prefix: str) -> Any:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        if dataclasses.is_dataclass(field.default):
            values[field.name] = _build(type(field.default), settings, f'{name}.')
        elif name in settings:
            values[field.name] = _convert(name, field, settings[name])
    return cls(**values)


# ------------------------------------------------------------------ checking one value


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _convert(name: str, field: 'Field[Any]', setting: Setting) -> Any:
    hint, value = field.type, setting.value

    def refuse(wanted: str) -> UserError:
        return UserError(f'{setting.origin}: {name} must be {wanted}, not {value!r}')

    if typing.get_origin(hint) is Union:  # Optional[...]
        if value is None:
            return None
        hint = typing.get_args(hint)[0]
    if _is_literal(hint):
        choices = typing.get_args(hint)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            raise refuse(f'one of {", ".join(choices)}' + (f' ({near[0]}?)' if near else ''))
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or not all(_is_number(item) for item in value):
            raise refuse('a list of numbers, such as [60, 120]')
        return tuple(float(item) for item in value)
    if hint is float and _is_number(value):
        value = float(value)
    if type(value) is not hint:
        words = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a text'}
        raise refuse(words[hint])
    low, below = field.metadata['low'], field.metadata['below']
    if low is not None and value < low:
        raise refuse(f'{low} or more')
    if below is not None and value >= below:
        raise refuse(f'less than {below}')
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


# ------------------------------------------------------------------ checking combinations


def _check(config: Config, origin: Callable[[str], str]) -> None:
    from engine.models import check_name

    def refuse(name: str, problem: str) -> None:
        raise UserError(f'{origin(name)}: {name} {problem}')

    problem = check_name(config.model.name)
    if problem:
        refuse('model.name', problem)
    _check_data(config.data, refuse)
    _check_schedule(config, refuse)


def _check_data(data: Data, refuse: Callable[[str, str], None]) -> None:
    if (data.mean is None) != (data.std is None):
        refuse('data.mean' if data.std is None else 'data.std', 'needs the other of mean and std')
    if data.mean is not None and data.std is not None:
        if len(data.mean) != 3 or len(data.std) != 3:
            refuse('data.mean', 'and data.std need three values each, red, green and blue')
        if min(data.std) <= 0:
            refuse('data.std', 'must be above 0')


def _check_schedule(config: Config, refuse: Callable[[str, str], None]) -> None:
    schedule = config.schedule
    if schedule.warmup_epochs >= config.train.epochs:
        refuse('schedule.warmup_epochs', f'must be less than train.epochs ({config.train.epochs})')
    if schedule.name == 'step' and schedule.step_size <= 0:
        refuse('schedule.step_size', 'must be above 0')
    if schedule.name != 'piecewise':
        return
    boundaries, values = schedule.boundaries, schedule.values
    if list(boundaries) != sorted(set(boundaries)) or min(boundaries, default=1) <= 0:
        refuse('schedule.boundaries', 'must be increasing epochs above 0')
    if values and len(values) != len(boundaries) + 1:
        refuse(
            'schedule.values',
            f'must be one more than schedule.boundaries: {len(boundaries)} boundaries need '
            f'{len(boundaries) + 1} values, not {len(values)}',
        )
    if values and min(values) <= 0:
        refuse('schedule.values', 'must be above 0')


def _reason(error: Exception) -> str:
    return getattr(error, 'strerror', None) or 'not a text file'


def _siblings(path: Path) -> str:
    here = sorted(p.name for p in path.parent.glob('*.yaml')) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, here, n=1)
    return f'; did you mean {path.parent / near[0]}?' if near else ''
