"""VGG: stacks of 3x3 convolutions, with torchvision's parameters; fully convolutional; a small one for small images.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015 (arXiv:1409.1556).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastconv import nn
from fastconv.models.registry import register_model

__all__ = [
    "CONFIGURATIONS",
    "VGG",
    "FullyConvVGG",
    "convolutional_classifier",
    "mini_vgg",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg16_fully_conv",
    "vgg19",
    "vgg19_bn",
    "vgg_features",
]

# The paper's table 1: for each of five stages, which a max pooling ends, the channels of its convolutions.
CONFIGURATIONS = {
    "A": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "B": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "D": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "E": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}


def vgg_features(
    stages: Sequence[Sequence[int]],
    in_channels: int = 3,
    batch_norm: bool = False,
    first_padding: int = 1,
    ceil_mode: bool = False,
) -> torch.nn.Sequential:
    """Stages of 3x3 convolutions with ReLU, each ended by a 2x2 max pooling.

    Args:
        stages: the channels of each stage's convolutions, such as `CONFIGURATIONS["D"]`.
        in_channels: of the images.
        batch_norm: normalise behind every convolution.
        first_padding: of the first convolution; that of the others is 1.
        ceil_mode: of the poolings; True keeps an odd last row and column.
    """
    layers: list[torch.nn.Module] = []
    padding = first_padding
    for stage in stages:
        for channels in stage:
            layers.append(nn.Conv2d(in_channels, channels, 3, padding=padding))
            if batch_norm:
                layers.append(torch.nn.BatchNorm2d(channels))
            layers.append(torch.nn.ReLU(inplace=True))
            in_channels, padding = channels, 1
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=ceil_mode))
    return torch.nn.Sequential(*layers)


def initialize(model: torch.nn.Module) -> None:
    """torchvision's initialisation: He's by the fan-out for convolutions, N(0, 0.01²) for linear layers, biases 0."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, 0, 0.01)
            torch.nn.init.zeros_(module.bias)


class VGG(torch.nn.Module):
    """VGG with torchvision's parameters, shapes and initialisation.

    As in torchvision an average pooling to 7x7 before the classifier lets images of other sizes pass; for the
    paper's 224x224 it changes nothing. The paper starts deeper networks from trained shallower ones; He's
    initialisation has made that unnecessary.

    Args:
        configuration: a letter of the paper's table 1: A, B, D or E, with 11, 13, 16 or 19 layers.
        num_classes, in_channels: 1000 and 3 for ImageNet.
        batch_norm: normalise behind every convolution (not in the paper).
        dropout: of the classifier's two hidden layers.
        small_input: for images of about 32x32: the classifier is one linear layer on the mean of the last map.

    Input: [N, in_channels, H, W], at least 32x32. Output: [N, num_classes].
    """

    def __init__(
        self,
        configuration: Literal["A", "B", "D", "E"],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        batch_norm: bool = False,
        dropout: float = 0.5,
        small_input: bool = False,
    ) -> None:
        super().__init__()
        if configuration not in CONFIGURATIONS:
            raise ValueError(f"configuration: expected one of {', '.join(CONFIGURATIONS)}, got {configuration!r}")
        self.features = vgg_features(CONFIGURATIONS[configuration], in_channels, batch_norm)
        if small_input:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.classifier = torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(512, num_classes))
        else:
            self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
            self.classifier = torch.nn.Sequential(
                torch.nn.Linear(512 * 7 * 7, 4096),
                torch.nn.ReLU(inplace=True),
                torch.nn.Dropout(dropout),
                torch.nn.Linear(4096, 4096),
                torch.nn.ReLU(inplace=True),
                torch.nn.Dropout(dropout),
                torch.nn.Linear(4096, num_classes),
            )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def convolutional_classifier(
    in_channels: int, channels: int = 4096, padding: int = 0, dropout: float = 0.5
) -> torch.nn.Sequential:
    """VGG's two hidden linear layers as convolutions of 7x7 and 1x1, under the same names (`0` and `3`).

    It also loads the linear layers' weights [channels, in_channels · 49] and [channels, channels], which are the
    convolutions' in another shape.
    """
    layers = torch.nn.Sequential(
        nn.Conv2d(in_channels, channels, 7, padding=padding),
        torch.nn.ReLU(inplace=True),
        torch.nn.Dropout(dropout),
        nn.Conv2d(channels, channels, 1),
        torch.nn.ReLU(inplace=True),
        torch.nn.Dropout(dropout),
    )
    layers.register_load_state_dict_pre_hook(_linear_to_convolution)
    return layers


