"""The training loop: deterministic for a seed, resumable to the bit, and safe against interrupts and full disks."""

import json
import math
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastconv
from fastconv.train import data, distributed, networks, optim, report
from fastconv.train.augment import Augmentation
from fastconv.train.files import RunError, load_checkpoint, previous, save_checkpoint, write_atomically
from fastconv.train.options import CHANGEABLE, PRECISIONS, Options

CHECKPOINT, METRICS, LINES = "checkpoint.pt", "metrics.json", "metrics.jsonl"
CURVES, FEATURES, EVENTS = "learning_curve.png", "features.png", "tensorboard"
PREVIOUS = previous(Path(CHECKPOINT)).name
EVALUATION_BATCH = 256


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

    The folder then holds metrics.json, metrics.jsonl (an epoch a line), checkpoint.pt (and checkpoint.previous.pt, the
    one before), learning_curve.png and, for a model of images, features.png. Under torchrun all processes train
    together, process 0 writes, and after a restart they go on with the run.

    Raises RunError if the folder has content and `overwrite` is false, or if the run cannot go on; DataError if the
    data cannot be read.
    """
    options.check()
    with distributed.joined(torch.device(options.device)) as world:
        if distributed.restarted(world) and (output / CHECKPOINT).exists():
            return _resume(output / CHECKPOINT, load_checkpoint(output / CHECKPOINT), {}, world, listener)
        if world.main and output.exists() and (not output.is_dir() or any(output.iterdir())) and not overwrite:
            raise RunError(
                f"{output} exists already: go on with it (--resume), start anew (--overwrite) or take another --output"
            )
        run = Run(options, output, world, listener)
        if world.main:
            try:
                output.mkdir(parents=True, exist_ok=True)
                for name in (METRICS, LINES, CURVES, FEATURES, CHECKPOINT, PREVIOUS, f"{EVENTS}/events.out.tfevents.*"):
                    for file in output.glob(name):
                        file.unlink()
            except OSError as error:
                raise RunError(f"cannot write to {output}: {error.strerror}") from error
        run.save()
        return run.finish()


def resume(path: Path, changes: dict[str, Any] | None = None, *, listener: Listener | None = None) -> Result:
    """Go on with a run; the result has the same bits as that of an unbroken run.

    Args:
        path: the folder of the run or one of its checkpoints.
        changes: options by name; only `epochs`, `device`, `threads` and `tensorboard` may differ from those that the
            run began with.

    Raises RunError if there is no whole checkpoint or the run cannot go on, DataError if the data cannot be read.
    """
    checkpoint = path / CHECKPOINT if path.is_dir() else path
    if checkpoint.name not in (CHECKPOINT, PREVIOUS):
        raise RunError(f"cannot resume from {path}: expected the folder of a run, or {CHECKPOINT} or {PREVIOUS} in it")
    saved = load_checkpoint(checkpoint)
    device = (changes or {}).get("device") or saved["arguments"]["device"]
    with distributed.joined(torch.device(device)) as world:
        return _resume(checkpoint, saved, changes or {}, world, listener)


def _resume(
    checkpoint: Path,
    saved: dict[str, Any],
    changes: dict[str, Any],
    world: distributed.World,
    listener: Listener | None,
) -> Result:
    try:
        options = Options(**saved["arguments"])
        for name, value in changes.items():
            if name not in CHANGEABLE and getattr(options, name) != value:
                raise RunError(f"{name} of a resumed run cannot change: it is {getattr(options, name)}, got {value}")
            setattr(options, name, value)
        options.check()
        run = Run(options, checkpoint.parent, world, listener)
        run.restore(saved)
        world.barrier()  # all processes have read it
        if checkpoint.name == PREVIOUS and world.main:  # the newer one is broken, and must not take this one's place
            checkpoint.replace(checkpoint.with_name(CHECKPOINT))
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"the checkpoint {checkpoint} does not fit this version of fastconv: {error}") from error
    return run.finish()


@dataclass(frozen=True)
class Share:
    """The images that this process has of a part of a step; `start` is the place of their first one in the step."""

    indices: Tensor
    start: int


class Run:
    """One training run: the model, its data, and all state that a checkpoint holds."""

    def __init__(
        self, options: Options, output: Path, world: distributed.World, listener: Listener | None = None
    ) -> None:
        self.options, self.output, self.world = options, output, world
        self.listener = listener if listener is not None and world.main else Listener()
        report.check_dependencies(options.tensorboard)  # before an hour of training rather than after it
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.device = world.device
        self.format = networks.input_format(options.model, options.model_options, options.image_size)
        self.data = data.load(options.data, self.format)
        self.augmentation = self._augmentation()
        torch.manual_seed(options.seed)
        self.generator = torch.Generator()  # of the order and the augmentation of the images: alike in all processes
        self.model = networks.create(
            options.model, options.model_options, len(self.data.classes), len(self.data.vocabulary)
        )
        self.model.to(self.device)
        self.criterion = networks.criterion(self.model, options.label_smoothing)
        self.parallel = world.wrap(self.model)
        self.average = optim.moving_average(self.model, options.ema)
        self.optimizer = optim.optimizer(self.model.parameters(), options)
        self.steps = options.epochs * math.ceil(len(self.data.train.labels) / options.batch_size)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, optim.schedule(options, self.steps))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "float16")
        self.history: list[dict[str, Any]] = []
        self.interrupts = Interrupts()

    def _augmentation(self) -> Augmentation:
        """What `augment` names, or what suits the data."""
        names = self.data.augment if self.options.augment is None else self.options.augment
        if names and self.data.task != "images":
            raise RunError(f"augment: there is none for {self.data.task}, only for images with a class each")
        if isinstance(self.format, data.TextFormat):
            return Augmentation((), (0, 0))
        if "lighting" in names and self.format.channels != 3:
            raise RunError(f"augment lighting: {self.options.model} takes grey images, and it changes colours")
        lighting = self.data.lighting() if "lighting" in names else None
        return Augmentation(names, (self.format.height, self.format.width), lighting)

    def save(self) -> None:
        """Write the checkpoint and the metrics, if this is process 0."""
        if not self.world.main:
            return
        content = {
            "arguments": asdict(self.options),
            "epoch": len(self.history),
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "skipped": self.data.skipped,
            "classes": self.data.classes,
            "mean": self.data.mean,
            "std": self.data.std,
            "vocabulary": self.data.vocabulary,
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
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        self.scaler.load_state_dict(saved["scaler"])
        self.history = saved["history"]
        self.data.train.skipped.update(saved["skipped"])

    @property
    def tested(self) -> torch.nn.Module:
        """The model that is tested: the moving average, if there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json. Losses are means over images (nats), accuracies fractions, times seconds."""
        finished = len(self.history) >= self.options.epochs
        last = self.history[-1] if self.history else {}
        return {
            "status": "finished" if finished else "interrupted" if self.interrupts.signal else "running",
            "test_accuracy": last.get("test_accuracy"),
            **({"test_mean_iou": last["test_mean_iou"]} if "test_mean_iou" in last else {}),
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
                "processes": self.world.size,
            },
        }

    def write_metrics(self) -> None:
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in self.history)
        write_atomically(self.output / LINES, lines.encode())
        write_atomically(self.output / METRICS, (json.dumps(self.metrics, indent=2, allow_nan=False) + "\n").encode())

    def finish(self) -> Result:
        """Train the epochs that are left and write the plots, unless interrupted."""
        events = self.options.tensorboard and self.world.main
        with self.interrupts.caught(), report.events(self.output / EVENTS if events else None, self.history) as write:
            self.listener.start(len(self.history) + 1, self.options.epochs, len(self.data.train.labels))
            while len(self.history) < self.options.epochs and not self._interrupted():
                record = self._epoch()
                if record is not None:
                    self.history.append(record)
                    self.save()
                    write(record)
                    self.listener.epoch(record)
            if len(self.history) < self.options.epochs:
                if self.world.main:
                    self.write_metrics()
                return Result(self.metrics, self.output, self.interrupts.signal or signal.SIGTERM)
            if self.world.main:
                write_atomically(self.output / CURVES, report.learning_curve(self.metrics))
                if self.data.task != "text":
                    write_atomically(self.output / FEATURES, report.features(self.tested, self.data, self.device))
        return Result(self.metrics, self.output)

    def _interrupted(self) -> bool:
        """Whether any of the processes was interrupted: they stop together."""
        return bool(self.world.sum(torch.tensor(int(self.interrupts.signal is not None))))

    def _epoch(self) -> dict[str, Any] | None:
        """One pass over the training images and one over the test images; None if interrupted during the first."""
        began, began_cpu = time.perf_counter(), time.process_time()
        loss_sum = correct = count = 0.0
        rate = self.scheduler.get_last_lr()[0]
        self.parallel.train()
        self._seed()
        steps = self._steps()
        batches = self._batches(self.data.train, [share.indices for shares in steps for share in shares])
        for shares in steps:
            read = [next(batches) for _ in shares]
            counts = self.world.sum(
                torch.tensor([int(self.interrupts.signal is not None), *(len(labels) for _, labels in read)])
            ).tolist()
            if counts.pop(0):
                return None
            if sum(counts) == 0:  # not one of the images could be read
                continue
            loss, hits = self._step(shares, read, counts)
            count += sum(counts)
            loss_sum += loss * sum(counts)
            correct += hits
            self.listener.batch(sum(counts), loss_sum / count, correct / count)
        trained = time.perf_counter()
        if count == 0:
            raise data.DataError(f"none of the training images of {self.options.data} could be read")
        self.world.broadcast_buffers(self.model)
        tested = self._evaluate()
        for skipped in self.world.gather(self.data.skipped):
            self.data.train.skipped.update(skipped)
        return {
            "epoch": len(self.history) + 1,
            "lr": rate,
            "train_loss": loss_sum / count,
            "train_accuracy": correct / count,
            **tested,
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - began_cpu,
            "images_per_second": count / (trained - began),
        }

    def _seed(self) -> None:
        """Start all random numbers anew, as the seed, the epoch and the process decide: no state is to be kept."""
        shared, own = (
            int(np.random.SeedSequence((self.options.seed, len(self.history), *key)).generate_state(1, np.uint64)[0])
            for key in ((), (1 + self.world.rank,))
        )
        self.generator.manual_seed(shared)
        torch.manual_seed(own)

    def _steps(self) -> list[list[Share]]:
        """This process's shares of the steps of an epoch: one of each part whose gradients are accumulated."""
        order = torch.randperm(len(self.data.train.labels), generator=self.generator)
        size = self.options.batch_size
        shares = self.world.size * self.options.accumulate
        rest = len(order) % size
        if len(order) > size and rest > 0 and rest // shares <= 1 < size // shares:
            order = order[: len(order) - rest]  # batch normalisation has no variance over a share of one image
        steps = []
        for batch in order.split(size):
            parts = torch.arange(len(batch)).tensor_split(self.options.accumulate)
            places = [part[self.world.share(len(part))] for part in parts]
            steps.append([Share(batch[own], int(own[0]) if len(own) else 0) for own in places])
        return steps

    def _step(self, shares: list[Share], read: list[tuple[Tensor, Tensor]], counts: list[int]) -> tuple[float, float]:
        """One step of the optimizer: the mean loss over the images that could be read, and how many were right."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(2, dtype=torch.float64)
        seed = int(torch.randint(2**62, (), generator=self.generator))
        work = [(share.start, *batch) for share, batch, count in zip(shares, read, counts, strict=True) if count]
        for index, (start, inputs, labels) in enumerate(work):
            inputs, labels = self._to_device(inputs, labels, seed, start)
            if not len(labels):  # none of this process's images could be read: it takes part with nothing
                inputs, labels = inputs.new_zeros(2, *inputs.shape[1:]), labels.new_zeros(2, *labels.shape[1:])
                weight = 0
            else:
                weight = len(labels)
            with self.world.no_sync(self.parallel) if index + 1 < len(work) else nullcontext():
                with self._autocast():
                    outputs = self.parallel(inputs)
                    loss = self.criterion(outputs, labels)
                # DistributedDataParallel takes the mean over the processes, but the step is a mean over images.
                self.scaler.scale(loss * (weight * self.world.size / sum(counts))).backward()
            hits = (networks.scores(outputs).argmax(1) == labels).double().mean()
            total += weight * torch.stack([loss.detach().double(), hits]).cpu()
        loss_sum, correct = self.world.sum(total).tolist()
        if not math.isfinite(loss_sum):
            kept = f"the checkpoint of epoch {len(self.history)} is intact"
            raise RunError(f"the loss is {loss_sum} in epoch {len(self.history) + 1}: try a lower --lr; {kept}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss_sum / sum(counts), correct

    def _to_device(self, inputs: Tensor, labels: Tensor, seed: int, start: int) -> tuple[Tensor, Tensor]:
        """The inputs of a training step, or of a part of it, augmented and normalised, and their labels."""
        inputs, labels = inputs.to(self.device), labels.to(self.device).long()
        if self.augmentation.changes:
            part = slice(start, start + len(inputs))
            inputs = self.augmentation(inputs.float() / 255, seed, part, self.options.batch_size)
        return self.data.normalize(inputs), labels

    def _autocast(self) -> torch.autocast:
        precision = PRECISIONS[self.options.precision]
        return torch.autocast(self.device.type, precision, enabled=precision != torch.float32)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """The mean loss over the test images, the accuracy and, for scenes, the mean intersection over union."""
        model = self.tested.eval()
        loss_sum = torch.zeros(1, dtype=torch.float64)
        confusion = networks.Confusion(len(self.data.classes))
        count = 0
        batches = torch.arange(len(self.data.test.labels)).split(EVALUATION_BATCH)
        for inputs, labels in self._batches(self.data.test, [part[self.world.share(len(part))] for part in batches]):
            if not len(labels):
                continue
            inputs, labels = self.data.normalize(inputs.to(self.device)), labels.to(self.device).long()
            with self._autocast():
                outputs = model(inputs)
                loss_sum += self.criterion(outputs, labels).item() * len(labels)
            confusion.add(networks.scores(outputs), labels)
            count += len(labels)
        total = self.world.sum(torch.cat([loss_sum, torch.tensor([count], dtype=torch.float64)])).tolist()
        if total[1] == 0:
            raise data.DataError(f"none of the test images of {self.options.data} could be read")
        confusion.counts = self.world.sum(confusion.counts)
        result = {"test_loss": total[0] / total[1], "test_accuracy": confusion.accuracy}
        return result | ({"test_mean_iou": confusion.mean_iou} if self.data.task == "scenes" else {})

    def _batches(self, examples: data.Examples, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of a part of the data; each file that cannot be read is named once."""
        told = set(self.data.skipped)
        for batch in self.data.batches(examples, batches):
            for path, reason in dict(examples.skipped).items():  # the next images are being read meanwhile
                if path not in told:
                    told.add(path)
                    self.listener.note(f"Skipped {path}: {reason}")
            yield batch
