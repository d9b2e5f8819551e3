"""Which engine runs a model here: on a CPU the quickest, found by trying, and remembered.

A batch may run whole or image by image, whichever is quicker: what lies in a CPU's caches decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Callable, Optional

import numpy as np

from predictor import machine
from predictor.engines import ENGINES, in_a_line, make
from predictor.errors import UserError
from predictor.folder import Description
from predictor.setting import Engine, Setting

REMEMBERED = machine.CACHE / 'engines.json'
TRIAL_S = 0.5  # of each way to run, after a first call that is not counted
PACKAGES = ('paddlepaddle', 'onnxruntime', 'openvino')


@dataclass(frozen=True)
class Choice:
    """An engine by name, how many images it is given at a time, and why."""

    engine: str
    part: int
    reason: str
    made: Optional[Engine] = field(default=None, compare=False)  # by a trial


def choose(description: Description, setting: Setting, *, tell: Callable[[str], None]) -> Choice:
    """UserError if no engine can run the model here; its text says what each one lacks."""
    missing = {name: ENGINES[name].missing(description, setting) for name in ENGINES}
    able = [name for name, lack in missing.items() if lack is None]
    if not able:
        lacks = '; '.join(f'{name}: {lack}' for name, lack in missing.items())
        raise UserError(f'no engine can run here ({lacks}); see deploy/requirements.txt')
    if len(able) == 1:
        others = '; '.join(f'{name}: {lack}' for name, lack in missing.items() if lack)
        return Choice(able[0], setting.batch, f'no other can run here ({others})')
    if setting.kind != 'cpu':
        return _first(description, setting, able)
    key = _key(description, setting)
    known = _recall(key)
    if known is not None and known['engine'] in able and known['part'] in (1, setting.batch):
        when = f'as tried on {known["date"]}, {REMEMBERED}'
        return Choice(known['engine'], known['part'], _reason(known['rates'], when))
    tell(f'trying {", ".join(able)} (once for this model and machine; --engine names one)')
    return _quickest(description, setting, able, key)


def _first(description: Description, setting: Setting, names: list[str]) -> Choice:
    """That starts: what TensorRT or CUDA want of a card, only a try tells."""
    failures: list[str] = []
    for name in names:
        try:
            engine = make(name, description, setting)
        except UserError as error:
            failures.append(str(error))
            continue
        reason = f'the first of {", ".join(ENGINES)} that runs on {setting.device}'
        return Choice(name, setting.batch, '; '.join([reason, *failures]), engine)
    raise UserError(f'no engine runs this model: {"; ".join(failures)}')


def _quickest(description: Description, setting: Setting, names: list[str], key: str) -> Choice:
    """Each engine that starts, timed; engines that don't are left out."""
    rates: dict[str, float] = {}
    best: Optional[tuple[float, str, int, Engine]] = None
    failures = []
    for name in names:
        try:
            engine = make(name, description, setting)
            tried = {part: _rate(engine, description, part) for part in {1, setting.batch}}
        except UserError as error:
            failures.append(str(error))
            continue
        except Exception as error:  # from C++ anything at all
            failures.append(f'engine {name} fails: {in_a_line(error)}')
            continue
        part = max(tried, key=lambda part: tried[part])
        rates[name] = round(tried[part], 2)
        if best is None or tried[part] > best[0]:
            best = tried[part], name, part, engine
    if best is None:
        raise UserError(f'no engine runs this model: {"; ".join(failures)}')
    _, name, part, engine = best
    when = '; '.join(['tried just now', *failures])
    if not failures:
        _remember(key, {'engine': name, 'part': part, 'rates': rates})
    return Choice(name, part, _reason(rates, when), engine)


def _rate(engine: Engine, description: Description, part: int) -> float:
    """Images a second, from the quickest of some calls."""
    images = np.zeros((part, *description.input.shape), description.input.type)
    engine(images)
    best, start = float('inf'), time.perf_counter()
    while time.perf_counter() - start < TRIAL_S:
        before = time.perf_counter()
        engine(images)
        best = min(best, time.perf_counter() - before)
    return part / best


def _reason(rates: dict[str, float], when: str) -> str:
    order = sorted(rates, key=lambda name: -rates[name])
    return f'{", ".join(f"{name} {rates[name]:.1f}" for name in order)} images/s, {when}'


def _key(description: Description, setting: Setting) -> str:
    versions = [f'{name} {machine.version(name)}' for name in PACKAGES]
    return ', '.join([description.identity, repr(setting), machine.processor(), *versions])


def _recall(key: str) -> Optional[dict[str, Any]]:
    """None if there is nothing, or what there is is not ours."""
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
    """Where the disk says no, the next start tries again."""
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
