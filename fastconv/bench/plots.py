"""Pictures of a report: the ratios as bars, and the layers under the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastconv.bench.report import heading
from fastconv.bench.run import Report, Result

FASTER, SLOWER, TORCH = "#2a78b5", "#d1495b", "#8a8a8a"
PANELS = {
    "forward": ("forward",),
    "input gradient": ("input_gradient", "backward"),  # all there is backward of what has no weights
    "weight gradient": ("weight_gradient",),
    "training step": ("training_step",),
}


def save(report: Report, folder: Path) -> list[Path]:
    """Writes ratios and roofline as PNG and SVG; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, draw in (("ratios", draw_ratios), ("roofline", draw_roofline)):
        figure = draw(report)
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
            place, ratio = names.index(result.name), result.ratio()
            axis.barh(place, ratio - 1, left=1, height=0.7, color=SLOWER if result.slower else FASTER)
            axis.text(max(ratio, 1) * 1.06, place, f"{ratio:.2f}", va="center", fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xlim(low, high)
        _label_powers(axis.xaxis, [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high])
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(title, fontsize=10)
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
    size = (4.4 * len(panels) + 2.4, max(5.0, 1.2 + 0.16 * len(names)))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    peak, bandwidth = report.ceiling.operations / 1e9, report.ceiling.bandwidth / 1e9
    intensities = [result.operations / result.bytes for result in report.results]
    low, high = min(0.2, *intensities) / 2, max(peak / bandwidth * 4, *intensities) * 2
    for axis, (title, results) in zip(axes[0], panels.items(), strict=True):
        axis.plot([low, peak / bandwidth, high], [low * bandwidth, peak, peak], color="black", linewidth=1.2)
        axis.text(low * 1.2, peak, f"{peak:.0f} GFLOP/s\n{bandwidth:.0f} GB/s", va="center", fontsize=8)
        for result in results:
            _draw_layer(axis, result, names.index(result.name) + 1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(low, high)
        axis.margins(y=0.08)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.25)
    powers = [10.0**power for power in range(-6, 7)]
    _label_powers(axes[0][0].xaxis, [tick for tick in powers if low <= tick <= high])
    bottom, top = axes[0][0].get_ylim()
    _label_powers(axes[0][0].yaxis, [tick for tick in powers if bottom <= tick <= top])
    axes[0][0].set_ylabel("GFLOP/s", fontsize=9)
    figure.supxlabel("operations a byte of unavoidable memory traffic\n" + heading(report), fontsize=8)
    title = "Roofline: fastconv (filled; red where torch is faster) and torch (hollow), each in its faster layout"
    figure.suptitle(title, fontsize=11)
    lines = [pyplot.Line2D([], [], linestyle="", label=f"{place}  {name}") for place, name in enumerate(names, start=1)]
    figure.legend(handles=lines, loc="outside right upper", fontsize=7, frameon=False, handlelength=0, handletextpad=0)
    return figure


def _draw_layer(axis: Any, result: Result, number: int) -> None:
    intensity = result.operations / result.bytes
    ours = result.operations / result.best("fastconv").median / 1e9
    theirs = result.operations / result.best("torch").median / 1e9
    color = SLOWER if result.slower else FASTER
    axis.plot([intensity, intensity], [theirs, ours], color=TORCH, linewidth=0.7, zorder=2)
    axis.plot(intensity, theirs, "o", markersize=4, markerfacecolor="white", markeredgecolor=TORCH, zorder=3)
    axis.plot(intensity, ours, "o", markersize=5, color=color, zorder=4)
    beside = {"textcoords": "offset points", "xytext": (4, 2)}
    axis.annotate(str(number), (intensity, ours), **beside, fontsize=7, color=color, zorder=5)


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
