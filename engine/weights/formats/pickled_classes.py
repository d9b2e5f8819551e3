"""Classes that training scripts pickle beside weights (settings, paths, dates). None is rebuilt."""

from __future__ import annotations

from typing import Any

from engine.errors import UserError
from engine.safe_pickle import ARRAYS, Global, Known, Placeholder, placeholder


def _dictionary(*_: Any) -> dict[Any, Any]:
    return {}


def _function_of_history(owner: Any, *_: Any) -> Placeholder:
    """Stands for the functions that mmengine stores with its records; none is looked up."""
    if not isinstance(owner, Global) or owner.name != '.'.join(_HISTORY):
        raise UserError('holds builtins.getattr, which is neither an array nor a container')
    return Placeholder('a function')


_HISTORY = 'mmengine.logging.history_buffer', 'HistoryBuffer'
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
    'mmengine.config.config': ('ConfigDict',),
    _HISTORY[0]: _HISTORY[1:],
}

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
    ('builtins', 'getattr'): _function_of_history,
    ('collections', 'defaultdict'): _dictionary,
    ('copyreg', '_reconstructor'): placeholder('an object'),
}
