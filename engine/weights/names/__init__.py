"""What other projects' weight files call things -> our names.

Which project a file is from is decided by its keys, never by its name and never by shapes:

running_mean, running_var           PyTorch (torchvision, timm, xternalz): Linear is [out, in]
bb_0_1.conv0._conv.weight, out.*    PaddleClas's ResNeXt
moving_mean, moving_variance        MindSpore (mindspore_names.py)
_mean, _variance                    Paddle (paddle.vision, Paddle Contrib, ourselves): as it is
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Optional

import numpy as np

from engine.errors import UserError
from engine.weights.formats.pickled_classes import as_float32
from engine.weights.formats.pytorch import Tensor
from engine.weights.names import mindspore as mindspore_names

Arrays = dict[str, np.ndarray]

# Where checkpoints keep their state dicts, best first; averaged weights are those to evaluate.
AVERAGED = (
    *('state_dict_ema', 'model_ema', 'ema_state_dict', 'model_ema_state_dict', 'ema_model', 'ema'),
    *('averaged_model', 'swa_model', 'swa_state_dict'),
)
PLAIN = (
    *('state_dict', 'model', 'model_state_dict', 'model_state', 'net', 'network', 'module'),
    *('state', 'weights', 'params'),
)
_WRAPPERS = re.compile(
    r'(?:(?:module|model|_orig_mod|_layers|net|network|backbone|encoder|Student|student|timm_model|'
    rf'feature_extractor|base_model|{"|".join(AVERAGED)})\.)*'
)
_STEMS = ('conv1.weight', 'conv._conv.weight', 'conv.weight')
_HEAD = re.compile(
    r'((?:head\.fc|head|fc|classifier|last_linear|linear|output)(?:\.\d+)?)\.(weight|bias)'
)
_COUNTERS = ('num_batches_tracked', 'n_averaged')
_MAX_DEPTH = 3
PADDLE_NAMES = 'StructuredToParameterName@@'  # what paddle.save adds to a state dict

_CLAS_LAYERS = {'_conv': 'conv', '_batch_norm': 'bn'}
_CLAS_BLOCK = re.compile(r'bb_(\d+)_(\d+)\.(conv[012]|short)\.(_conv|_batch_norm)\.(\w+)')
_CLAS_STEM = re.compile(r'conv\.(_conv|_batch_norm)\.(\w+)')
_CLAS_HEAD = re.compile(r'out\.(weight|bias)')


class Normalisation(NamedTuple):
    """What the images of a data set were normalised with while weights were trained, 0-255."""

    data: str  # the data.name
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def as_keys(self) -> str:
        """To be copied behind -o."""
        mean, std = (','.join(map(str, values)) for values in (self.mean, self.std))
        return f"'data.mean=[{mean}]' 'data.std=[{std}]'"


# wide_resnet/train.py of PaddlePaddle/Contrib: shares of 255.
CONTRIB = Normalisation('cifar10', (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))


@dataclass
class Converted:
    """The arrays of a file under our names, and the account of how they came by them.

    `dropped` has 'name (reason)' of what was left out, `folded` counts convolution biases, `notes`
    say what else is to be known, `normalisation` is theirs where that is not the data set's own.
    """

    arrays: Arrays
    source: str
    dropped: list[str] = field(default_factory=list)
    folded: int = 0
    sha256: str = ''  # of the file; of several, of their sums
    notes: list[str] = field(default_factory=list)
    normalisation: Optional[Normalisation] = None

    def lines(self) -> list[str]:
        """The account, for people."""
        counts = account(len(self.arrays), self.folded, self.dropped, [])
        return [self.source, *counts, *self.notes]


def account(mapped: int, folded: int, dropped: list[str], initial: list[str]) -> list[str]:
    """Totals, and what was dropped and why, in a few lines."""
    total = f'{mapped} arrays'
    if folded:
        total += f', {folded} convolution biases folded into running means'
    lines = [total]
    reasons: dict[str, list[str]] = {}
    for entry in dropped:
        name, _, reason = entry.partition(' (')
        reasons.setdefault(reason.rstrip(')'), []).append(name)
    lines += [f'dropped, {reason}: {some(names)}' for reason, names in reasons.items()]
    if initial:
        lines.append(f'left at their initial values: {some(initial)}')
    return lines


def some(names: list[str]) -> str:
    """Up to three names, and how many more there are."""
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'{", ".join(names[:3])}{more}'


def convert(content: Any, path: Path, *, torch: bool) -> Converted:
    """Our names for the arrays in a file's content; `torch` if the file's format is PyTorch's."""
    state, place = _find_state_dict(content, path)
    arrays, dropped = _arrays_of(state, path)
    theirs = mindspore_names.are_theirs(arrays)
    if theirs:
        arrays = mindspore_names.without_state(arrays, dropped)
    arrays, inside = _inside_wrappers(arrays, dropped, path)
    if theirs:
        if problem := mindspore_names.refusal(arrays):
            raise UserError(f'{path} {problem}')
        try:
            whose, arrays = "MindSpore's names", mindspore_names.ours(arrays)
        except ValueError as error:
            raise UserError(f'{path} is damaged: {error}') from None
    else:
        whose, arrays = _renamed(arrays, path, torch=torch)
    arrays = _with_our_head(arrays)
    converted = Converted(arrays, ', '.join([whose, *place, *inside]), dropped)
    if theirs:
        converted.notes.append(mindspore_names.NOTE)
    elif whose == "Paddle's names" and {'conv1.bias', 'block1.layer.0.conv1.bias'} <= {*arrays}:
        converted.source = converted.source.replace(whose, "Paddle Contrib's names")
        converted.normalisation = CONTRIB
    return converted


