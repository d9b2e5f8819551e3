"""Mixed precision: what is computed in 16 bits, and what keeps it from losing small numbers.

O1 computes convolutions and matrix products in 16 bits, from weights in 32. O2 keeps the weights of
those layers in 16 bits, too; the optimizer then works on float32 master weights and gradients.
Batch norms have float32 parameters and statistics in both, and the loss is computed in float32.
float16 gradients are kept from underflowing by a factor on the loss (Micikevicius et al. 2018,
arXiv:1710.03740), fixed or as large as doesn't overflow; bfloat16 has float32's range, and none.
"""

from __future__ import annotations

from typing import Any, ContextManager

import numpy as np
import paddle
from paddle import nn

from engine.config import Train
from engine.errors import UserError
from engine.machine import collectives, support
from engine.weights import Arrays, state_arrays

MASTER = '_fp32_master_0'  # how Paddle names the master weight of a parameter


class Precision:
    """Everything that differs between float32 and mixed precision. Off on a CPU, where
    engine.cpu_conv computes in bfloat16."""

    def __init__(self, config: Train) -> None:
        half = support.mixed_precision(config)
        self.enabled = half is not None
        self._half = half or support.Mixed('O1', 'float16')
        # With master_grad, Paddle makes gradients float32 after a backward pass, and some devices
        # cannot add 16-bit ones to them: those that are accumulated stay in 16 bits.
        self._master_grad = config.accumulate == 1
        self._unproven: list[paddle.Tensor] = []
        self._scaler = paddle.amp.GradScaler(
            enable=self.enabled and self._half.dtype == 'float16',
            init_loss_scaling=config.loss_scale or 2.0**16,
            use_dynamic_loss_scaling=config.loss_scale is None,
        )

    def prepare(self, model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> None:
        """Before the first step: with O2, 16-bit weights and their exact masters."""
        if not self.enabled or self._half.level != 'O2':
            return
        collectives.broadcast(model.state_dict().values())  # all masters are the first process's
        exact = state_arrays(model)
        optimizer._use_multi_tensor = False  # as in make_optimizer
        paddle.amp.decorate(
            models=model,
            optimizers=optimizer,
            level='O2',
            dtype=self._half.dtype,
            master_weight=True,
            master_grad=self._master_grad,
        )
        optimizer.set_state_dict({'master_weights': master_weights(model, exact)})
        in_16_bits = [p for p in model.parameters() if p.dtype != paddle.float32]
        self._unproven = in_16_bits[:1] + in_16_bits[-1:]

    def autocast(self) -> ContextManager[None]:
        """Within, the network computes in 16 bits."""
        context: ContextManager[None] = paddle.amp.auto_cast(
            enable=self.enabled, level=self._half.level, dtype=self._half.dtype
        )
        return context

    def scale(self, loss: paddle.Tensor) -> paddle.Tensor:
        return self._scaler.scale(loss)

    def step(self, optimizer: paddle.optimizer.Optimizer) -> None:
        """The optimizer's step, left out where the scaled gradients have overflowed.

        UserError if it changes 16-bit weights and not their masters, which are saved.
        """
        before = self._watched(optimizer)
        self._scaler.step(optimizer)
        self._scaler.update()
        for (weight, master), (new_weight, new_master) in zip(before, self._watched(optimizer)):
            if np.array_equal(weight, new_weight):  # an overflow, or a rate of 0: check again
                return
            if np.array_equal(master, new_master):
                raise UserError(
                    'train.amp: O2 fails on this device: a step has changed the 16-bit weights, '
                    'but not the float32 master weights, which are saved; -o train.amp=O1'
                )
        self._unproven = []

    def _watched(self, optimizer: paddle.optimizer.Optimizer) -> list[tuple[Any, Any]]:
        """Copies of the first and the last 16-bit weights and their masters, until one step has
        changed both."""
        if not self._unproven:
            return []
        masters = optimizer.state_dict()['master_weights']
        return [(p.numpy().copy(), masters[p.name].numpy().copy()) for p in self._unproven]

    def state(self) -> dict[str, Any]:
        """The loss scale and its counters, as JSON can hold them; empty where there is none."""
        state = self._scaler.state_dict()
        return {**state, 'scale': float(np.asarray(state['scale']).item())} if state else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue with a saved scale, unless the config fixes it."""
        dynamic = self._scaler.is_enable() and self._scaler.is_use_dynamic_loss_scaling()
        if dynamic and state and state['use_dynamic_loss_scaling']:
            self._scaler.load_state_dict({**state, 'scale': np.array([state['scale']], np.float32)})


def master_weights(model: nn.Layer, arrays: Arrays) -> dict[str, paddle.Tensor]:
    """float32 masters with these values, for an optimizer, of the weights that have 16 bits."""
    masters = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype != paddle.float32:
            master = paddle.to_tensor(arrays[name].astype(np.float32))
            master.name = parameter.name + MASTER
            masters[parameter.name] = master
    return masters


def full_precision(
    model: nn.Layer, optimizer: paddle.optimizer.Optimizer
) -> dict[str, paddle.Tensor]:
    """The model's state dict with the float32 masters of 16-bit weights in their places."""
    masters = optimizer.state_dict().get('master_weights', {})
    return {name: masters.get(tensor.name, tensor) for name, tensor in model.state_dict().items()}
