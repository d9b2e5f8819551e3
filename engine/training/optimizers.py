"""The optimizer, and its state under the names of the model's parameters."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

from engine import config as configs
from engine.machine import devices
from engine.training.precision import MASTER, master_weights
from engine.weights import Arrays


def make_optimizer(model: nn.Layer, config: configs.Optimizer) -> paddle.optimizer.Momentum:
    """SGD with momentum over the trainable parameters; its rate is set before each step."""
    trainable = [p for p in model.parameters() if not p.stop_gradient]
    if not config.decay_bn_and_bias:  # a regularizer of its own outranks the optimizer's
        for parameter in trainable:
            if parameter.ndim <= 1:
                parameter.regularizer = paddle.regularizer.L2Decay(0.0)
    clip = nn.ClipGradByGlobalNorm(config.clip_norm) if config.clip_norm is not None else None
    # One kernel for all tensors, equal to the bit. An npu's loops over them, and in 16 bits
    # it needs gradients of 16 bits.
    float32 = all(parameter.dtype == paddle.float32 for parameter in trainable)
    one_kernel = float32 and devices.device_kind() != 'npu'
    return paddle.optimizer.Momentum(
        learning_rate=config.lr,
        momentum=config.momentum,
        use_nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        parameters=trainable,
        grad_clip=clip,
        use_multi_tensor=one_kernel,
    )


def optimizer_arrays(optimizer: paddle.optimizer.Momentum, model: nn.Layer) -> Arrays:
    """Optimizer state under structured names (conv1.weight/velocity_0): Paddle's automatic ones
    change as soon as another model has been built first. Master weights are the model's own."""
    # What was loaded stays in the holder until the first step uses it.
    state = {**optimizer._accumulators_holder, **optimizer.state_dict()}
    arrays = {}
    for name, parameter in model.named_parameters():
        prefix = f'{parameter.name}_'
        for key, value in state.items():
            if key.startswith(prefix):
                slot = key.removeprefix(f'{parameter.name}{MASTER}').removeprefix(parameter.name)
                arrays[f'{name}/{slot[1:]}'] = np.array(value)
    return arrays


def load_optimizer_arrays(
    optimizer: paddle.optimizer.Momentum, model: nn.Layer, arrays: Arrays, weights: Arrays
) -> None:
    """The inverse of `optimizer_arrays`, also for a model that was built later.

    `weights` are those of the model in full precision: where its own have 16 bits, the masters.
    """
    masters = master_weights(model, weights)
    own = {
        name: masters[p.name].name if p.name in masters else p.name
        for name, p in model.named_parameters()
    }
    split = {full: full.rsplit('/', 1) for full in arrays}
    state = {f'{own[name]}_{slot}': arrays[full] for full, (name, slot) in split.items()}
    optimizer.set_state_dict({**state, 'master_weights': masters} if masters else state)
