"""Random changes to training images that leave their class as it is: kornia's, and AlexNet's lighting."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastconv.extras import require
from fastconv.nn import PCALighting

NAMES = ("affine", "crop", "flip", "rotate", "brightness", "contrast", "lighting")


class Augmentation:
    """The named changes, one after the other, to each image by its own random amounts.

    - affine: turned by up to 10 degrees, zoomed by up to 10 % and moved by up to 6 %; its border fills what comes in
    - crop: a window of the image's size somewhere in the image with a black border of an eighth (4 pixels of 32: He et
      al. 2016 for CIFAR)
    - flip: left and right changed over, for half of the images
    - rotate: turned by up to 10 degrees, on black
    - brightness: up to 0.2 added or taken away
    - contrast: multiplied by 0.8 to 1.2
    - lighting: AlexNet's, `fastconv.nn.PCALighting`

    Args:
        names: of these, in the order in which they are applied.
        size: height and width of the images.
        lighting: for "lighting".
    """

    def __init__(self, names: Sequence[str], size: tuple[int, int], lighting: PCALighting | None = None) -> None:
        self.changes: list[nn.Module] = []
        for name in names:
            if name == "lighting":
                assert lighting is not None
                self.changes.append(lighting.train())
            else:
                self.changes.append(_change(name, size))

    def __call__(self, images: Tensor, seed: int, part: slice, whole: int) -> Tensor:
        """The changed images (n, channels, height, width), floating point from 0 to 1.

        Random numbers are drawn for a batch of `whole` images, of which `images` are `part`: an image is changed in the
        same way whether the batch is worked on at once, or in parts, or by several processes.
        """
        if not self.changes or not len(images):
            return images
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # kornia and PCALighting draw from torch's own generator
            for change in self.changes:
                images = _apply(change, images, part, whole)
        return images


def _apply(change: Any, images: Tensor, part: slice, whole: int) -> Tensor:
    if isinstance(change, PCALighting):  # it adds one colour to an image: to a black pixel, that colour alone
        return images + change(torch.zeros(whole, 3, 1, 1))[part].to(images)
    drawn = change.forward_parameters(torch.Size((whole, *images.shape[1:])))
    canvas = drawn.pop("forward_input_shape").clone()
    canvas[0] = len(images)
    drawn = {name: values[part] for name, values in drawn.items()}
    return change(images, params=drawn | {"forward_input_shape": canvas})


def _change(name: str, size: tuple[int, int]) -> nn.Module:
    """kornia's, with p = 1 where it has parameters: then there is one set of them for every image."""
    kornia = require("kornia.augmentation", "augmentation of images")
    if name == "affine":
        return kornia.RandomAffine(10.0, (0.06, 0.06), (0.9, 1.1), padding_mode="border", p=1.0)
    if name == "crop":
        return kornia.RandomCrop(size, padding=(size[1] // 8, size[0] // 8))
    if name == "flip":
        return kornia.RandomHorizontalFlip(p=0.5)
    if name == "rotate":
        return kornia.RandomRotation(10.0, p=1.0)
    if name == "brightness":
        return kornia.RandomBrightness((0.8, 1.2), p=1.0)
    if name == "contrast":
        return kornia.RandomContrast((0.8, 1.2), p=1.0)
    raise ValueError(f"augmentation {name!r}: expected one of {', '.join(NAMES)}")
