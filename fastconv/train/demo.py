"""What `make demo` runs: LeNet-5 learns digits, then a plain PyTorch network is converted and compared with itself."""

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastconv
from fastconv import cli
from fastconv.bench.timing import Timing, interleave

SAME_SPEED = 0.05  # a difference that a repetition may turn round
SECONDS_A_LAYER = 0.5


class PlainNetwork(nn.Sequential):
    """A small network of torch's own layers: one of each kind that fastconv has kernels for."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.LocalResponseNorm(5),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, groups=64),
            nn.Conv2d(64, 128, 1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(128, 128, 3, padding=1, groups=8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, 10),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser("python -m fastconv.train.demo", description=__doc__)
    parser.add_argument("--epochs", type=int, default=20, help="of the training (default: 20)")
    parser.add_argument("--output", type=Path, help="the folder of the training run (default: a new one in runs/)")
    options = parser.parse_args(arguments)

    output = options.output or unused_folder(Path("runs") / "demo")
    print(
        "1. LeNet-5 as published in 1998 learns scikit-learn's handwritten digits, on fastconv's layers\n", flush=True
    )
    status = cli.main(["train", "lenet5", "--epochs", str(options.epochs), "--output", str(output)])
    if status:
        return status
    print("\n2. A plain PyTorch network, converted in one line: fastconv.convert(model)\n", flush=True)
    compare()
    return 0


def unused_folder(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, … that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def compare() -> None:
    """Convert the plain network, compare its outputs and gradients with the original's, and time it layer by layer."""
    torch.manual_seed(0)
    original = PlainNetwork()
    converted, report = fastconv.convert(copy.deepcopy(original), report=True)
    print(f"{len(report.converted)} layers converted, {len(report.kept)} kept as they were")
    images = torch.randn(8, 3, 128, 128)
    expected, found = original(images), converted(images)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = [(a.grad, b.grad) for a, b in zip(original.parameters(), converted.parameters(), strict=True)]
    print(f"largest difference of the outputs:   {difference([(expected, found)]):.1e} of the largest output")
    print(f"largest difference of the gradients: {difference(gradients):.1e} of the largest gradient\n")

    rows, slower = [], 0
    with torch.no_grad():
        for (name, ours), theirs in zip(converted.named_children(), original, strict=True):
            if type(ours) is not type(theirs):
                samples = interleave(
                    {"fastconv": partial(ours, images), "torch": partial(theirs, images)}, SECONDS_A_LAYER
                )
                rows.append(row(name, theirs, images, samples))
                slower += rows[-1][-1] == "torch"
            images = theirs(images)
        whole: dict[str, Callable[[], Tensor]] = {
            "fastconv": partial(converted, torch.randn(8, 3, 128, 128)),
            "torch": partial(original, torch.randn(8, 3, 128, 128)),
        }
        rows.append(["", "all of them", "8x3x128x128", *timings(interleave(whole, 2 * SECONDS_A_LAYER))])
    print(cli.table(["", "layer", "input", "fastconv, µs", "torch, µs", "torch / fastconv", "faster"], rows))
    print(f"\nForward, float32, {torch.get_num_threads()} threads, interleaved medians, torch {torch.__version__}.")
    if slower:
        print(f"torch is faster for {slower} of the layers here. `fastconv bench` measures more of them, backward too.")


def difference(pairs: Sequence[tuple[Any, Any]]) -> float:
    """The largest difference between two lists of tensors, as a fraction of the largest value."""
    largest = max(float(a.detach().abs().max()) for a, _ in pairs)
    return max(float((a - b).detach().abs().max()) for a, b in pairs) / largest


def row(name: str, layer: nn.Module, images: Tensor, samples: dict[str, list[float]]) -> list[str]:
    """One line of the table: the layer, its input, the medians and which is faster."""
    size = str(getattr(layer, "kernel_size", "")).strip("()").replace(", ", "x")
    groups = getattr(layer, "groups", 1)
    text = f"{type(layer).__name__} {size}" + (f" groups {groups}" if groups > 1 else "")
    return [name, text.strip(), "x".join(map(str, images.shape)), *timings(samples)]


def timings(samples: dict[str, list[float]]) -> list[str]:
    """Median microseconds of fastconv and of torch, their ratio, and which is faster."""
    ours, theirs = (Timing.of(samples[key]).median for key in ("fastconv", "torch"))
    ratio = theirs / ours
    faster = "fastconv" if ratio > 1 + SAME_SPEED else "torch" if ratio < 1 / (1 + SAME_SPEED) else "neither"
    return [f"{ours * 1e6:,.0f}", f"{theirs * 1e6:,.0f}", f"{ratio:.2f}", faster]


if __name__ == "__main__":
    sys.exit(main())
