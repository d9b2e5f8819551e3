"""Parameters and multiply-adds of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # names are checked before paddle is imported
    import paddle
    from paddle import nn


def parameter_count(model: nn.Layer) -> int:
    """Trainable parameters (the running statistics of batch norms are none)."""
    return sum(p.size for p in model.parameters() if not p.stop_gradient)


def multiply_adds(model: nn.Layer, image_size: int) -> int:
    """Multiply-adds of convolutions and the last layer for one image, counted as they happen."""
    import paddle
    from paddle import nn

    counts = []

    def count(layer: nn.Layer, inputs: tuple[paddle.Tensor], output: paddle.Tensor) -> None:
        # Each output value sums over one filter: all but the first axis of a convolution's weight
        # [out, in / groups, k, k], the first axis of a linear layer's [in, out].
        convolution = isinstance(layer, nn.Conv2D)
        filter_size = layer.weight[0].size if convolution else layer.weight.shape[0]
        counts.append(output.size * filter_size)

    kinds = (nn.Conv2D, nn.Linear)
    counted = [layer for layer in model.sublayers() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_post_hook(count) for layer in counted]
    was_training = {layer: layer.training for layer in model.sublayers(include_self=True)}
    try:
        model.eval()
        with paddle.no_grad():
            model(paddle.zeros([1, 3, image_size, image_size]))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in was_training.items():
            layer.training = training
    return sum(counts)
