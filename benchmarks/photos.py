"""Real photographs on one core: JPEG files -> float32 batches, for training and for evaluation.

Claim: against paddle.vision's DatasetFolder and transforms, training batches come at least 2.4
times and evaluation batches 1.6 times as fast; training batches at 85 % of the speed of decoding
alone; evaluation differs from Pillow's antialiased resize by less than half a grey level; pictures
packed once come at 1,400 images/s or more.
Falsified by: python3 -m benchmarks photos --photos DIR
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Optional

from benchmarks.processes import Worker, on_cores
from benchmarks.report import Claim, Result, table

VARIANTS = {
    'decoding': 'decoding alone (simplejpeg)',
    'train': 'training: crop, resize, flip, normalise',
    'vision_train': 'the same by paddle.vision',
    'eval': 'evaluation: resize 256, centre crop 224, normalise',
    'vision_eval': 'the same by paddle.vision',
    'packed_train': 'training, packed to short side 256',
}


def run(quick: bool, photos: Optional[Path]) -> Result:
    rounds = 1 if quick else 7
    speeds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {'photos': str(photos) if photos else None, 'scratch': str(scratch)}
        with on_cores(1):
            worker = stack.enter_context(Worker('photos_worker', settings))
        for _ in range(rounds):
            for name, found in speeds.items():
                [answer] = worker.ask('measure', which=name)
                found.append(answer['images'] / answer['seconds'])
        with on_cores(2):
            both = stack.enter_context(Worker('photos_worker', {**settings, 'workers': 2}))
        two = []
        for _ in range(rounds):
            [answer] = both.ask('measure', which='train')
            two.append(answer['images'] / answer['seconds'])
        [difference] = worker.ask('difference')
    return judge({k: median(v) for k, v in speeds.items()}, median(two), difference)


def judge(speed: dict[str, float], two_cores: float, difference: dict[str, Any]) -> Result:
    figures: dict[str, Any] = {f'images_per_second_{k}': round(v, 1) for k, v in speed.items()}
    figures['images_per_second_train_two_cores'] = round(two_cores, 1)
    result = Result({**figures, **difference})
    header = ['one core', 'images/s', 'ms/image']
    rows = [[VARIANTS[k], f'{v:.0f}', f'{1000 / v:.2f}'] for k, v in speed.items()]
    rows.append(
        ['training, two threads on two cores', f'{two_cores:.0f}', f'{1000 / two_cores:.2f}']
    )
    result.tables.append(table(header, rows))
    train, evaluation = speed['train'], speed['eval']
    result.claims += [
        Claim('training / paddle.vision', train / speed['vision_train'], 2.4, 'x'),
        Claim('training / decoding alone', 100 * train / speed['decoding'], 85, '%'),
        Claim('evaluation / paddle.vision', evaluation / speed['vision_eval'], 1.6, 'x'),
        Claim('evaluation, mean difference', difference['mean'], 0.5, 'grey levels', at_most=True),
        Claim('training, packed', speed['packed_train'], 1400, 'images/s'),
    ]
    return result
