"""train.py with the optimizer and the loss that an npu gets, on any device."""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from engine import cli
from engine.machine import cpu


def main() -> None:
    cpu.prepare_cpu()
    from engine.training import loss, optimizers  # these import paddle

    optimizers.devices = loss.devices = SimpleNamespace(device_kind=lambda: 'npu')
    train.main()


sys.argv[0] = 'train.py'
cli.run(main)
