"""Shows a report: a rich table for the terminal, Markdown for a document, a comparison with an earlier report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastconv.bench.model import ModelResult
from fastconv.bench.peers import LAYOUTS
from fastconv.bench.run import Overhead, Report, Result, families
from fastconv.bench.timing import Timing

if TYPE_CHECKING:
    from rich.table import Table as RichTable

LAYOUT_NAMES = {"channels_first": "NCHW", "channels_last": "NHWC"}
WIDE = 150  # characters: a narrower terminal shows fewer columns
OVERHEAD_LIMIT = 10e-6  # seconds more than torch that a call may cost
OVERHEAD_LIMIT_GPU = 5e-6


@dataclass
class Table:
    """Rows of text with a mark each ("" for nothing to say), to be rendered one way or another."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    marks: list[str]
    notes: str = ""
    wide_only: tuple[str, ...] = ()  # columns that a narrow terminal leaves out

    def markdown(self) -> str:
        left = self._left()
        head = "| " + " | ".join([*self.columns, ""]).replace("\n", " ") + " |"
        rule = "|" + "|".join([" --- " if column in left else " ---: " for column in self.columns] + [" --- "]) + "|"
        body = ["| " + " | ".join([*row, mark]) + " |" for row, mark in zip(self.rows, self.marks, strict=True)]
        text = f"### {self.title}\n\n" + "\n".join([head, rule, *body]) + "\n"
        return text + (f"\n{self.notes}\n" if self.notes else "")

    def rich(self, width: int = WIDE) -> RichTable:
        """For a terminal of that many characters."""
        from rich import box
        from rich.table import Table as RichTable

        left = self._left()
        shown = [i for i, column in enumerate(self.columns) if width >= WIDE or column not in self.wide_only]
        notes = self.notes
        if len(shown) < len(self.columns):
            notes += " A wider terminal, --markdown and --json show more columns."
        table = RichTable(
            title=self.title,
            caption=notes or None,
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            caption_justify="left",
        )
        for column in (self.columns[i] for i in shown):
            table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
        table.add_column("")
        for row, mark in zip(self.rows, self.marks, strict=True):
            table.add_row(*(row[i] for i in shown), mark, style=_style(mark))
        return table

    def _left(self) -> set[str]:
        return set(self.columns) & {"layer", "pass", "family", "operator", "layers on", "layout"}


def _style(mark: str) -> str:
    if "WRONG" in mark or "misses" in mark:
        return "bold red"
    return "yellow" if mark else ""


def mark(result: Result, report: Report) -> str:
    """What a reader must not overlook: wrong results, a missed target, torch being faster."""
    marks = []
    if result.wrong:
        marks.append(f"WRONG: differs from torch by {result.error:.1g}")
    if target := result.misses(report.targets):
        where = "" if target.layout == "best" else f" in {LAYOUT_NAMES[target.layout]}"
        marks.append(f"misses {target.ratio:g}{where}")
    if result.slower:
        marks.append("torch is faster" + (" (within the spread)" if result.undecided else ""))
    return "; ".join(marks)


def layer_table(report: Report) -> Table:
    """A row a pass of a layer."""
    layouts = [layout for layout in LAYOUTS if any(layout in result.timings["torch"] for result in report.results)]
    columns = ["layer", "pass"]
    columns += [f"{peer}\n{LAYOUT_NAMES[layout]}\nms" for peer in ("torch", "fastconv") for layout in layouts]
    others = list(dict.fromkeys(peer for result in report.results for peer in result.timings))
    others = [peer for peer in others if peer not in ("torch", "fastconv")]
    columns += [f"{peer}\nms" for peer in others]
    details = ("rate", "of\nceiling", *[f"ratio\n{LAYOUT_NAMES[layout]}" for layout in layouts])
    columns += [*details, "ratio\nbest"]
    rows = []
    for result in report.results:
        row = [result.name, result.pass_.replace("_", " ")]
        row += [_time(result.timings[peer].get(layout)) for peer in ("torch", "fastconv") for layout in layouts]
        row += [_time(result.best(peer) if peer in result.timings else None) for peer in others]
        row += [f"{result.rate() / 1e9:.3g} {'GB/s' if result.bound_by_memory else 'GFLOP/s'}"]
        row += [f"{result.share(report.ceiling):.0%}"]
        row += [_ratio(result.ratio(layout)) if layout in result.timings["torch"] else "–" for layout in layouts]
        rows.append([*row, _ratio(result.ratio())])
    notes = (
        "Milliseconds: median, ± half the distance between the quartiles. NHWC is channels_last. Ratio: torch's "
        "time divided by fastconv's, more than 1 where fastconv is faster; best: each in its faster layout. "
        "Of ceiling: how much fastconv's faster layout reaches of what multiply-add rate and copy bandwidth allow."
    )
    marks = [mark(result, report) for result in report.results]
    return Table(heading(report), columns, rows, marks, notes, wide_only=details)


