"""A convolutional network for signals and other time series.

Wang, Yan, Oates: Time Series Classification from Scratch with Deep Neural Networks: A Strong Baseline, IJCNN 2017
(arXiv:1611.06455).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastconv import nn
from fastconv.models.registry import register_model

__all__ = ["cnn1d"]


@register_model(input_shape=(1, 128))
def cnn1d(
    num_classes: int = 10,
    in_channels: int = 1,
    channels: Sequence[int] = (128, 256, 128),
    kernel_sizes: Sequence[int] = (8, 5, 3),
    pooling: int = 1,
) -> torch.nn.Sequential:
    """Three 1-D convolutions and the mean over time, for signals: "FCN" of Wang et al.

    Batch normalisation and ReLU stand behind every convolution. Weights are drawn by He's initialisation. Every
    convolution keeps the length; an even kernel reaches one sample further to the right.

    Input: [N, in_channels, samples]. Output: [N, num_classes].

    Args:
        in_channels: sensors, or other values a sample.
        channels, kernel_sizes: of the convolutions.
        pooling: width of a max pooling behind every convolution but the last; 1, the paper's, is none.
    """
    if len(channels) != len(kernel_sizes):
        raise ValueError(f"channels, kernel_sizes: expected as many, got {len(channels)} and {len(kernel_sizes)}")
    layers: list[torch.nn.Module] = []
    for count, kernel_size in zip(channels, kernel_sizes, strict=True):
        if layers and pooling > 1:
            layers.append(nn.MaxPool1d(pooling))
        conv = nn.Conv1d(in_channels, count, kernel_size, padding="same", bias=False)
        torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, torch.nn.BatchNorm1d(count), torch.nn.ReLU(inplace=True)]
        in_channels = count
    layers += [nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(in_channels, num_classes)]
    return torch.nn.Sequential(*layers)
