"""Each convolution of a network in training by itself: oneDNN's, and Paddle's own.

Claim: in a network of NHWC, as engine.cpu_conv has it, there is no convolution in training that
Paddle computes faster than oneDNN, in float32 on two threads; so that it needs no choice by shape.
(One by timing would not be the same in each run, and the bits of a resumed run would differ.)
Falsified by: python3 -m benchmarks convolutions

A time is that of the forward pass and of the gradients that training asks for: of the weights and,
but for the first convolution of a network, of the images. Paddle's own in NCHW, where a 1x1
convolution is a plain matrix product, stands beside them: one cannot have it without converting
images there and back. All have the settings of prepare_cpu and take turns in one process; a
ratio is the median of those of the rounds. What networks share is measured once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.convolutions_worker import Shape
from benchmarks.processes import Worker, on_cores
from benchmarks.report import Claim, Result, table
from benchmarks.train_step import CORES, Network

NETWORKS = (
    Network('wide_resnet16_2', batch=32),
    Network('wide_resnet28_10', batch=32),
    Network('resnext29_8x64d', batch=32),
    Network('resnext50_32x4d', batch=4),
    Network('wide_resnet50_2', batch=4),
)
ROUNDS, TURN_S = 5, 0.1
SHOWN = 4  # of each layout
# An earlier trial found these slower than Paddle's: they are shown whatever their ratio is.
WATCHED = ('7x7, 3 -> 64, stride 2, 224 px', '3x3, 128 -> 128, 32 groups, 56 px')


@dataclass(frozen=True)
class Times:
    """Seconds of both passes in each round."""

    onednn: list[float]
    paddle_nhwc: list[float]
    paddle_nchw: list[float]

    @property
    def nhwc(self) -> float:
        return self._ratio(self.paddle_nhwc)

    @property
    def nchw(self) -> float:
        return self._ratio(self.paddle_nchw)

    def _ratio(self, paddle: list[float]) -> float:
        """Of each round's own neighbours in time: the machine's speed drifts."""
        return median(theirs / ours for theirs, ours in zip(paddle, self.onednn))


def run(quick: bool) -> Result:
    how = {'rounds': 1, 'turn_s': 0.0} if quick else {'rounds': ROUNDS, 'turn_s': TURN_S}
    networks = [Network(n.model, CORES) for n in NETWORKS] if quick else NETWORKS
    shapes: dict[Network, list[Shape]] = {}
    times: dict[Shape, Times] = {}
    with on_cores(CORES), Worker('convolutions_worker', {}) as worker:
        for network in networks:
            [answer] = worker.ask('shapes', model=network.model, batch=network.batch)
            shapes[network] = [Shape(**shape) for shape in answer['shapes']]
        for shape in dict.fromkeys(shape for found in shapes.values() for shape in found):
            [answer] = worker.ask('measure', shape=asdict(shape), **how)
            times[shape] = Times(**answer)
    return judge(shapes, times)


def judge(shapes: dict[Network, list[Shape]], times: dict[Shape, Times]) -> Result:
    result, rows = Result(figures={}), []
    for network, found in shapes.items():
        title = f'{network.name}, batch {network.batch}'
        row = [title, f'{len(found)}']
        for ratios in ([times[s].nhwc for s in found], [times[s].nchw for s in found]):
            row += [f'{median(ratios):.2f}', f'{min(ratios):.2f}']
        rows.append(row)
        result.figures[network.name] = {
            'batch': network.batch,
            'paddle_nhwc_over_ours': {s.title: round(times[s].nhwc, 3) for s in found},
            'paddle_nchw_over_ours': {s.title: round(times[s].nchw, 3) for s in found},
        }
    header = ["Paddle's time / ours", 'convolutions', 'in NHWC: median', 'smallest']
    header += ['in NCHW: median', 'smallest']
    result.tables += [table(header, rows), describe(shapes, times)]
    smallest = min(one.nhwc for one in times.values())
    what = "every convolution: Paddle's time in NHWC / ours"
    result.claims.append(Claim(what, smallest, 1.0, 'x'))
    return result


def describe(shapes: dict[Network, list[Shape]], times: dict[Shape, Times]) -> str:
    """The table of the smallest ratios to either layout, and of what is watched."""
    smallest = [
        *sorted(times, key=lambda shape: times[shape].nhwc)[:SHOWN],
        *sorted(times, key=lambda shape: times[shape].nchw)[:SHOWN],
    ]
    watched = [shape for shape in times if shape.title in WATCHED]
    rows = []
    for shape in dict.fromkeys([*smallest, *watched]):
        one = times[shape]
        taken = one.onednn, one.paddle_nhwc, one.paddle_nchw
        rows.append(
            [
                shape.title,
                ', '.join(network.name for network, found in shapes.items() if shape in found),
                *(f'{1000 * median(seconds):.2f}' for seconds in taken),
                f'{one.nhwc:.2f}',
                f'{one.nchw:.2f}',
            ]
        )
    header = ['the smallest ratios, and those once slower', 'in', 'ours, ms', 'Paddle: NHWC, ms']
    return table([*header, 'NCHW, ms', 'NHWC / ours', 'NCHW / ours'], rows)
