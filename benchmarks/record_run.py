"""python3 -m benchmarks.record_run RUN ...: keep what finished runs reached in results.json.

The accuracy is that of the last epoch; the best one, chosen on the same test images, stands apart.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import machine, read_results, write_results
from engine.run_folder import load_run_config


def describe(run: Path) -> dict[str, Any]:
    """The figures of a run, from its own metrics.jsonl and config.yaml."""
    config = load_run_config(run, [])
    records = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    last = records[-1]
    if last['epoch'] + 1 != config.train.epochs:
        sys.exit(f'{run} is not finished: {last["epoch"] + 1} of {config.train.epochs} epochs')
    seconds = sum(record['seconds'] for record in records)
    images = sum(record['seconds'] * record['images_per_second'] for record in records)
    return {
        'model': config.model.name,
        'data': config.data.name,
        'epochs': config.train.epochs,
        'accuracy': last['eval_accuracy'],
        'top5': last['eval_top5'],
        'loss': last['eval_loss'],
        'best_accuracy': last['best_accuracy'],
        'best_epoch': last['best_epoch'],
        'training_seconds': round(seconds),
        'images_per_second': round(images / seconds, 1),
        'accuracy_by_epoch': {
            str(record['epoch']): record['eval_accuracy']
            for record in records
            if 'eval_accuracy' in record
        },
        'machine': machine(),
    }


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    content = read_results()
    for folder in map(Path, sys.argv[1:]):
        content.setdefault('runs', {})[folder.name] = describe(folder)
        print(f'{folder.name}: {100 * content["runs"][folder.name]["accuracy"]:.2f} %')
    write_results(content)


if __name__ == '__main__':
    main()
