"""What bounds a training step: the shares of its kernels, as paddle.profiler sees them.

Claim: on a CPU, most of a step is convolution, by oneDNN's kernels near the speed of a large
matrix product, so that not much is left to be gained.
Falsified by: python3 -m benchmarks profile_step
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from benchmarks.processes import on_cores
from benchmarks.report import Result, table
from benchmarks.train_step import CORES, MATMUL_SIZE, Network, our_worker, step_flops

NETWORKS = {  # and steps
    Network('wide_resnet16_2', batch=64): 5,
    Network('wide_resnet28_10', batch=16, dropout=0.3): 2,
    Network('resnext50_32x4d', batch=8): 2,
}
REST = 'the rest'
TIMES = 3  # of the product
KINDS = {
    'convolution forward': 'convolution, forward',
    'convolution backward': 'convolution, backward',
    'batch norm forward': 'batch norm and its ReLU',
    'batch norm backward': 'batch norm and its ReLU',
    'relu': 'other ReLU',
    'relu_grad': 'other ReLU',
    'pool2d': 'max pooling',
    'pool2d_grad': 'max pooling',
    'add': 'sum with the shortcut',
    'add_grad': 'sum with the shortcut',
    'dropout': 'dropout',
    'dropout_grad': 'dropout',
    'momentum': 'optimizer',
}


def run(quick: bool) -> Result:
    result = Result(figures={})
    header, columns, products = ['share of a training step'], [], []
    for network, steps in NETWORKS.items():
        if quick:
            network, steps = replace(network, batch=2), 1
        shares, product = measure(network, steps)
        header.append(f'{network.name}, batch {network.batch}')
        columns.append(shares)
        products.append(f'{100 * product:.1f} %')
        result.figures[network.name] = {
            'batch': network.batch,
            'percent': {kind: round(100 * share, 1) for kind, share in shares.items()},
            'percent_of_products_at_matmul_speed': round(100 * product, 1),
        }
    kinds = list(dict.fromkeys(kind for shares in columns for kind in shares))
    rows = [[kind, *(f'{100 * shares.get(kind, 0):.1f} %' for shares in columns)] for kind in kinds]
    rows.append([f'(its convolutions at the speed of a {MATMUL_SIZE}³ product)', *products])
    result.tables.append(table(header, rows))
    return result


def measure(network: Network, steps: int) -> tuple[dict[str, float], float]:
    """Share of each kind, and of the convolutions if they ran at the speed of a large product."""
    with on_cores(CORES), our_worker(network) as worker:

        def product_s() -> float:
            [answer] = worker.ask('matmul', size=MATMUL_SIZE, times=TIMES)
            return float(answer['seconds']) / TIMES

        before = [product_s() for _ in range(3)]
        [answer] = worker.ask('profile', times=steps)
        fastest_s = min(*before, *(product_s() for _ in range(3)))
        flops = step_flops(worker) * network.batch * steps
    shares: Counter[str] = Counter()
    for kernel, taken_s in answer['kernels'].items():
        shares[KINDS.get(kernel, REST)] += taken_s / answer['seconds']
    shares[REST] += 1 - sum(shares.values())  # Python, and what lies between the kernels
    ideal = flops / (2 * MATMUL_SIZE**3 / fastest_s) / answer['seconds']
    return dict(shares.most_common()), ideal
