"""A synthetic set for segmentation: handwritten digits on slips of paper, pasted on textured backgrounds."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TRAIN, TEST = 1600, 200  # scenes
AT_ONCE = 100  # scenes drawn together, which bounds the memory
CELLS = 2  # slips lie in a grid of 2x2, not over each other
CLASSES = ["background", *(str(digit) for digit in range(10))]
DARK, LIGHT, TEXTURE = (0.0, 0.25), (0.75, 1.0), (0.3, 0.7)


def make(
    digits: Tensor, labels: Tensor, count: int, size: tuple[int, int], channels: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Scenes of one to four digits, always the same for a seed.

    A slip is turned by up to 20 degrees and about a third of the scene wide, light with dark ink or dark with light
    ink. The mask covers the whole slip: strokes of this size are finer than the 8 pixels between the scores of FCN-8s.

    Args:
        digits: (n, 1, h, w), 0 … 1, ink 1; `labels` (n,) their digits.
        size: height and width of the scenes.

    Returns: uint8 images (count, channels, *size) and masks (count, *size), 0 for background, else 1 + digit.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [_make(digits, labels, len(part), size, channels, generator) for part in torch.arange(count).split(AT_ONCE)]
    images, masks = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(masks)


def _make(
    digits: Tensor, labels: Tensor, count: int, size: tuple[int, int], channels: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    images = textures(count, size, channels, generator)
    masks = torch.zeros(count, *size, dtype=torch.uint8)
    present = torch.rand(count, CELLS**2, generator=generator) < 0.6
    present[torch.arange(count), torch.randint(CELLS**2, (count,), generator=generator)] = True
    for cell in range(CELLS**2):
        scenes = present[:, cell].nonzero().flatten()
        chosen = torch.randint(len(digits), (len(scenes),), generator=generator)
        ink, paper = _slips(digits[chosen], divmod(cell, CELLS), size, generator)
        colors = torch.stack([_between(*shade, (len(scenes), channels, 1, 1), generator) for shade in (DARK, LIGHT)])
        swapped = torch.rand(len(scenes), generator=generator) < 0.5
        colors[:, swapped] = colors[:, swapped].flip(0)
        drawn = ink * colors[0] + (1 - ink) * colors[1]
        images[scenes] = paper * drawn + (1 - paper) * images[scenes]
        masks[scenes] = torch.where(paper[:, 0] > 0.5, 1 + labels[chosen, None, None], masks[scenes]).to(torch.uint8)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), masks


def textures(count: int, size: tuple[int, int], channels: int, generator: torch.Generator) -> Tensor:
    """Noise of several scales (count, channels, *size), neither as dark nor as light as slips and ink."""
    total = torch.zeros(count, channels, *size)
    weight = 1.0
    for cells in (2, 4, 8, 16, 32):
        noise = torch.rand(count, channels, cells, cells, generator=generator) - 0.5
        total += weight * F.interpolate(noise, size, mode="bilinear", align_corners=False)
        weight *= 0.7
    return (0.5 + total / 4).clamp(*TEXTURE)


def _slips(
    digits: Tensor, cell: tuple[int, int], size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """How much ink and how much paper there is in every pixel (n, 1, *size), with one slip in each scene's cell."""
    count = len(digits)
    extent = _between(0.28, 0.4, (count,), generator)
    angle = _between(-math.pi / 9, math.pi / 9, (count,), generator)
    row, column = (
        -1 + (2 * place + 1) / CELLS + _between(-1, 1, (count,), generator) * (1 / CELLS - extent) for place in cell
    )
    cosine, sine = torch.cos(angle) / extent, torch.sin(angle) / extent
    moved = [-(cosine * column + sine * row), -(cosine * row - sine * column)]
    transform = torch.stack([cosine, sine, moved[0], -sine, cosine, moved[1]], 1).view(count, 2, 3)
    slips = torch.cat([digits, torch.ones_like(digits)], 1)
    grid = F.affine_grid(transform, [count, 2, *size], align_corners=False)
    return F.grid_sample(slips, grid, align_corners=False).split(1, dim=1)


def _between(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)
