"""Fully convolutional networks for segmentation: the paper's on VGG-16, and torchvision's on a dilated ResNet-50.

Shelhamer, Long, Darrell: Fully Convolutional Networks for Semantic Segmentation, PAMI 2017 (arXiv:1605.06211); first
at CVPR 2015 (arXiv:1411.4038).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor

from fastconv import nn
from fastconv.models.registry import register_model
from fastconv.models.resnet import Bottleneck, ResNet
from fastconv.models.vgg import CONFIGURATIONS, convolutional_classifier, initialize, vgg_features

__all__ = ["FCN", "FCNResNet", "bilinear_kernel", "fcn8s", "fcn16s", "fcn32s", "fcn_resnet50"]


def bilinear_kernel(size: int) -> Tensor:
    """The kernel [size, size] with which a transposed convolution of stride (size + 1) // 2 interpolates bilinearly.

    The outer product of two triangles whose corners are one pixel outside. Their shifts by the stride add up to 1.
    """
    stride = (size + 1) // 2
    centre = (size - 1) / 2
    triangle = 1 - (torch.arange(size) - centre).abs() / stride
    return triangle[:, None] * triangle


def _upsampling(channels: int, factor: int) -> nn.ConvTranspose2d:
    """A transposed convolution that begins as bilinear interpolation of every channel by itself."""
    layer = nn.ConvTranspose2d(channels, channels, 2 * factor, stride=factor, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        each = range(channels)
        layer.weight[each, each] = bilinear_kernel(2 * factor).to(layer.weight)
    return layer


class FCN(torch.nn.Module):
    """The paper's networks on VGG-16, which add the scores of finer stages to those of the coarsest.

    Convolutions and pooling keep track of where they are: output i of a stage with stride s looks at the image around
    pixel s · i + constant. Padding 100 in the first convolution (the paper's, so that the 7x7 convolution at the end
    fits into images of any size) moves all maps against the image, and so does the 7x7 convolution where it has no
    padding. With p the first padding, q that of the 7x7 convolution:

    - scores behind it begin at index 3 - q of the fifth stage;
    - scores that begin at index b of one stage, upsampled twice by a transposed convolution without padding, begin at
      2b - 1 of the stage before (negative: these first ones are cut off);
    - scores that begin at index b of the stage with stride s, upsampled s times, are cut off before s/2 + p - 1 - s·b
      and behind the image's size.

    For the paper's p = 100, q = 0 this makes the offsets of its crop layers: 5 and 9 between stages, and 19, 27 and
    31 pixels in FCN-32s, 16s and 8s. Poolings keep odd last rows and columns (`ceil_mode`), as in the paper's code.

    Args:
        stride: 32, 16 or 8, of the finest scores.
        num_classes: with the background, 21 for PASCAL VOC.
        in_channels: of the images.
        padding: "paper" is padding 100 in the first convolution and none in the 7x7 convolution. "same" is 1 and 3:
            every layer keeps the size, which does less work, most of all for small images.
        batch_norm: on `vgg16_bn`. The paper starts from a trained VGG-16; without one, it learns faster with this.
        width: share of VGG-16's channels and hidden units, such as 0.25 for small images.
        dropout: of the hidden layers.

    The names of `features` and `classifier` are those of `vgg16` or `vgg16_bn`, whose state can be loaded with
    `strict=False`.
    Scoring layers begin with zeros, upsampling ones as bilinear interpolation; the last of these stays so (it does not
    require gradients), as in the paper.

    Input: [N, in_channels, H, W] of any size. Output: [N, num_classes, H, W].
    """

    def __init__(
        self,
        stride: Literal[32, 16, 8],
        num_classes: int = 21,
        in_channels: int = 3,
        *,
        padding: Literal["paper", "same"] = "paper",
        batch_norm: bool = False,
        width: float = 1.0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if padding not in ("paper", "same"):
            raise ValueError(f"padding: expected 'paper' or 'same', got {padding!r}")
        self.first_padding, self.last_padding = (100, 0) if padding == "paper" else (1, 3)
        stages = [[max(1, round(width * channels)) for channels in stage] for stage in CONFIGURATIONS["D"]]
        hidden = max(1, round(width * 4096))
        self.features = vgg_features(stages, in_channels, batch_norm, self.first_padding, ceil_mode=True)
        self.classifier = convolutional_classifier(stages[-1][-1], hidden, self.last_padding, dropout)
        initialize(self.features)
        initialize(self.classifier)
        self.score = nn.Conv2d(hidden, num_classes, 1)
        self.skips = torch.nn.ModuleDict()
        self.upsamplings = torch.nn.ModuleDict()
        for finer in {32: (), 16: (16,), 8: (16, 8)}[stride]:
            channels = stages[{16: 3, 8: 2}[finer]][-1]
            self.upsamplings[f"to{finer}"] = _upsampling(num_classes, 2)
            self.skips[f"from{finer}"] = nn.Conv2d(channels, num_classes, 1)
        self.upsampling = _upsampling(num_classes, stride).requires_grad_(False)
        for layer in (self.score, *self.skips.values()):
            torch.nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        pooled, x, stride = {}, image, 1
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, torch.nn.MaxPool2d):
                stride *= 2
                pooled[stride] = x
        x, begin = self.score(self.classifier(x)), 3 - self.last_padding
        for upsample, skip in zip(self.upsamplings.values(), self.skips.values(), strict=True):
            stride //= 2
            x, finer, begin = upsample(x), skip(pooled[stride]), 2 * begin - 1
            if begin < 0:
                x, begin = _crop(x, -begin, finer), 0
            else:
                finer = _crop(finer, begin, x)
            x = x + finer
        offset = stride // 2 + self.first_padding - 1 - stride * begin
        return _crop(self.upsampling(x), offset, image).contiguous()


def _crop(x: Tensor, offset: int, like: Tensor) -> Tensor:
    """The part of `x` that begins at `offset` in both directions and has the size of `like`."""
    height, width = like.shape[-2:]
    return x[..., offset : offset + height, offset : offset + width]


@register_model(input_shape=(3, 224, 224))
def fcn32s(num_classes: int = 21, in_channels: int = 3, **options: Any) -> FCN:
    """FCN-32s on VGG-16: scores at every 32nd pixel, interpolated.

    `options` are those of `FCN`.
    """
    return FCN(32, num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def fcn16s(num_classes: int = 21, in_channels: int = 3, **options: Any) -> FCN:
    """FCN-16s on VGG-16: the scores of the fourth stage added.

    `options` are those of `FCN`.
    """
    return FCN(16, num_classes, in_channels, **options)


@register_model(input_shape=(3, 224, 224))
def fcn8s(num_classes: int = 21, in_channels: int = 3, **options: Any) -> FCN:
    """FCN-8s on VGG-16: the scores of the fourth and the third stage added.

    `options` are those of `FCN`.
    """
    return FCN(8, num_classes, in_channels, **options)


def _head(in_channels: int, num_classes: int) -> torch.nn.Sequential:
    hidden = in_channels // 4
    return torch.nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(hidden),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.1),
        nn.Conv2d(hidden, num_classes, 1),
    )


class FCNResNet(torch.nn.Module):
    """torchvision's segmentation network: a ResNet-50 with stride 8 and a small head; see `fcn_resnet50`."""

    def __init__(self, num_classes: int, in_channels: int, aux_loss: bool) -> None:
        super().__init__()
        dilated = (False, True, True)
        resnet = ResNet(Bottleneck, (3, 4, 6, 3), in_channels=in_channels, replace_stride_with_dilation=dilated)
        layers = {name: layer for name, layer in resnet.named_children() if name not in ("avgpool", "fc")}
        self.backbone = torch.nn.ModuleDict(layers)
        self.classifier = _head(2048, num_classes)
        self.aux_classifier = _head(1024, num_classes) if aux_loss else None

    def forward(self, image: Tensor) -> OrderedDict[str, Tensor]:
        features, x = {}, image
        for name, layer in self.backbone.items():
            x = features[name] = layer(x)
        scores = OrderedDict(out=self.classifier(features["layer4"]))
        if self.aux_classifier is not None:
            scores["aux"] = self.aux_classifier(features["layer3"])
        for name, score in scores.items():
            scores[name] = torch.nn.functional.interpolate(score, image.shape[-2:], mode="bilinear")
        return scores


@register_model(input_shape=(3, 224, 224))
def fcn_resnet50(num_classes: int = 21, in_channels: int = 3, aux_loss: bool = False) -> FCNResNet:
    """FCN on a ResNet-50 whose last two stages are dilated instead of strided, with torchvision's parameters.

    After the paper: a convolutional head on a classification network. It differs in the backbone, in the dilation,
    which leaves a stride of 8 without skips, and in interpolating without parameters.

    Input: [N, in_channels, H, W] of any size. Output: a dict of "out" and, with `aux_loss`, "aux" (the same from the
    third stage), both [N, num_classes, H, W].
    """
    return FCNResNet(num_classes, in_channels, aux_loss)
