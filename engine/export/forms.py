"""The forms in which export.py can write a network: their options, and what they need.

Nothing here imports paddle: what is missing is reported before anything slow.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from engine.errors import UserError
from engine.export import int8, onnx_model
from engine.export.exported_folder import FORMATS
from installation import paddle_version


@dataclass(frozen=True)
class Forms:
    """What is written beside Paddle's graph, and how that is."""

    onnx: bool = False
    int8: bool = False
    uint8: bool = False  # the graph takes raw pixels
    graph: Optional[str] = None  # one of FORMATS; None: this Paddle's own

    @classmethod
    def of(cls, args: argparse.Namespace) -> Forms:
        """Of the options; 8 bits and Triton are made from model.onnx."""
        onnx = args.onnx or args.int8 or args.triton is not None
        return cls(onnx=onnx, int8=args.int8, uint8=args.uint8, graph=args.format)

    def prepare(self) -> None:
        """Choose the graph's format, before paddle is imported. UserError if it is impossible."""
        paddle = int(paddle_version().partition('.')[0]) or 3
        if self.graph == 'json' and paddle == 2:
            raise UserError('--format json needs Paddle 3; this one writes pdmodel')
        if self.graph is not None:
            os.environ.update(FLAGS_enable_pir_api='0' if self.graph == 'pdmodel' else '1')
        if self.onnx:
            onnx_model.require_converter(paddle)
        if self.int8:
            int8.require_quantiser()


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--onnx', action='store_true', help='write model.onnx, too')
    parser.add_argument(
        '--int8',
        action='store_true',
        help='write model.int8.onnx, too: 8 bits, calibrated on training images; with --onnx',
    )
    parser.add_argument(
        '--uint8',
        action='store_true',
        help='the network takes raw pixels, uint8 [batch, size, size, 3], and normalises them',
    )
    parser.add_argument(
        '--format',
        choices=FORMATS,
        help="the graph's format (default: this Paddle's own). pdmodel is read by Paddle 2.6, too; "
        'paddle.jit.load of Paddle 3 then needs FLAGS_enable_pir_api=0',
    )
    parser.add_argument(
        '--triton',
        type=Path,
        metavar='DIR',
        help="a model repository of NVIDIA Triton's, to which the network is added; with --onnx",
    )
