"""What the readers of weight files share: bfloat16, and the classes that lie beside weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.safe_pickle import ARRAYS, Known, placeholder


def as_float32(halves: np.ndarray) -> np.ndarray:
    """The numbers of bfloat16, which NumPy lacks: the upper halves of float32, exactly."""
    bits: np.ndarray = np.left_shift(halves, 16, dtype='<u4')
    return bits.view('<f4')


def _dictionary(*_: Any) -> dict[Any, Any]:
    return {}


_IGNORED = {
    'argparse': ('Namespace',),
    'types': ('SimpleNamespace',),
    'pathlib': ('Path', 'PosixPath', 'WindowsPath', 'PurePath', 'PurePosixPath', 'PureWindowsPath'),
    'datetime': ('date', 'datetime', 'time', 'timedelta', 'timezone'),
    'collections': ('Counter', 'deque'),
    'builtins': ('complex', 'slice', 'range', 'object', 'int', 'float', 'str', 'bool'),
    'typing': ('Any',),
    'yacs.config': ('CfgNode',),
    'easydict': ('EasyDict',),
    'addict.addict': ('Dict',),
    'omegaconf.dictconfig': ('DictConfig',),
    'omegaconf.listconfig': ('ListConfig',),
    'omegaconf.base': ('ContainerMetadata', 'Metadata'),
    'omegaconf.nodes': ('AnyNode',),
}

# Checkpoints of training scripts carry settings and the like. Nothing of these is rebuilt.
OTHER_CLASSES: Known = {
    **ARRAYS,
    **{
        (module, name): placeholder(f'{module}.{name}')
        for module, names in _IGNORED.items()
        for name in names
    },
    ('builtins', 'set'): lambda items=(): list(items),
    ('builtins', 'frozenset'): lambda items=(): tuple(items),
    ('builtins', 'list'): lambda items=(): list(items),
    ('builtins', 'tuple'): lambda items=(): tuple(items),  # nested tensors in Paddle's files
    ('builtins', 'dict'): _dictionary,
    ('builtins', 'bytearray'): placeholder('builtins.bytearray'),
    ('collections', 'defaultdict'): _dictionary,
    ('copyreg', '_reconstructor'): placeholder('an object'),
}
