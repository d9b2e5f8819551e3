"""python3 -m benchmarks.record_run RUN ...: keep what finished runs reached in results.json.

The accuracy is that of the last epoch; the best one, chosen on the same test images, stands apart.
`settings` are those that differ from the defaults: with data.holdout, the accuracy is of held-out
training images.
"""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.report import machine, read_results, write_results
from engine import cli
from engine.config import chosen
from engine.errors import UserError
from engine.run.folder import RunFolder
from engine.run.reading import load_run_config, read_records, read_snapshot

PLACES = ('data.root', 'output.dir')


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError('name the folders of finished runs')
    runs = {folder.name: describe(folder) for folder in map(Path, sys.argv[1:])}
    content = read_results()
    write_results({**content, 'runs': {**content.get('runs', {}), **runs}})
    for name, run in runs.items():
        print(f'{name}: {100 * run["accuracy"]:.2f} %')


def describe(run: Path) -> dict[str, Any]:
    """The figures of a run, from its own config.yaml, metrics.jsonl and last checkpoint."""
    config, records = load_run_config(run, []), read_records(run)
    snapshot = read_snapshot(run, print)
    if not records or records[-1]['epoch'] + 1 != config.train.epochs or snapshot is None:
        raise UserError(
            f'{run} is not finished: {len(records)} of {config.train.epochs} epochs; continue '
            'it with train.py --resume'
        )
    last = records[-1]
    seconds = sum(record['seconds'] for record in records)
    images = sum(record['seconds'] * record['images_per_second'] for record in records)
    ended = datetime.fromtimestamp(RunFolder(run).metrics_file.stat().st_mtime, timezone.utc)
    return {
        'model': config.model.name,
        'data': config.data.name,
        'epochs': config.train.epochs,
        'accuracy': last['eval_accuracy'],
        'top5': last['eval_top5'],
        'loss': last['eval_loss'],
        'train_accuracy': last['train_accuracy'],
        'best_accuracy': last['best_accuracy'],
        'best_epoch': last['best_epoch'],
        'training_seconds': round(seconds),
        'images_per_second': round(images / seconds, 1),
        'accuracy_by_epoch': {
            str(record['epoch']): record['eval_accuracy']
            for record in records
            if 'eval_accuracy' in record
        },
        'processes': snapshot.state['images_per_step']
        // (config.data.batch_size * config.train.accumulate),
        'settings': chosen(config, but=PLACES),
        'machine': {
            'cpu': machine()['cpu'],
            'date': ended.strftime('%Y-%m-%d %H:%M UTC'),
            'versions': snapshot.state['versions'],
        },
    }


if __name__ == '__main__':
    cli.run(main)
