"""A plain convolutional network for Fashion-MNIST, between LeNet-5 and AlexNet in size.

Géron: Hands-On Machine Learning with Scikit-Learn, Keras & TensorFlow (O'Reilly), chapter "Deep Computer Vision Using
Convolutional Neural Networks".
"""

from __future__ import annotations

import torch

from fastconv import nn
from fastconv.models.registry import register_model

__all__ = ["fashion_cnn"]


def _convolution(in_channels: int, out_channels: int, kernel_size: int) -> list[torch.nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel_size, padding="same"), torch.nn.ReLU(inplace=True)]


@register_model(input_shape=(1, 28, 28))
def fashion_cnn(num_classes: int = 10, in_channels: int = 1, dropout: float = 0.5) -> torch.nn.Sequential:
    """Five convolutions (7x7, then 3x3) with poolings between, and three linear layers: for Fashion-MNIST.

    64@7x7, pooling, 2 x 128@3x3, pooling, 2 x 256@3x3, pooling, 64, dropout, 64, dropout, classes; every convolution
    keeps the size; 1,262,218 parameters. The book has 128 units in the first linear layer.

    Weights are drawn as Keras, in which the book has the network, does it: Glorot's uniform initialisation (Glorot,
    Bengio: Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010), biases 0. He's,
    whose variance is larger, begins with scores so large, and with dropout so noisy, that the first steps leave most
    of the 64 units of the first linear layer at zero for all images; few of them ever come back.

    Input: [N, in_channels, 28, 28]. Output: [N, num_classes], for cross entropy.
    """
    model = torch.nn.Sequential(
        *_convolution(in_channels, 64, 7),
        nn.MaxPool2d(2),
        *_convolution(64, 128, 3),
        *_convolution(128, 128, 3),
        nn.MaxPool2d(2),
        *_convolution(128, 256, 3),
        *_convolution(256, 256, 3),
        nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(256 * 3 * 3, 64),
        torch.nn.ReLU(inplace=True),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(inplace=True),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(64, num_classes),
    )
    for layer in model:
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return model
