"""The multilayer perceptron: what the convolutional networks are measured against.

Rumelhart, Hinton, Williams: Learning Representations by Back-Propagating Errors, Nature 323, 1986.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from fastconv.models.registry import register_model

__all__ = ["mlp"]

_ACTIVATIONS: dict[str, type[torch.nn.Module]] = {
    "sigmoid": torch.nn.Sigmoid,
    "tanh": torch.nn.Tanh,
    "relu": torch.nn.ReLU,
}


@register_model(input_shape=(1, 28, 28))
def mlp(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: tuple[int, int] = (28, 28),
    hidden: Sequence[int] = (30,),
    activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid",
) -> torch.nn.Sequential:
    """Linear layers with an activation between: the textbook's 784, 30 and 10 units with the sigmoid.

    The last layer gives scores for cross entropy, where the textbooks put one more sigmoid. Weights are drawn by
    Glorot's initialisation, biases are 0.

    Input: [N, in_channels, height, width] of `image_size`. Output: [N, num_classes].

    Args:
        hidden: units of the hidden layers; () makes a linear classifier.
        activation: behind every hidden layer.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
    layers: list[torch.nn.Module] = [torch.nn.Flatten()]
    units = in_channels * image_size[0] * image_size[1]
    for size in (*hidden, num_classes):
        linear = torch.nn.Linear(units, size)
        torch.nn.init.xavier_uniform_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        layers += [linear, _ACTIVATIONS[activation]()]
        units = size
    return torch.nn.Sequential(*layers[:-1])