def family_table(report: Report) -> Table:
    """Geometric means of the ratios."""
    rows, marks = [], []
    for family in families(report.results):
        row = [family.name, family.pass_.replace("_", " "), str(family.count)]
        rows.append([*row, *[_ratio(family.layouts[layout]) for layout in LAYOUTS], _ratio(family.best)])
        marks.append("torch is faster" if family.best < 1 else "")
    columns = ["family", "pass", "layers", *[f"ratio\n{LAYOUT_NAMES[layout]}" for layout in LAYOUTS], "ratio\nbest"]
    return Table("Families: geometric means", columns, rows, marks)


def overhead_table(report: Report) -> Table:
    """Microseconds a call on a tiny tensor."""
    rows, marks = [], []
    for row in report.overhead:
        what = "forward + backward" if row.gradients else "forward"
        extra = row.extra
        range_ = f"{extra.lower * 1e6:+.1f} to {extra.upper * 1e6:+.1f}"
        times = [_microseconds(row.torch), _microseconds(row.fastconv), f"{extra.median * 1e6:+.1f}", range_]
        rows.append([row.operator, what, *times])
        marks.append(overhead_mark(row, OVERHEAD_LIMIT_GPU if "cuda" in report.machine else OVERHEAD_LIMIT))
    notes = (
        "A call on a tiny tensor, on one thread: median, ± half the distance between the quartiles. Extra: what "
        "fastconv takes more than torch, median and quartiles of samples taken side by side."
    )
    title = "Overhead of a call" + ("" if report.results else ": " + heading(report))
    return Table(title, ["operator", "pass", "torch\nµs", "fastconv\nµs", "extra\nµs", "quartiles"], rows, marks, notes)


def overhead_mark(row: Overhead, limit: float = OVERHEAD_LIMIT) -> str:
    if row.extra.median > limit:
        return f"misses {limit * 1e6:.0f} µs"
    return "torch is faster" if row.extra.median > 0 else ""


def model_layer_table(model: ModelResult, layout: str) -> Table:
    """A row a layer of the model: its forward and backward pass on torch and on fastconv."""
    rows, marks = [], []
    for layer in model.layers[layout]:
        times = [*layer.torch, *layer.fastconv]
        ratios = [*map(_quotient, layer.torch, layer.fastconv), _quotient(layer.torch.total, layer.fastconv.total)]
        row = [layer.name, layer.layer, str(layer.calls), *(_milliseconds(time) for time in times)]
        rows.append([*row, *map(_ratio, ratios)])
        marks.append(layer.refusal or ("torch is faster" if layer.reason_to_keep else ""))
    columns = ["layer", "operator", "calls"]
    columns += [f"{library}\n{pass_}\nms" for library in ("torch", "fastconv") for pass_ in ("forward", "backward")]
    columns += ["ratio\nforward", "ratio\nbackward", "ratio\nboth"]
    title = f"The layers of {model.source.name}, {LAYOUT_NAMES[layout]}"
    notes = (
        "Medians of all calls in one training pass; backward: all gradients that the model needs, in one go. Ratio: "
        "torch's time divided by fastconv's."
    )
    return Table(title, columns, rows, marks, notes)


def model_table(report: Report, model: ModelResult) -> Table:
    """A row for each pass of the whole model, choice of layers and layout."""
    rows, marks = [], []
    for run in model.runs:
        speed = model.images / run.timing.median
        memory = "–" if run.memory is None else f"{run.memory / 1e6:.0f}"
        row = [run.pass_, run.choice, LAYOUT_NAMES[run.layout], _time(run.timing), _digits(speed)]
        rows.append([*row, _ratio(model.ratio(run)), memory])
        wrong = f"WRONG: differs from torch by {run.error:.1g}" if run.wrong else ""
        marks.append(wrong or ("torch is faster" if run.choice != "torch" and model.ratio(run) < 1 else ""))
    columns = ["pass", "layers on", "layout", "ms", "images/s", "ratio\nto best torch", "peak\nMB"]
    notes = (
        "Fastest: each layer on the faster library of the tables above, by its forward pass for inference. As a graph: "
        "replayed from a CUDA graph. Training step: forward, backward and SGD. Peak: the memory of a process with this "
        "alone, beside the libraries (--memory)."
    )
    return Table(f"{model.source.name}, batch {model.images}. {heading(report)}", columns, rows, marks, notes)


def _quotient(a: float, b: float) -> float:
    return a / b if a and b and math.isfinite(b) else math.nan


def _milliseconds(seconds: float) -> str:
    return _digits(seconds * 1e3) if 0 < seconds < math.inf else "–"


def compare_table(report: Report, old: Report) -> Table:
    """What changed since `old`: the ratios to torch, which the machine's load moves less than times."""
    before = {(result.problem, result.pass_, result.dtype): result for result in old.results}
    rows, marks = [], []
    for result in report.results:
        earlier = before.get((result.problem, result.pass_, result.dtype))
        if earlier is None:
            continue
        change = result.ratio() / earlier.ratio()
        row = [result.name, result.pass_.replace("_", " ")]
        row += [_time(earlier.best("fastconv")), _time(result.best("fastconv"))]
        rows.append([*row, _ratio(earlier.ratio()), _ratio(result.ratio()), f"{change - 1:+.0%}"])
        (low, high), (earlier_low, earlier_high) = result.ratio_range, earlier.ratio_range
        marks.append("slower than before" if high < earlier_low else "faster than before" if low > earlier_high else "")
    columns = ["layer", "pass", "ms\nbefore", "ms\nnow", "ratio\nbefore", "ratio\nnow", "change"]
    title, notes = _compared(report, old)
    missing = len(report.results) - len(rows)
    if missing:
        notes += f" {missing} of {len(report.results)} rows are not in the earlier run."
    return Table(title, columns, rows, marks, notes)


