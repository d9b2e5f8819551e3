"""Writes the small files beside it, as MindSpore does: python3 tests/data/make_mindspore_files.py

ENTRIES are the arrays that they hold in one way or another, so that the tests, which have no
MindSpore, know what to find. They were written by MindSpore 2.10. The names are those of its zoo's
resnext152_64x4d, on a GPU; an Ascend has the convolution of each group by itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
_SHAPES = {
    'backbone.conv.weight': (4, 3, 3, 3),
    **{f'backbone.bn.{entry}': (4,) for entry in ('moving_mean', 'moving_variance')},
    **{f'backbone.bn.{entry}': (4,) for entry in ('gamma', 'beta')},
    'backbone.layer1.0.conv2.weight': (4, 2, 3, 3),
    'backbone.layer1.0.bn2.moving_mean': (4,),
    'backbone.layer1.0.down_sample.conv.weight': (8, 4, 1, 1),
    'backbone.layer1.0.down_sample.bn.gamma': (8,),
    'head.fc.weight': (3, 8),
    'head.fc.bias': (3,),
}
# Eighths up to 27, so that even bfloat16 holds them exactly, and no two entries are alike.
ENTRIES = {
    name: ((np.arange(np.prod(shape)) * 3 + 7 * i) % 217 / 8 - 9).reshape(shape).astype(np.float32)
    for i, (name, shape) in enumerate(_SHAPES.items())
}
LARGE = np.arange(600, dtype=np.float32).reshape(2, 300)
TYPES = (
    *('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8'),
    *('uint64', 'uint32', 'uint16', 'uint8', 'bool_'),
)


def main() -> None:
    import mindspore
    from mindspore.train import serialization

    def save(arrays, name, **options):
        named = [{'name': key, 'data': value} for key, value in arrays.items()]
        mindspore.save_checkpoint(named, str(FOLDER / f'mindspore_{name}'), **options)

    plain = {name: mindspore.Tensor(array) for name, array in ENTRIES.items()}
    training = {f'moments.{name}': tensor for name, tensor in plain.items()}
    training['global_step'] = mindspore.Tensor(7, mindspore.int32)
    progress = {'epoch_num': 3, 'learning_rate': 0.1, 'run': 'first'}
    save({**plain, **training}, 'training.ckpt', append_dict=progress)
    groups = {
        f'backbone.layer1.0.conv2.convs.{i}.weight': mindspore.Tensor(part)
        for i, part in enumerate(np.split(ENTRIES['backbone.layer1.0.conv2.weight'], 2))
    }
    others = {name: value for name, value in plain.items() if 'conv2' not in name}
    save({**groups, **others}, 'ascend.ckpt', crc_check=True)
    save(plain, 'plain', format='safetensors')
    numbers = mindspore.Tensor(np.arange(4, dtype=np.float32))
    kinds = {kind: numbers.astype(getattr(mindspore, kind)) for kind in TYPES}
    save({**kinds, 'bn.moving_mean': numbers}, 'types.ckpt')
    serialization.SLICE_SIZE = 1  # KiB, instead of 512 MiB: LARGE is written as three entries
    large = {'large.moving_mean': mindspore.Tensor(LARGE)}
    save({**large, **plain, 'complex': numbers.astype(mindspore.complex64)}, 'split.ckpt')
    for path in FOLDER.glob('mindspore_*'):
        path.chmod(0o644)  # MindSpore makes them read-only


if __name__ == '__main__':
    main()
