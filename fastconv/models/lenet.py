"""LeNet-5: as published in 1998, and in the form that is usual today.

LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 86
(11), 1998.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor

from fastconv import nn
from fastconv.models.registry import register_model

__all__ = ["C3_TABLE", "LeNet5", "ScaledTanh", "digit_codes", "lenet5", "lenet5_modern"]

# Table I of the paper: the maps of S2 that each map of C3 sees.
C3_TABLE = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

# Figure 3 of the paper: the characters as 7x12 drawings, which are the centres of the output layer's functions.
_DIGITS = """
..###..  ..##...  .#####.  .#####.  ....##.  #######  ..####.  #######  .#####.  .#####.
.#####.  .###...  #######  #######  ...###.  #######  .####..  #######  #######  #######
##...##  ####...  ##...##  ##...##  ..####.  ##.....  ##.....  .....##  ##...##  ##...##
##...##  ..##...  .....##  .....##  ..#.##.  ##.....  ##.....  .....##  ##...##  ##...##
##...##  ..##...  .....##  .....##  .##.##.  ######.  ######.  ....##.  ##...##  ##...##
##...##  ..##...  ....##.  ..####.  .#..##.  #######  #######  ....##.  .#####.  .######
##...##  ..##...  ...##..  ..#####  ##..##.  .....##  ##...##  ...##..  .#####.  ..#####
##...##  ..##...  ..##...  .....##  #######  .....##  ##...##  ...##..  ##...##  .....##
##...##  ..##...  .##....  .....##  #######  .....##  ##...##  ..##...  ##...##  .....##
##...##  ..##...  ##.....  ##...##  ....##.  ##...##  ##...##  ..##...  ##...##  .....##
.#####.  ######.  #######  #######  ....##.  #######  #######  .##....  #######  ..####.
..###..  ######.  #######  .#####.  ....##.  .#####.  .#####.  .##....  .#####.  .####..
"""


def digit_codes() -> Tensor:
    """The drawings of the digits 0 to 9 as vectors: [10, 84], float32, 1 for ink and -1 for paper, row by row."""
    rows = [line.split() for line in _DIGITS.split("\n") if line]
    drawings = ["".join(row[digit] for row in rows) for digit in range(10)]
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in drawing] for drawing in drawings])


class ScaledTanh(torch.nn.Module):
    """1.7159 · tanh(2x/3), the paper's squashing function: through (1, 1) and (-1, -1), where it bends most."""

    def forward(self, input: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(input * (2 / 3))


class LeNet5(torch.nn.Module):
    """LeNet-5 as published; see `lenet5`."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1, codes: Tensor | None = None) -> None:
        super().__init__()
        if codes is None:
            if not 1 <= num_classes <= 10:
                raise ValueError(
                    f"num_classes: expected 1 to 10, the digits' codes, or codes of your own, got {num_classes}"
                )
            codes = digit_codes()[:num_classes]
        if codes.shape != (num_classes, 84):
            raise ValueError(f"codes: expected shape [{num_classes}, 84], got {list(codes.shape)}")
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.s2 = nn.TrainableSubsampling2d(6)
        self.c3 = nn.ConnectionTableConv2d(6, C3_TABLE, 5)
        self.s4 = nn.TrainableSubsampling2d(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = torch.nn.Linear(120, 84)
        self.output = nn.RBFOutput(codes)
        self.activation = ScaledTanh()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight uniformly from ± 2.4 / fan_in, the paper's appendix A."""
        for layer, fan_in in ((self.c1, self.c1.in_channels * 25), (self.c5, 16 * 25), (self.f6, 120)):
            for parameter in layer.parameters():
                torch.nn.init.uniform_(parameter, -2.4 / fan_in, 2.4 / fan_in)
        self.c3.reset_parameters(gain=2.4, power=1.0)
        for subsampling in (self.s2, self.s4):
            # The paper's coefficient multiplies the sum of 4 values, ours their mean.
            torch.nn.init.uniform_(subsampling.weight, -2.4, 2.4)
            torch.nn.init.uniform_(subsampling.bias, -2.4 / 4, 2.4 / 4)

    def distances(self, input: Tensor) -> Tensor:
        """The paper's output: squared distances to the classes' codes, [N, classes]; the smallest is the answer."""
        x = self.activation(self.c1(input))
        x = self.activation(self.s2(x))
        x = self.activation(self.c3(x))
        x = self.activation(self.s4(x))
        x = self.activation(self.c5(x))
        x = self.activation(self.f6(x.flatten(-3)))
        return self.output(x)

    def forward(self, input: Tensor) -> Tensor:
        return -self.distances(input)

    @staticmethod
    def loss(scores: Tensor, target: Tensor, j: float = 1.0) -> Tensor:
        """The paper's criterion, equation 9: the mean of y_target + log(e^-j + Σ_i e^-y_i), with y = -scores.

        Args:
            scores: [N, classes], what the model gives.
            target: [N], class indices.
            j: positive; classes farther away than this are not pushed on. Without the term e^-j (j → ∞) the criterion
            is
                the cross entropy of the scores.
        """
        constant = scores.new_full((scores.shape[0], 1), -j)
        everything = torch.cat([scores, constant], dim=1).logsumexp(dim=1)
        return (everything - scores.gather(1, target[:, None]).squeeze(1)).mean()


@register_model(input_shape=(1, 32, 32))
def lenet5(num_classes: int = 10, in_channels: int = 1, codes: Tensor | None = None) -> LeNet5:
    """LeNet-5 as published in 1998, 60,000 trainable parameters.

    Trainable subsampling, the connection table in C3, the squashing function 1.7159 tanh(2x/3), an output layer of
    fixed radial basis functions, and the paper's initialisation.

    Input: [N, in_channels, 32, 32]; the paper's images have background -0.1 and ink 1.175, so mean 0 and variance 1.
    Output: [N, num_classes], the squared distance to every class's code, *negated*: the largest is the answer, and
    cross entropy trains it. `LeNet5.loss` is the paper's own criterion, `LeNet5.distances` its own output.

    Args:
        num_classes: up to 10, for the digits' codes.
        in_channels: 1 in the paper.
        codes: [num_classes, 84], in place of the digits' drawings.
    """
    return LeNet5(num_classes, in_channels, codes)


@register_model(input_shape=(1, 32, 32))
def lenet5_modern(
    num_classes: int = 10,
    in_channels: int = 1,
    activation: Literal["relu", "tanh"] = "relu",
    pooling: Literal["max", "avg"] = "max",
) -> torch.nn.Sequential:
    """LeNet-5 as it is built today: plain pooling, every map connected, a linear output.

    Input: [N, in_channels, 32, 32]. Output: [N, num_classes], for cross entropy.
    """
    activations = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}
    poolings = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
    if activation not in activations:
        raise ValueError(f"activation: expected one of {', '.join(activations)}, got {activation!r}")
    if pooling not in poolings:
        raise ValueError(f"pooling: expected one of {', '.join(poolings)}, got {pooling!r}")
    act, pool = activations[activation], poolings[pooling]
    return torch.nn.Sequential(
        OrderedDict(
            c1=nn.Conv2d(in_channels, 6, 5),
            act1=act(),
            s2=pool(2),
            c3=nn.Conv2d(6, 16, 5),
            act3=act(),
            s4=pool(2),
            c5=nn.Conv2d(16, 120, 5),
            act5=act(),
            flatten=torch.nn.Flatten(),
            f6=torch.nn.Linear(120, 84),
            act6=act(),
            output=torch.nn.Linear(84, num_classes),
        )
    )
