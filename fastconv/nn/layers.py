"""Layers: torch's classes with fastconv's kernels, and the layers of the classic papers that torch lacks.

A layer named as one of torch's is a subclass of it with the same constructor, attributes, parameters and
`state_dict`; only the arithmetic goes to `fastconv.functional`. It carries no state of its own, which is what lets
`fastconv.convert` change the class of a living module.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fastconv import functional as F

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "ConnectionTableConv2d",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LocalResponseNorm",
    "MaxPool1d",
    "MaxPool2d",
    "PCALighting",
    "RBFOutput",
    "TrainableSubsampling2d",
]

PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]
Size1d: TypeAlias = int | tuple[int]
Size2d: TypeAlias = int | tuple[int, int]
Sides: TypeAlias = tuple[int, int]


def _derive_sides(layer: torch.nn.Conv1d | torch.nn.Conv2d) -> None:
    """Correct what torch's constructor derived from `padding` if that gives every side its own number."""
    padding: Any = layer.padding
    if isinstance(padding, str) or not any(isinstance(sides, Sequence) for sides in padding):
        return
    dimensions = len(layer.kernel_size)
    if len(padding) != dimensions or not all(isinstance(sides, Sequence) and len(sides) == 2 for sides in padding):
        expected = "((top, bottom), (left, right))" if dimensions == 2 else "((left, right),)"
        raise ValueError(f"padding: expected {expected}, got {padding}")
    layer._reversed_padding_repeated_twice = [amount for sides in reversed(padding) for amount in sides]


def _padded(layer: torch.nn.Conv1d | torch.nn.Conv2d, input: Tensor) -> tuple[Tensor, Any]:
    """The input, padded if the padding is not zeros, and the padding that is left to the convolution."""
    if layer.padding_mode == "zeros":
        return input, layer.padding
    return torch.nn.functional.pad(input, layer._reversed_padding_repeated_twice, layer.padding_mode), 0


