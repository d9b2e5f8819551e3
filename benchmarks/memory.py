"""How much memory it takes to train WRN-28-10.

Claim: two steps of train.py with the recipe's own batch of 128 never hold more resident memory than
results.json says; most of it is activations, kept for the backward pass.
Falsified by: python3 -m benchmarks memory, which asks the kernel for the process's largest resident
set. The only evaluation comes after the last step, on as many images as one training batch.
"""

from __future__ import annotations

from benchmarks.report import Result, table
from benchmarks.training_run import TrainingRun

BATCH = 128


def run(quick: bool) -> Result:
    batch = 4 if quick else BATCH
    with TrainingRun(
        'wrn28_10_cifar10.yaml',
        'data.name=synthetic',
        f'data.batch_size={batch}',
        f'data.num_images={batch}',
        'train.max_steps=2',
        f'eval.batch_size={batch}',
        'eval.every=2',
    ) as training:
        peak_gib = training.finish() / 2**30
    rows = [[f'WRN-28-10, batch {batch}, float32', f'{peak_gib:.2f} GiB']]
    return Result(
        figures={'batch': batch, 'peak_gib': round(peak_gib, 2)},
        tables=[table(['training', 'peak resident memory'], rows)],
    )
