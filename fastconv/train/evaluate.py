"""What a trained model is asked afterwards: the classes of images, and how often it is right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastconv.train import data, loop, networks, report, text
from fastconv.train.files import RunError, load_checkpoint, write_atomically
from fastconv.train.options import Options

PICTURE = "confusion.png"


@dataclass
class Trained:
    """A model as its checkpoint has it, ready for use: the moving average of its weights, if the run kept one."""

    model: nn.Module
    options: Options
    format: data.ImageFormat | data.TextFormat
    classes: list[str]
    mean: Tensor
    std: Tensor
    vocabulary: list[str]
    folder: Path

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> "Trained":
        """From the folder of a run, or one of its checkpoints. Raises RunError if that is missing or broken."""
        path = path / loop.CHECKPOINT if path.is_dir() else path
        saved = load_checkpoint(path)
        try:
            options = Options(**saved["arguments"])
            vocabulary = saved["vocabulary"]
            model = networks.create(options.model, options.model_options, len(saved["classes"]), len(vocabulary))
            state = saved["model"]
            if saved["average"] is not None:
                prefix = "module."
                state = {
                    name.removeprefix(prefix): value
                    for name, value in saved["average"].items()
                    if name.startswith(prefix)
                }
            model.load_state_dict(state)
            takes = networks.input_format(options.model, options.model_options, options.image_size)
            model, classes, normal = model.eval().to(device), saved["classes"], (saved["mean"], saved["std"])
            return cls(model, options, takes, classes, *normal, vocabulary, path.parent)
        except (KeyError, TypeError, RuntimeError) as error:
            raise RunError(f"the checkpoint {path} does not fit this version of fastconv: {error}") from error

    @torch.no_grad()
    def scores(self, inputs: Tensor) -> Tensor:
        """The scores, on the model's device, of uint8 images (n, channels, height, width) or of words (n, length)."""
        inputs = inputs.to(next(self.model.parameters()).device)
        if inputs.dtype == torch.uint8:
            inputs = data.normalize(inputs, self.mean, self.std)
        return networks.scores(self.model(inputs))

    def read(self, path: Path) -> Tensor | str:
        """The input (1, …) from a file of an image or, for a model of text, of text; or why it cannot be read."""
        if isinstance(self.format, data.ImageFormat):
            files = data.ImageFiles([path], torch.zeros(1, dtype=torch.int64), self.format)
            pixels, _ = files.read(torch.tensor([0]))
            return pixels if len(pixels) else files.skipped[str(path)]
        try:
            words = text.words(path.read_text(errors="replace"))
        except OSError as error:
            return str(error)
        return text.numbers([words], self.vocabulary, self.format.length)


def predict(
    checkpoint: Path, files: Sequence[Path], top: int = 3, device: str = "cpu"
) -> Iterator[tuple[Path, list[tuple[str, float]] | str]]:
    """For each file the likeliest classes with their probabilities, or the reason why it cannot be read.

    Images are cropped in the middle and resized to what the model takes. A model of text takes files of text.
    """
    trained = Trained.load(checkpoint, device)
    if top < 1:
        raise RunError(f"top must be at least 1, got {top}")
    for path in files:
        inputs = trained.read(path)
        if isinstance(inputs, str):
            yield path, inputs
            continue
        scores = trained.scores(inputs)
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
    if loaded.vocabulary != trained.vocabulary:
        raise RunError("the texts are others than those of the training: packages have other versions now")
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
