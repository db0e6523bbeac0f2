"""AlexNet: as published in 2012, on one device or with a tower on each of two, and with torchvision's parameters.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012.
Krizhevsky: One Weird Trick for Parallelizing Convolutional Neural Networks, 2014 (arXiv:1404.5997).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv import nn
from fastconv.models.registry import register_model

__all__ = ["AlexNet", "TwoTowerAlexNet2012", "alexnet", "alexnet_2012"]


def _grouped(
    num_classes: int, in_channels: int, norm: tuple[int, float, float, float], dropout: float
) -> torch.nn.Sequential:
    """Both towers in one, as grouped convolutions; `norm` is n, α, β, k."""
    model = torch.nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 96, 11, stride=4),
            relu1=torch.nn.ReLU(inplace=True),
            norm1=nn.LocalResponseNorm.as_in_paper(*norm),
            pool1=nn.MaxPool2d(3, stride=2),
            conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
            relu2=torch.nn.ReLU(inplace=True),
            norm2=nn.LocalResponseNorm.as_in_paper(*norm),
            pool2=nn.MaxPool2d(3, stride=2),
            conv3=nn.Conv2d(256, 384, 3, padding=1),
            relu3=torch.nn.ReLU(inplace=True),
            conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
            relu4=torch.nn.ReLU(inplace=True),
            conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
            relu5=torch.nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(3, stride=2),
            flatten=torch.nn.Flatten(),
            fc6=torch.nn.Linear(256 * 6 * 6, 4096),
            relu6=torch.nn.ReLU(inplace=True),
            drop6=torch.nn.Dropout(dropout),
            fc7=torch.nn.Linear(4096, 4096),
            relu7=torch.nn.ReLU(inplace=True),
            drop7=torch.nn.Dropout(dropout),
            fc8=torch.nn.Linear(4096, num_classes),
        )
    )
    for name, layer in model.named_children():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.normal_(layer.weight, std=0.01)
            torch.nn.init.constant_(layer.bias, 0.0 if name in ("conv1", "conv3", "fc8") else 1.0)  # type: ignore[arg-type]
    return model


_HALVED = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")


class TwoTowerAlexNet2012(torch.nn.Module):
    """AlexNet in the layout of the paper's figure 2: half of the maps and units on each of two devices.

    The towers meet where the paper's do, before the third convolution and before the linear layers, and at the two
    normalisations, whose window reaches `r` maps into the other tower. The last layer is on the first device.

    The maps are bit for bit those of the grouped form (torch's linear layers may round the last bit otherwise when
    they compute half the units at a time). The state is the grouped form's, too, so that either form goes on from the
    other's checkpoints. In training each tower draws its own units to drop.

    Args:
        model: the grouped form, whose weights (not the tensors) the towers take over.
        devices: of the two towers; they may be the same.
    """

    def __init__(self, model: torch.nn.Sequential, devices: Sequence[torch.device | str]) -> None:
        super().__init__()
        if len(devices) != 2:
            raise ValueError(f"devices: expected one for each of the 2 towers, got {len(devices)}")
        norm: Any = model.norm1
        last: Any = model.fc8
        self.radius = norm.size // 2
        self.towers = torch.nn.ModuleList(_tower(model).to(device) for device in devices)
        self.fc8 = torch.nn.Linear(last.in_features, last.out_features, device=devices[0])
        self.register_load_state_dict_pre_hook(_split)
        self.register_state_dict_post_hook(_merge)
        self.load_state_dict(model.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        halves = [x.to(next(tower.parameters()).device) for tower in self.towers]
        halves = self._each(halves, "conv1", "relu1")
        halves = self._each(self._normalize(halves, "norm1"), "pool1", "conv2", "relu2")
        halves = self._each(self._normalize(halves, "norm2"), "pool2")
        halves = self._each(_exchange(halves), "conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5")
        halves = self._each(_exchange(halves), "flatten", "fc6", "relu6", "drop6")
        halves = self._each(_exchange(halves), "fc7", "relu7", "drop7")
        return self.fc8(_exchange(halves)[0])

    def _each(self, halves: list[Tensor], *layers: str) -> list[Tensor]:
        """Both halves through these layers of their towers."""
        for layer in layers:
            halves = [getattr(tower, layer)(half) for tower, half in zip(self.towers, halves, strict=True)]
        return halves

    def _normalize(self, halves: list[Tensor], layer: str) -> list[Tensor]:
        """Local response normalisation of all maps, for which each tower gets its neighbour's nearest ones."""
        (left, right), count, radius = halves, halves[0].shape[1], self.radius
        beside = right[:, :radius].to(left.device), left[:, count - radius :].to(right.device)
        left, right = self._each([torch.cat([left, beside[0]], 1), torch.cat([beside[1], right], 1)], layer)
        return [left[:, :count].contiguous(), right[:, radius:].contiguous()]


