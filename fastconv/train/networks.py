"""What training asks of a model: what it takes, what it gives, its loss, and how right it is."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastconv import models
from fastconv.train import data
from fastconv.train.files import RunError

AUXILIARY_WEIGHT = 0.3  # of the losses of GoogLeNet's auxiliary heads (Szegedy et al. 2015, section 5)
MOST_WORDS = 5000  # of a vocabulary
AUXILIARY_MAP_WEIGHT = 0.5  # of the auxiliary head of a segmentation network, as torchvision's references train it


def input_format(
    name: str, model_options: Mapping[str, Any], image_size: int | None
) -> data.ImageFormat | data.TextFormat:
    """What a model takes: as it is registered, but for its options and the `image_size`."""
    entry = models.model_entry(name)
    shape = entry.input_shape
    if entry.input_dtype == torch.int64:
        return data.TextFormat(shape[0], model_options.get("vocabulary", MOST_WORDS))
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise RunError(f"{name} takes neither images nor text: fastconv train has no data for it")
    height, width = shape[1:] if image_size is None else (image_size, image_size)
    channels = model_options.get("in_channels", shape[0])
    if channels not in (1, 3):
        raise RunError(f"in_channels: images have 1 or 3 channels, got {channels!r}")
    return data.ImageFormat(channels, height, width)


def create(name: str, model_options: Mapping[str, Any], classes: int, words: int) -> nn.Module:
    """The model for so many classes and, of text, words, with its options; RunError if it does not take them."""
    try:
        vocabulary = {"vocabulary": words} if words else {}
        return models.create_model(name, **{"num_classes": classes, **model_options, **vocabulary})
    except (TypeError, ValueError) as error:
        raise RunError(f"{name} cannot be made for {classes} classes with {dict(model_options)}: {error}") from error


def criterion(model: nn.Module, label_smoothing: float) -> Callable[[Any, Tensor], Tensor]:
    """The loss of a model's outputs: its own (LeNet-5's) or cross entropy; that of auxiliary heads is added."""
    own = getattr(model, "loss", None)
    if own is not None and label_smoothing:
        raise RunError("label_smoothing: this model has a loss of its own, without smoothing")

    def single(scores: Tensor, labels: Tensor) -> Tensor:
        if scores.dim() != labels.dim() + 1:
            kinds = "a class each" if labels.dim() == 1 else "a class for each pixel"
            raise RunError(f"the model gives scores {tuple(scores.shape)}, but the images of this data have {kinds}")
        return F.cross_entropy(scores, labels, label_smoothing=label_smoothing) if own is None else own(scores, labels)

    def loss(outputs: Any, labels: Tensor) -> Tensor:
        total = single(scores(outputs), labels)
        if isinstance(outputs, Mapping):
            return total + AUXILIARY_MAP_WEIGHT * single(outputs["aux"], labels) if "aux" in outputs else total
        if isinstance(outputs, tuple):
            return total + AUXILIARY_WEIGHT * sum(single(head, labels) for head in outputs[1:] if head is not None)
        return total

    return loss


def scores(outputs: Any) -> Tensor:
    """The scores (n, classes, …) among a model's outputs: auxiliary heads stand behind them, or beside "out"."""
    if isinstance(outputs, Mapping):
        return outputs["out"]
    return outputs[0] if isinstance(outputs, tuple) else outputs


class Confusion:
    """How often each class was taken for each: `counts` (classes, classes), the true class a row."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Count the answers (n, classes, …) to images, or their pixels, of these classes (n, …)."""
        classes = len(self.counts)
        pairs = (labels * classes + scores.argmax(1)).flatten()
        self.counts += torch.bincount(pairs.cpu(), minlength=classes**2).view(classes, classes)

    @property
    def accuracy(self) -> float:
        """The part that was right."""
        return float(self.counts.trace() / self.counts.sum())

    @property
    def recalls(self) -> list[float]:
        """For each class the part of it that was right; NaN for a class that did not occur."""
        return (self.counts.diag() / self.counts.sum(1)).tolist()

    @property
    def intersections_over_unions(self) -> list[float]:
        """For each class what was rightly given to it, as a part of all that is, or was given to, it; NaN for 0/0."""
        diagonal = self.counts.diag()
        return (diagonal / (self.counts.sum(0) + self.counts.sum(1) - diagonal)).tolist()

    @property
    def mean_iou(self) -> float:
        """The mean of `intersections_over_unions` over the classes that occurred."""
        return float(torch.tensor(self.intersections_over_unions).nanmean())
