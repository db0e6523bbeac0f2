"""What a trained model is asked afterwards: the classes of images, and how often it is right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastconv.train import data, loop, networks, report
from fastconv.train.files import RunError, load_checkpoint, write_atomically
from fastconv.train.options import Options

PICTURE = "confusion.png"


@dataclass
class Trained:
    """A model as its checkpoint has it, ready for use: the moving average of its weights, if the run kept one."""

    model: nn.Module
    options: Options
    format: data.ImageFormat
    classes: list[str]
    mean: Tensor
    std: Tensor
    folder: Path

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> "Trained":
        """From the folder of a run, or one of its checkpoints. Raises RunError if that is missing or broken."""
        path = path / loop.CHECKPOINT if path.is_dir() else path
        saved = load_checkpoint(path)
        try:
            options = Options(**saved["arguments"])
            model = networks.create(options.model, options.model_options, len(saved["classes"]))
            state = saved["model"]
            if saved["average"] is not None:
                prefix = "module."
                state = {
                    name.removeprefix(prefix): value
                    for name, value in saved["average"].items()
                    if name.startswith(prefix)
                }
            model.load_state_dict(state)
            image_format = networks.image_format(options.model, options.model_options, options.image_size)
            model = model.eval().to(device)
            return cls(model, options, image_format, saved["classes"], saved["mean"], saved["std"], path.parent)
        except (KeyError, TypeError, RuntimeError) as error:
            raise RunError(f"the checkpoint {path} does not fit this version of fastconv: {error}") from error

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """The scores, on the model's device, of uint8 images (n, channels, height, width)."""
        device = next(self.model.parameters()).device
        return networks.scores(self.model(data.normalize(images.to(device), self.mean, self.std)))


def predict(
    checkpoint: Path, images: Sequence[Path], top: int = 3, device: str = "cpu"
) -> Iterator[tuple[Path, list[tuple[str, float]] | str]]:
    """For each image the likeliest classes with their probabilities, or the reason why it cannot be read.

    Images are cropped in the middle and resized to what the model takes.
    """
    trained = Trained.load(checkpoint, device)
    if top < 1:
        raise RunError(f"top must be at least 1, got {top}")
    for path in images:
        files = data.ImageFiles([path], torch.zeros(1, dtype=torch.int64), trained.format)
        pixels, _ = files.read(torch.tensor([0]))
        if not len(pixels):
            yield path, files.skipped[str(path)]
            continue
        scores = trained.scores(pixels)
        if scores.dim() != 2:
            raise RunError(f"{trained.options.model} gives a class for each pixel: predict shows one for an image")
        probabilities, classes = scores[0].softmax(0).topk(min(top, len(trained.classes)))
        yield (
            path,
            [
                (trained.classes[index], value)
                for index, value in zip(classes.tolist(), probabilities.tolist(), strict=True)
            ],
        )


@dataclass
class Evaluation:
    """How a model did on a test part.

    Attributes:
        classes: for each its name, how many examples (of scenes: pixels) it has, and what part of them was right (of
            scenes: the intersection over union).
        skipped: the files that could not be read, and why.
        picture: where the confusion matrix is drawn.
    """

    task: str
    accuracy: float
    mean_iou: float
    loss: float
    classes: list[tuple[str, int, float]]
    skipped: dict[str, str]
    picture: Path
    confusion: Tensor


def evaluate(
    checkpoint: Path, source: str | None = None, picture: Path | None = None, device: str = "cpu"
) -> Evaluation:
    """Test a trained model on the test part of its data, or of `source`, and draw the confusion matrix.

    Raises RunError if the checkpoint is missing or broken, or the classes of `source` are not the model's; DataError
    if the data cannot be read.
    """
    trained = Trained.load(checkpoint, device)
    loaded = data.load(source or trained.options.data, trained.format)
    if loaded.classes != trained.classes:
        raise RunError(f"the model's classes are {_few(trained.classes)}, those of the data {_few(loaded.classes)}")
    criterion = networks.criterion(trained.model, trained.options.label_smoothing)
    confusion, loss_sum, count = networks.Confusion(len(loaded.classes)), 0.0, 0
    batches = torch.arange(len(loaded.test.labels)).split(loop.EVALUATION_BATCH)
    for images, labels in loaded.batches(loaded.test, batches):
        if len(labels):
            scores, labels = trained.scores(images), labels.to(device).long()
            confusion.add(scores, labels)
            loss_sum += criterion(scores, labels).item() * len(labels)
            count += len(labels)
    if count == 0:
        raise data.DataError(f"none of the test images of {source or trained.options.data} could be read")
    picture = picture or trained.folder / PICTURE
    write_atomically(picture, report.confusion(confusion.counts, loaded.classes))
    parts = confusion.intersections_over_unions if loaded.task == "scenes" else confusion.recalls
    classes = list(zip(loaded.classes, confusion.counts.sum(1).tolist(), parts, strict=True))
    figures: dict[str, Any] = {"accuracy": confusion.accuracy, "mean_iou": confusion.mean_iou}
    return Evaluation(
        loaded.task,
        **figures,
        loss=loss_sum / count,
        classes=classes,
        skipped=loaded.test.skipped,
        picture=picture,
        confusion=confusion.counts,
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
