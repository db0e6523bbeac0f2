"""Pictures of a report: ratios as bars, layers under the roofline; a model's times and the ratios of its layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastconv.bench.model import ModelResult
from fastconv.bench.report import LAYOUT_NAMES, heading
from fastconv.bench.run import Report, Result

PEERS = ("fastconv", "torch")
FASTER, SLOWER, TORCH = "#2a78b5", "#d1495b", "#8a8a8a"
Box = tuple[float, ...]  # left, bottom, right, top
# Where a number may stand, best first: its distance from the point and its direction, first to the right.
_PLACES = [
    (distance, eighth * math.pi / 4) for distance in (7.0, 13.0, 20.0, 28.0, 38.0, 50.0) for eighth in range(-3, 5)
]
_PLACES.sort(key=lambda place: (place[0], abs(place[1])))
PANELS = {
    "forward": ("forward",),
    "input gradient": ("input_gradient", "backward"),  # all there is backward of what has no weights
    "weight gradient": ("weight_gradient",),
    "training step": ("training_step",),
}


def save(report: Report, folder: Path) -> list[Path]:
    """Writes what there is to draw as PNG and SVG; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    if report.results:
        figures |= {"ratios": draw_ratios(report), "roofline": draw_roofline(report)}
    if report.model:
        figures |= {"model": draw_model(report, report.model), "model-layers": draw_layers(report, report.model)}
    files = []
    for name, figure in figures.items():
        for suffix in ("png", "svg"):
            files.append(folder / f"{name}.{suffix}")
            figure.savefig(files[-1], dpi=130)
        pyplot.close(figure)
    return files


