"""The pictures of a training run: learning curves, and what the model sees in some test images."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastconv.extras import require
from fastconv.train.data import DataSet
from fastconv.train.networks import scores

TRAIN_COLOR, TEST_COLOR, WRONG_COLOR = "#9aa5b1", "#1f77b4", "#c0392b"
PREDICTIONS, EXAMPLES = 24, 3
MOST_FILTERS = 16
MOST_NAMED, SCENES = 30, 10


def check_dependencies(tensorboard: bool) -> None:
    """Raises MissingDependency without matplotlib or, if it is asked for, TensorBoard."""
    require("matplotlib", "plotting a training run")
    if tensorboard:
        require("tensorboard", "--tensorboard")


@contextmanager
def events(folder: Path | None, history: Sequence[dict[str, Any]]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that adds the record of an epoch to TensorBoard's event files in `folder`, or does nothing for None.

    What is there already of epochs that are not in `history` is not shown any more.
    """
    if folder is None:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=len(history) + 1) as writer:

        def write(record: dict[str, Any]) -> None:
            for name, value in record.items():
                part, _, quantity = name.partition("_")
                if part in ("train", "test"):
                    writer.add_scalar(f"{quantity}/{part}", value, record["epoch"])
                elif name != "epoch":
                    writer.add_scalar(name, value, record["epoch"])
            writer.flush()

        yield write


def learning_curve(metrics: dict[str, Any]) -> bytes:
    """A PNG of loss and accuracy against the epoch, from the content of metrics.json."""
    from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter

    epochs = metrics["epochs"]
    numbers = [record["epoch"] for record in epochs]
    figure = _figure(10, 4)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for axes, quantity in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
        for part, color in (("train", TRAIN_COLOR), ("test", TEST_COLOR)):
            values = [record[f"{part}_{quantity}"] for record in epochs]
            axes.plot(
                numbers,
                values,
                color=color,
                marker=".",
                label={"train": "training (images augmented)", "test": "test"}[part],
            )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    loss_axes.set_ylabel("mean loss (nats)")
    loss_axes.set_yscale("log")
    for which, setter in (
        ("major", loss_axes.yaxis.set_major_formatter),
        ("minor", loss_axes.yaxis.set_minor_formatter),
    ):
        setter(LogFormatter(labelOnlyBase=which == "major", minor_thresholds=(2, 1)))
    loss_axes.legend(frameon=False)
    accuracy_axes.set_ylabel("accuracy")
    lowest = min(min(record["train_accuracy"], record["test_accuracy"]) for record in epochs)
    accuracy_axes.set_ylim(max(0.0, min(0.9, lowest - 0.02)), 1.005)
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    accuracy_axes.set_title(f"test accuracy at the end: {metrics['test_accuracy']:.2%}", fontsize=10)
    arguments = metrics["arguments"]
    loss_axes.set_title(f"{arguments['model']} on {arguments['data']}", fontsize=10)
    return _png(figure)


