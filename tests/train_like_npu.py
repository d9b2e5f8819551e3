"""train.py with the optimizer and the loss that an npu gets, on any device."""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from engine import cli, environment


def main() -> None:
    environment.prepare_cpu()
    from engine import optim  # imports paddle

    optim.runtime = SimpleNamespace(device_kind=lambda: 'npu')
    train.main()


sys.argv[0] = 'train.py'
cli.run(main)