def _linear_to_convolution(module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give weights of linear layers in `state` the shape of the convolutions that have taken their place."""
    for name, parameter in module.named_parameters():
        value = state.get(prefix + name)
        if isinstance(value, Tensor) and value.dim() == 2 and value.numel() == parameter.numel():
            state[prefix + name] = value.view(parameter.shape)


class FullyConvVGG(torch.nn.Module):
    """VGG-16 whose classifier is three convolutions, for images of any size; see `vgg16_fully_conv`."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = vgg_features(CONFIGURATIONS["D"], in_channels)
        self.classifier = convolutional_classifier(512, dropout=dropout)
        self.classifier.append(nn.Conv2d(4096, num_classes, 1))
        initialize(self.features)
        for layer in self.classifier:
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.normal_(layer.weight, 0, 0.01)
                torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


@register_model(input_shape=(3, 224, 224))
def vgg11(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> VGG:
    """VGG-11, configuration A of the paper.

    `options` are those of `VGG`.
    """
    return VGG("A", num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def vgg13(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> VGG:
    """VGG-13, configuration B of the paper.

    `options` are those of `VGG`.
    """
    return VGG("B", num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def vgg16(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> VGG:
    """VGG-16, configuration D of the paper.

    `options` are those of `VGG`.
    """
    return VGG("D", num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def vgg19(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> VGG:
    """VGG-19, configuration E of the paper.

    `options` are those of `VGG`.
    """
    return VGG("E", num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def vgg11_bn(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> VGG:
    """VGG-11 with batch normalisation.

    `options` are those of `VGG`.
    """
    return VGG("A", num_classes, in_channels, batch_norm=True, **options)


@register_model(input_shape=(3, 224, 224))
def vgg13_bn(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> VGG:
    """VGG-13 with batch normalisation.

    `options` are those of `VGG`.
    """
    return VGG("B", num_classes, in_channels, batch_norm=True, **options)


@register_model(input_shape=(3, 224, 224))
def vgg16_bn(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> VGG:
    """VGG-16 with batch normalisation.

    `options` are those of `VGG`.
    """
    return VGG("D", num_classes, in_channels, batch_norm=True, **options)


@register_model(input_shape=(3, 224, 224))
def vgg19_bn(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> VGG:
    """VGG-19 with batch normalisation.

    `options` are those of `VGG`.
    """
    return VGG("E", num_classes, in_channels, batch_norm=True, **options)


@register_model(input_shape=(3, 224, 224))
def vgg16_fully_conv(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> FullyConvVGG:
    """VGG-16 with its classifier as convolutions, for images of any size (the paper's section 3.2).

    It loads the state of `vgg16`, whose linear layers are its convolutions of 7x7 and 1x1 in another shape, and then
    gives for every window of 224x224, at steps of 32 pixels, the scores that `vgg16` gives for that window, but for
    what the convolutions' zero padding does at the window's border.

    Input: [N, in_channels, H, W], at least 224x224. Output: [N, num_classes, H // 32 - 6, W // 32 - 6]; its mean over
    the map is what the paper scores an image by.
    """
    return FullyConvVGG(num_classes, in_channels, dropout)


@register_model(input_shape=(3, 32, 32))
def mini_vgg(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.25) -> torch.nn.Sequential:
    """Two stages of two 3x3 convolutions (32, 64 channels) and 512 hidden units, for images of 32x32.

    VGG's pattern at CIFAR's size (Rosebrock: Deep Learning for Computer Vision with Python, "MiniVGGNet"): batch
    normalisation behind every ReLU, dropout behind every stage and, twice as much of it, behind the hidden layer.

    Input: [N, in_channels, 32, 32]. Output: [N, num_classes].
    """
    layers: list[torch.nn.Module] = []
    before = in_channels
    for channels in (32, 64):
        for _ in range(2):
            layers += [nn.Conv2d(before, channels, 3, padding=1), torch.nn.ReLU(), torch.nn.BatchNorm2d(channels)]
            before = channels
        layers += [nn.MaxPool2d(2), torch.nn.Dropout(dropout)]
    layers += [torch.nn.Flatten(), torch.nn.Linear(64 * 8 * 8, 512), torch.nn.ReLU(), torch.nn.BatchNorm1d(512)]
    layers += [torch.nn.Dropout(2 * dropout), torch.nn.Linear(512, num_classes)]
    model = torch.nn.Sequential(*layers)
    for layer in model:
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return model
