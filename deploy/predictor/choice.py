"""Which engine runs a model here: on a CPU the fastest, measured once and remembered.

A batch runs whole or image by image, whichever is faster; that depends on the CPU's caches.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Callable, Iterator, Optional

import numpy as np

import installation
from predictor import machine
from predictor.engines import ENGINES, make, none_of
from predictor.errors import UserError, in_a_line
from predictor.exported_folder import Description
from predictor.setting import Engine, Setting

REMEMBERED = machine.CACHE / 'engines.json'
TURNS, TURN_S = 3, 0.15  # of each way to run
SETTLE_S = 0.25  # until the threads of the last engine no longer spin
HOPELESS = 0.85  # of the fastest engine's speed: a slower one is not measured again
CLEARLY = 0.95
LARGEST = 8  # images of a trial
PACKAGES = ('paddlepaddle', 'onnxruntime', 'openvino')


@dataclass(frozen=True)
class Choice:
    """An engine by name, how many images it is given at a time, and why."""

    engine: str
    part: int
    reason: str
    made: Optional[Engine] = field(default=None, compare=False)  # by a trial


def choose(description: Description, setting: Setting, *, report: Callable[[str], None]) -> Choice:
    """UserError if no engine can run the model here; its text says what each one lacks."""
    names = [name for name in ENGINES if name != 'tensorrt' or setting.kind != 'cpu']
    missing = {name: ENGINES[name].missing(description, setting) for name in names}
    lacks = {name: lack for name, lack in missing.items() if lack is not None}
    able = [name for name in names if name not in lacks]
    if not able:
        raise none_of(lacks)
    if len(able) == 1:
        others = '; '.join(f'{name}: {lack}' for name, lack in lacks.items())
        return Choice(able[0], setting.batch, f'no other can run here ({others})')
    if setting.kind != 'cpu':
        return _first(description, setting, able)
    key = _key(description, setting)
    known = _recall(key)
    if known is not None and known['engine'] in able and known['part'] in (1, setting.batch):
        when = f'as tried on {known["date"]}, {REMEMBERED}'
        with contextlib.suppress(UserError):  # it started then; else all are tried again
            engine = make(known['engine'], description, setting)
            return Choice(known['engine'], known['part'], _reason(known, setting, when), engine)
    report(f'trying {", ".join(able)} (once for this model and machine; --engine names one)')
    return _quickest(description, setting, able, key)


def _started(
    description: Description, setting: Setting, names: list[str], failures: list[str]
) -> Iterator[tuple[str, Engine]]:
    """Those that start, one after the other; the errors of the others go to `failures`."""
    for name in names:
        try:
            engine = make(name, description, setting)
        except UserError as error:
            failures.append(str(error))
        else:
            yield name, engine


def _first(description: Description, setting: Setting, names: list[str]) -> Choice:
    """The first that starts: only a try shows whether TensorRT or CUDA work with a card."""
    failures: list[str] = []
    for name, engine in _started(description, setting, names, failures):
        reason = f'the first of {", ".join(ENGINES)} that runs on {setting.device}'
        return Choice(name, setting.batch, '; '.join([reason, *failures]), engine)
    raise _none_runs(failures)


def _none_runs(failures: list[str]) -> UserError:
    return UserError(f'no engine runs this model: {"; ".join(failures)}')


def _quickest(description: Description, setting: Setting, names: list[str], key: str) -> Choice:
    """Of the engines that start and run; `reason` also says why the others do not."""
    trials: list[Trial] = []
    failures: list[str] = []
    for name, engine in _started(description, setting, names, failures):
        try:
            trials.append(Trial(name, engine, description, setting.batch))
        except UserError as error:
            failures.append(str(error))
        except Exception as error:  # from C++ anything at all
            failures.append(f'engine {name} fails: {in_a_line(error)}')
    if not trials:
        raise _none_runs(failures)
    every = trials
    for _ in range(TURNS):
        for trial in trials:
            trial.take_turn()
        most = max(trial.rate for trial in trials)
        trials = [trial for trial in trials if trial.rate >= HOPELESS * most]
    best = max(trials, key=lambda trial: trial.rate)
    rates = {trial.name: round(trial.rate, 2) for trial in every}
    found = {'engine': best.name, 'part': best.part, 'rates': rates}
    if not failures:
        _remember(key, found)
    when = '; '.join(['tried just now', *failures])
    return Choice(best.name, best.part, _reason(found, setting, when), best.engine)


class Trial:
    """An engine's time for a batch: whole, and image by image. The first call does not count.

    Engines take turns, and the shortest time counts, so that other programs disturb less.
    """

    def __init__(self, name: str, engine: Engine, description: Description, batch: int) -> None:
        self.name, self.engine = name, engine
        shape, kind = (min(batch, LARGEST), *description.input.shape), description.input.type
        self._images = np.random.default_rng(0).uniform(0, 255, shape).astype(kind)
        # By the number of images of a call. A whole batch stands for any larger one.
        self._quickest_s = dict.fromkeys((len(self._images), 1), float('inf'))
        self._batch = batch
        for part in self._quickest_s:
            engine(self._images[:part])

    def take_turn(self) -> None:
        time.sleep(SETTLE_S)
        for part in self._quickest_s:
            end = time.perf_counter() + TURN_S
            while True:
                start = time.perf_counter()
                for first in range(0, len(self._images), part):
                    self.engine(self._images[first : first + part])
                now = time.perf_counter()
                self._quickest_s[part] = min(self._quickest_s[part], now - start)
                if now > end:
                    break

    @property
    def part(self) -> int:
        """How many images at a time; one by one only if that is clearly quicker."""
        singly_s, whole_s = self._quickest_s[1], self._quickest_s[len(self._images)]
        return 1 if singly_s < CLEARLY * whole_s else self._batch

    @property
    def rate(self) -> float:
        """Images a second."""
        seconds = self._quickest_s[1 if self.part == 1 else len(self._images)]
        return len(self._images) / seconds


def _reason(found: dict[str, Any], setting: Setting, when: str) -> str:
    rates = found['rates']
    order = sorted(rates, key=lambda name: -rates[name])
    speeds = ', '.join(f'{name} {rates[name]:.1f}' for name in order)
    singly = ', image by image' if found['part'] < setting.batch else ''
    return f'{speeds} images/s{singly}, {when}'


def _key(description: Description, setting: Setting) -> str:
    versions = [f'{name} {installation.version(name)}' for name in PACKAGES]
    return ', '.join([description.identity, repr(setting), machine.processor(), *versions])


def _recall(key: str) -> Optional[dict[str, Any]]:
    """None if nothing is stored, or the file is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        entry = json.loads(REMEMBERED.read_text(encoding='utf-8'))[key]
        return {
            'engine': str(entry['engine']),
            'part': int(entry['part']),
            'rates': {str(name): float(rate) for name, rate in entry['rates'].items()},
            'date': str(entry['date']),
        }
    return None


def _remember(key: str, entry: dict[str, Any]) -> None:
    """If the file cannot be written, the next start measures again."""
    with contextlib.suppress(OSError):
        REMEMBERED.parent.mkdir(parents=True, exist_ok=True)
        entries: Any = {}
        with contextlib.suppress(OSError, ValueError):
            entries = json.loads(REMEMBERED.read_text(encoding='utf-8'))
        entries = entries if isinstance(entries, dict) else {}
        entries[key] = {**entry, 'date': date.today().isoformat()}
        temporary = REMEMBERED.with_name(f'{REMEMBERED.name}.{os.getpid()}')
        temporary.write_text(json.dumps(entries, indent=1), encoding='utf-8')
        os.replace(temporary, REMEMBERED)
