"""GoogLeNet: as published in 2014, with torchvision's parameters, and a small network of inception modules.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich: Going Deeper with Convolutions, CVPR 2015
(arXiv:1409.4842).
Zhang, Bengio, Hardt, Recht, Vinyals: Understanding Deep Learning Requires Rethinking Generalization, ICLR 2017
(arXiv:1611.03530).
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastconv import nn
from fastconv.models.registry import register_model

__all__ = ["GoogLeNet", "GoogLeNetOutputs", "Inception", "googlenet", "googlenet_2014", "mini_googlenet"]


class GoogLeNetOutputs(NamedTuple):
    """What a GoogLeNet with auxiliary heads gives in training: three times [N, num_classes], as torchvision's."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, batch_norm: bool = False
) -> torch.nn.Sequential:
    """A convolution that keeps the size, but for its stride, and ReLU; with normalisation between, and then no bias."""
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=not batch_norm)
    layers: OrderedDict[str, torch.nn.Module] = OrderedDict(conv=conv)
    if batch_norm:
        layers["bn"] = torch.nn.BatchNorm2d(out_channels, eps=0.001)
    layers["relu"] = torch.nn.ReLU(inplace=True)
    return torch.nn.Sequential(layers)


class Inception(torch.nn.Module):
    """The inception module (figure 2b): four branches over one input, side by side in the channels of the output.

    A 1x1 convolution; 1x1 and 3x3; 1x1 and 5x5; 3x3 max pooling and 1x1. The 1x1 convolutions before the larger ones
    are there to reduce the channels that those must see. All keep the size, all end in ReLU.

    Args:
        in_channels: of the input.
        one: channels of the 1x1 branch.
        three, five: reduced channels and channels of the 3x3 and the 5x5 branch.
        pool: channels of the branch with the pooling.
        batch_norm: normalise behind every convolution.
        third_kernel: of the third branch; 3 in torchvision, see `googlenet`.

    Shapes: [N, in_channels, H, W] to [N, one + three[1] + five[1] + pool, H, W].
    """

    def __init__(
        self,
        in_channels: int,
        one: int,
        three: tuple[int, int],
        five: tuple[int, int],
        pool: int,
        *,
        batch_norm: bool = False,
        third_kernel: int = 5,
    ) -> None:
        super().__init__()
        self.branch1 = _convolution(in_channels, one, 1, batch_norm=batch_norm)
        self.branch2 = torch.nn.Sequential(
            _convolution(in_channels, three[0], 1, batch_norm=batch_norm),
            _convolution(*three, 3, batch_norm=batch_norm),
        )
        self.branch3 = torch.nn.Sequential(
            _convolution(in_channels, five[0], 1, batch_norm=batch_norm),
            _convolution(*five, third_kernel, batch_norm=batch_norm),
        )
        self.branch4 = torch.nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), _convolution(in_channels, pool, 1, batch_norm=batch_norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class AuxiliaryHead(torch.nn.Module):
    """The classifier at the side (section 5): pooling to 4x4, 1x1 to 128 channels, 1024 units, dropout, classes."""

    def __init__(
        self, in_channels: int, num_classes: int, pool: torch.nn.Module, dropout: float, batch_norm: bool
    ) -> None:
        super().__init__()
        self.pool = pool
        self.conv = _convolution(in_channels, 128, 1, batch_norm=batch_norm)
        self.fc1 = torch.nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = torch.nn.Linear(1024, num_classes)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(x)).flatten(1)
        return self.fc2(self.dropout(torch.nn.functional.relu(self.fc1(x))))


