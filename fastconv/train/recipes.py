"""What `make train-all` runs: small training runs that show that the models learn, and the table of their results."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastconv.bench.machine import describe
from fastconv.train import loop
from fastconv.train.options import Options
from fastconv.train.progress import Display

BEGIN, END = "<!-- measured: make train-all -->\n", "<!-- end of measured -->\n"


@dataclass(frozen=True)
class Recipe:
    """A run and what it has to reach: a test accuracy, or of scenes a mean intersection over union."""

    model: str
    epochs: int
    target: float
    data: str = "digits"
    options: dict[str, Any] = field(default_factory=dict)


RECIPES = (
    Recipe("lenet5", 30, 0.98),
    Recipe("fashion_cnn", 12, 0.98, options={"lr": 1e-3}),
    Recipe("resnet20", 12, 0.98),
    Recipe("mini_vgg", 10, 0.97),
    Recipe("mini_googlenet", 6, 0.97),
    Recipe("mini_densenet", 10, 0.97),
    Recipe(
        "fcn8s",
        12,
        0.8,
        "scenes",
        {
            "image_size": 96,
            "batch_size": 8,
            "model_options": {"width": 0.125, "padding": "same", "batch_norm": True, "dropout": 0.0},
        },
    ),
    Recipe("text_cnn", 4, 0.75, "docstrings", {"model_options": {"embedding": 100}}),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has not been run yet and show all that has; returns 1 if a run falls short."""
    parser = argparse.ArgumentParser("python -m fastconv.train.recipes", description=__doc__)
    parser.add_argument("models", nargs="*", help="only these (default: all)")
    parser.add_argument("--output", type=Path, default=Path("runs/train-all"), help="default: runs/train-all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--docs", type=Path, help="write the table into this file")
    options = parser.parse_args(arguments)
    chosen = [recipe for recipe in RECIPES if not options.models or recipe.model in options.models]
    for recipe in chosen:
        run(recipe, options.output / recipe.model, options.seed, options.threads)
    done = [(recipe, metrics) for recipe in RECIPES if (metrics := finished(options.output / recipe.model)) is not None]
    text = table(done)
    print(text)
    if options.docs is not None:
        before, _, rest = options.docs.read_text().partition(BEGIN)
        options.docs.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}")
    return 1 if any(reached(metrics) < recipe.target for recipe, metrics in done) else 0


def finished(output: Path) -> dict[str, Any] | None:
    """The content of metrics.json, with the day on which it was written, if the run is over."""
    file = output / loop.METRICS
    metrics = json.loads(file.read_text()) if file.exists() else {"status": "not begun"}
    if metrics["status"] != "finished":
        return None
    return metrics | {"date": f"{datetime.fromtimestamp(file.stat().st_mtime, timezone.utc):%Y-%m-%d}"}


def run(recipe: Recipe, output: Path, seed: int, threads: int | None) -> None:
    """Train; a finished run is not run again, and an interrupted one goes on."""
    if finished(output) is not None:
        return
    options = Options(recipe.model, recipe.data, recipe.epochs, seed=seed, threads=threads, **recipe.options)
    print(f"{recipe.model} on {recipe.data}")
    with Display() as display:
        resumes = (output / loop.CHECKPOINT).exists()
        result = loop.resume(output, listener=display) if resumes else loop.train(options, output, listener=display)
    if result.stopped_by is not None:
        raise KeyboardInterrupt


def reached(metrics: dict[str, Any]) -> float:
    """What counts: the mean intersection over union, or else the accuracy."""
    return metrics.get("test_mean_iou", metrics["test_accuracy"])


def table(done: Sequence[tuple[Recipe, dict[str, Any]]]) -> str:
    """Markdown, with what it was measured on."""
    rows = [
        "| model | data | parameters | epochs | batch | images/s | CPU time | reached | wanted |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for recipe, metrics in done:
        epochs, arguments = metrics["epochs"], metrics["arguments"]
        seconds = sum(record["cpu_seconds"] for record in epochs)
        speed = sorted(record["images_per_second"] for record in epochs)[len(epochs) // 2]
        shown = "{:.3f} mIoU" if "test_mean_iou" in metrics else "{:.2%}"
        cells = [
            f"`{recipe.model}`",
            recipe.data,
            f"{metrics['parameters']:,}",
            str(len(epochs)),
            str(arguments["batch_size"]),
            f"{speed:,.0f}",
            f"{int(seconds) // 60}:{int(seconds) % 60:02d}",
            shown.format(reached(metrics)),
            f"{recipe.target:g}" if "test_mean_iou" in metrics else f"{recipe.target:.0%}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    threads, versions, seeds, days = (
        " and ".join(sorted({str(value) for value in values}))
        for values in (
            [metrics["environment"]["threads"] for _, metrics in done],
            [metrics["environment"]["torch"] for _, metrics in done],
            [metrics["arguments"]["seed"] for _, metrics in done],
            [metrics["date"] for _, metrics in done],
        )
    )
    where = f"Seed {seeds}, {describe(1)['cpu']}, threads: {threads}, torch {versions}, {days}."
    known = [recipe.model for recipe, _ in done]
    missing = ", ".join(f"`{recipe.model}`" for recipe in RECIPES if recipe.model not in known)
    return "\n".join([where, "", *rows, *(["", f"Not measured yet: {missing}."] if missing else [])]) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
