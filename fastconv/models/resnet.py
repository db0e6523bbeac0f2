"""Residual networks: ResNet, ResNeXt and Wide ResNet with torchvision's parameters, and the paper's networks for CIFAR.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016 (arXiv:1512.03385).
Xie, Girshick, Dollár, Tu, He: Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017
(arXiv:1611.05431).
Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016 (arXiv:1605.07146).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv import nn
from fastconv.models.registry import register_model

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "ResNet",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

Norm = Callable[[int], torch.nn.Module]


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, groups, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class BasicBlock(torch.nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left): [N, C, H, W] to [N, channels, H/stride, W/stride].

    Args:
        in_channels, channels, stride: of the first convolution.
        downsample: the shortcut, where it cannot be the identity.
        norm: the normalisation for a number of channels.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        downsample: torch.nn.Module | None = None,
        norm: Norm = torch.nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = norm(channels)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = norm(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return self.relu(x)


class Bottleneck(torch.nn.Module):
    """1x1 to `width` channels, 3x3, 1x1 to 4 · channels, and a shortcut (figure 5, right).

    As in torchvision the stride is the 3x3 convolution's; the paper's is the first 1x1 convolution's, which throws
    three quarters of its input away.

    Args:
        in_channels, channels, stride, downsample, norm: as for `BasicBlock`; 4 · channels come out.
        width, groups, dilation: of the 3x3 convolution.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        downsample: torch.nn.Module | None = None,
        norm: Norm = torch.nn.BatchNorm2d,
        *,
        width: int,
        groups: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = _conv1x1(in_channels, width)
        self.bn1 = norm(width)
        self.conv2 = _conv3x3(width, width, stride, groups, dilation)
        self.bn2 = norm(width)
        self.conv3 = _conv1x1(width, channels * self.expansion)
        self.bn3 = norm(channels * self.expansion)
        self.relu = torch.nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        return self.relu(x)


def _initialize(model: torch.nn.Module) -> None:
    """He's initialisation by the fan-out for convolutions; 1 and 0 for normalisations."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (torch.nn.BatchNorm2d, torch.nn.GroupNorm)):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)


class ResNet(torch.nn.Module):
    """A residual network for large images, with torchvision's parameters, shapes and initialisation.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks in each of the four stages.
        num_classes, in_channels: 1000 and 3 for ImageNet.
        groups, width_per_group: of the bottlenecks' 3x3 convolutions: 32 and 4 make ResNeXt-50 (32x4d).
        zero_init_residual: let every block start as the identity, by a 0 as the last normalisation's weight (Goyal et
            al.: Accurate, Large Minibatch SGD, arXiv:1706.02677, section 5.1).
        replace_stride_with_dilation: for each of the last three stages, whether to dilate instead of taking strides;
            only with bottlenecks.
        norm: makes the normalisation for a number of channels.
        small_input: for images of about 32x32: the first convolution is 3x3 with stride 1, and no pooling follows.

    Input: [N, in_channels, H, W]. Output: [N, num_classes].
    """

    layer1: torch.nn.Sequential
    layer2: torch.nn.Sequential
    layer3: torch.nn.Sequential
    layer4: torch.nn.Sequential

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        zero_init_residual: bool = False,
        replace_stride_with_dilation: Sequence[bool] = (False, False, False),
        norm: Norm = torch.nn.BatchNorm2d,
        small_input: bool = False,
    ) -> None:
        super().__init__()
        if len(layers) != 4:
            raise ValueError(f"layers: expected the number of blocks of 4 stages, got {layers}")
        if len(replace_stride_with_dilation) != 3:
            raise ValueError(f"replace_stride_with_dilation: expected 3 bools, got {replace_stride_with_dilation}")
        if block is BasicBlock and (groups != 1 or width_per_group != 64 or any(replace_stride_with_dilation)):
            raise ValueError("groups, width_per_group, replace_stride_with_dilation: only with Bottleneck")
        if small_input:
            self.conv1 = _conv3x3(in_channels, 64)
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.relu = torch.nn.ReLU(inplace=True)
        self.maxpool = torch.nn.Identity() if small_input else nn.MaxPool2d(3, stride=2, padding=1)

        channels, dilation = 64, 1
        dilated = (False, *replace_stride_with_dilation)
        for stage, blocks in enumerate(layers):
            planes, stride = 64 << stage, 1 if stage == 0 else 2
            # The first block of a dilated stage still sees what the stage before it gives.
            dilations = [dilation] * blocks
            if dilated[stage]:
                dilation, stride = dilation * stride, 1
                dilations = [dilations[0], *[dilation] * (blocks - 1)]
            members = []
            for index in range(blocks):
                options: dict[str, Any] = {}
                if block is Bottleneck:
                    width = planes * width_per_group // 64 * groups
                    options = {"width": width, "groups": groups, "dilation": dilations[index]}
                step = stride if index == 0 else 1
                shortcut = None
                if step != 1 or channels != planes * block.expansion:
                    shortcut = torch.nn.Sequential(
                        _conv1x1(channels, planes * block.expansion, step), norm(planes * block.expansion)
                    )
                members.append(block(channels, planes, step, shortcut, norm, **options))
                channels = planes * block.expansion
            self.add_module(f"layer{stage + 1}", torch.nn.Sequential(*members))

        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = torch.nn.Linear(channels, num_classes)
        _initialize(self)
        if zero_init_residual:
            for name, module in self.named_modules():
                if name.endswith("bn2" if block is BasicBlock else "bn3"):
                    torch.nn.init.zeros_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class PaddedShortcut(torch.nn.Module):
    """The shortcut without parameters (section 4.2, option A): every other pixel, and zeros for the new channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, :, :: self.stride, :: self.stride]
        before = self.new_channels // 2
        return torch.nn.functional.pad(kept, (0, 0, 0, 0, before, self.new_channels - before))

    def extra_repr(self) -> str:
        return f"new_channels={self.new_channels}, stride={self.stride}"


