"""The log of a run: console and train.log, metrics.jsonl, VisualDL, curves.png.

A terminal gets a progress bar and a line an epoch; a pipe, a notebook and train.log get a line
every few steps, too. The beginnings of the lines (`Epoch 0: ... set learning rate to`,
`iter:0  loss:`, `acc:... total:... ratio:...`) are grepped by other people's scripts and stay as
they are. Those, metrics.jsonl and VisualDL count from 0; all else counts epochs from 1.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Iterable, Optional, Sequence, TextIO, Union

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine import plots
from engine.console import can_redraw
from engine.files import write_atomically
from engine.plots import fonts
from engine.run import vdl
from engine.run.folder import RunFolder
from engine.run.reading import read_records

if TYPE_CHECKING:
    from engine.data.batches import Batches
    from engine.training.progress import Progress, StepRecord, Sums

CURVES_EVERY_S = 30.0
TOO_LONG_S = 2 * 86400.0


class Log:
    """Usable at once; lines from before `attach` names the folder are kept and written then."""

    def __init__(self) -> None:
        self._early: list[str] = []
        self._file: Optional[TextIO] = None
        self._bar: Optional[tqdm[Any]] = None
        self._records: list[dict[str, Any]] = []
        self._drawn = -CURVES_EVERY_S
        self._step_ends: list[float] = []
        self._place = ''  # epoch 1/8

    def attach(self, folder: RunFolder, *, step: int, epoch: int) -> None:
        """Begin or continue the files of a run; lines of epochs that will run again are dropped."""
        self._folder = folder
        self._file = folder.log_file.open('a', buffering=1, encoding='utf-8')
        for text in self._early:
            self._file.write(f'{text}\n')
        self._records = [r for r in read_records(folder.path) if r['epoch'] < epoch]
        self._write_records()
        self._vdl = vdl.writer(folder.vdl_folder, step=step, epoch=epoch)

    def _write_records(self) -> None:
        text = ''.join(f'{json.dumps(record)}\n' for record in self._records)
        write_atomically(self._folder.metrics_file, lambda file: file.write(text.encode()))

    def line(self, text: str) -> None:
        """One line for the console and train.log."""
        if self._bar is not None:
            self._bar.clear()
        print(text, flush=True)
        self.note(text)

    def lines(self, texts: Iterable[str], *, prefix: str = '') -> None:
        for text in texts:
            self.line(f'{prefix}{text}')

    def note(self, text: str) -> None:
        """One line for train.log alone."""
        if self._file is None:
            self._early.append(text)
        else:
            self._file.write(f'{text}\n')

    def epoch_starts(self, progress: Progress, *, epochs: int, batches: int) -> None:
        """The next of that many epochs, of that many batches, of which some may be done."""
        self._place = f'epoch {progress.epoch + 1}/{epochs}'
        if can_redraw(sys.stdout):
            self._bar = tqdm(
                total=batches,
                initial=progress.batch,
                desc=self._place,
                bar_format='{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}',
                file=sys.stdout,
                dynamic_ncols=True,
                leave=False,
            )

    def step(self, record: StepRecord) -> None:
        if self._bar is not None:
            self._bar.update()
        self._estimate(record)
        measured = record.measured
        if measured is None:
            return
        loss, time_left = f'loss:{measured.loss:.4f}', f'left:{duration(measured.seconds_left)}'
        pace = f'images/s:{measured.images_per_second:.1f}  wait:{100 * measured.data_wait:.1f}%'
        text = f'iter:{record.batch}  {loss}  lr:{record.lr:.6g}  {pace}  {time_left}'
        if self._bar is None:
            print(text, flush=True)
        else:  # a narrow terminal cuts the end
            self._bar.set_postfix_str(f'{time_left}  {loss}  {pace}')
        self.note(text)
        for tag, value in (
            ('train/loss', measured.loss),
            ('train/learning_rate', record.lr),
            ('train/images_per_second', measured.images_per_second),
        ):
            self._vdl.add_scalar(tag, value, record.step)

    def _estimate(self, record: StepRecord) -> None:
        """After the second step: a line if this will take days, with recipes that take less."""
        if len(self._step_ends) == 2:
            return
        self._step_ends.append(time.monotonic())
        if len(self._step_ends) == 1:
            return
        left = record.steps_left * (self._step_ends[1] - self._step_ends[0])
        if left > TOO_LONG_S:
            self.line(
                f'This run takes about {duration(left)} on this machine. Shorter ones: '
                'configs/quickstart.yaml (a minute on two cores), '
                'configs/wrn16_2_cifar10_short.yaml (half an hour). '
                'Continuing; Ctrl-C stops and saves.'
            )

    def training_ends(self, sums: Sums) -> None:
        """The results of the epoch's steps; its evaluation follows."""
        self._close_bar()
        self.line(
            f'{self._place}: training loss {sums.mean_loss:.4f}, '
            f'accuracy {100 * sums.accuracy:.2f} %, '
            f'{sums.images_per_second:.1f} images/s, {duration(sums.seconds)}'
        )

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def epoch_ends(self, record: dict[str, Any], *, last: bool) -> None:
        self._folder.require_ours()
        self._records.append(record)
        self._write_records()
        for name in ('train_loss', 'train_accuracy', 'eval_loss', 'eval_accuracy', 'eval_top5'):
            if name in record:
                self._vdl.add_scalar(f'epoch/{name}', record[name], record['epoch'])
        if last or time.monotonic() - self._drawn > CURVES_EVERY_S:
            plots.curves(self._records, self._folder.curves_file, run=self._folder.path)
            self._drawn = time.monotonic()

    def first_batch(self, batches: Batches, classes: Sequence[str]) -> None:
        """Draw what the network sees: the first batch, augmented and labelled."""
        boxes = fonts.choose([self._folder.path.resolve().name, *classes])
        if boxes:
            self.line(boxes)
        batch = next(iter(batches), None)
        if batch is None:  # of an epoch that was stopped when all but its evaluation was done
            return
        path = self._folder.first_batch_file
        plots.first_batch(
            batch.moved(np.asarray), batches.options.mean, batches.options.std, classes, path
        )
        with Image.open(path) as picture:
            self._vdl.add_image('first_batch', np.asarray(picture.convert('RGB')), 0)

    def flush(self) -> None:
        """Put on disk what a checkpoint is about to record as done."""
        self._folder.require_ours()  # VisualDL opens its file by name
        self._vdl.flush()

    def run_ends(self) -> None:
        """The result, and the commands that use it."""
        record = self._records[-1] if self._records else {}
        if 'eval_accuracy' not in record:
            self.line('nothing is left to train')
            return
        run, folder = shlex.quote(str(self._folder.path)), self._folder
        self.line(
            f'finished after epoch {record["epoch"] + 1}: '
            f'accuracy {100 * record["eval_accuracy"]:.2f} % '
            f'(best: {100 * record["best_accuracy"]:.2f} % after epoch {record["best_epoch"] + 1})'
        )
        self.line(f'  curves:            {folder.curves_file}')
        self.line(f'  what it mistakes:  python3 eval.py -w {run}')
        self.line(f'  export it:         python3 export.py -w {run}')
        self.line(f'  live, in VisualDL: visualdl --logdir {shlex.quote(str(folder.vdl_folder))}')

    def close(self) -> None:
        self._close_bar()
        if self._file is not None:
            self._file.close()
            self._vdl.close()


class NullLog:
    """The log of every process but the first: each of its methods does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


AnyLog = Union[Log, NullLog]


def duration(seconds: float) -> str:
    """58s, 12m30s, 2h05m, 3d 4h, 9 weeks."""
    whole = round(seconds)
    if whole < 60:
        return f'{whole}s'
    if whole < 3600:
        return f'{whole // 60}m{whole % 60:02d}s'
    if whole < 86400:
        return f'{whole // 3600}h{whole % 3600 // 60:02d}m'
    if whole < 28 * 86400:
        return f'{whole // 86400}d {whole % 86400 // 3600}h'
    return f'{round(whole / 604800)} weeks'
