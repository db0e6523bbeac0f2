"""DenseNet-BC: every layer sees the maps of all layers before it; with torchvision's parameters, and for small images.

Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, CVPR 2017 (arXiv:1608.06993).
Pleiss, Chen, Huang, Li, van der Maaten, Weinberger: Memory-Efficient Implementation of DenseNets, 2017
(arXiv:1707.06990).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils.checkpoint import checkpoint

from fastconv import nn
from fastconv.models.registry import register_model

__all__ = [
    "DenseBlock",
    "DenseLayer",
    "DenseNet",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "densenet_bc_100",
    "mini_densenet",
]


class DenseLayer(torch.nn.Module):
    """Normalisation, ReLU, 1x1 to bottleneck · growth_rate maps; normalisation, ReLU, 3x3 to growth_rate maps.

    The input is the list of maps [N, C_i, H, W] of all layers before, the output [N, growth_rate, H, W].
    """

    def __init__(
        self, in_channels: int, growth_rate: int, bottleneck: int, dropout: float, memory_efficient: bool
    ) -> None:
        super().__init__()
        self.norm1 = torch.nn.BatchNorm2d(in_channels)
        self.relu1 = torch.nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, bottleneck * growth_rate, 1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(bottleneck * growth_rate)
        self.relu2 = torch.nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bottleneck * growth_rate, growth_rate, 3, padding=1, bias=False)
        self.dropout = dropout
        self.memory_efficient = memory_efficient

    def _bottleneck(self, *features: Tensor) -> Tensor:
        return self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), self._counted()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """While a batch is computed a second time, it does not enter the running statistics a second time."""
        statistics = dict(self.norm1.named_buffers())
        for name, buffer in statistics.items():
            setattr(self.norm1, name, buffer.clone())
        try:
            yield
        finally:
            for name, buffer in statistics.items():
                setattr(self.norm1, name, buffer)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        if self.memory_efficient and torch.is_grad_enabled() and not is_compiling():
            # The concatenated, normalised and rectified maps grow quadratically with the depth: compute them again.
            # A compiler chooses by itself what to keep.
            x = checkpoint(self._bottleneck, *features, use_reentrant=False, context_fn=self._contexts)
        else:
            x = self._bottleneck(*features)
        x = self.conv2(self.relu2(self.norm2(x)))
        return torch.nn.functional.dropout(x, self.dropout, self.training)


class DenseBlock(torch.nn.ModuleDict):
    """Dense layers `denselayer1`, `denselayer2`, …: [N, C, H, W] to [N, C + layers · growth_rate, H, W]."""

    def __init__(self, layers: int, in_channels: int, growth_rate: int, *options: Any) -> None:
        super().__init__(
            {
                f"denselayer{index + 1}": DenseLayer(in_channels + index * growth_rate, growth_rate, *options)
                for index in range(layers)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(torch.nn.Module):
    """DenseNet-BC with torchvision's parameters, shapes and initialisation; it loads torchvision's published weights.

    Args:
        growth_rate: k, the maps that every layer adds.
        block_config: layers in each block.
        initial_channels: maps of the first convolution; 2k in the paper.
        num_classes, in_channels: 1000 and 3 for ImageNet.
        bottleneck: the 1x1 convolutions give bottleneck · k maps; 4 in the paper.
        compression: the share of the maps that a transition keeps; 0.5 in the paper.
        dropout: behind every layer; 0.2 in the paper for CIFAR without augmentation.
        memory_efficient: keep no concatenated maps for the backward pass, but compute them again (Pleiss et al.);
            gradients are the same, and so are, unlike torchvision's, the running statistics.
        small_input: for images of about 32x32, as the paper's networks for CIFAR: the first convolution is 3x3 with
            stride 1, and no normalisation, ReLU or pooling stands before the first block.

    Input: [N, in_channels, H, W]. Output: [N, num_classes].
    """

    def __init__(
        self,
        growth_rate: int,
        block_config: Sequence[int],
        initial_channels: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        bottleneck: int = 4,
        compression: float = 0.5,
        dropout: float = 0.0,
        memory_efficient: bool = False,
        small_input: bool = False,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, torch.nn.Module] = OrderedDict()
        if small_input:
            layers["conv0"] = nn.Conv2d(in_channels, initial_channels, 3, padding=1, bias=False)
        else:
            layers["conv0"] = nn.Conv2d(in_channels, initial_channels, 7, stride=2, padding=3, bias=False)
            layers["norm0"] = torch.nn.BatchNorm2d(initial_channels)
            layers["relu0"] = torch.nn.ReLU(inplace=True)
            layers["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
        channels = initial_channels
        for index, count in enumerate(block_config, start=1):
            block = DenseBlock(count, channels, growth_rate, bottleneck, dropout, memory_efficient)
            layers[f"denseblock{index}"] = block
            channels += count * growth_rate
            if index < len(block_config):
                kept = int(channels * compression)
                layers[f"transition{index}"] = _transition(channels, kept)
                channels = kept
        layers["norm5"] = torch.nn.BatchNorm2d(channels)
        self.features = torch.nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = torch.nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        torch.nn.init.zeros_(self.classifier.bias)
        self.register_load_state_dict_pre_hook(_rename_published)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.relu(self.features(x), inplace=True)
        return self.classifier(self.pool(x).flatten(1))


def _transition(in_channels: int, out_channels: int) -> torch.nn.Sequential:
    """Fewer maps of half the size, between two blocks."""
    return torch.nn.Sequential(
        OrderedDict(
            norm=torch.nn.BatchNorm2d(in_channels),
            relu=torch.nn.ReLU(inplace=True),
            conv=nn.Conv2d(in_channels, out_channels, 1, bias=False),
            pool=nn.AvgPool2d(2, stride=2),
        )
    )


def _rename_published(module: torch.nn.Module, state: dict[str, Any], *_: Any) -> None:
    """torchvision's published files say `norm.1` for norm1: they are from a time when names could hold dots."""
    for name in list(state):
        renamed = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
        if renamed != name:
            state[renamed] = state.pop(name)