class CifarResNet(torch.nn.Module):
    """The paper's network for CIFAR-10 (section 4.2): 6n + 2 layers, three stages of n blocks with 16, 32, 64 maps.

    The shortcuts have no parameters (option A); weights are drawn by He's initialisation, here as above by the
    fan-out, where the paper's reference, He et al. 2015, leaves both choices open.

    Args:
        blocks: n, blocks in each of the three stages.
        num_classes, in_channels: 10 and 3 for CIFAR-10.

    Input: [N, in_channels, 32, 32], or any other size. Output: [N, num_classes].
    """

    layer1: torch.nn.Sequential
    layer2: torch.nn.Sequential
    layer3: torch.nn.Sequential

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks: expected at least 1 in each stage, got {blocks}")
        self.conv1 = _conv3x3(in_channels, 16)
        self.bn1 = torch.nn.BatchNorm2d(16)
        self.relu = torch.nn.ReLU(inplace=True)
        self.layer1 = torch.nn.Sequential(*(BasicBlock(16, 16) for _ in range(blocks)))
        for stage, (before, channels) in enumerate(((16, 32), (32, 64)), start=2):
            first = BasicBlock(before, channels, 2, PaddedShortcut(before, channels, 2))
            rest = (BasicBlock(channels, channels) for _ in range(blocks - 1))
            self.add_module(f"layer{stage}", torch.nn.Sequential(first, *rest))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = torch.nn.Linear(64, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


@register_model(input_shape=(3, 224, 224))
def resnet18(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNet-18 of the paper's table 1.

    `options` are those of `ResNet`.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def resnet34(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNet-34 of the paper's table 1.

    `options` are those of `ResNet`.
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def resnet50(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNet-50 of the paper's table 1, with the strides of `Bottleneck`.

    `options` are those of `ResNet`.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def resnet101(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNet-101 of the paper's table 1, strides as in `Bottleneck`.

    `options` are those of `ResNet`.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def resnet152(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNet-152 of the paper's table 1, strides as in `Bottleneck`.

    `options` are those of `ResNet`.
    """
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def resnext50_32x4d(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNeXt-50 with 32 groups of width 4 (Xie et al., table 1).

    `options` are those of `ResNet`.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, groups=32, width_per_group=4, **options)


@register_model(input_shape=(3, 224, 224))
def resnext101_32x8d(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNeXt-101 with 32 groups of width 8 (after Xie et al.).

    `options` are those of `ResNet`.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, in_channels, groups=32, width_per_group=8, **options)


@register_model(input_shape=(3, 224, 224))
def resnext101_64x4d(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNeXt-101 with 64 groups of width 4 (Xie et al., table 4).

    `options` are those of `ResNet`.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, in_channels, groups=64, width_per_group=4, **options)


@register_model(input_shape=(3, 224, 224))
def wide_resnet50_2(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNet-50 with twice as wide 3x3 convolutions (Zagoruyko and Komodakis, table 8).

    `options` are those of `ResNet`.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, width_per_group=128, **options)


@register_model(input_shape=(3, 224, 224))
def wide_resnet101_2(num_classes: int = 1000, in_channels: int = 3, **options: Any) -> ResNet:
    """ResNet-101 with twice as wide 3x3 convolutions (after Zagoruyko and Komodakis).

    `options` are those of `ResNet`.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, in_channels, width_per_group=128, **options)


@register_model(input_shape=(3, 32, 32))
def resnet20(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """The paper's network of 20 layers for CIFAR-10, see `CifarResNet`: 0.27 million parameters."""
    return CifarResNet(3, num_classes, in_channels)


@register_model(input_shape=(3, 32, 32))
def resnet32(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """The paper's network of 32 layers for CIFAR-10, see `CifarResNet`: 0.46 million parameters."""
    return CifarResNet(5, num_classes, in_channels)


@register_model(input_shape=(3, 32, 32))
def resnet44(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """The paper's network of 44 layers for CIFAR-10, see `CifarResNet`: 0.66 million parameters."""
    return CifarResNet(7, num_classes, in_channels)


@register_model(input_shape=(3, 32, 32))
def resnet56(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """The paper's network of 56 layers for CIFAR-10, see `CifarResNet`: 0.85 million parameters."""
    return CifarResNet(9, num_classes, in_channels)


@register_model(input_shape=(3, 32, 32))
def resnet110(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """The paper's network of 110 layers for CIFAR-10, see `CifarResNet`: 1.7 million parameters."""
    return CifarResNet(18, num_classes, in_channels)
