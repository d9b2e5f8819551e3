"""What a checkpoint holds, and which trainings it fits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from engine.config import differences
from engine.errors import UserError
from engine.training.progress import Progress, Sums
from engine.weights import Arrays


@dataclass
class Snapshot:
    """All that a run needs to continue; `state` is what JSON can hold."""

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

    def require_fitting(self, now: dict[str, Any]) -> None:
        """UserError unless a training of the state `now` can continue from here."""
        from engine.data.class_names import differing  # engine.data takes long to import

        then = self.state
        if then['classes'] != now['classes']:
            raise UserError(
                f'{self.path} was trained on other classes: '
                f'{differing(then["classes"], now["classes"])}; '
                'model.pretrained and model.pretrained_head: drop begin a new run with its weights'
            )
        holdouts = then['config']['data'].get('holdout', 0.0), now['config']['data']['holdout']
        if holdouts[1] not in (0.0, holdouts[0]):
            raise UserError(
                f'{self.path} was trained with data.holdout={holdouts[0]:g}: with {holdouts[1]:g}, '
                f'images would be held out that it has seen; keep {holdouts[0]:g}'
            )
        (images, seed), given = (
            (state['images'], state['config']['seed']) for state in (then, now)
        )
        if then['progress']['images'] and (images, seed) != given:
            raise UserError(
                f'{self.path} lies inside an epoch of {images:,} images and seed {seed}; '
                f'now they are {given[0]:,} and {given[1]}: keep them, or resume from the end of '
                'an epoch'
            )

    def differences(self, now: dict[str, Any]) -> list[str]:
        """Lines about what changes when a training of the state `now` continues from here."""
        then, lines = self.state, []
        if then['images_per_step'] != now['images_per_step']:
            lines.append(
                f'{now["images_per_step"]} images a step now, not {then["images_per_step"]}; '
                'the order of the images stays'
            )
        before = then.get('convolutions', 'Paddle')
        if before != now['convolutions']:
            lines.append(
                f'convolutions are computed by {now["convolutions"]} now, not by {before}: '
                'as exact, but not bit-identical'
            )
        changed = differences(then['config'], now['config'])
        return [*lines, *(f'the config has changed: {line}' for line in changed)]

    def progress(self) -> Progress:
        """A copy of the progress that is saved in the state."""
        saved = self.state['progress']
        return Progress(**{**saved, 'sums': Sums(**saved['sums'])})
