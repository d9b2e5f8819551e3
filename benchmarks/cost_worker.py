"""Worker: training steps of one network on one batch, each timed, and the memory that they take."""

from __future__ import annotations

import json
import sys
import time
from typing import Callable

from benchmarks.paddle_step import count, make_step
from benchmarks.processes import memory_bytes, seconds, serve
from engine import runtime


def main() -> None:
    settings = json.loads(sys.argv[1])
    runtime.prepare_cpu()
    runtime.start_paddle('cpu')
    step = make_step(**settings)
    before = memory_bytes('VmRSS')
    serve(
        {
            'steps': lambda for_s, at_least: {'seconds': steps(step, for_s, at_least)},
            'peak': lambda: {'bytes': memory_bytes('VmHWM') - before},
            'multiply_adds': lambda: {'count': count(settings['model'], settings['side'])},
        }
    )


def steps(step: Callable[[], None], for_s: float, at_least: int) -> list[float]:
    """How long each step took, of so many or of those that fit into the time."""
    taken: list[float] = []
    end = time.perf_counter() + for_s
    while len(taken) < at_least or time.perf_counter() < end:
        taken.append(seconds(step))
    return taken


if __name__ == '__main__':
    main()