class Conv1d(torch.nn.Conv1d):
    """torch's, by fastconv. `padding` may also be `((left, right),)`, for every `padding_mode`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size1d,
        stride: Size1d = 1,
        padding: str | Size1d | tuple[Sides] = 0,
        dilation: Size1d = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # fmt: off
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding,  # type: ignore[arg-type]
            dilation, groups, bias, padding_mode, device, dtype,
        )
        # fmt: on
        _derive_sides(self)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = _padded(self, input)
        return F.conv1d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(torch.nn.Conv2d):
    """torch's, by fastconv. `padding` may also be `((top, bottom), (left, right))`, for every `padding_mode`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d,
        stride: Size2d = 1,
        padding: str | Size2d | tuple[Sides, Sides] = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # fmt: off
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding,  # type: ignore[arg-type]
            dilation, groups, bias, padding_mode, device, dtype,
        )
        # fmt: on
        _derive_sides(self)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = _padded(self, input)
        return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` by fastconv."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        stride: Any = self.stride
        padding: Any = self.padding
        dilation: Any = self.dilation
        kernel_size: Any = self.kernel_size
        extra = self._output_padding(input, output_size, stride, padding, kernel_size, 1, dilation)
        return F.conv_transpose1d(input, self.weight, self.bias, stride, padding, extra, self.groups, dilation)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` by fastconv."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        stride: Any = self.stride
        padding: Any = self.padding
        dilation: Any = self.dilation
        kernel_size: Any = self.kernel_size
        extra = self._output_padding(input, output_size, stride, padding, kernel_size, 2, dilation)
        return F.conv_transpose2d(input, self.weight, self.bias, stride, padding, extra, self.groups, dilation)


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    """`torch.nn.LazyConv1d` that becomes `fastconv.nn.Conv1d` when it has seen an input."""

    cls_to_become = Conv1d


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """`torch.nn.LazyConv2d` that becomes `fastconv.nn.Conv2d` when it has seen an input."""

    cls_to_become = Conv2d


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):  # type: ignore[misc]
    """`torch.nn.LazyConvTranspose1d` that becomes `fastconv.nn.ConvTranspose1d` when it has seen an input."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """`torch.nn.LazyConvTranspose2d` that becomes `fastconv.nn.ConvTranspose2d` when it has seen an input."""

    cls_to_become = ConvTranspose2d


class MaxPool1d(torch.nn.MaxPool1d):
    """`torch.nn.MaxPool1d` by fastconv."""

    def forward(self, input: Tensor) -> Any:
        return F.max_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d` by fastconv."""

    def forward(self, input: Tensor) -> Any:
        return F.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AvgPool1d(torch.nn.AvgPool1d):
    """`torch.nn.AvgPool1d` by fastconv."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class AvgPool2d(torch.nn.AvgPool2d):
    """`torch.nn.AvgPool2d` by fastconv."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """`torch.nn.AdaptiveAvgPool1d` by fastconv."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` by fastconv."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """`torch.nn.AdaptiveMaxPool1d` by fastconv."""

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """`torch.nn.AdaptiveMaxPool2d` by fastconv."""

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class LocalResponseNorm(torch.nn.LocalResponseNorm):
    """`torch.nn.LocalResponseNorm` by fastconv, and two ways to write down other sources' numbers.

    Three conventions are in use for y[c] = x[c] / (k + a · Σ x[c']²)^β. They differ in what the window and a are
    called:

    ====================================  ==========================  =======================  ==================
    constructor                           window                      a                        source
    ====================================  ==========================  =======================  ==================
    ``LocalResponseNorm(size, alpha)``    ``size`` channels           ``alpha / size``         torch; Caffe
    ``LocalResponseNorm.as_in_paper``     ``n`` channels around c     ``alpha``                AlexNet, section 3.3
    ``LocalResponseNorm.as_in_tensorflow``  ``2 depth_radius + 1``    ``alpha``                ``tf.nn.lrn``
    ====================================  ==========================  =======================  ==================

    The layer always keeps (and shows) torch's four numbers, whichever constructor made it, so that it stays
    exchangeable with torch's layer. Input and output: [N, C, ...].
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    @classmethod
    def as_in_paper(cls, n: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> LocalResponseNorm:
        """x[c] / (k + alpha · Σ_{c' = c-n/2}^{c+n/2} x[c']²)^beta, with the paper's numbers as defaults.

        Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks (2012), section
        3.3. ValueError for an even `n`, whose window would not lie symmetrically about c.
        """
        if n < 1 or n % 2 == 0:
            raise ValueError(f"n: expected an odd number of channels, at least 1, got {n}")
        return cls(n, alpha * n, beta, k)

    @classmethod
    def as_in_tensorflow(
        cls, depth_radius: int = 5, bias: float = 1.0, alpha: float = 1.0, beta: float = 0.5
    ) -> LocalResponseNorm:
        """x[c] / (bias + alpha · Σ_{c' = c-depth_radius}^{c+depth_radius} x[c']²)^beta.

        The parameters and defaults of `tf.nn.local_response_normalization`. ValueError for a negative radius.
        """
        if depth_radius < 0:
            raise ValueError(f"depth_radius: expected at least 0, got {depth_radius}")
        size = 2 * depth_radius + 1
        return cls(size, alpha * size, beta, bias)


class ConnectionTableConv2d(torch.nn.Module):
    """A convolution in which every output map sees only the input maps that a table gives it, as in LeNet-5's layer C3.

    LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition (1998), section II.B and
    table I. There are as many kernels as connections, and only these are computed: output maps of the same number of
    inputs go together through one grouped convolution.

    Args:
        in_channels: number of input maps.
        table: for every output map, the input maps it sees: a list of lists of indices, or a bool matrix [out, in].
        kernel_size, stride, padding, dilation, bias: as for `Conv2d`.

    Attributes:
        weight: [connections, kernel height, kernel width], by output map, then by input map.
        bias: [output maps] or None.

    Shapes: [N, C, H, W] or [C, H, W] to [N, K, P, Q] or [K, P, Q], as for `Conv2d`.
    Raises ValueError for a table with an index out of range or twice in a row, or an output map without inputs.
    """

    weight: torch.nn.Parameter
    bias: torch.nn.Parameter | None
    order: Tensor | None

    def __init__(
        self,
        in_channels: int,
        table: Sequence[Sequence[int]] | Sequence[Sequence[bool]] | Tensor,
        kernel_size: Size2d,
        stride: Size2d = 1,
        padding: str | Size2d | tuple[Sides, Sides] = 0,
        dilation: Size2d = 1,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.table = _read_table(table, in_channels)
        self.out_channels = len(self.table)
        self.kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.connections = sum(len(inputs) for inputs in self.table)
        self.weight = torch.nn.Parameter(torch.empty(self.connections, *self.kernel_size, device=device, dtype=dtype))
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(self.out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self._plan(device)
        self.reset_parameters()

    def _plan(self, device: Any) -> None:
        """Lay the connections out as few grouped convolutions.

        Output maps that see the same inputs form a block, a small dense convolution; blocks of the same shape are the
        groups of one grouped convolution. What must be gathered for it is a buffer of indices, to move with the
        layer; None is all there is, and neighbouring output maps with their weights are a range.
        """
        blocks: dict[tuple[int, ...], list[int]] = {}
        for output, inputs in enumerate(self.table):
            blocks.setdefault(inputs, []).append(output)
        shapes: dict[tuple[int, int], list[tuple[tuple[int, ...], list[int]]]] = {}
        for inputs, outputs in blocks.items():
            shapes.setdefault((len(inputs), len(outputs)), []).append((inputs, outputs))
        first_row = list(itertools.accumulate((len(inputs) for inputs in self.table), initial=0))

        def gather(name: str, indices: list[int], everything: int) -> None:
            needed = indices != list(range(everything))
            self.register_buffer(name, torch.tensor(indices, device=device) if needed else None, persistent=False)

        self.parts: list[tuple[int, int, range | None]] = []  # fan-in, groups and outputs of each
        order: list[int] = []
        for part, ((fan_in, _), members) in enumerate(shapes.items()):
            outputs = [output for _, block in members for output in block]
            neighbours = range(outputs[0], outputs[-1] + 1)
            in_a_row = outputs == list(neighbours)
            self.parts.append((fan_in, len(members), neighbours if in_a_row else None))
            gather(f"inputs_{part}", [i for inputs, _ in members for i in inputs], self.in_channels)
            if not in_a_row:
                rows = [first_row[output] + i for output in outputs for i in range(fan_in)]
                gather(f"outputs_{part}", outputs, self.out_channels)
                gather(f"rows_{part}", rows, self.connections)
            order += outputs
        self.first_row = first_row
        gather("order", [order.index(output) for output in range(self.out_channels)], self.out_channels)

    def _part(self, part: int) -> tuple[Tensor, Tensor | None]:
        """Weight [maps, inputs of a map, R, S] and bias [maps] of one of the convolutions."""
        fan_in, _, outputs = self.parts[part]
        bias = None
        if outputs is not None:
            weight = self.weight[self.first_row[outputs.start] : self.first_row[outputs.stop]]
            if self.bias is not None:
                bias = self.bias[outputs.start : outputs.stop]
        else:
            weight = self.weight.index_select(0, getattr(self, f"rows_{part}"))
            if self.bias is not None:
                bias = self.bias.index_select(0, getattr(self, f"outputs_{part}"))
        return weight.view(-1, fan_in, *self.kernel_size), bias

    def fan_in(self) -> Tensor:
        """How many weights meet in one value of each output map: [output maps], int64."""
        area = self.kernel_size[0] * self.kernel_size[1]
        return torch.tensor([len(inputs) * area for inputs in self.table], device=self.weight.device)

    def reset_parameters(self, gain: float = 1.0, power: float = 0.5) -> None:
        """Draw weights and biases uniformly from ± gain / fan_in^power, where fan_in is that of each output map.

        The default is that of `torch.nn.Conv2d`; LeNet-5's paper has gain 2.4 and power 1.
        """
        bound = gain * self.fan_in().to(self.weight.dtype) ** -power
        counts = torch.tensor([len(inputs) for inputs in self.table], device=bound.device)
        with torch.no_grad():
            self.weight.uniform_(-1, 1).mul_(
                bound.repeat_interleave(counts, output_size=self.connections)[:, None, None]
            )
            if self.bias is not None:
                self.bias.uniform_(-1, 1).mul_(bound)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels:
            expected = f"[N, {self.in_channels}, H, W] or [{self.in_channels}, H, W]"
            raise RuntimeError(f"input: expected {expected}, got {list(input.shape)}")
        results = []
        for part, (_, groups, _) in enumerate(self.parts):
            maps = _select_maps(input, getattr(self, f"inputs_{part}"))
            weight, bias = self._part(part)
            results.append(F.conv2d(maps, weight, bias, self.stride, self.padding, self.dilation, groups))
        return _select_maps(results[0] if len(results) == 1 else torch.cat(results, -3), self.order)

    def dense_weight(self) -> Tensor:
        """The weight [K, C, R, S] of the `Conv2d` that computes the same, with zeros where there is no connection."""
        outputs = torch.tensor([output for output, inputs in enumerate(self.table) for _ in inputs])
        inputs = torch.tensor([i for inputs in self.table for i in inputs])
        dense = self.weight.new_zeros(self.out_channels, self.in_channels, *self.kernel_size)
        return dense.index_put((outputs.to(dense.device), inputs.to(dense.device)), self.weight)

    def extra_repr(self) -> str:
        maps = f"{self.in_channels}, {self.out_channels}"
        text = f"{maps}, connections={self.connections}, kernel_size={self.kernel_size}"
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text if self.bias is not None else text + ", bias=False"


def _read_table(
    table: Sequence[Sequence[int]] | Sequence[Sequence[bool]] | Tensor, in_channels: int
) -> tuple[tuple[int, ...], ...]:
    """For every output map its input maps, ascending; ValueError if the table is no connection table."""
    lines = table.tolist() if isinstance(table, Tensor) else [list(line) for line in table]
    if not lines:
        raise ValueError("table: expected a line for every output map, got none")
    result = []
    for output, line in enumerate(lines):
        if not isinstance(line, list):
            raise ValueError(f"table: expected a list of input maps for every output map, got {line!r} for {output}")
        if line and all(isinstance(entry, bool) for entry in line):
            if len(line) != in_channels:
                raise ValueError(f"table: output map {output}: expected {in_channels} entries, got {len(line)}")
            line = [index for index, connected in enumerate(line) if connected]
        elif not all(isinstance(entry, int) and not isinstance(entry, bool) for entry in line):
            raise ValueError(f"table: output map {output}: expected input maps as integers, or bools, got {line}")
        if not line:
            raise ValueError(f"table: output map {output} has no input map")
        if len(set(line)) != len(line):
            raise ValueError(f"table: output map {output} names an input map twice: {line}")
        if min(line) < 0 or max(line) >= in_channels:
            raise ValueError(f"table: output map {output}: expected input maps 0 to {in_channels - 1}, got {line}")
        result.append(tuple(sorted(line)))
    return tuple(result)


def _select_maps(images: Tensor, indices: Tensor | None) -> Tensor:
    """Those maps of [..., C, H, W], in the memory format of `images`; None is all of them, without a copy."""
    if indices is None:
        return images
    if images.dim() == 4 and not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last):
        return images.movedim(1, -1).index_select(-1, indices).movedim(-1, 1)
    return images.index_select(-3, indices)


class TrainableSubsampling2d(torch.nn.Module):
    """Subsampling with a coefficient and a bias for every map, as in LeNet-5's layers S2 and S4.

    y = weight[c] · (mean of the window) + bias[c]; the paper's activation is a layer of its own behind it. The paper
    adds the window's values up instead of averaging them: the same function, with another scale of the coefficient.

    LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition (1998), section II.B.

    Args:
        channels: number of maps.
        kernel_size, stride: the window, in pixels; the stride is the window's size if not given.

    Shapes: [N, C, H, W] or [C, H, W]; the output has the size of an `AvgPool2d`'s. `weight` and `bias` are [C].
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size2d = 2,
        stride: Size2d | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.weight = torch.nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        mean = F.avg_pool2d(input, self.kernel_size, self.stride)
        return mean * self.weight[:, None, None] + self.bias[:, None, None]

    def extra_repr(self) -> str:
        return f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}"


