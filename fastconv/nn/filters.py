"""Classical filters as layers: convolutions with kernels that somebody designed, the same for every channel.

They have no parameters, but gradients pass through to their input. All take [N, C, H, W] or [C, H, W], of any
floating-point dtype, and give the same shape. The numbers are those of scikit-image's functions.

Gonzalez, Woods: Digital Image Processing, chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fastconv import functional as F
from fastconv.nn.layers import PaddingMode

__all__ = ["Filter", "GaussianBlur", "Laplacian", "Sharpen", "Sobel"]


class Filter(torch.nn.Module):
    """Correlation of every channel with fixed kernels, one after the other.

    Args:
        kernels: [R, S] each, of odd sizes. Several of them are applied in turn, as for a separable filter.
        padding_mode: what lies beyond the border: "replicate" (the nearest pixel), "reflect" (the picture mirrored at
            the centre of its last pixel), "circular" or "zeros".

    Raises ValueError for a kernel of an even size, which would move the picture by half a pixel.
    """

    def __init__(self, *kernels: Tensor | Sequence[Sequence[float]], padding_mode: PaddingMode = "replicate") -> None:
        super().__init__()
        if not kernels:
            raise ValueError("kernels: expected at least one")
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise ValueError(f"padding_mode: expected zeros, reflect, replicate or circular, got {padding_mode!r}")
        self.padding_mode = padding_mode
        self.count = len(kernels)
        for index, values in enumerate(kernels):
            kernel = torch.as_tensor(values, dtype=torch.float64)
            if kernel.dim() != 2 or not all(size % 2 for size in kernel.shape):
                raise ValueError(f"kernels: expected [R, S] with odd R and S, got {list(kernel.shape)}")
            self.register_buffer(f"kernel{index}", kernel.clone(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        for index in range(self.count):
            input = self._correlate(input, getattr(self, f"kernel{index}"))
        return input

    def _correlate(self, input: Tensor, kernel: Tensor) -> Tensor:
        channels = input.shape[-3]
        vertical, horizontal = (size // 2 for size in kernel.shape)
        padding = (vertical, horizontal)
        if self.padding_mode != "zeros":
            sides = (horizontal, horizontal, vertical, vertical)
            input, padding = torch.nn.functional.pad(input, sides, self.padding_mode), (0, 0)
        weight = kernel.to(input.dtype).expand(channels, 1, *kernel.shape)
        return F.conv2d(input, weight.contiguous(), None, 1, padding, 1, channels)

    def extra_repr(self) -> str:
        sizes = ", ".join("x".join(map(str, getattr(self, f"kernel{index}").shape)) for index in range(self.count))
        return f"{sizes}, padding_mode={self.padding_mode!r}"


class GaussianBlur(Filter):
    """A Gaussian blur, as a vertical and a horizontal pass; `skimage.filters.gaussian`.

    Args:
        sigma: standard deviation in pixels, or two of them: vertical, horizontal. 0 leaves a direction as it is.
        truncate: the kernel ends so many standard deviations from its middle.
        padding_mode: as for `Filter`.
    """

    def __init__(
        self, sigma: float | tuple[float, float], truncate: float = 4.0, padding_mode: PaddingMode = "replicate"
    ) -> None:
        vertical, horizontal = sigma if isinstance(sigma, tuple) else (sigma, sigma)
        if vertical < 0 or horizontal < 0 or truncate < 0:
            raise ValueError(f"sigma, truncate: expected at least 0, got {sigma} and {truncate}")
        rows, columns = _gaussian(vertical, truncate), _gaussian(horizontal, truncate)
        super().__init__(rows[:, None], columns[None, :], padding_mode=padding_mode)


def _gaussian(sigma: float, truncate: float) -> Tensor:
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma).square()) if radius else torch.ones(1, dtype=torch.float64)
    return weights / weights.sum()


class Sobel(torch.nn.Module):
    """Sobel's derivatives: the difference between the next and the last pixel, smoothed across by (1, 2, 1) / 4.

    A picture that rises by 1 from pixel to pixel gives 2; `skimage.filters.sobel`, with axis=1 ("x") or 0 ("y").

    Args:
        direction: "x", along the rows; "y", down the columns; or "magnitude", √((x² + y²) / 2), whose gradient is
            0 where the picture is flat.
        padding_mode: as for `Filter`.
    """

    def __init__(
        self, direction: Literal["magnitude", "x", "y"] = "magnitude", padding_mode: PaddingMode = "replicate"
    ) -> None:
        super().__init__()
        if direction not in ("magnitude", "x", "y"):
            raise ValueError(f"direction: expected magnitude, x or y, got {direction!r}")
        self.direction = direction
        kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
        self.x = Filter(kernel, padding_mode=padding_mode) if direction != "y" else None
        self.y = Filter(kernel.T, padding_mode=padding_mode) if direction != "x" else None

    def forward(self, input: Tensor) -> Tensor:
        if self.y is None or self.x is None:
            return (self.x or self.y)(input)  # type: ignore[misc]
        squares = (self.x(input).square() + self.y(input).square()) / 2
        flat = squares == 0
        return squares.masked_fill(flat, 1).sqrt().masked_fill(flat, 0)

    def extra_repr(self) -> str:
        return f"direction={self.direction!r}"


class Laplacian(Filter):
    """The sum of the second derivatives: the neighbours less as many times the pixel; minus `skimage.filters.laplace`.

    Args:
        diagonal: with all eight neighbours, not only the four in the rows and columns.
        padding_mode: as for `Filter`.
    """

    def __init__(self, diagonal: bool = False, padding_mode: PaddingMode = "replicate") -> None:
        super().__init__(_laplacian(diagonal), padding_mode=padding_mode)


def _laplacian(diagonal: bool) -> Tensor:
    corner = float(diagonal)
    return torch.tensor([[corner, 1, corner], [1, -4 - 4 * corner, 1], [corner, 1, corner]], dtype=torch.float64)


class Sharpen(Filter):
    """The picture less `amount` times its Laplacian: the kernel with 5 in the middle and -1 around it, by default.

    Args:
        amount: 0 leaves the picture as it is.
        diagonal: as for `Laplacian`.
        padding_mode: as for `Filter`.
    """

    def __init__(self, amount: float = 1.0, diagonal: bool = False, padding_mode: PaddingMode = "replicate") -> None:
        kernel = -amount * _laplacian(diagonal)
        kernel[1, 1] += 1
        super().__init__(kernel, padding_mode=padding_mode)