def compare_model_table(report: Report, model: ModelResult, old: Report, earlier: ModelResult) -> Table:
    """What changed of a model since `old`, by each pass, choice of layers and layout."""
    before = {(run.pass_, run.choice, run.layout): run for run in earlier.runs}
    rows, marks = [], []
    for run in model.runs:
        was = before.get((run.pass_, run.choice, run.layout))
        if was is None or run.choice == "torch":
            continue
        ratio, ratio_before = model.ratio(run), earlier.ratio(was)
        peaks = [f"{peak / 1e6:.0f}" if peak else "–" for peak in (was.memory, run.memory)]
        row = [run.pass_, run.choice, LAYOUT_NAMES[run.layout], _time(was.timing), _time(run.timing)]
        rows.append([*row, _ratio(ratio_before), _ratio(ratio), f"{ratio / ratio_before - 1:+.0%}", *peaks])
        (low, high), (low_before, high_before) = model.ratio_range(run), earlier.ratio_range(was)
        marks.append("slower than before" if high < low_before else "faster than before" if low > high_before else "")
    columns = ["pass", "layers on", "layout", "ms\nbefore", "ms\nnow", "ratio\nbefore", "ratio\nnow", "change"]
    columns += ["peak MB\nbefore", "peak MB\nnow"]
    title, notes = _compared(report, old)
    return Table(f"{model.source.name}. {title}", columns, rows, marks, notes)


def comparisons(report: Report, old: Report) -> list[Table]:
    """What can be compared of two reports: layers, and a model that is the same in both."""
    shown = [compare_table(report, old)] if report.results else []
    if report.model and old.model and report.model.source == old.model.source:
        shown.append(compare_model_table(report, report.model, old, old.model))
    return shown


def _compared(report: Report, old: Report) -> tuple[str, str]:
    """Title and notes of a comparison."""
    title = f"Compared with {old.machine['commit'] or 'the run'} of {old.machine['date']}"
    notes = (
        "Change: of the ratio to torch, each measured in its own run; marked where it is more than the spread of both."
    )
    if any(old.machine[key] != report.machine[key] for key in ("cpu", "isa", "threads")):
        notes += " The earlier run was on {cpu}, {isa}, {threads} threads.".format(**old.machine)
    return title, notes


def tables(report: Report) -> list[Table]:
    """All there is to show of a report."""
    shown = []
    if report.results:
        shown += [layer_table(report), family_table(report)]
    if report.overhead:
        shown.append(overhead_table(report))
    if report.model:
        shown += [model_layer_table(report.model, layout) for layout in report.model.layers]
        shown.append(model_table(report, report.model))
    return shown


def dtype(report: Report) -> str:
    """What the tensors were of."""
    return report.machine.get("dtype", "float32")


def heading(report: Report) -> str:
    machine = report.machine
    ceiling = f"{report.ceiling.operations / 1e9:.0f} GFLOP/s, {report.ceiling.bandwidth / 1e9:.0f} GB/s"
    return (
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, {machine['isa']}, {dtype(report)}; "
        f"ceiling {ceiling}; torch {machine['torch']}; {machine['date']}, load {machine['load']}"
    )


def summary(report: Report) -> str:
    """One line: where fastconv stands."""
    lines = []
    if report.results:
        slower = sum(result.slower for result in report.results)
        missed = sum(result.misses(report.targets) is not None for result in report.results)
        count = len(report.results)
        lines.append(f"fastconv is faster in {count - slower} of {count} rows, torch in {slower}")
        if report.targets:
            lines.append(f"{missed} miss their target")
        if wrong := sum(result.wrong for result in report.results):
            lines.append(f"{wrong} WRONG")
    if report.overhead:
        worst = max(report.overhead, key=lambda row: row.extra.median)
        lines.append(f"the largest overhead is {worst.extra.median * 1e6:+.1f} µs ({worst.operator})")
    if report.model:
        for pass_ in dict.fromkeys(run.pass_ for run in report.model.runs):
            run = report.model.best(pass_, "fastest")
            lines.append(f"{report.model.source.name}, {pass_}: {report.model.ratio(run):.2f} times as fast as torch")
    return "; ".join(lines) + "."


def _time(timing: Timing | None) -> str:
    if timing is None:
        return "–"
    return f"{_digits(timing.median * 1e3)} ±{timing.spread:.0%}"


def _microseconds(timing: Timing) -> str:
    return f"{timing.median * 1e6:.1f} ±{timing.spread:.0%}"


def _ratio(ratio: float) -> str:
    return "–" if math.isnan(ratio) else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def _digits(value: float) -> str:
    """Three significant digits without an exponent."""
    if value <= 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