def _tower(model: torch.nn.Sequential) -> torch.nn.Sequential:
    """The layers of one tower: those of `model` with half the maps and units; its weights are still to be set."""
    layers = OrderedDict[str, torch.nn.Module]()
    for name, layer in model.named_children():
        if isinstance(layer, torch.nn.Conv2d):
            inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // 2
            geometry: Any = (layer.kernel_size, layer.stride, layer.padding)
            layers[name] = nn.Conv2d(inputs, outputs, *geometry)
        elif isinstance(layer, torch.nn.Linear):
            if name != "fc8":
                layers[name] = torch.nn.Linear(layer.in_features, layer.out_features // 2)
        else:
            layers[name] = layer
    return copy.deepcopy(torch.nn.Sequential(layers))


def _exchange(halves: list[Tensor]) -> list[Tensor]:
    """All maps or units, on each half's device."""
    return [torch.cat([half.to(own.device) for half in halves], 1) for own in halves]


def _merge(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Replace the towers' parameters in `state` by the grouped form's."""
    last = [(name, state.pop(prefix + name)) for name in ("fc8.weight", "fc8.bias")]
    for layer in _HALVED:
        for name in (f"{layer}.weight", f"{layer}.bias"):
            left, right = (state.pop(f"{prefix}towers.{tower}.{name}") for tower in (0, 1))
            state[prefix + name] = torch.cat([left, right.to(left.device)])
    for name, value in last:
        state[prefix + name] = value


def _split(module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Replace the grouped form's parameters in `state` by the towers'."""
    for layer in _HALVED:
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if prefix + name in state:
                for tower, half in enumerate(state.pop(prefix + name).chunk(2)):
                    state[f"{prefix}towers.{tower}.{name}"] = half


@register_model(input_shape=(3, 227, 227))
def alexnet_2012(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    lrn_k: float = 2.0,
    lrn_r: int = 2,
    lrn_alpha: float = 1e-4,
    lrn_beta: float = 0.75,
    dropout: float = 0.5,
    devices: Sequence[torch.device | str] | None = None,
) -> torch.nn.Sequential | TwoTowerAlexNet2012:
    """AlexNet as published in 2012: 60,965,224 parameters, local response normalisation, overlapping pooling.

    The paper's two towers, one a GPU, are two groups of the convolutions 2, 4 and 5; with `devices` they are towers
    again, on a device each, and the results are the same. Weights are drawn from N(0, 0.01²), biases are 1 in the
    convolutions 2, 4 and 5 and the hidden linear layers, else 0, as in the paper's section 5. The paper gives the
    images' size as 224x224, but its maps of 55x55 come from 227x227.

    Input: [N, in_channels, 227, 227]. Output: [N, num_classes], on the first of the devices.

    Args:
        num_classes, in_channels: 1000 and 3 in the paper.
        lrn_k, lrn_r, lrn_alpha, lrn_beta: of the normalisation x[c] / (k + α · Σ x[c']²)^β over the maps c - r to
            c + r; the paper writes n = 2r + 1. (Others: k = 1, r = 2, α = 2e-5, β = 0.75 in Caffe's reproduction.)
        dropout: the share of zeros behind the two hidden linear layers.
        devices: two devices, such as ("cuda:0", "cuda:1"), for the layout in two towers.
    """
    norm = (2 * lrn_r + 1, lrn_alpha, lrn_beta, lrn_k)
    model = _grouped(num_classes, in_channels, norm, dropout)
    return model if devices is None else TwoTowerAlexNet2012(model, devices)


class AlexNet(torch.nn.Module):
    """AlexNet with torchvision's parameters, shapes and initialisation; see `alexnet`."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            nn.Conv2d(in_channels, 64, 11, stride=4, padding=2),
            torch.nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            torch.nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            torch.nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            torch.nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            torch.nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = torch.nn.Sequential(
            torch.nn.Dropout(dropout),
            torch.nn.Linear(256 * 6 * 6, 4096),
            torch.nn.ReLU(inplace=True),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(4096, 4096),
            torch.nn.ReLU(inplace=True),
            torch.nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@register_model(input_shape=(3, 224, 224))
def alexnet(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> AlexNet:
    """AlexNet with torchvision's parameters: the single tower of Krizhevsky 2014, without normalisation.

    As in torchvision an average pooling to 6x6 before the classifier lets images of other sizes pass, and the weights
    are drawn as torch's layers draw them.

    Input: [N, in_channels, H, W], at least 63x63; 224x224 for ImageNet. Output: [N, num_classes].
    """
    return AlexNet(num_classes, in_channels, dropout)
