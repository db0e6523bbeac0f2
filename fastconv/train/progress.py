"""Progress of a training run on the terminal: a bar for the epoch, and one line for each that is over."""

from typing import Any

from fastconv.extras import require
from fastconv.train.loop import Listener


class Display(Listener):
    """Shows a run with rich; where the output is no terminal, only the lines."""

    def __init__(self) -> None:
        console, progress = require("rich.console", "fastconv train"), require("rich.progress", "fastconv train")
        self.console = console.Console(highlight=False)
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )
        self.task: Any = None
        self.epochs = self.current = self.images = 0

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, first_epoch: int, epochs: int, images: int) -> None:
        self.epochs, self.current, self.images = epochs, first_epoch, images
        self.task = self.bar.add_task("", total=images * (epochs - first_epoch + 1), figures="")
        self._describe()

    def batch(self, images: int, loss: float, accuracy: float) -> None:
        speed = self.bar.tasks[0].speed
        figures = f"loss {loss:.4f}  accuracy {accuracy:6.2%}" + (f"  {speed:,.0f} images/s" if speed else "")
        self.bar.update(self.task, advance=images, figures=figures)

    def epoch(self, record: dict[str, Any]) -> None:
        overlap = f"  IoU {record['test_mean_iou']:.3f}" if "test_mean_iou" in record else ""
        self.console.print(
            f"epoch {record['epoch']:{len(str(self.epochs))}d}/{self.epochs}"
            f"  train {record['train_accuracy']:7.2%} (loss {record['train_loss']:.4f})"
            f"  test {record['test_accuracy']:7.2%} (loss {record['test_loss']:.4f}){overlap}"
            f"  {record['images_per_second']:,.0f} images/s",
            soft_wrap=True,
        )
        self.current = record["epoch"] + 1
        self._describe()

    def note(self, message: str) -> None:
        self.console.print(message, markup=False, soft_wrap=True)

    def _describe(self) -> None:
        if self.current <= self.epochs:
            self.bar.update(self.task, description=f"epoch {self.current}/{self.epochs}")
