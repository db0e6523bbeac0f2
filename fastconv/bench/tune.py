"""The `fastconv tune` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from fastconv.bench.cli import Progress, positive, shape_of_text
from fastconv.bench.layers import SUITES, select
from fastconv.bench.model import ModelSource
from fastconv.bench.peers import FASTCONV
from fastconv.bench.run import DTYPES
from fastconv.tune import SECONDS, TuningReport, tune


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fastconv tune`."""
    parser.add_argument(
        "what",
        nargs="*",
        metavar="SUITE|PROBLEM",
        help=f"convolutions: {', '.join(SUITES)}, all, or a problem such as conv2d:8,128,28,28,128,3x3,padding=1",
    )
    parser.add_argument("--model", metavar="NAME|FILE.py:CALLABLE|MODULE:CALLABLE", help="those of a model's training")
    parser.add_argument("--batch", type=positive(int), default=8, help="images that --model NAME gets (default 8)")
    parser.add_argument(
        "--input", type=shape_of_text, action="append", metavar="8x3x224x224", help="sizes of an argument of --model"
    )
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=f"of suites (default {DTYPES[0]})")
    parser.add_argument("--threads", type=positive(int), help="default: as torch is set")
    parser.add_argument(
        "--seconds", type=positive(float), default=SECONDS, help=f"to spend on each choice (default {SECONDS})"
    )
    parser.add_argument("--file", type=Path, help="default: the file that this machine's processes read")


def run(args: argparse.Namespace) -> int:
    """Tunes and says what came of it; 2 for a bad argument."""
    if bool(args.what) == bool(args.model):
        print("fastconv tune: give suites or problems, or a --model", file=sys.stderr)
        return 2
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or before)
    try:
        print(_tune(args))
    except ValueError as error:
        print(f"fastconv tune: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(before)
    return 0


def _tune(args: argparse.Namespace) -> TuningReport:
    with Progress(1) as bar:

        def progress(done: int, count: int, what: str) -> None:
            bar.set_total(count)
            bar.step(what.replace("_", " "))

        if args.model:
            model, example = ModelSource(args.model, tuple(args.input or ()), args.batch).load()
            return tune(model.train(), example, seconds=args.seconds, file=args.file, progress=progress)
        cases = [case for case in select(args.what).cases if case.is_convolution]

        def work() -> None:
            for case in cases:
                FASTCONV.prepare(case, "training_step", "channels_first", getattr(torch, args.dtype))()

        return tune(work, seconds=args.seconds, file=args.file, progress=progress)
