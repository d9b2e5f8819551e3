"""The mixed precision, memory layout and compiler that each device supports; what `auto` means.

From the sources of Paddle 2.6 to 3.3 and paddle-custom-npu (docs/gpu.md and docs/ascend.md).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Optional

from engine.config import Model, Train
from engine.errors import UserError
from engine.machine import devices, processes

PERSISTENT = 'FLAGS_cudnn_batchnorm_spatial_persistent'
# device -> what it does not support, and why.
LACKING = {
    'npu': {
        'O2': 'momentum there ignores its float32 master weights',
        'bfloat16': 'batch norm there has no bfloat16',
    }
}


@dataclass(frozen=True)
class Mixed:
    """The 16-bit part of mixed precision."""

    level: str  # O1, or O2: 16-bit weights, too
    dtype: str  # float16 or bfloat16


def mixed_precision(train: Train) -> Optional[Mixed]:
    """None for float32, and on a CPU, where engine.cpu_conv decides."""
    return _decide(train)[0]


def data_format(train: Train, model: Model) -> str:
    """NCHW or NHWC. On a GPU float16 computes in NHWC, and NCHW is transposed at each layer."""
    if model.data_format != 'auto':
        return model.data_format
    half = mixed_precision(train)
    by_itself = devices.device_kind() == 'gpu' and half is not None and half.dtype == 'float16'
    return 'NHWC' if by_itself else 'NCHW'


def check(train: Train, model: Model) -> list[str]:
    """Lines about the precision and layout in use. UserError for what the device lacks."""
    import paddle

    device = devices.device_kind()
    if train.sync_bn and device != 'gpu':
        raise UserError(
            f'train.sync_bn: Paddle has no SyncBatchNorm kernel for {device}; '
            '-o train.sync_bn=false gives each process batch norms of its own'
        )
    if model.data_format == 'NHWC' and device == 'npu':
        raise UserError(
            'model.data_format: NHWC is slower on npu, whose kernels transpose it there and back; '
            '-o model.data_format=NCHW'
        )
    if train.to_static == 'cinn' and not paddle.is_compiled_with_cinn():
        raise UserError(
            'train.to_static: this paddle was built without CINN; -o train.to_static=true'
        )
    half, why = _decide(train)
    layout = data_format(train, model)
    processes.require_same('mixed precision', lambda: f'{half}, {layout}')
    if device == 'cpu':
        return []
    lines = []
    if train.amp != 'none':
        lines = [f'mixed precision: {f"{half.level} {half.dtype}" if half else "off"}{why}']
    return lines + (_choose_batch_norm(layout, half) if device == 'gpu' else [])


def _choose_batch_norm(layout: str, half: Optional[Mixed]) -> list[str]:
    """On a GPU with NHWC: use the batch norm that does not transpose; lines about what is used."""
    import paddle

    dtype = 'float32' if half is None else half.dtype
    # Without it, batch norms transpose float16, too. In NCHW it costs accuracy (Paddle's pull
    # request 71942), and an earlier command in this process (a notebook) may have set it.
    persistent = layout == 'NHWC' and dtype == 'float16'
    set_by_user = os.environ.get(PERSISTENT, '').lower() in ('1', 'true')
    paddle.set_flags({PERSISTENT: int(persistent or set_by_user)})
    if layout == 'NCHW':
        return []
    if persistent:
        return ["layout: NHWC, with cuDNN's persistent batch norm"]
    what = 'convolutions and batch norms' if half is None else 'batch norms'
    return [f'layout: NHWC; {what} transpose {dtype} there and back, NCHW may be faster']


def _decide(train: Train) -> tuple[Optional[Mixed], str]:
    """The precision, and why it differs from the config's."""
    device = devices.device_kind()
    if train.amp == 'none' or device == 'cpu':
        return None, ''
    level, dtype, why = train.amp, train.amp_dtype, ''
    lacking = LACKING.get(device, {})
    if level == 'O2' and 'O2' in lacking:
        level, why = 'O1', f' (not O2: {lacking["O2"]})'
    if dtype != 'float16':
        problem = _lack_of_bfloat16(level, lacking)
        if dtype == 'auto':
            dtype = 'float16' if problem else 'bfloat16'
            why += f' ({problem})' if problem else ''
        elif problem:
            advice = '-o train.amp=O1' if level == 'O2' else '-o train.amp_dtype=auto'
            raise UserError(f'train.amp_dtype: {problem}; {advice}')
    if dtype == 'float16' and device == 'gpu':
        import paddle

        major, minor = paddle.device.cuda.get_device_capability()
        if major < 7:  # where Paddle switches it off, with a warning
            return None, f': this gpu has compute capability {major}.{minor}, it needs 7.0'
    return Mixed(level, dtype), why


def _lack_of_bfloat16(level: str, lacking: dict[str, str]) -> Optional[str]:
    import paddle

    if 'bfloat16' in lacking:
        return lacking['bfloat16']
    if devices.device_kind() != 'gpu':
        return None
    if not paddle.amp.is_bfloat16_supported():
        return 'this gpu has no bfloat16'
    kernels = paddle.base.core._get_all_register_op_kernels('phi')['momentum']
    if level == 'O2' and not any('bfloat16' in k and 'gpu' in k.lower() for k in kernels):
        return 'momentum has no bfloat16 kernel, which O2 needs'
    return None
