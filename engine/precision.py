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

from engine import runtime
from engine.config import Train
from engine.weights import Arrays, state_arrays

MASTER = '_fp32_master_0'  # how Paddle names the master weight of a parameter


class Precision:
    """Everything that differs between float32 and mixed precision; on a CPU, nothing does (there,
    engine.cpu_conv rounds what oneDNN multiplies)."""

    def __init__(self, config: Train) -> None:
        self.enabled = config.amp != 'none' and runtime.is_accelerator()
        self._level, self._dtype = 'O2' if config.amp == 'O2' else 'O1', config.amp_dtype
        # Paddle makes gradients float32 after a backward pass, and then cannot add to them another
        # one's everywhere: those that are accumulated stay in 16 bits.
        self._master_grad = config.accumulate == 1
        self._scaler = paddle.amp.GradScaler(
            enable=self.enabled and config.amp_dtype == 'float16',
            init_loss_scaling=config.loss_scale or 2.0**16,
            use_dynamic_loss_scaling=config.loss_scale is None,
        )

    def prepare(self, model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> None:
        """Before the first step: with O2, 16-bit weights and their exact masters."""
        if not self.enabled or self._level != 'O2':
            return
        exact = state_arrays(model)
        paddle.amp.decorate(
            models=model,
            optimizers=optimizer,
            level='O2',
            dtype=self._dtype,
            master_weight=True,
            master_grad=self._master_grad,
        )
        optimizer.set_state_dict({'master_weights': master_weights(model, exact)})

    def autocast(self) -> ContextManager[None]:
        """Within, the network computes in 16 bits."""
        context: ContextManager[None] = paddle.amp.auto_cast(
            enable=self.enabled, level=self._level, dtype=self._dtype
        )
        return context

    def scale(self, loss: paddle.Tensor) -> paddle.Tensor:
        return self._scaler.scale(loss)

    def step(self, optimizer: paddle.optimizer.Optimizer) -> None:
        """The optimizer's step, left out where the scaled gradients have overflowed."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """The loss scale and its counters, as JSON can hold them; empty where there is none."""
        state = self._scaler.state_dict()
        return {**state, 'scale': float(np.asarray(state['scale']).item())} if state else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with a saved scale. One that the config fixes stays as the config has it."""
        enabled = state and self._scaler.is_enable()
        if (
            enabled
            and self._scaler.is_use_dynamic_loss_scaling()
            and state['use_dynamic_loss_scaling']
        ):
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
