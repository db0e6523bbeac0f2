"""Writes the measured table of README.md from the newest results: python benchmarks/readme.py."""

from __future__ import annotations

from pathlib import Path

from fastconv.bench.model import PASSES
from fastconv.bench.run import Report, Result

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- measured: python benchmarks/readme.py -->\n", "<!-- end of measured -->\n"
FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = ("forward",), ("input_gradient", "backward"), ("weight_gradient",)
LAYOUTS = ("channels_first", "channels_last")


def section() -> str:
    """The text between the two marks of README.md: where and when, one row a layer, the overhead of calls."""
    folder = max(folder for folder in RESULTS.iterdir() if (folder / "floor.json").exists())
    report = Report.load(folder / "floor.json")
    machine = report.machine
    layers: dict[str, dict[str, Result]] = {}
    for result in report.results:
        layers.setdefault(result.name, {})[result.pass_] = result
    rows = [
        "| layer | forward NCHW | NHWC | input gradient NCHW | NHWC | weight gradient NCHW | NHWC |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    slower = 0
    for name, passes in layers.items():
        cells = [
            ratio(passes, names, layout) for names in (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT) for layout in LAYOUTS
        ]
        slower += sum("**" in cell for cell in cells)
        rows.append(" | ".join(["", name, *cells, ""]).strip())
    extra = [1e6 * row.extra.median for row in report.overhead if not row.gradients]
    extra_gradients = [1e6 * row.extra.median for row in report.overhead if row.gradients]
    timed = sum(len(result.timings["torch"]) for result in report.results)
    return f"""\
Torch's time divided by fastconv's, so above 1 fastconv is faster; **bold** where torch is ({slower} of {timed}).
Medians of runs that took turns, float32, on {machine["cpu"]}, {machine["threads"]} threads, {machine["isa"].upper()},
torch {machine["torch"]}, {machine["date"]}, load average {machine["load"]:.0f}. Milliseconds, spreads and more are in
[{folder.name}]({folder.relative_to(ROOT).as_posix()}/floor.md).

{chr(10).join(rows)}

A call on a tiny tensor costs, depending on the operator, {span(extra)} µs more than torch's, and
{span(extra_gradients)} µs more with forward and backward; below 0 it costs less.

{models()}"""


def models() -> str:
    """A row for each model that was measured: how many times as fast as torch's better layout, and the memory."""
    folder = max(path.parent for path in RESULTS.glob("*/model-*.json"))
    measured = [Report.load(path).model for path in sorted(folder.glob("model-*.json"))]
    rows = [
        "| batch 8 | inference NCHW | NHWC | training step NCHW | NHWC | peak memory NCHW | NHWC |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for model in filter(None, measured):
        runs = {(run.pass_, run.layout): run for run in model.runs if run.choice == "fastconv"}
        torch_runs = {run.layout: run for run in model.runs if (run.pass_, run.choice) == ("training step", "torch")}
        cells = [bold(model.ratio(runs[pass_, layout])) for pass_ in PASSES for layout in LAYOUTS]
        for layout in LAYOUTS:
            ours, theirs = runs["training step", layout].memory, torch_runs[layout].memory
            cells.append(f"{ours / theirs:.2f}" if ours and theirs else "")
        rows.append(" | ".join(["", model.source.name, *cells, ""]).strip())
    table = chr(10).join(rows)
    return f"""\
Whole models, on the same machine: the time of torch in its better layout divided by fastconv's (training step: forward,
backward, SGD), and fastconv's peak memory in a training step divided by torch's in the same layout. Every layer is in
[{folder.name}]({folder.relative_to(ROOT).as_posix()}).

{table}
"""


def ratio(passes: dict[str, Result], names: tuple[str, ...], layout: str) -> str:
    """Torch's median time over fastconv's, in bold if torch is faster; empty if it was not measured."""
    for name in names:
        if name in passes and layout in passes[name].timings["fastconv"]:
            return bold(passes[name].ratio(layout))
    return ""


def bold(ratio: float) -> str:
    """In bold if torch is faster."""
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def span(values: list[float]) -> str:
    """From the least to the most."""
    return f"{min(values):+.0f} to {max(values):+.0f}"


def with_section(readme: str) -> str:
    """README.md with the section as it should be."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + section() + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_section(path.read_text()))
