"""A folder of a model repository for NVIDIA Triton: config.pbtxt, labels.txt and 1/model.onnx.

The keys are those of Triton's model_config.proto; the parameters of TensorRT are those that the
README of its onnxruntime backend documents.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from engine.errors import UserError
from engine.export.exported_folder import ONNX, OUTPUT, move_into_place, parents_of, require_new
from engine.files import beside, sha256_of
from predictor.exported_folder import Input

MAX_BATCH = 32
CONFIG = """\
# Written by export.py for Triton's onnxruntime backend, with a GPU or without. max_batch_size
# stands for the first dimension of every tensor, which dims leave out.
name: "{name}"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [ {{ name: "{input}", data_type: {kind}, dims: {dims} }} ]
output [
  {{ name: "{output}", data_type: TYPE_FP32, dims: [ {classes} ], label_filename: "labels.txt" }}
]

# A request waits this long at most for others to share a batch with.
dynamic_batching {{
  preferred_batch_size: [ 8, 16, {max_batch} ]
  max_queue_delay_microseconds: 2000
}}

# On each GPU, or on the CPU where there is none.
instance_group [ {{ count: 1, kind: KIND_AUTO }} ]

# Before the model is ready, so that no request waits: the smallest and the largest batch.
{warmup}
# For GPUs only: an instance on the CPU does not look here. Where Triton was built without TensorRT,
# or to do without it, delete this block: CUDA runs the model then.
optimization {{
  execution_accelerators {{
    gpu_execution_accelerator [
      {{
        name: "tensorrt"
        parameters {{ key: "precision_mode" value: "FP32" }}  # FP16 is faster, and rounds more
        parameters {{ key: "max_workspace_size_bytes" value: "1073741824" }}
{profile}        parameters {{ key: "trt_engine_cache_enable" value: "true" }}
        # Building engines takes minutes; a volume here keeps them. ONNX Runtime names them by the
        # graph, not by the weights (its issue 6455), so each model.onnx has a folder of its own.
        parameters {{ key: "trt_engine_cache_path" value: "/tmp/tensorrt-{name}-{digest}" }}
      }}
    ]
  }}
}}
"""
PROFILE = """\
        # One engine for all batches, where each larger one would have another built. Triton before
        # 24.04 does not know these three: delete them there.
        parameters {{ key: "trt_profile_min_shapes" value: "{input}:1x{dims}" }}
        parameters {{ key: "trt_profile_opt_shapes" value: "{input}:{max_batch}x{dims}" }}
        parameters {{ key: "trt_profile_max_shapes" value: "{input}:{max_batch}x{dims}" }}
"""
WARMUP = """\
model_warmup {{
  name: "batch {batch}"
  batch_size: {batch}
  inputs {{
    key: "{input}"
    value {{ data_type: {kind}, dims: {dims}, zero_data: true }}
  }}
}}
"""


def require_new_model(model: Path, output: Path) -> None:
    """UserError if it is there already, or if it and the output contain each other."""
    one, other = output.resolve(), model.resolve()
    if one in (other, *other.parents) or other in one.parents:
        raise UserError(f'{output} and {model} must not contain each other (--output, --triton)')
    require_new(model)


def add(target: Path, exported: Path, image: Input, classes: list[str]) -> None:
    """Add the model.onnx of an exported folder to a model repository, as REPOSITORY/NAME."""
    target = target.resolve()
    with parents_of(target):
        # Triton takes every folder in its repository for a model, so that this one is written in
        # the exported folder. From another disk it could not be renamed.
        same_disk = target.parent.stat().st_dev == exported.stat().st_dev
        aside = exported / 'triton' if same_disk else beside(target, 'writing')
        shutil.rmtree(aside, ignore_errors=True)  # left by an export that was killed
        try:
            write(aside, exported / ONNX, image, classes, name=target.name)
            move_into_place(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def write(folder: Path, model: Path, image: Input, classes: list[str], *, name: str) -> None:
    """Write the folder of the model called `name`: this model.onnx and what Triton must know."""
    (folder / '1').mkdir(parents=True)
    shutil.copyfile(model, folder / '1' / ONNX)
    # A line a class, even if the folder of its pictures has a name of several lines.
    labels = [' '.join(label.splitlines()) for label in classes]
    (folder / 'labels.txt').write_text('\n'.join([*labels, '']), encoding='utf-8')
    uint8 = image.type == 'uint8'
    known = {
        'input': image.name,
        'kind': 'TYPE_UINT8' if uint8 else 'TYPE_FP32',
        'dims': list(image.shape),
    }
    # A uint8 input is cast before TensorRT's part begins, whose own input has another name.
    profile = {'input': image.name, 'max_batch': MAX_BATCH, 'dims': 'x'.join(map(str, image.shape))}
    config = CONFIG.format(
        name=name,
        max_batch=MAX_BATCH,
        output=OUTPUT,
        classes=len(classes),
        warmup=''.join(WARMUP.format(batch=batch, **known) for batch in (1, MAX_BATCH)),
        digest=sha256_of(model)[:12],
        profile='' if uint8 else PROFILE.format(**profile),
        **known,
    )
    (folder / 'config.pbtxt').write_text(config, encoding='utf-8')