class RBFOutput(torch.nn.Module):
    """Euclidean radial basis functions with fixed centres: y[n, i] = Σ_j (x[n, j] - codes[i, j])². Smaller is nearer.

    The output layer of LeNet-5, where the codes are drawings of the characters in ±1.
    LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition (1998), equation 7.

    Args:
        codes: [classes, features], the centre of each class. A buffer: saved with the model, not trained.

    Shapes: [..., features] to [..., classes].
    """

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        if codes.dim() != 2 or codes.numel() == 0:
            raise ValueError(f"codes: expected [classes, features], got a tensor of shape {list(codes.shape)}")
        self.register_buffer("codes", codes.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        return (input.unsqueeze(-2) - self.codes).square().sum(-1)

    def extra_repr(self) -> str:
        classes, features = self.codes.shape
        return f"features={features}, classes={classes}"


class PCALighting(torch.nn.Module):
    """AlexNet's colour augmentation: adds to every image a random multiple of the data's principal colours.

    To all pixels of an image is added P · (α₁λ₁, α₂λ₂, α₃λ₃), where λ and P are eigenvalues and eigenvectors of the
    covariance of the RGB values over the training set and each α is drawn once per image from a normal distribution
    of mean 0. In `eval()` mode the images pass unchanged.

    Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks (2012), section 4.1.

    Args:
        eigenvalues: [3], in the square of the images' unit.
        eigenvectors: [3, 3], one eigenvector a column.
        std: standard deviation of α; the paper's is 0.1.

    Shapes: [N, 3, H, W] or [3, H, W], the output like the input; of any floating-point dtype.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor

    def __init__(self, eigenvalues: Tensor, eigenvectors: Tensor, std: float = 0.1) -> None:
        super().__init__()
        if eigenvalues.shape != (3,) or eigenvectors.shape != (3, 3):
            shapes = f"{list(eigenvalues.shape)} and {list(eigenvectors.shape)}"
            raise ValueError(f"eigenvalues, eigenvectors: expected shapes [3] and [3, 3], got {shapes}")
        if std < 0:
            raise ValueError(f"std: expected at least 0, got {std}")
        self.std = std
        self.register_buffer("eigenvalues", eigenvalues.detach().clone())
        self.register_buffer("eigenvectors", eigenvectors.detach().clone())

    @classmethod
    def from_images(cls, images: Tensor, std: float = 0.1) -> PCALighting:
        """With the principal colours of `images` [N, 3, H, W] (a training set, or a sample of it)."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected [N, 3, H, W], got {list(images.shape)}")
        covariance = torch.cov(images.transpose(0, 1).reshape(3, -1).double(), correction=0)
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
        return cls(eigenvalues.flip(0).to(images.dtype), eigenvectors.flip(1).to(images.dtype), std)

    @classmethod
    def imagenet(cls, std: float = 0.1) -> PCALighting:
        """With ImageNet's principal colours for images scaled to [0, 1], as published with fb.resnet.torch."""
        eigenvalues = torch.tensor([0.2175, 0.0188, 0.0045])
        eigenvectors = torch.tensor(
            [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
        )
        return cls(eigenvalues, eigenvectors, std)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4) or input.shape[-3] != 3:
            raise RuntimeError(f"input: expected [N, 3, H, W] or [3, H, W], got {list(input.shape)}")
        if not self.training:
            return input
        alpha = self.std * torch.randn(*input.shape[:-3], 3, device=input.device, dtype=self.eigenvalues.dtype)
        shift = (alpha * self.eigenvalues) @ self.eigenvectors.mT
        return input + shift[..., None, None].to(input.dtype)

    def extra_repr(self) -> str:
        return f"std={self.std}"
