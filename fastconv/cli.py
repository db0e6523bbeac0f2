"""The command `fastconv`: info, check, models, train, bench."""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
DATA_HELP = (
    "digits (default; scikit-learn's), a folder of class folders of images, or MNIST-format (IDX) files or their folder"
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
    models.add_argument("model", nargs="?", help="show the layers and parameters of this model")
    models.set_defaults(run=_models)

    train = commands.add_parser("train", help="train a model on images", argument_default=argparse.SUPPRESS)
    _add_train_arguments(train)
    train.set_defaults(run=_train)

    bench = commands.add_parser("bench", help="measure the kernels beside torch")
    if (
        next((word for word in arguments if not word.startswith("-")), None) == "bench"
    ):  # the others need not wait for it
        importlib.import_module("fastconv.bench.cli").add_arguments(bench)
    bench.set_defaults(run=_bench)
    return parser


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """An option that is not given comes from the checkpoint or from train.loop.Options: none has a default here."""
    parser.add_argument("model", nargs="?", help="one of `fastconv models` (default: lenet5)")
    parser.add_argument("--data", help=DATA_HELP)
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training images (default: 30)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a step (default: 32)")
    parser.add_argument("--lr", type=float, metavar="RATE", help="highest learning rate of AdamW (default: 0.002)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same result (default: 0)")
    parser.add_argument("--device", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as torch chooses)")
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

    if options.model is None:
        names = models.list_models()
        with torch.device("meta"):
            counts = [_count(models.create_model(name)) for name in names]
        print(table(["model", "parameters"], [[name, f"{count:,}"] for name, count in zip(names, counts, strict=True)]))
        return 0
    model = models.create_model(options.model)
    rows = []
    for name, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.requires_grad)
        if own or not any(True for _ in module.children()):
            rows.append([name, repr(module).partition("\n")[0], f"{own:,}"])
    print(table(["layer", "", "parameters"], [*rows, ["total", "", f"{_count(model):,}"]]))
    return 0


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _train(options: argparse.Namespace) -> int:
    from fastconv.train import loop
    from fastconv.train.progress import Display

    given = {name: value for name, value in vars(options).items() if name in loop.Options.__dataclass_fields__}
    overwrite, resumes = getattr(options, "overwrite", False), hasattr(options, "resume")
    if overwrite and resumes:
        raise loop.RunError("--resume goes on with a run and --overwrite starts it anew: give one of them")
    chosen = loop.Options(**given)
    output = getattr(options, "output", None) or loop.default_output(chosen)
    with Display() as display:
        if resumes:
            result = loop.resume(options.resume or output, given, listener=display)
        else:
            result = loop.train(chosen, output, overwrite=overwrite, listener=display)
    skipped = result.metrics["skipped_images"]
    if skipped:
        print(f"{len(skipped)} images could not be read and were skipped; {result.output / loop.METRICS} lists them")
    if result.stopped_by is not None:
        done, epochs = len(result.metrics["epochs"]), result.metrics["arguments"]["epochs"]
        print(f"Interrupted: {done} of {epochs} epochs are done and kept. To go on:")
        print(f"  fastconv train --resume {result.output}")
        return 128 + result.stopped_by
    print(f"Test accuracy {result.metrics['test_accuracy']:.2%}. The run is in {result.output}:")
    for name in (loop.METRICS, loop.CHECKPOINT, loop.CURVES, loop.FEATURES):
        print(f"  {result.output / name}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    return importlib.import_module("fastconv.bench.cli").run(options)


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
