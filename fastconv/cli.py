"""The command `fastconv`: info, check, models, train, predict, evaluate, bench, tune."""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
DATA_HELP = (
    "digits (scikit-learn's), scenes (digits on textures, for segmentation), docstrings (for text), a folder of class"
    " folders of images, or of MNIST's or CIFAR's binary files"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 if a check failed, 2 for an error, 130 for an interrupt."""
    parser = _parser(sys.argv[1:] if arguments is None else list(arguments))
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("fastconv: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as `fastconv models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.traceback:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"fastconv {options.command}: error: {text}", file=sys.stderr)
        return 2


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fastconv", description="Convolution, pooling and LRN kernels that drop into PyTorch."
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the source an error comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    info = commands.add_parser("info", help="show how fastconv was built and what it runs on")
    info.set_defaults(run=_info)

    check = commands.add_parser("check", help="test this installation in about two seconds")
    check.add_argument(
        "--gradients", action="store_true", help="check the gradients of every operator instead (minutes)"
    )
    check.set_defaults(run=_check)

    models = commands.add_parser("models", help="list the models, or show the layers of one")
    models.add_argument("model", nargs="?", help="show the layers of this model: shapes, parameters, MACs")
    models.add_argument("--draw", type=Path, metavar="FILE.svg", help="draw the sizes of its feature maps")
    models.set_defaults(run=_models)

    train = commands.add_parser("train", help="train a model on images", argument_default=argparse.SUPPRESS)
    _add_train_arguments(train)
    train.set_defaults(run=_train)

    predict = commands.add_parser("predict", help="say what a trained model sees in images")
    _add_predict_arguments(predict)
    predict.set_defaults(run=_predict)

    evaluate = commands.add_parser("evaluate", help="test a trained model and draw its confusion matrix")
    _add_evaluate_arguments(evaluate)
    evaluate.set_defaults(run=_evaluate)

    command = next((word for word in arguments if not word.startswith("-")), None)
    bench = commands.add_parser("bench", help="measure the kernels beside torch")
    if command == "bench":  # the others need not wait for it
        importlib.import_module("fastconv.bench.cli").add_arguments(bench)
    bench.set_defaults(run=_bench)

    tune = commands.add_parser("tune", help="measure which algorithms are the fastest on this machine, and keep that")
    if command == "tune":
        importlib.import_module("fastconv.bench.tune").add_arguments(tune)
    tune.set_defaults(run=_tune)
    return parser


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """An option that is not given comes from the checkpoint or from train.options: none has a default here."""
    parser.add_argument("model", nargs="?", help="one of `fastconv models` (default: lenet5)")
    parser.add_argument(
        "--model-option",
        dest="model_options",
        action="append",
        type=_key_value,
        metavar="NAME=VALUE",
        help="argument of the model's builder, such as in_channels=1; may be repeated",
    )
    parser.add_argument("--data", help=f"default: digits; {DATA_HELP}")
    parser.add_argument("--image-size", type=int, metavar="N", help="height and width (default: the model's)")
    parser.add_argument(
        "--augment",
        type=_names,
        metavar="NAMES",
        help="affine, crop, flip, rotate, brightness, contrast, lighting, with commas between, or none"
        " (default: crop,flip for CIFAR, else affine)",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training images (default: 30)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images a step, of all processes together (default: 32)"
    )
    parser.add_argument(
        "--accumulate", type=int, metavar="N", help="compute a step in N parts, which needs less memory (default: 1)"
    )
    parser.add_argument("--optimizer", help="adamw (default) or sgd")
    parser.add_argument("--lr", type=float, metavar="RATE", help="highest learning rate (default: 0.002; SGD: 0.05)")
    parser.add_argument("--momentum", type=float, metavar="PART", help="of SGD (default: 0.9)")
    parser.add_argument("--weight-decay", type=float, metavar="RATE", help="default: 0.01; SGD: 0.0005")
    parser.add_argument("--schedule", help="of the learning rate: cosine (default), step or constant")
    parser.add_argument(
        "--warm-up", type=float, metavar="PART", help="of the training, over which the rate rises (default: 0.1)"
    )
    parser.add_argument(
        "--milestones",
        type=float,
        nargs="+",
        metavar="PART",
        help="parts of the training after which --schedule step lowers the rate (default: 0.5 0.75)",
    )
    parser.add_argument("--decay", type=float, metavar="FACTOR", help="of --schedule step (default: 0.1)")
    parser.add_argument("--precision", help="of the layers: float32 (default), bfloat16 or float16")
    parser.add_argument("--label-smoothing", type=float, metavar="PART", help="default: 0")
    parser.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="test a moving average of the weights, such as 0.99 (default: none)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same result (default: 0)")
    parser.add_argument("--device", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as torch chooses)")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard's event files, too")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the run (default: runs/MODEL-DATA)")
    parser.add_argument("--overwrite", action="store_true", help="start anew where there is a run already")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=None,
        type=Path,
        metavar="RUN",
        help="go on with a run, given by its folder or a checkpoint in it (default: the output folder)",
    )


def _names(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def _key_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, where the value is JSON (a number, true, [1, 2]) or else the text itself."""
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a training run's folder, or a checkpoint in it")
    parser.add_argument("files", type=Path, nargs="+", metavar="image", help="image files (or text, if it takes that)")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to show of each (default: 3)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def _add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a training run's folder, or a checkpoint in it")
    parser.add_argument("--data", help=f"whose test part is used (default: that of the training): {DATA_HELP}")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the picture (default: confusion.png beside the checkpoint)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def _info(_: argparse.Namespace) -> int:
    import fastconv

    print(fastconv.show_config())
    return 0


def _check(options: argparse.Namespace) -> int:
    from fastconv import testing

    kind = ("gradcheck", "gradgradcheck") if options.gradients else ("dtype", "")
    line = "{:<22} {:<16} {:<15} {:<8} {:<10} {:<14} {:>8}".format
    print(line("operator", "algorithm" if options.gradients else "", "layout", "device", *kind, "seconds"))
    began, checked, failed = time.perf_counter(), 0, 0
    for row in testing.gradient_suite() if options.gradients else testing.self_test():
        if options.gradients:
            outcome = [
                {True: "passed", False: "FAILED", None: "-"}[part] for part in (row.gradcheck, row.gradgradcheck)
            ]
        else:
            outcome = [row.dtype, "passed" if row.passed else "FAILED"]
        print(line(row.name, row.algorithm, row.layout, row.device, *outcome, f"{row.seconds:.2f}"), flush=True)
        if not row.passed:
            print(f"    {row.message}")
        checked += 1
        failed += not row.passed
    verdict = f"{failed} of {checked} checks failed" if failed else f"All {checked} checks passed"
    print(f"{verdict} in {time.perf_counter() - began:.1f} s.")
    return 1 if failed else 0


def _models(options: argparse.Namespace) -> int:
    import torch

    from fastconv import models

    with torch.device("meta"):  # shapes without values: no model takes time or memory
        if options.model is None:
            if options.draw is not None:
                raise ValueError("--draw needs the name of a model")
            rows = []
            for name in models.list_models():
                entry = models.model_entry(name)
                shape = "x".join(map(str, entry.input_shape))
                rows.append([name, f"{_count(entry.builder()):,}", shape, entry.summary])
            print(table(["model", "parameters", "input", ""], rows))
            return 0
        entry = models.model_entry(options.model)
        model = entry.builder().eval()
        summary = models.summary(model, input_data=entry.example_input())
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        importlib.import_module("rich").print(summary)
    else:
        print(summary)
    if options.draw is not None:
        options.draw.write_text(models.draw(summary, options.model), encoding="utf-8")
        print(f"The picture is in {options.draw}")
    return 0


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _train(options: argparse.Namespace) -> int:
    from fastconv.train import distributed, loop
    from fastconv.train.options import Options
    from fastconv.train.progress import Display

    given = {name: value for name, value in vars(options).items() if name in Options.__dataclass_fields__}
    if "model_options" in given:
        given["model_options"] = dict(given["model_options"])
    overwrite, resumes = getattr(options, "overwrite", False), hasattr(options, "resume")
    if overwrite and resumes:
        raise loop.RunError("--resume goes on with a run and --overwrite starts it anew: give one of them")
    chosen = Options(**given)
    output = getattr(options, "output", None) or loop.default_output(chosen)
    with Display() if distributed.rank() == 0 else nullcontext() as display:
        if resumes:
            result = loop.resume(options.resume or output, given, listener=display)
        else:
            result = loop.train(chosen, output, overwrite=overwrite, listener=display)
    stopped = 0 if result.stopped_by is None else 128 + result.stopped_by
    if display is None:
        return stopped
    skipped = result.metrics["skipped_images"]
    if skipped:
        print(f"{len(skipped)} images could not be read and were skipped; {result.output / loop.METRICS} lists them")
    if stopped:
        done, epochs = len(result.metrics["epochs"]), result.metrics["arguments"]["epochs"]
        print(f"Interrupted: {done} of {epochs} epochs are done and kept. To go on:")
        print(f"  fastconv train --resume {result.output}")
        return stopped
    figures = f"Test accuracy {result.metrics['test_accuracy']:.2%}"
    if "test_mean_iou" in result.metrics:
        figures += f", mean intersection over union {result.metrics['test_mean_iou']:.3f}"
    print(f"{figures}. The run is in {result.output}:")
    for name in (loop.METRICS, loop.LINES, loop.CHECKPOINT, loop.CURVES, loop.FEATURES):
        if (result.output / name).exists():
            print(f"  {result.output / name}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from fastconv.train import evaluate

    unreadable = 0
    for path, answer in evaluate.predict(options.checkpoint, options.files, options.top, options.device):
        if isinstance(answer, str):
            unreadable += 1
            print(f"{path}: cannot be read: {answer}", file=sys.stderr)
        else:
            print(f"{path}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in answer))
    return 1 if unreadable else 0


def _evaluate(options: argparse.Namespace) -> int:
    from fastconv.train import evaluate

    result = evaluate.evaluate(options.checkpoint, options.data, options.output, options.device)
    column = "IoU" if result.task == "scenes" else "right"
    rows = [[name, f"{count:,}", f"{part:.2%}"] for name, count, part in result.classes]
    print(table(["class", "pixels" if result.task == "scenes" else "examples", column], rows))
    for path, reason in result.skipped.items():
        print(f"Skipped {path}: {reason}")
    figures = f"Accuracy {result.accuracy:.2%}"
    if result.task == "scenes":
        figures += f", mean intersection over union {result.mean_iou:.3f}"
    print(f"{figures}, loss {result.loss:.4f}. The confusion matrix is in {result.picture}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    return importlib.import_module("fastconv.bench.cli").run(options)


def _tune(options: argparse.Namespace) -> int:
    return importlib.import_module("fastconv.bench.tune").run(options)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table; columns whose cells start with a digit or a sign are set flush right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell[:1].isdigit() or cell[:1] in "-+" for cell in column[1:]) for column in columns]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
