"""Random changes to training images that leave their class as it is."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_affine(
    images: Tensor, generator: torch.Generator, *, degrees: float = 10, scale: float = 0.1, shift: float = 0.06
) -> Tensor:
    """Turn, zoom and move each image of a batch by its own random amounts; the pixels of the border fill what comes in.

    Args:
        images: floating-point (n, channels, height, width), on the device of the generator.
        degrees: the largest angle.
        scale: the largest change of the size, as a fraction.
        shift: the largest move, as a fraction of the height and width.
    """
    count = len(images)
    angle, zoom, right, down = (
        torch.rand((4, count), generator=generator, device=generator.device) * 2 - 1
    ) * torch.tensor([[math.radians(degrees)], [scale], [2 * shift], [2 * shift]], device=generator.device)
    cosine, sine = torch.cos(angle) * (1 + zoom), torch.sin(angle) * (1 + zoom)
    transform = torch.stack([cosine, -sine, right, sine, cosine, down], dim=1).view(count, 2, 3)
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