def _renamed(arrays: Arrays, path: Path, *, torch: bool) -> tuple[str, Arrays]:
    """Whose names they are, and the arrays under ours."""
    names = [*arrays]
    clas = any(_CLAS_BLOCK.fullmatch(name) or _CLAS_STEM.fullmatch(name) for name in names)
    running = any(name.endswith(('.running_mean', '.running_var')) for name in names)
    paddle = any(name.endswith(('._mean', '._variance')) for name in names)
    if paddle and running:
        raise UserError(f"{path} mixes PyTorch's names (running_mean) with Paddle's (_mean)")
    if running or (torch and not paddle):
        whose, renamed = "PyTorch's names", {name: _torch_name(name) for name in names}
        arrays = {
            name: array.T if _is_linear(name, array) else array for name, array in arrays.items()
        }
    elif clas:
        whose, renamed = "PaddleClas's names", {name: _clas_name(name) for name in names}
    else:
        whose, renamed = "Paddle's names", {name: name for name in names}
    if len({*renamed.values()}) < len(renamed):
        raise UserError(f'{path} has two arrays for one name of ours')
    return whose, {renamed[name]: array for name, array in arrays.items()}


def is_of_head(name: str) -> bool:
    """Whether an array belongs to a last layer, or to one of several."""
    return _HEAD.fullmatch(name) is not None


def _with_our_head(arrays: Arrays) -> Arrays:
    """The last layer as fc, if there is but one: what follows on dropout is fc.1 in PyTorch."""
    heads = {match[1] for name in arrays if (match := _HEAD.fullmatch(name))}
    if len(heads) != 1 or heads == {'fc'}:
        return arrays
    (head,) = heads
    return {
        f'fc{name[len(head) :]}' if is_of_head(name) else name: array
        for name, array in arrays.items()
    }


def _find_state_dict(content: Any, path: Path) -> tuple[Mapping[Any, Any], list[str]]:
    """The state dict inside of a checkpoint, and how to say where it was."""
    place: list[str] = []
    for _ in range(_MAX_DEPTH):
        if not isinstance(content, dict):
            raise UserError(f'{path} holds a {type(content).__name__}, not a state dict')
        inner = {
            key: value
            for key, value in content.items()
            if isinstance(key, str) and key.isprintable() and key != 'optimizer'
            if isinstance(value, dict) and _holds_arrays(value)
        }
        key = next((key for key in (*AVERAGED, *PLAIN) if key in inner), None)
        if key is None:
            if not inner or any(map(_is_array, content.values())):
                break
            if len(inner) > 1:
                raise UserError(f'{path} holds several state dicts: {some([*inner])}')
            (key,) = inner
        place.append(f'from {key!r}')
        other = next((name for name in PLAIN if name in inner), None)
        if key in AVERAGED:
            place[-1] += ' (averaged weights' + (f', rather than {other!r})' if other else ')')
        content = inner[key]
    return content, place


def _holds_arrays(content: Mapping[Any, Any], depth: int = 1) -> bool:
    """Whether it is a state dict, or has one within; the state of an optimizer is none."""
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    if any(_is_array(value) for value in named.values()):
        return True
    inner = [value for value in named.values() if isinstance(value, dict)]
    return depth < _MAX_DEPTH and any(_holds_arrays(value, depth + 1) for value in inner)


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, Tensor)) or _is_named_array(value)


