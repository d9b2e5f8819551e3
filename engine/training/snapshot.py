"""What a checkpoint holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from engine.errors import UserError
from engine.weights import Arrays


@dataclass
class Snapshot:
    """All that a run needs to go on; `state` is what JSON can hold."""

    model: Arrays
    optimizer: Arrays
    ema: Optional[Arrays]
    state: dict[str, Any]
    path: Optional[Path] = field(default=None, compare=False)
    sha256: dict[str, str] = field(default_factory=dict, compare=False)  # of the files read

    def describe(self) -> str:
        """The same for copies, different for everything else."""
        assert self.path is not None
        files = hashlib.sha256(' '.join(sorted(self.sha256.values())).encode()).hexdigest()
        return f'{self.path.name}, {files[:16]}'

    def require_current(self) -> None:
        """UserError for one that an older version of this project has written."""
        if 'images' not in self.state:
            raise UserError(
                f'{self.path} is of an older version; -w and model.pretrained take its weights, '
                'model.pdparams'
            )
