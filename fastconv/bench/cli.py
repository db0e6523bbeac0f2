"""The `fastconv bench` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from fastconv import _C
from fastconv.bench import gpu, overhead, plots, report
from fastconv.bench.engines import ENGINES, EnginePeer
from fastconv.bench.layers import SUITES, Suite, select
from fastconv.bench.machine import describe, measure_ceiling
from fastconv.bench.model import CHOICES, CPU, ModelResult, ModelSource, Setting, run_model
from fastconv.bench.model import PASSES as MODEL_PASSES
from fastconv.bench.peers import LAYOUTS, PEERS
from fastconv.bench.run import DTYPES, ON_GPUS, PASSES, Overhead, Report, Result, jobs, run_suite, torch_type


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fastconv bench`."""
    parser.add_argument(
        "what",
        nargs="*",
        metavar="SUITE|PROBLEM",
        help=f"{', '.join(SUITES)}, all, or a problem such as conv2d:8,128,28,28,128,3x3,stride=1,padding=1 "
        "(operator:N,C,H,W,outputs,kernel,parameters); default: quick, nothing with --overhead or --model",
    )
    parser.add_argument("--overhead", action="store_true", help="time calls on tiny tensors, for every operator")
    parser.add_argument(
        "--model",
        metavar="NAME|FILE.py:CALLABLE|MODULE:CALLABLE",
        help="time a model: each layer, its inference and its training step; one of `fastconv models`, or your own "
        "(default callable: model)",
    )
    parser.add_argument("--batch", type=positive(int), default=8, help="images that --model NAME gets (default 8)")
    parser.add_argument(
        "--input",
        type=shape_of_text,
        action="append",
        metavar="8x3x224x224",
        help="sizes of an argument of --model; repeat it for further arguments",
    )
    parser.add_argument("--memory", action="store_true", help="measure the peak memory of --model, too")
    parser.add_argument("--passes", type=_list_of(PASSES), default=PASSES, help=f"of {','.join(PASSES)}")
    parser.add_argument("--layouts", type=_list_of(LAYOUTS), default=LAYOUTS, help=f"of {','.join(LAYOUTS)}")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=f"of the tensors (default {DTYPES[0]})")
    parser.add_argument(
        "--peers",
        type=_list_of(("all", *(engine.name for engine in ENGINES))),
        default=(),
        help=f"beside torch, for the forward pass: {', '.join(engine.name for engine in ENGINES)}, or all that are "
        "installed; on a GPU its own peers always take part",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default cpu)")
    parser.add_argument("--threads", type=positive(int), help="default: as torch is set")
    parser.add_argument("--seconds", type=positive(float), default=1.0, help="to spend on each row (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, for --compare and your own tools")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown; - for standard output")
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="FOLDER",
        help="write pictures as PNG and SVG: ratios and roofline; of --model, its times and layers",
    )
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="show what changed since an earlier --json")
    parser.add_argument("--list", action="store_true", help="print the problems of the suites and stop")


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark; 2 for a bad argument, 1 if a result is wrong."""
    try:
        suite = select(args.what or ([] if args.overhead or args.model else ["quick"]))
        old = Report.load(args.compare) if args.compare else None
    except (ValueError, OSError) as error:
        print(f"fastconv bench: {error}", file=sys.stderr)
        return 2
    if args.list:
        _list(suite)
        return 0
    wrong = _unavailable(args)
    if wrong:
        print(f"fastconv bench: {wrong}", file=sys.stderr)
        return 2
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or before)
    try:
        measured = _measure(suite, args)
    except ValueError as error:  # of --model
        print(f"fastconv bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastconv bench: interrupted", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(before)

    shown = report.tables(measured)
    if old:
        shown += report.comparisons(measured, old)
    markdown = "\n".join(table.markdown() for table in shown)
    if args.markdown == "-":
        print(markdown)
    else:
        _print(shown, markdown, report.summary(measured))
    if args.json:
        _write(args.json, measured.to_json())
    if args.markdown and args.markdown != "-":
        _write(Path(args.markdown), markdown)
    if args.plots:
        for file in plots.save(measured, args.plots):
            print(f"wrote {file}", file=sys.stderr)
    runs = measured.model.runs if measured.model else []
    return int(any(result.wrong for result in measured.results) or any(run.wrong for run in runs))


def _unavailable(args: argparse.Namespace) -> str:
    """Why the device cannot do what is asked, or nothing."""
    if args.device == "cpu":
        return f"--dtype {args.dtype}: only with --device cuda" if args.dtype in ON_GPUS else ""
    if not torch.cuda.is_available():
        return "--device cuda: torch finds no GPU"
    if not hasattr(_C, "cuda"):
        return f"--device cuda: fastconv was built without CUDA ({_C.without_cuda})"
    return "--device cuda: not with --memory or --peers" if args.memory or args.peers else ""


def _run(suite: Suite, args: argparse.Namespace, progress: Progress, **how: Any) -> list[Result]:
    """The rows that were asked for; `how` goes on to run_suite: what depends on the device."""
    return run_suite(
        suite,
        args.seconds,
        args.layouts,
        args.passes,
        progress=lambda case, pass_: progress.step(f"{case.name}, {pass_.replace('_', ' ')}"),
        dtype=args.dtype,
        **how,
    )


def _model(args: argparse.Namespace, progress: Progress, setting: Setting = CPU) -> ModelResult | None:
    """The model that was asked for."""
    if not args.model:
        return None
    source = ModelSource(args.model, tuple(args.input or ()), args.batch)
    return run_model(source, args.seconds, args.layouts, args.memory, progress.step, setting)


def _overhead(args: argparse.Namespace, progress: Progress, **how: Any) -> list[Overhead]:
    """If it was asked for; `how` goes on to overhead.run."""
    if not args.overhead:
        return []
    return overhead.run(args.seconds, progress=lambda case: progress.step(f"overhead of {case.operator}"), **how)


def _steps(suite: Suite, args: argparse.Namespace) -> int:
    """How often Progress is told something."""
    steps = len(jobs(suite, args.layouts, args.passes, args.dtype)) + len(overhead.CASES) * args.overhead
    if args.model:
        passes = len(MODEL_PASSES) + (args.device == "cuda")
        steps += len(args.layouts) + passes + len(CHOICES) * len(args.layouts) * args.memory
    return steps


def _measure_gpu(suite: Suite, args: argparse.Namespace) -> Report:
    type_ = torch_type(args.dtype)
    peers = (*gpu.PEERS, *(peer for peer in gpu.OTHERS if not peer.missing))
    with gpu.precision(args.dtype), Progress(_steps(suite, args)) as progress:
        machine, ceiling = gpu.described(args.dtype), gpu.measure_ceiling(type_, args.seconds)
        model = _model(args, progress, Setting(gpu.DEVICE, args.dtype, gpu.Clock(), graph=True))
        results = _run(suite, args, progress, peers=peers, clock=gpu.Clock(), cache=gpu.cache_bytes())
        calls = _overhead(args, progress, peers=gpu.PEERS, clock=gpu.host_clock)
        return Report(
            machine, ceiling.or_better(gpu.measure_ceiling(type_, args.seconds)), results, calls, suite.targets, model
        )


def _measure(suite: Suite, args: argparse.Namespace) -> Report:
    if args.device == "cuda":
        return _measure_gpu(suite, args)
    threads = torch.get_num_threads()
    machine, ceiling = describe(threads, args.dtype), measure_ceiling(threads)
    with Progress(_steps(suite, args)) as progress:
        model = _model(args, progress)
        results = _run(suite, args, progress, peers=(*PEERS, *_installed(args.peers)))
        calls = _overhead(args, progress)
    return Report(machine, ceiling.or_better(measure_ceiling(threads)), results, calls, suite.targets, model)


def _installed(names: tuple[str, ...]) -> list[EnginePeer]:
    """The engines asked for; says which of them are not there."""
    chosen = []
    for engine in ENGINES:
        if engine.name in names or "all" in names:
            if engine.missing:
                print(f"fastconv bench: {engine.missing} is not installed, so no {engine.name}", file=sys.stderr)
            else:
                chosen.append(engine)
    return chosen


class Progress:
    """A bar on standard error where rich is installed and someone is watching."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import Progress as Bar
            except ImportError:
                return self
            self.bar = Bar(console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total)
            self.started = 0
        return self

    def set_total(self, total: int) -> None:
        if self.bar:
            self.bar.update(self.task, total=total)

    def step(self, what: str) -> None:
        if self.bar:
            self.bar.update(self.task, description=what, completed=self.started)
            self.started += 1

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()


def _print(shown: list[report.Table], markdown: str, summary: str) -> None:
    try:
        from rich.console import Console
    except ImportError:
        print(markdown)
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)
        for table in shown:
            console.print(table.rich(console.width))
    print(summary)


def _list(suite: Suite) -> None:
    for case in suite.cases:
        print(f"{case.problem}    {case.name}; {case.family}; {case.operations / 1e9:.3g} GFLOP")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _list_of(choices: tuple[str, ...]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        for word in words:
            if word not in choices:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(choices)}")
        return words

    return parse


def shape_of_text(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes such as 8x3x224x224, got {text!r}")
    return shape


def positive(type_: type) -> Any:
    def parse(text: str) -> Any:
        value = type_(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
        return value

    parse.__name__ = type_.__name__
    return parse
