"""Pickles of arrays and containers, read without running code.

CIFAR's python batches and Paddle's .pdparams are pickles, and a pickle may name any function to be
called. Here only the few names that rebuild NumPy arrays resolve; any other is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, Union

from engine.errors import UserError

_ALLOWED = {
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
    ('numpy.core.multiarray', '_reconstruct'),
    ('numpy.core.multiarray', 'scalar'),
    ('numpy._core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', 'scalar'),
    ('numpy.core.numeric', '_frombuffer'),
    ('numpy._core.numeric', '_frombuffer'),
    ('collections', 'OrderedDict'),
    ('_codecs', 'encode'),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise UserError(f'holds {module}.{name}, which is neither an array nor a container')


def loads(data: Union[bytes, memoryview], where: str, *, encoding: str = 'ASCII') -> Any:
    """Unpickle `data`; UserError with `where` if it is damaged or names any function or class."""
    try:
        return _ArraysOnly(io.BytesIO(data), encoding=encoding).load()
    except UserError as refused:
        raise UserError(
            f'{where} {refused}; it was not loaded, because such a file can run code'
        ) from None
    except Exception as error:  # a damaged pickle can raise anything at all
        problem = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise UserError(f'{where} is damaged or not a pickle ({problem})') from None