@register_model(input_shape=(3, 224, 224))
def densenet121(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> DenseNet:
    """DenseNet-121 (k = 32) of the paper's table 1.

    `options` are those of `DenseNet`.
    """
    return DenseNet(32, (6, 12, 24, 16), 64, num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def densenet161(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> DenseNet:
    """DenseNet-161 (k = 48) of the authors' code.

    `options` are those of `DenseNet`.
    """
    return DenseNet(48, (6, 12, 36, 24), 96, num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def densenet169(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> DenseNet:
    """DenseNet-169 (k = 32) of the paper's table 1.

    `options` are those of `DenseNet`.
    """
    return DenseNet(32, (6, 12, 32, 32), 64, num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def densenet201(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> DenseNet:
    """DenseNet-201 (k = 32) of the paper's table 1.

    `options` are those of `DenseNet`.
    """
    return DenseNet(32, (6, 12, 48, 32), 64, num_classes, in_channels, **options)


@register_model(input_shape=(3, 32, 32))
def densenet_bc_100(num_classes: int = 10, in_channels: int = 3, **options: Any) -> DenseNet:
    """The paper's DenseNet-BC (L = 100, k = 12) for CIFAR (table 2): 0.8 million parameters.

    `options` are those of `DenseNet`.
    """
    return DenseNet(12, (16, 16, 16), 24, num_classes, in_channels, small_input=True, **options)


@register_model(input_shape=(3, 32, 32))
def mini_densenet(num_classes: int = 10, in_channels: int = 3, **options: Any) -> DenseNet:
    """DenseNet-BC with 22 layers (k = 12) for images of 32x32: the paper's pattern for CIFAR in less time.

    `options` are those of `DenseNet`.
    """
    return DenseNet(12, (3, 3, 3), 24, num_classes, in_channels, small_input=True, **options)
