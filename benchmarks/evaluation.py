"""How fast eval.py measures on a CPU, beside Paddle Inference with oneDNN alone.

Claim: eval.py, once its data and network are loaded, makes at least 0.9 of
the images/s that Paddle Inference with oneDNN makes of one ready batch of the same size, with the
same network and threads. Falsified by: python3 -m benchmarks evaluation
"""

from __future__ import annotations

from statistics import median

from benchmarks.processes import Worker, on_cores
from benchmarks.report import Claim, Result, table
from benchmarks.train_step import CORES

LEAST = 0.9
ROUNDS = 3
NETWORKS = {  # (side, batch, images)
    'wide_resnet16_2': (32, 200, 1000),
    'wide_resnet28_10': (32, 32, 64),
    'resnext29_8x64d': (32, 32, 64),
    'resnext50_32x4d': (224, 8, 32),
}
OURS, RIVAL, OWN = 'eval.py', 'Paddle Inference', "Paddle's kernels for dygraph"


def run(quick: bool) -> Result:
    result, rows = Result(figures={}), []
    for model, (side, batch, images) in NETWORKS.items():
        if quick:
            side, batch, images = 32, 2, 4
        settings = {'model': model, 'side': side, 'batch': batch, 'images': images}
        with on_cores(CORES), Worker('evaluation_worker', {**settings, 'threads': CORES}) as worker:
            rounds = [worker.ask('measure')[0] for _ in range(1 if quick else ROUNDS)]
        speed = {name: median(one[name] for one in rounds) for name in (OURS, RIVAL, OWN)}
        ratio = median(one[OURS] / one[RIVAL] for one in rounds)
        rows.append([model, *(f'{value:.1f}' for value in speed.values()), f'{ratio:.2f}'])
        result.claims.append(Claim(f'{model}: {OURS} / {RIVAL}', ratio, LEAST, 'x'))
        result.figures[model] = {
            'side': side,
            'batch': batch,
            'images_per_second': {name: round(value, 2) for name, value in speed.items()},
            'ratio': round(ratio, 3),
        }
    result.tables.append(table(['images/s', OURS, RIVAL, OWN, 'ratio'], rows))
    return result
