"""What a training run is made from: its options, with their defaults and what they may be."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from fastconv.train import augment
from fastconv.train.files import RunError

CHANGEABLE = ("epochs", "device", "threads", "tensorboard")  # when a run is resumed
RATES = {"adamw": 2e-3, "sgd": 0.05}
WEIGHT_DECAYS = {"adamw": 0.01, "sgd": 5e-4}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHOICES = {"optimizer": tuple(RATES), "schedule": ("cosine", "step", "constant"), "precision": tuple(PRECISIONS)}


@dataclass
class Options:
    """What a run is made from. Two runs with the same options, on one machine, end with the same bits.

    Attributes:
        model: a name of `fastconv.models`.
        model_options: keyword arguments of its builder.
        data: what `train.data.load` takes.
        image_size: height and width of the images; None: what the model is registered with.
        epochs: passes over the training images.
        batch_size: images a step, of all processes and all accumulated parts together.
        accumulate: parts in which the gradients of a step are computed.
        optimizer: "adamw" or "sgd".
        lr: the highest learning rate; None: 0.002 for AdamW, 0.05 for SGD.
        momentum: of SGD.
        weight_decay: None: 0.01 for AdamW, where it is decoupled, 0.0005 for SGD.
        schedule: "cosine" to 0, "step", or "constant", after a linear warm-up.
        warm_up: over which part of the steps the rate rises.
        milestones: after which parts of the steps "step" multiplies the rate by `decay`.
        precision: of the forward pass, by autocast; weights are float32, and float16's gradients scaled.
        label_smoothing: the part of the target that is spread evenly over the classes.
        ema: decay of an exponential moving average of the weights, which is then what is tested; 0: none.
        augment: names of `train.augment`; None: what suits the data.
        seed: decides the initial weights, and with the number of the epoch everything random in it.
        device: "cpu" or "cuda".
        threads: None: as many as torch chooses.
        tensorboard: write TensorBoard's event files, too.
    """

    model: str = "lenet5"
    data: str = "digits"
    epochs: int = 30
    batch_size: int = 32
    lr: float | None = None
    weight_decay: float | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    accumulate: int = 1
    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "cosine"
    warm_up: float = 0.1
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    decay: float = 0.1
    precision: str = "float32"
    label_smoothing: float = 0.0
    ema: float = 0.0
    augment: list[str] | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.lr is None:
            self.lr = RATES.get(self.optimizer)
        if self.weight_decay is None:
            self.weight_decay = WEIGHT_DECAYS.get(self.optimizer)

    def check(self) -> None:
        """Raises RunError that names the first option that makes no sense."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise RunError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "threads", "accumulate", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RunError(f"{name} must be at least 1, got {value}")
        if self.accumulate > self.batch_size:
            raise RunError(f"accumulate must be at most the batch size, {self.batch_size}, got {self.accumulate}")
        if self.lr is None or not (math.isfinite(self.lr) and self.lr > 0):
            raise RunError(f"lr must be a positive number, got {self.lr}")
        for name in ("weight_decay", "decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise RunError(f"{name} must be a number from 0, got {value}")
        for name in ("momentum", "label_smoothing", "ema", "warm_up"):
            if not 0 <= getattr(self, name) < 1:
                raise RunError(f"{name} must be at least 0 and less than 1, got {getattr(self, name)}")
        if not all(0 <= part <= 1 for part in self.milestones):
            raise RunError(f"milestones must be parts of the training between 0 and 1, got {self.milestones}")
        for name in self.augment or ():
            if name not in augment.NAMES:
                raise RunError(f"augment must be names of {', '.join(augment.NAMES)}, got {name!r}")
        if not 0 <= self.seed < 2**63:
            raise RunError(f"seed must be at least 0 and less than 2**63, got {self.seed}")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise RunError(f"device {self.device!r} is not one that torch knows, such as cpu or cuda") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RunError("device cuda: torch finds no CUDA device on this machine")
