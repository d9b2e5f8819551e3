"""Worker: training steps of one network on one batch, each timed, and the memory that they take."""

from __future__ import annotations

import json
import sys

from benchmarks.paddle_step import count, make_step
from benchmarks.processes import memory_bytes, serve, steps
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


if __name__ == '__main__':
    main()
