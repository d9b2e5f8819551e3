"""Networks as export.py writes them, in both forms, with random weights.

python3 -m benchmarks.exported NAME CLASSES FILE    writes such weights
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from benchmarks.processes import REPOSITORY, clean_environment


@dataclass(frozen=True)
class Network:
    name: str
    title: str
    config: str  # of configs/: what pictures it sees
    classes: int


WRN_16_2 = Network('wide_resnet16_2', 'WRN-16-2', 'wrn16_2_cifar10_short', 10)
WRN_28_10 = Network('wide_resnet28_10', 'WRN-28-10', 'wrn28_10_cifar10', 10)
RESNEXT_50 = Network('resnext50_32x4d', 'ResNeXt-50 32x4d', 'resnext50_32x4d_imagenet', 1000)
WRN_50_2 = Network('wide_resnet50_2', 'WRN-50-2', 'wrn50_2_imagenet', 1000)


def folder_of(network: Network, scratch: Path, given: Optional[Path]) -> Path:
    """That folder's own, if one with exported folders is given; otherwise a new one."""
    if given is not None:
        if not (given / network.name).is_dir():
            sys.exit(f'{given} has no {network.name}/')
        return given / network.name
    weights, output = scratch / f'{network.name}.pdparams', scratch / network.name
    config = f'configs/{network.config}.yaml'
    _run('-m', 'benchmarks.exported', network.name, str(network.classes), str(weights))
    _run('export.py', '-c', config, '-w', str(weights), '--onnx', '--output', str(output))
    weights.unlink()
    return output


def _run(*arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if result.returncode:
        sys.exit(result.stderr)


def write_random(name: str, classes: int, file: Path) -> None:
    from engine import models
    from engine.weights import write_arrays

    model = models.build(name, num_classes=classes)
    with file.open('wb') as stream:
        write_arrays(stream, {key: value.numpy() for key, value in model.state_dict().items()})


if __name__ == '__main__':
    write_random(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