def draw_ratios(report: Report) -> Any:
    """A bar a layer: torch's time divided by fastconv's, each in its faster layout."""
    from matplotlib import pyplot

    names = _names(report)
    panels = _panels(report)
    size = (3 + 3.2 * len(panels), 1.6 + 0.25 * len(names))
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    ratios = [result.ratio() for result in report.results]
    low, high = min(0.5, *ratios) / 1.15, max(2.0, *ratios) * 1.9
    for axis, (title, results) in zip(axes[0], panels.items(), strict=True):
        for result in results:
            _draw_ratio(axis, names.index(result.name), result.ratio())
        _finish_ratios(axis, low, high, title)
    axes[0][0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0][0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle("Torch's time divided by fastconv's, each in its faster layout (red: torch is faster)", fontsize=11)
    figure.supxlabel(heading(report), fontsize=7)
    return figure


def draw_roofline(report: Report) -> Any:
    """Operations a second over operations a byte, under what the machine can do. Numbers name the layers."""
    from matplotlib import pyplot

    names = _names(report)
    panels = _panels(report)
    columns = 2 if len(panels) == 4 else len(panels)
    rows = -(-len(panels) // columns)
    size = (6.0 * columns + 2.4, max(4.6 * rows, 0.16 * len(names)) + 1.0)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    axes = grid.ravel()
    for unused in axes[len(panels) :]:
        unused.remove()
    axes = axes[: len(panels)]
    peak, bandwidth = report.ceiling.operations / 1e9, report.ceiling.bandwidth / 1e9
    intensities = [result.operations / result.bytes for result in report.results]
    low, high = min(0.2, *intensities) / 2, max(peak / bandwidth * 4, *intensities) * 2
    rates = [result.operations / result.best(peer).median / 1e9 for result in report.results for peer in PEERS]
    bottom, top = min(rates) / 2, max(peak, *rates) * 2.5
    powers = [10.0**power for power in range(-6, 7)]
    for axis, (title, results) in zip(axes, panels.items(), strict=True):
        axis.plot([low, peak / bandwidth, high], [low * bandwidth, peak, peak], color="black", linewidth=1.2)
        axis.text(low * 1.2, peak, f"{peak:.0f} GFLOP/s\n{bandwidth:.0f} GB/s", va="center", fontsize=8)
        for result in results:
            _draw_layer(axis, result)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(low, high)
        axis.set_ylim(bottom, top)
        _label_powers(axis.xaxis, [tick for tick in powers if low <= tick <= high])
        _label_powers(axis.yaxis, [tick for tick in powers if bottom <= tick <= top])
        axis.set_ylabel("GFLOP/s", fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.25)
    figure.supxlabel("operations a byte of unavoidable memory traffic\n" + heading(report), fontsize=8)
    title = "Roofline: fastconv (filled; red where torch is faster) and torch (hollow), each in its faster layout"
    figure.suptitle(title, fontsize=11)
    lines = [pyplot.Line2D([], [], linestyle="", label=f"{place}  {name}") for place, name in enumerate(names, start=1)]
    figure.legend(handles=lines, loc="outside right upper", fontsize=7, frameon=False, handlelength=0, handletextpad=0)
    figure.draw_without_rendering()  # the numbers are placed by the final positions of the points
    for axis, results in zip(axes, panels.values(), strict=True):
        _number_layers(axis, results, names)
    return figure


def draw_model(report: Report, model: ModelResult) -> Any:
    """A bar for each way to run the model: its time, and how many times as fast it is as torch's better layout."""
    from matplotlib import pyplot

    passes = list(dict.fromkeys(run.pass_ for run in model.runs))
    figure, axes = pyplot.subplots(
        1, len(passes), figsize=(5.5 * len(passes), 3.4), squeeze=False, layout="constrained"
    )
    for axis, pass_ in zip(axes[0], passes, strict=True):
        runs = [run for run in model.runs if run.pass_ == pass_]
        for place, run in enumerate(runs):
            time, ratio = run.timing.median * 1e3, model.ratio(run)
            color = TORCH if run.choice == "torch" else FASTER if ratio >= 1 else SLOWER
            axis.barh(place, time, height=0.7, color=color)
            axis.text(time, place, f"  {time:.3g} ms, {ratio:.2f}", va="center", fontsize=8)
        names = [f"{run.choice}, {LAYOUT_NAMES[run.layout]}" for run in runs]
        axis.set_yticks(range(len(runs)), names, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, max(run.timing.median for run in runs) * 1.35e3)
        axis.set_xlabel("milliseconds", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(pass_, fontsize=10)
    title = f"{model.source.name}, batch {model.images}: time, and torch's better layout's time divided by it"
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(heading(report), fontsize=7)
    return figure


def draw_layers(report: Report, model: ModelResult) -> Any:
    """A bar for each layer of a model: torch's time divided by fastconv's, forward and backward together."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(layer.name for layers in model.layers.values() for layer in layers))
    size = (3 + 3.6 * len(model.layers), 1.8 + 0.2 * len(names))
    figure, axes = pyplot.subplots(1, len(model.layers), figsize=size, sharey=True, squeeze=False, layout="constrained")
    ratios = {
        layout: {layer.name: layer.torch.total / layer.fastconv.total for layer in layers if not layer.refusal}
        for layout, layers in model.layers.items()
    }
    every = [ratio for layers in ratios.values() for ratio in layers.values()]
    low, high = min(0.5, *every) / 1.15, max(2.0, *every) * 1.9
    for axis, (layout, layers) in zip(axes[0], ratios.items(), strict=True):
        for name, ratio in layers.items():
            _draw_ratio(axis, names.index(name), ratio)
        _finish_ratios(axis, low, high, LAYOUT_NAMES[layout])
    axes[0][0].set_yticks(range(len(names)), names, fontsize=7)
    axes[0][0].set_ylim(len(names) - 0.4, -0.6)
    title = f"The layers of {model.source.name}: torch's time divided by fastconv's, forward and backward"
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(heading(report), fontsize=7)
    return figure


def _draw_ratio(axis: Any, place: int, ratio: float) -> None:
    """A bar that begins at 1 and says how long it is."""
    axis.barh(place, ratio - 1, left=1, height=0.7, color=SLOWER if ratio < 1 else FASTER)
    axis.text(max(ratio, 1) * 1.06, place, f"{ratio:.2f}", va="center", fontsize=8)


def _finish_ratios(axis: Any, low: float, high: float, title: str) -> None:
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    _label_powers(axis.xaxis, [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high])
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=10)


def _point(result: Result, peer: str) -> tuple[float, float]:
    """Operations a byte, and GFLOP/s."""
    return result.operations / result.bytes, result.operations / result.best(peer).median / 1e9


def _draw_layer(axis: Any, result: Result) -> None:
    (intensity, ours), (_, theirs) = (_point(result, peer) for peer in ("fastconv", "torch"))
    axis.plot([intensity, intensity], [theirs, ours], color=TORCH, linewidth=0.7, zorder=2)
    axis.plot(intensity, theirs, "o", markersize=4, markerfacecolor="white", markeredgecolor=TORCH, zorder=3)
    axis.plot(intensity, ours, "o", markersize=5, color=_color(result), zorder=4)


def _color(result: Result) -> str:
    return SLOWER if result.slower else FASTER


def _number_layers(axis: Any, results: list[Result], names: list[str]) -> None:
    """Writes each layer's number next to its point, or with a line to it, where neither points nor numbers are yet."""
    scale = 72 / axis.figure.dpi  # everything here is in typographic points
    at = {peer: axis.transData.transform([_point(result, peer) for result in results]) * scale for peer in PEERS}
    taken: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for peer in PEERS for x, y in at[peer]]
    frame = tuple(edge * scale for edge in axis.bbox.extents)
    for result, (x, y) in zip(results, at["fastconv"], strict=True):
        number = str(names.index(result.name) + 1)
        boxes = [(place, _box(x, y, place, 4.2 * len(number))) for place in _PLACES]
        free = (
            (place, box) for place, box in boxes if _within(box, frame) and not any(_overlap(box, t) for t in taken)
        )
        place, box = next(free, boxes[0])
        taken.append(box)
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": _color(result), "shrinkA": 0, "shrinkB": 2}
        axis.annotate(
            number,
            _point(result, "fastconv"),
            textcoords="offset points",
            xytext=((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y),
            ha="center",
            va="center",
            fontsize=7,
            color=_color(result),
            arrowprops=line if place[0] > _PLACES[0][0] else None,
            zorder=5,
        )


def _box(x: float, y: float, place: tuple[float, float], width: float, height: float = 6.0) -> Box:
    """Of a text that stands at this place beside a point."""
    distance, angle = place
    x += math.cos(angle) * (distance + width / 4)
    y += math.sin(angle) * distance
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _within(a: Box, b: Box) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _label_powers(axis: Any, ticks: list[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_ticks(ticks)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _names(report: Report) -> list[str]:
    return list(dict.fromkeys(result.name for result in report.results))


def _panels(report: Report) -> dict[str, list[Result]]:
    """The results of each panel that has any."""
    panels = {
        title: [result for result in report.results if result.pass_ in passes] for title, passes in PANELS.items()
    }
    return {title: results for title, results in panels.items() if results}