class GoogLeNet(torch.nn.Module):
    """GoogLeNet; see `googlenet_2014` for the published network and `googlenet` for torchvision's.

    Args:
        num_classes, in_channels: 1000 and 3 for ImageNet.
        batch_norm: torchvision's network instead of the paper's.
        aux_logits: with the two auxiliary heads, which work in training only.
        transform_input: the input is normalised with ImageNet's mean and deviation; bring it to mean 0.5 and
            deviation 0.5, for which torchvision's published weights were trained.
        dropout, dropout_aux: before the classifier and in the auxiliary heads.
        small_input: for images of about 32x32: the first convolution is 3x3 with stride 1, and no pooling follows.

    Input: [N, in_channels, H, W]. Output: [N, num_classes], or in training with auxiliary heads `GoogLeNetOutputs`.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        batch_norm: bool = True,
        aux_logits: bool = True,
        transform_input: bool = False,
        dropout: float = 0.2,
        dropout_aux: float = 0.7,
        small_input: bool = False,
    ) -> None:
        super().__init__()
        if transform_input and in_channels != 3:
            raise ValueError(f"transform_input: only for in_channels=3, got {in_channels}")
        self.transform_input = transform_input
        kernel, stride = (3, 1) if small_input else (7, 2)
        self.conv1 = _convolution(in_channels, 64, kernel, stride, batch_norm)
        self.maxpool1 = torch.nn.Identity() if small_input else nn.MaxPool2d(3, stride=2, ceil_mode=True)
        # The paper names the layer without its numbers; these are those of Caffe's reproduction.
        self.norm1 = torch.nn.Identity() if batch_norm else nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
        self.conv2 = _convolution(64, 64, 1, batch_norm=batch_norm)
        self.conv3 = _convolution(64, 192, 3, batch_norm=batch_norm)
        self.norm2 = torch.nn.Identity() if batch_norm else nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        # The paper's table 1: channels of the 1x1 branch, of the 3x3, of the 5x5, of the pooling's.
        inception = partial(Inception, batch_norm=batch_norm, third_kernel=3 if batch_norm else 5)
        self.inception3a = inception(192, 64, (96, 128), (16, 32), 32)
        self.inception3b = inception(256, 128, (128, 192), (32, 96), 64)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = inception(480, 192, (96, 208), (16, 48), 64)
        self.inception4b = inception(512, 160, (112, 224), (24, 64), 64)
        self.inception4c = inception(512, 128, (128, 256), (24, 64), 64)
        self.inception4d = inception(512, 112, (144, 288), (32, 64), 64)
        self.inception4e = inception(528, 256, (160, 320), (32, 128), 128)
        # 2x2 in torchvision; either makes 7x7 of the paper's 14x14.
        self.maxpool4 = nn.MaxPool2d(2 if batch_norm else 3, stride=2, ceil_mode=True)
        self.inception5a = inception(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = inception(832, 384, (192, 384), (48, 128), 128)
        self.aux1: AuxiliaryHead | None = None
        self.aux2: AuxiliaryHead | None = None
        if aux_logits:
            pool = nn.AdaptiveAvgPool2d((4, 4)) if batch_norm or small_input else nn.AvgPool2d(5, stride=3)
            self.aux1 = AuxiliaryHead(512, num_classes, pool, dropout_aux, batch_norm)
            self.aux2 = AuxiliaryHead(528, num_classes, pool, dropout_aux, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = torch.nn.Dropout(dropout)
        self.fc = torch.nn.Linear(1024, num_classes)
        for layer in self.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                if batch_norm:
                    torch.nn.init.trunc_normal_(layer.weight, std=0.01)
                else:
                    torch.nn.init.xavier_uniform_(layer.weight)
                    torch.nn.init.constant_(layer.bias, 0.2)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        if self.transform_input:
            mean, std = x.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
            x = (x * std + (mean - 0.5)) / 0.5
        x = self.norm1(self.maxpool1(self.conv1(x)))
        x = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        aux1 = self.aux1(x) if self.training and self.aux1 is not None else None
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        aux2 = self.aux2(x) if self.training and self.aux2 is not None else None
        x = self.maxpool4(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        logits = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return logits if aux1 is None or aux2 is None else GoogLeNetOutputs(logits, aux2, aux1)

    @staticmethod
    def loss(outputs: Tensor | GoogLeNetOutputs, target: Tensor, aux_weight: float = 0.3) -> Tensor:
        """Cross entropy, to which each auxiliary head adds `aux_weight` times its own (section 5)."""
        if isinstance(outputs, Tensor):
            return torch.nn.functional.cross_entropy(outputs, target)
        losses = [torch.nn.functional.cross_entropy(logits, target) for logits in outputs]
        return losses[0] + aux_weight * (losses[1] + losses[2])


@register_model(input_shape=(3, 224, 224))
def googlenet_2014(
    num_classes: int = 1000,
    in_channels: int = 3,
    aux_logits: bool = True,
    dropout: float = 0.4,
    dropout_aux: float = 0.7,
) -> GoogLeNet:
    """GoogLeNet as published in 2014: local response normalisation, two auxiliary heads.

    13.4 million parameters, 7.0 million without the heads. The paper leaves open: the numbers of the local response
    normalisation (here n = 5, α = 1e-4 over n, β = 0.75, k = 1) and the initialisation (here Glorot's, biases 0.2),
    both as in Caffe's reproduction.

    Input: [N, in_channels, 224, 224]. Output: [N, num_classes]; in training `GoogLeNetOutputs`, for
    `GoogLeNet.loss`, which weights the auxiliary heads by 0.3.

    Args:
        num_classes, in_channels: 1000 and 3 for ImageNet.
        aux_logits: with the auxiliary heads.
        dropout, dropout_aux: the shares of zeros before the classifier and in the auxiliary heads.
    """
    return GoogLeNet(
        num_classes, in_channels, batch_norm=False, aux_logits=aux_logits, dropout=dropout, dropout_aux=dropout_aux
    )


@register_model(input_shape=(3, 224, 224))
def googlenet(
    num_classes: int = 1000,
    in_channels: int = 3,
    aux_logits: bool = True,
    transform_input: bool = False,
    dropout: float = 0.2,
    dropout_aux: float = 0.7,
    small_input: bool = False,
) -> GoogLeNet:
    """GoogLeNet with torchvision's parameters: batch normalisation, two auxiliary heads.

    Shapes and initialisation too are torchvision's. It differs from the paper as torchvision's does: batch
    normalisation takes the place of the local response normalisation and of the convolutions' biases, the third
    branch is 3x3 where the paper's is 5x5 (torchvision's issue 906), and the auxiliary heads pool adaptively.

    Input, output and arguments: those of `GoogLeNet`.
    """
    return GoogLeNet(
        num_classes,
        in_channels,
        aux_logits=aux_logits,
        transform_input=transform_input,
        dropout=dropout,
        dropout_aux=dropout_aux,
        small_input=small_input,
    )


class TwoBranches(torch.nn.Module):
    """The simplified inception module of Zhang et al.: 1x1 and 3x3 convolutions side by side."""

    def __init__(self, in_channels: int, one: int, three: int) -> None:
        super().__init__()
        self.branch1 = _convolution(in_channels, one, 1, batch_norm=True)
        self.branch2 = _convolution(in_channels, three, 3, batch_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x)], 1)


class Downsample(torch.nn.Module):
    """The downsampling module of Zhang et al.: a 3x3 convolution and a max pooling of stride 2 side by side."""

    def __init__(self, in_channels: int, three: int) -> None:
        super().__init__()
        self.branch1 = _convolution(in_channels, three, 3, stride=2, batch_norm=True)
        self.branch2 = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x)], 1)


@register_model(input_shape=(3, 28, 28))
def mini_googlenet(num_classes: int = 10, in_channels: int = 3) -> torch.nn.Sequential:
    """The small Inception of Zhang et al. (2017, figure 3), for images of 28x28: 1.65 million parameters.

    It was drawn up for the middle of CIFAR-10's images. Modules of two branches, batch normalisation behind every
    convolution; weights are drawn by He's initialisation.

    Input: [N, in_channels, 28, 28], or any other size. Output: [N, num_classes].
    """
    model = torch.nn.Sequential(
        OrderedDict(
            conv1=_convolution(in_channels, 96, 3, batch_norm=True),
            inception1a=TwoBranches(96, 32, 32),
            inception1b=TwoBranches(64, 32, 48),
            downsample1=Downsample(80, 80),
            inception2a=TwoBranches(160, 112, 48),
            inception2b=TwoBranches(160, 96, 64),
            inception2c=TwoBranches(160, 80, 80),
            inception2d=TwoBranches(160, 48, 96),
            downsample2=Downsample(144, 96),
            inception3a=TwoBranches(240, 176, 160),
            inception3b=TwoBranches(336, 176, 160),
            avgpool=nn.AdaptiveAvgPool2d((1, 1)),
            flatten=torch.nn.Flatten(),
            fc=torch.nn.Linear(336, num_classes),
        )
    )
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model
