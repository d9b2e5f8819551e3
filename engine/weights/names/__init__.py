"""Names of other projects -> ours.

The names in a file decide whose they are, never its own name and never shapes:

running_mean, running_var           PyTorch (torchvision, timm, xternalz): Linear is [out, in]
bb_0_1.conv0._conv.weight, out.*    PaddleClas's ResNeXt
moving_mean, moving_variance        MindSpore
_mean, _variance                    Paddle (paddle.vision, Paddle Contrib, ourselves): as they are
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.weights.arrays import Arrays
from engine.weights.converted import Converted, Normalisation
from engine.weights.names import mindspore, paddleclas, pytorch, state_dict, wrappers
from engine.weights.names.head import with_our_head

# Paddle Contrib's networks have biases in all convolutions. They were trained with these (its
# wide_resnet/train.py, shares of 255).
_WITH_BIASES = {'conv1.bias', 'block1.layer.0.conv1.bias'}
CONTRIB = Normalisation('cifar10', (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))


def convert(content: Any, path: Path, *, torch: bool) -> Converted:
    """The network in a file's content, under our names; `torch` if the format is PyTorch's."""
    state, place = state_dict.find(content, path)
    arrays, dropped = state_dict.arrays_of(state, path)
    of_mindspore = mindspore.are_theirs(arrays)
    if of_mindspore:
        arrays = mindspore.without_state(arrays, dropped)
    arrays, inside = wrappers.strip(arrays, dropped, path)
    if of_mindspore and (problem := mindspore.refusal(arrays)):
        raise UserError(f'{path} {problem}')
    try:
        if of_mindspore:
            whose, arrays = "MindSpore's names", mindspore.ours(arrays)
        else:
            whose, arrays = _ours(arrays, torch=torch)
    except ValueError as error:
        raise UserError(f'{path} is damaged: {error}') from None
    converted = Converted(with_our_head(arrays), '', dropped)
    if of_mindspore:
        converted.notes.append(mindspore.NOTE)
    elif whose == "Paddle's names" and {*arrays} >= _WITH_BIASES:
        whose, converted.normalisation = "Paddle Contrib's names", CONTRIB
    converted.source = ', '.join([whose, *place, *inside])
    return converted


def _ours(arrays: Arrays, *, torch: bool) -> tuple[str, Arrays]:
    """Whose names they are, and the arrays under ours. ValueError if names are mixed or doubled."""
    of_paddle = any(name.endswith(('._mean', '._variance')) for name in arrays)
    of_pytorch = pytorch.are_theirs(arrays)
    if of_paddle and of_pytorch:
        raise ValueError("it mixes PyTorch's names (running_mean) with Paddle's (_mean)")
    if of_pytorch or (torch and not of_paddle):
        whose, our_name = "PyTorch's names", pytorch.our_name
        arrays = {name: pytorch.our_array(name, array) for name, array in arrays.items()}
    elif paddleclas.are_theirs(arrays):
        whose, our_name = "PaddleClas's names", paddleclas.our_name
    else:
        return "Paddle's names", arrays
    renamed: Arrays = {}
    for name, array in arrays.items():
        if renamed.setdefault(our_name(name), array) is not array:
            raise ValueError(f'it has two arrays for {our_name(name)}')
    return whose, renamed
