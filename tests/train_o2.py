"""train.py on an npu whose momentum has master weights: there, O2 stays O2."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from engine import cli
from engine.machine import support

support.LACKING = {}
sys.argv[0] = 'train.py'
cli.run(train.main)
