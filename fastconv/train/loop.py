"""The training loop: deterministic for a seed, resumable to the bit, and safe against interrupts and full disks."""

import json
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv
from fastconv import models
from fastconv.train import augment, data, report
from fastconv.train.files import RunError, load_checkpoint, previous, save_checkpoint, write_atomically

CHECKPOINT, METRICS, CURVES, FEATURES = "checkpoint.pt", "metrics.json", "learning_curve.png", "features.png"
PREVIOUS = previous(Path(CHECKPOINT)).name
EVALUATION_BATCH = 256
WARM_UP = 0.1  # the fraction of the steps over which the learning rate rises


@dataclass
class Options:
    """What a run is made from. Two runs with the same options, on one machine, end with the same bits."""

    model: str = "lenet5"
    data: str = "digits"
    epochs: int = 30
    batch_size: int = 32
    lr: float = (
        2e-3  # the highest learning rate, of AdamW; it rises over the first tenth and then falls to 0 as a cosine
    )
    weight_decay: float = 0.01
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None  # None: as many as torch chooses

    def check(self) -> None:
        """Raises RunError that names the first option that makes no sense."""
        for name in ("epochs", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RunError(f"{name} must be at least 1, got {value}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise RunError(f"lr must be a positive number, got {self.lr}")
        if not 0 <= self.seed < 2**63:
            raise RunError(f"seed must be at least 0 and less than 2**63, got {self.seed}")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise RunError(f"device {self.device!r} is not one that torch knows, such as cpu or cuda") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RunError("device cuda: torch finds no CUDA device on this machine")


class Listener:
    """What a run tells while it goes on. This one keeps silent; `progress.Display` shows it on the terminal."""

    def start(self, first_epoch: int, epochs: int, images: int) -> None:
        """Training starts, or goes on, with `first_epoch` of `epochs` (counted from 1), each of so many images."""

    def batch(self, images: int, loss: float, accuracy: float) -> None:
        """So many more images are done; the mean loss and accuracy of this epoch so far."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch is over and its checkpoint is written; its entry in metrics.json."""

    def note(self, message: str) -> None:
        """Something that the user should know."""


@dataclass
class Result:
    """How a run ended: its metrics (as in metrics.json), and the signal that stopped it, if one did."""

    metrics: dict[str, Any]
    output: Path
    stopped_by: int | None = None


@dataclass
class Interrupts:
    """The first interrupt asks the loop to stop after what it is doing; the second one stops at once."""

    signal: int | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        try:
            before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: Python delivers no signals here
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number  # and nothing more: a handler that prints can meet a print that it interrupted


def default_output(options: Options) -> Path:
    """runs/<model>-<data>"""
    name = options.data if options.data == "digits" else Path(options.data).resolve().name
    return Path("runs") / f"{options.model}-{name}"


def train(options: Options, output: Path, *, overwrite: bool = False, listener: Listener | None = None) -> Result:
    """Train a model from the start and write the run into the folder `output`.

    The folder then holds metrics.json, checkpoint.pt (and checkpoint.previous.pt, the one before), learning_curve.png
    and features.png. Raises RunError if the folder has content and `overwrite` is false, or if the run cannot go on;
    DataError if the data cannot be read.
    """
    options.check()
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not overwrite:
        raise RunError(
            f"{output} exists already: go on with it (--resume), start anew (--overwrite) or take another --output"
        )
    run = Run(options, output, listener or Listener())
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, CURVES, FEATURES, CHECKPOINT, PREVIOUS):
            (output / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {output}: {error.strerror}") from error
    run.save()
    return run.finish()


def resume(path: Path, changes: dict[str, Any] | None = None, *, listener: Listener | None = None) -> Result:
    """Go on with a run; the result has the same bits as that of an unbroken run.

    Args:
        path: the folder of the run or one of its checkpoints.
        changes: options by name; only `epochs`, `device` and `threads` may differ from those that the run began with.

    Raises RunError if there is no whole checkpoint or the run cannot go on, DataError if the data cannot be read.
    """
    checkpoint = path / CHECKPOINT if path.is_dir() else path
    if checkpoint.name not in (CHECKPOINT, PREVIOUS):
        raise RunError(f"cannot resume from {path}: expected the folder of a run, or {CHECKPOINT} or {PREVIOUS} in it")
    saved = load_checkpoint(checkpoint)
    try:
        options = Options(**saved["arguments"])
        for name, value in (changes or {}).items():
            if name not in ("epochs", "device", "threads") and getattr(options, name) != value:
                raise RunError(f"{name} of a resumed run cannot change: it is {getattr(options, name)}, got {value}")
            setattr(options, name, value)
        options.check()
        run = Run(options, checkpoint.parent, listener or Listener())
        run.restore(saved)
        if checkpoint.name == PREVIOUS:  # the newer one is broken, and must not take this one's place
            checkpoint.replace(checkpoint.with_name(CHECKPOINT))
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"the checkpoint {checkpoint} does not fit this version of fastconv: {error}") from error
    return run.finish()


class Run:
    """One training run: the model, its data, and all state that a checkpoint holds."""

    def __init__(self, options: Options, output: Path, listener: Listener) -> None:
        self.options, self.output, self.listener = options, output, listener
        report.check_dependencies()  # before an hour of training rather than after it
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.device = torch.device(options.device)
        entry = models.model_entry(options.model)
        if len(entry.input_shape) != 3 or entry.input_shape[0] not in (1, 3):
            raise RunError(f"{options.model} does not take images: fastconv train has no data for it")
        self.data = data.load(options.data, data.ImageFormat(*entry.input_shape))
        torch.manual_seed(options.seed)
        self.generator = torch.Generator().manual_seed(options.seed)  # the order of the images, and their augmentation
        self.model = models.create_model(options.model, num_classes=len(self.data.classes)).to(self.device)
        self.loss: Callable[[Tensor, Tensor], Tensor] = getattr(
            self.model, "loss", F.cross_entropy
        )  # LeNet-5 has its own
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=options.weight_decay)
        self.steps = options.epochs * math.ceil(len(self.data.train.labels) / options.batch_size)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.history: list[dict[str, Any]] = []
        self.interrupts = Interrupts()

    def _rate(self, step: int) -> float:
        """The learning rate at a step, as a fraction of the highest."""
        warm_up = max(1, round(WARM_UP * self.steps))
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warm_up) / max(1, self.steps - warm_up)))

    def save(self) -> None:
        """Write the checkpoint and metrics.json."""
        random = {"torch": torch.get_rng_state(), "data": self.generator.get_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        content = {
            "arguments": asdict(self.options),
            "epoch": len(self.history),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": random,
            "history": self.history,
            "skipped": self.data.skipped,
        }
        try:
            save_checkpoint(self.output / CHECKPOINT, content)
            self.write_metrics()
        except RunError as error:
            kept = f"; the last checkpoint is intact: once that is mended, go on with --resume {self.output}"
            raise RunError(f"{error}{kept if (self.output / CHECKPOINT).exists() else ''}") from error

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.history = saved["history"]
        self.data.train.skipped.update(saved["skipped"])
        torch.set_rng_state(saved["random"]["torch"])
        self.generator.set_state(saved["random"]["data"])
        if self.device.type == "cuda" and "cuda" in saved["random"]:
            torch.cuda.set_rng_state(saved["random"]["cuda"], self.device)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json. Losses are means over images (nats), accuracies fractions, times seconds."""
        finished = len(self.history) >= self.options.epochs
        return {
            "status": "finished" if finished else "interrupted" if self.interrupts.signal else "running",
            "test_accuracy": self.history[-1]["test_accuracy"] if self.history else None,
            "arguments": asdict(self.options),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad),
            "classes": self.data.classes,
            "train_images": len(self.data.train.labels),
            "test_images": len(self.data.test.labels),
            "skipped_images": self.data.skipped,
            "epochs": self.history,
            "environment": {
                "fastconv": fastconv.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
            },
        }

    def write_metrics(self) -> None:
        write_atomically(self.output / METRICS, (json.dumps(self.metrics, indent=2, allow_nan=False) + "\n").encode())

    def finish(self) -> Result:
        """Train the epochs that are left and write the plots, unless interrupted."""
        with self.interrupts.caught():
            self.listener.start(len(self.history) + 1, self.options.epochs, len(self.data.train.labels))
            while len(self.history) < self.options.epochs and self.interrupts.signal is None:
                record = self._epoch()
                if record is not None:
                    self.history.append(record)
                    self.save()
                    self.listener.epoch(record)
            if len(self.history) < self.options.epochs:
                self.write_metrics()
                return Result(self.metrics, self.output, self.interrupts.signal)
            write_atomically(self.output / CURVES, report.learning_curve(self.metrics))
            write_atomically(self.output / FEATURES, report.features(self.model, self.data, self.device))
        return Result(self.metrics, self.output)

    def _epoch(self) -> dict[str, Any] | None:
        """One pass over the training images and one over the test images; None if interrupted during the first."""
        began = time.perf_counter()
        loss_sum = correct = count = 0.0
        self.model.train()
        order = torch.randperm(len(self.data.train.labels), generator=self.generator)
        if len(order) > self.options.batch_size and len(order) % self.options.batch_size == 1:
            order = order[:-1]  # batch normalisation has no variance over a last batch of one image
        for images, labels in self._batches(self.data.train, order, self.options.batch_size):
            if self.interrupts.signal is not None:
                return None
            images = augment.random_affine(images, self.generator).to(self.device)
            labels = labels.to(self.device)
            scores = self.model(images)
            loss = self.loss(scores, labels)
            if not math.isfinite(loss.item()):
                kept = f"the checkpoint of epoch {len(self.history)} is intact"
                raise RunError(f"the loss is {loss.item()} in epoch {len(self.history) + 1}: try a lower --lr; {kept}")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            count += len(labels)
            loss_sum += loss.item() * len(labels)
            correct += (scores.argmax(1) == labels).sum().item()
            self.listener.batch(len(labels), loss_sum / count, correct / count)
        trained = time.perf_counter()
        if count == 0:
            raise data.DataError(f"none of the training images of {self.options.data} could be read")
        test_loss, test_accuracy = self._evaluate()
        return {
            "epoch": len(self.history) + 1,
            "train_loss": loss_sum / count,
            "train_accuracy": correct / count,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "seconds": time.perf_counter() - began,
            "images_per_second": count / (trained - began),
        }

    @torch.no_grad()
    def _evaluate(self) -> tuple[float, float]:
        """The mean loss and the accuracy over the test images."""
        loss_sum = correct = count = 0.0
        self.model.eval()
        for images, labels in self._batches(self.data.test, torch.arange(len(self.data.test.labels)), EVALUATION_BATCH):
            scores = self.model(images.to(self.device))
            labels = labels.to(self.device)
            loss_sum += self.loss(scores, labels).item() * len(labels)
            correct += (scores.argmax(1) == labels).sum().item()
            count += len(labels)
        if count == 0:
            raise data.DataError(f"none of the test images of {self.options.data} could be read")
        return loss_sum / count, correct / count

    def _batches(self, images: data.Images, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of a split; each file that cannot be read is named once."""
        told = set(self.data.skipped)
        for batch in self.data.batches(images, order, batch_size):
            for path, reason in images.skipped.items():
                if path not in told:
                    told.add(path)
                    self.listener.note(f"Skipped {path}: {reason}")
            yield batch