def _is_named_array(value: Any) -> bool:
    """What paddle.save makes of a tensor inside of a nested dict: (its own name, its numbers)."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray)


def _arrays_of(state: Mapping[Any, Any], path: Path) -> tuple[Arrays, list[str]]:
    """NumPy arrays of all that are arrays, and 'name (reason)' of what is none."""
    arrays, dropped = {}, []
    for name, value in state.items():
        if not isinstance(name, str) or not name.isprintable():
            shown = repr(name[:100]) if isinstance(name, str) else f'a {type(name).__name__}'
            raise UserError(f'{path} is not a state dict: {shown} is no name of an array')
        problem = value.problem if isinstance(value, Tensor) else None
        if name == PADDLE_NAMES:
            continue
        if name.rpartition('.')[2] in _COUNTERS:
            dropped.append(f'{name} (counters)')
        elif problem or not _is_array(value):
            dropped.append(f'{name} ({problem or "not arrays"})')
        elif isinstance(value, Tensor):
            arrays[name] = value.array()
        else:
            array = value[1] if isinstance(value, tuple) else value
            # Paddle saves bfloat16 as whole numbers of 16 bits, which no weight is otherwise.
            arrays[name] = as_float32(array) if array.dtype == np.uint16 else array
    if not arrays:
        raise UserError(f'{path} is not a state dict: it is empty')
    return arrays, dropped


def _inside_wrappers(arrays: Arrays, dropped: list[str], path: Path) -> tuple[Arrays, list[str]]:
    """Names without the `module.` and the like of wrappers, and how to say that.

    Where only a part has it (the student of a distillation, the backbone of a classifier), the part
    with the network's first convolution is taken, averaged weights before others, with the last
    layer that may stand beside it. `dropped` grows by the rest.
    """
    split = {name: _WRAPPERS.match(name).end() for name in arrays}  # type: ignore[union-attr]
    prefixes = {name[:end] for name, end in split.items() if name[end:] in _STEMS}
    if not prefixes:  # no network of ours: a prefix of all, or none
        common = {name[:end] for name, end in split.items()}
        prefixes = common if len(common) == 1 else {''}
    averaged = {prefix for prefix in prefixes if {*prefix.split('.')} & {*AVERAGED}}
    others = sorted(prefixes - averaged)
    chosen = averaged or prefixes
    if len(chosen) > 1:
        raise UserError(f'{path} holds several networks: {some(sorted(chosen))}')
    (prefix,) = chosen
    inside = {name: name[len(prefix) :] for name in arrays if name.startswith(prefix)}
    if not any(map(is_of_head, inside.values())) and not any('neck.' in name for name in arrays):
        inside.update(
            (name, name[end:])
            for name, end in split.items()
            if name not in inside and is_of_head(name[end:]) and prefix.startswith(name[:end])
        )
    dropped += [f'{name} (beside the network)' for name in arrays if name not in inside]
    said = [f'without {prefix}'] if prefix else []
    if averaged:
        said[0] += ' (averaged weights' + (f', rather than {others[0]})' if others else ')')
    return {inside[name]: array for name, array in arrays.items() if name in inside}, said


def _is_linear(name: str, array: np.ndarray) -> bool:
    return array.ndim == 2 and name.rpartition('.')[2] == 'weight'


def _torch_name(name: str) -> str:
    module, dot, entry = name.rpartition('.')
    return module + dot + {'running_mean': '_mean', 'running_var': '_variance'}.get(entry, entry)


def _clas_name(name: str) -> str:
    """Of PaddleClas's resnext.py; a name that is not from there stays, to be refused by name."""
    if match := _CLAS_STEM.fullmatch(name):
        return f'{_CLAS_LAYERS[match[1]]}1.{match[2]}'
    if match := _CLAS_HEAD.fullmatch(name):
        return f'fc.{match[1]}'
    if match := _CLAS_BLOCK.fullmatch(name):
        stage, block, layer, kind, entry = match.groups()
        if layer == 'short':
            inner = 'downsample.' + ('0' if kind == '_conv' else '1')
        else:
            inner = f'{_CLAS_LAYERS[kind]}{int(layer[-1]) + 1}'
        return f'layer{int(stage) + 1}.{block}.{inner}.{entry}'
    return name


def looks_like(shapes: Mapping[str, tuple[int, ...]]) -> Optional[str]:
    """The name of the network that these are the shapes of, as far as names and widths show."""
    counts = [*_block_counts(shapes, r'block{}\.layer\.(\d+)\.conv1\.weight', 3)]
    if all(counts):
        width = shapes['block1.layer.0.conv1.weight'][0]
        return f'wide_resnet{2 * sum(counts) + 4}_{width // 16}'
    counts = [*_block_counts(shapes, r'layer{}\.(\d+)\.conv2\.weight', 4)]
    kernel = shapes.get('layer1.0.conv2.weight', ())
    if not all(counts[:3]) or len(kernel) != 4 or 0 in kernel:
        return None
    depth, width, cardinality = 3 * sum(counts) + 2, kernel[0], kernel[0] // kernel[1]
    if 'layer1.0.conv3.weight' not in shapes:
        return f'a ResNet of {2 * sum(counts) + 2} layers without bottlenecks'
    if cardinality > 1 or not counts[3]:
        return f'resnext{depth}_{cardinality}x{width // cardinality}d'
    return f'wide_resnet{depth}_{width // 64}' if width > 64 else f'resnet{depth}'


def _block_counts(names: Mapping[str, Any], pattern: str, groups: int) -> Iterator[int]:
    for group in range(1, groups + 1):
        one = re.compile(pattern.format(group))
        yield sum(1 for name in names if one.fullmatch(name))