def features(model: nn.Module, data: DataSet, device: torch.device) -> bytes:
    """A PNG of predictions for test images, the filters of the first convolution, and its outputs for some of them.

    Of scenes: of some of them, what is in each of their pixels, and what the model says.
    """
    if data.task == "scenes":
        return _scenes(model, data, device)
    count = len(data.test.labels)
    pixels, labels = data.test.read(torch.arange(0, count, max(1, count // PREDICTIONS))[:PREDICTIONS])
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    outputs: list[Tensor] = []
    hook = None if first is None else first.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    model.eval()
    with torch.no_grad():
        predicted = scores(model(data.normalize(pixels).to(device))).argmax(1).cpu()
    if hook is not None:
        hook.remove()

    columns = min(12, len(labels))
    rows = -(-len(labels) // columns)
    heights = [0.45 + 0.95 * rows] + ([1.25, 0.3 + 0.95 * EXAMPLES] if first is not None else [])
    figure = _figure(12, sum(heights))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]

    wrong = int((predicted != labels).sum())
    parts[0].suptitle(f"Predictions for test images ({wrong} of these {len(labels)} wrong)", fontsize=11)
    for axes, image, guess, label in _cells(parts[0], rows, columns, pixels, predicted.tolist(), labels.tolist()):
        _show(axes, image)
        text = data.classes[guess] if guess == label else f"{data.classes[guess]}, is {data.classes[label]}"
        axes.set_title(text, fontsize=8, pad=2, color="black" if guess == label else WRONG_COLOR)

    if first is not None:
        filters = first.weight.detach().cpu().float()[:MOST_FILTERS]
        size = "x".join(map(str, filters.shape[-2:]))
        shown = f"{len(filters)} of {first.out_channels}" if first.out_channels > len(filters) else f"{len(filters)}"
        parts[1].suptitle(f"First layer: {shown} filters, {size} (blue negative, red positive)", fontsize=11)
        for axes, weight in _cells(parts[1], 1, len(filters) + 1, [None, *filters]):
            if weight is not None:
                _show_filter(axes, weight)
        maps = outputs[0].cpu().float()[:EXAMPLES, : len(filters)]
        parts[2].suptitle("Feature maps of these filters for three of the images", fontsize=11)
        tiles = [tile for image, found in zip(pixels[:EXAMPLES], maps, strict=False) for tile in (image, *found)]
        for index, (axes, tile) in enumerate(_cells(parts[2], len(maps), len(filters) + 1, tiles)):
            if index % (len(filters) + 1) == 0:
                _show(axes, tile)
            else:
                axes.imshow(tile.numpy(), cmap="viridis")
    return _png(figure)


def _scenes(model: nn.Module, data: DataSet, device: torch.device) -> bytes:
    """A PNG of scenes, their masks and the predicted masks, one below the other."""
    pixels, masks = data.test.read(torch.arange(SCENES))
    model.eval()
    with torch.no_grad():
        predicted = scores(model(data.normalize(pixels.to(device)))).argmax(1).cpu()
    figure = _figure(1.3 * SCENES, 4.6)
    rows = figure.subplots(3, SCENES, squeeze=False)
    for axes, title in zip(rows[:, 0], ("scene", "mask", "predicted"), strict=True):
        axes.set_title(title, fontsize=10, loc="left")
    for (top, middle, bottom), image, mask, found in zip(rows.T, pixels, masks, predicted, strict=True):
        _show(top, image)
        for axes, classes in ((middle, mask), (bottom, found)):
            axes.imshow(classes.numpy(), cmap="tab20", vmin=0, vmax=19, interpolation="nearest")
        for axes in (top, middle, bottom):
            axes.set_axis_off()
    return _png(figure)


def _cells(part: Any, rows: int, columns: int, *lists: Iterable[Any]) -> Iterable[tuple[Any, ...]]:
    """The axes of a grid without ticks or frames, each with its items of the lists."""
    grid = part.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    return zip(grid, *lists, strict=False)


def _show(axes: Any, image: Tensor) -> None:
    """A uint8 image (channels, height, width)."""
    if len(image) == 1:
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(image.permute(1, 2, 0).numpy())


def _show_filter(axes: Any, weight: Tensor) -> None:
    """A filter (channels, height, width): in colour if it has three channels, else their mean, where white is zero."""
    if len(weight) == 3:
        low, high = weight.min(), weight.max()
        axes.imshow(((weight - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy())
    else:
        mean = weight.mean(0)
        largest = float(mean.abs().max().clamp(min=1e-12))
        axes.imshow(mean.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no global state, no window system

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def confusion(counts: Tensor, classes: Sequence[str]) -> bytes:
    """A PNG of a confusion matrix, the true class a row; the shade is the part of the row, so that rare classes show.

    Up to 30 classes are named and their counts written.
    """
    from matplotlib.ticker import PercentFormatter

    parts = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    detailed = len(classes) <= MOST_NAMED
    side = 2.2 + (0.42 * len(classes) if detailed else 7)
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    if detailed:
        rotated = max(map(len, classes)) > 3
        axes.set_xticks(range(len(classes)), classes, rotation=90 if rotated else 0)
        axes.set_yticks(range(len(classes)), classes)
        for row, values in enumerate(counts.tolist()):
            for column, value in enumerate(values):
                if value:
                    color = "white" if parts[row, column] > 0.5 else "black"
                    axes.text(column, row, _short(value), ha="center", va="center", fontsize=7, color=color)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right = int(counts.trace())
    axes.set_title(f"{right:,} of {int(counts.sum()):,} right: {right / max(1, int(counts.sum())):.2%}", fontsize=10)
    figure.colorbar(image, ax=axes, format=PercentFormatter(1), shrink=0.8, label="of the true class")
    return _png(figure)


def _short(count: int) -> str:
    """In at most four characters: 950, 12k, 3.4M."""
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if count >= limit:
            value = count / {"M": 1e6, "k": 1e3}[unit]
            return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}{unit}"
    return str(count)
