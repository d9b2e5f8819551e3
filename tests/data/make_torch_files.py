"""Writes the small files beside it, as PyTorch does: python3 tests/data/make_torch_files.py

ENTRIES are the arrays that they hold in one way or another, so that the tests, which have no
PyTorch, know what to find. They were written by PyTorch 2.13, legacy_* in its format before 1.6.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
_SHAPES = {
    'conv1.weight': (4, 3, 3, 3),
    'bn1.weight': (4,),
    'bn1.bias': (4,),
    'bn1.running_mean': (4,),
    'bn1.running_var': (4,),
    'fc.weight': (3, 4),
    'fc.bias': (3,),
}
# Eighths up to 27, so that even bfloat16 holds them exactly, and no two entries are alike.
ENTRIES = {
    name: ((np.arange(np.prod(shape)) * 3 + 7 * i) % 217 / 8 - 9).reshape(shape).astype(np.float32)
    for i, (name, shape) in enumerate(_SHAPES.items())
}


def main() -> None:
    import argparse
    import collections
    import pathlib

    import torch

    def state(prefix='', add=0.0, dtype=torch.float32):
        found = collections.OrderedDict(
            (prefix + name, torch.tensor(value + np.float32(add)).to(dtype))
            for name, value in ENTRIES.items()
        )
        found[f'{prefix}bn1.num_batches_tracked'] = torch.tensor(7)
        found._metadata = collections.OrderedDict({'': {'version': 1}})
        return found

    def save(content, name, legacy=False):
        torch.save(content, FOLDER / name, _use_new_zipfile_serialization=not legacy)

    parameters = [torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    parameters[0].sum().backward()
    optimizer.step()
    trained = {
        'epoch': 3,
        'state_dict': state('module.'),
        'best_prec1': torch.tensor(96.25),
        'optimizer': optimizer.state_dict(),
    }
    averaged = {
        'model': state(add=1.0),
        'model_ema': {**state('module.'), 'n_averaged': torch.tensor(5)},
        'args': argparse.Namespace(lr=0.1, device=torch.device('cpu'), output=pathlib.Path('x')),
        'shape': torch.Size([1, 2]),
        'dtype': torch.float32,
        'tags': {'a', 'b'},
        'counts': collections.defaultdict(int, a=1),
        'loss': np.float64(0.5),
        'extra': torch.nn.Parameter(torch.ones(2)),
        'buffer': torch.nn.Buffer(torch.ones(2)),
        'storage': torch.ones(2).untyped_storage(),
    }
    flat = torch.cat([torch.tensor(value).reshape(-1) for value in ENTRIES.values()])
    ends = np.cumsum([value.size for value in ENTRIES.values()])
    shared = {
        name: flat[end - value.size : end].view(value.shape)
        for (name, value), end in zip(ENTRIES.items(), ends)
    }
    views = state()
    views['conv1.weight'] = views['conv1.weight'].to(memory_format=torch.channels_last)
    views['fc.weight'] = views['fc.weight'].t().contiguous().t()
    views['bn1.bias'] = torch.stack([views['bn1.bias'], torch.zeros(4)], 1)[:, 0]
    views['empty'] = torch.zeros(0, 3)
    types = {
        str(kind): torch.tensor([0, 1, 2, 3]).to(kind)
        for kind in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64),
            *(torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16),
            *(torch.uint32, torch.float8_e4m3fn),
        )
    }
    for legacy in (False, True):
        kind = 'legacy' if legacy else 'zip'
        save(state(), f'{kind}_plain.pth', legacy)
        save(trained, f'{kind}_training.pth', legacy)
        save(averaged, f'{kind}_averaged.pth', legacy)
        save(shared, f'{kind}_shared.pth', legacy)
        save(views, f'{kind}_views.pth', legacy)
        save(state(dtype=torch.bfloat16), f'{kind}_bfloat16.pth', legacy)
        save({**state(dtype=torch.float16), **types}, f'{kind}_types.pth', legacy)
        save(torch.nn.Linear(2, 3), f'{kind}_model.pth', legacy)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), FOLDER / 'torchscript.pt')


if __name__ == '__main__':
    main()
