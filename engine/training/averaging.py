"""Exponential moving average (EMA) of the weights."""

from __future__ import annotations

import contextlib
from typing import Callable, Iterator

import paddle
from paddle import nn

from engine.weights import Arrays


class AveragedWeights:
    """Exponential moving average of weights and running statistics, in float32.

    `weights` gives the tensors to average, by the names of the model's state dict. The decay rises
    as (1 + t) / (10 + t) up to `decay`, so that the average soon forgets the first steps.
    """

    def __init__(
        self, model: nn.Layer, weights: Callable[[], dict[str, paddle.Tensor]], *, decay: float
    ) -> None:
        self.decay = decay
        self._model, self._weights = model, weights
        self.average = {n: t.detach().astype('float32').clone() for n, t in weights().items()}

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        with paddle.no_grad():
            for name, tensor in self._weights().items():
                average = self.average[name]
                average.scale_(decay)
                average.add_(tensor * (1 - decay))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        own = {name: t.detach().clone() for name, t in self._model.state_dict().items()}
        average = {name: self.average[name].astype(t.dtype) for name, t in own.items()}
        self._model.set_state_dict(average)
        try:
            yield
        finally:
            self._model.set_state_dict(own)

    def arrays(self) -> Arrays:
        return {name: tensor.numpy().copy() for name, tensor in self.average.items()}

    def load_arrays(self, arrays: Arrays) -> None:
        for name, average in self.average.items():
            average.set_value(arrays[name])
