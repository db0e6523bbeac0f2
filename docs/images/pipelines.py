"""Draws the figures of docs/gpu-kernels.md, into this folder: python docs/images/pipelines.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

FOLDER = Path(__file__).parent
INK, LINE, PALE = "#24292f", "#9aa3ad", "#f3f5f7"
READ, KEEP, MAKE = "#9ecae1", "#fdd49e", "#a1d99b"  # what is read, what waits, what is computed
plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fastconv", "font.size": 9, "text.color": INK})


def canvas(width: float, height: float) -> Any:
    figure, axes = plt.subplots(figsize=(width / 12, height / 12))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    return axes


def box(axes: Any, x: float, y: float, width: float, height: float, color: str = PALE, text: str = "") -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=LINE, linewidth=0.8))
    if text:
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def grid(axes: Any, x: float, y: float, columns: int, rows: int, size: float, color: str = PALE) -> None:
    box(axes, x, y, columns * size, rows * size, color)
    down, across = [y + size * i for i in range(1, rows)], [x + size * i for i in range(1, columns)]
    axes.hlines(down, x, x + columns * size, LINE, linewidth=0.8)
    axes.vlines(across, y, y + rows * size, LINE, linewidth=0.8)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    )
    axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 1, text, ha="center", va="bottom")


def caption(axes: Any, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, ha="center", va="top")


def save(axes: Any, name: str) -> None:
    axes.figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(axes.figure)


def direct() -> None:
    """3x3, stride 1: a tile of 8 x 8, a strip of four results."""
    axes = canvas(112, 42)
    grid(axes, 2, 4, 15, 12, 2)
    box(axes, 8, 8, 20, 20, READ)
    grid(axes, 10, 10, 8, 8, 2, MAKE)
    caption(axes, 17, 30, "image in device memory: the tile\nof results and its halo")
    arrow(axes, (33, 16), (47, 16), "cp.async\n16 bytes")
    grid(axes, 48, 6, 10, 10, 2, READ)
    for row in range(6):
        box(axes, 54, 10 + 2 * row, 2, 2, KEEP)
    caption(axes, 58, 30, "the tile in shared memory,\nzeros outside the image")
    arrow(axes, (69, 16), (79, 16), "one column,\n6 rows")
    for row in range(6):
        box(axes, 80, 7 + 3 * row, 5, 3, KEEP, f"x{row}")
    for row in range(4):
        box(axes, 97, 10 + 3 * row, 9, 3, MAKE, f"y{row}")
        for tap in range(3):
            axes.plot([85, 97], [8.5 + 3 * (row + tap), 11.5 + 3 * row], color=LINE, linewidth=0.7)
    caption(axes, 93, 30, "registers of a thread: each input is used\nfor 3 kernel rows, times 4 channels")
    save(axes, "gpu_direct")


def tensor_core() -> None:
    """Three stages of shared memory over the steps of the loop."""
    axes = canvas(112, 40)
    width, left = 14, 24
    for step in range(6):
        caption(axes, left + (step + 0.5) * width, 1, f"step {step}")
    for stage in range(3):
        axes.text(22, 8 + 7 * stage, f"stage {stage}", ha="right", va="center")
        for step in range(6):
            chunk = step + (stage - step) % 3
            name, color = {0: ("multiply", MAKE), 1: ("arriving", KEEP), 2: ("begin copy", READ)}[(stage - step) % 3]
            box(axes, left + step * width, 5 + 7 * stage, width, 6, color, f"{name} {chunk}")
    for step in range(6):
        x = left + step * width
        axes.plot([x, x], [4, 26], color=INK, linewidth=1.2)
    text = """Lines: wait until the chunk to be multiplied has arrived, __syncthreads. Then the copies of the chunk
two steps on are begun into the stage that everybody has read, and the present one is multiplied: ldmatrix, mma.sync.
A chunk: 32 input channels (TF32: 16) of one tap, of 128 positions and of 128 output channels."""
    caption(axes, left + 3 * width, 27, text)
    save(axes, "gpu_tensor_core")


def weight_gradient() -> None:
    """Split-K and the end in a fixed order."""
    axes = canvas(112, 42)
    for i in range(4):
        y = 4 + 7 * i
        box(axes, 2, y, 26, 6, READ, f"gy and x, pixels of slice {i}")
        arrow(axes, (28, y + 3), (40, y + 3))
        box(axes, 40, y, 22, 6, MAKE, "block: sums of all\nits pixels")
        arrow(axes, (62, y + 3), (72, y + 3))
        box(axes, 72, y, 14, 6, KEEP, f"partial {i}")
        axes.plot([86, 94], [y + 3, 17.5], color=LINE, linewidth=0.9)
    box(axes, 94, 12, 15, 11, MAKE, "partials added\nin their order")
    caption(axes, 15, 33, "device memory, each slice\nread by one block a tile")
    caption(axes, 51, 33, "registers, by tensor cores\nor multiply-adds")
    caption(axes, 79, 33, "workspace,\nfloat32")
    caption(axes, 101, 33, "gw and gb, the same\nbits every time")
    save(axes, "gpu_weight_gradient")


def bands() -> None:
    """Pooling in channels_first; normalisation keeps channels where pooling keeps rows."""
    axes = canvas(112, 42)
    grid(axes, 3, 4, 14, 12, 2)
    grid(axes, 3, 8, 14, 7, 2, READ)
    grid(axes, 3, 20, 14, 1, 2, KEEP)
    caption(axes, 17, 30, "a plane in device memory: the rows of a\nband; the last is read by the next one, too")
    arrow(axes, (32, 15), (46, 15), "16 bytes")
    grid(axes, 47, 8, 14, 7, 2, READ)
    box(axes, 51, 12, 6, 6, KEEP)
    caption(axes, 61, 30, "the band in shared memory,\na thread reads its window")
    arrow(axes, (76, 15), (84, 15))
    grid(axes, 85, 11, 7, 3, 2, MAKE)
    box(axes, 87, 13, 2, 2, KEEP)
    arrow(axes, (99, 14), (109, 14), "16 bytes")
    caption(axes, 96, 30, "results in shared memory,\nthen to device memory")
    save(axes, "gpu_bands")


if __name__ == "__main__":
    direct()
    tensor_core()
    weight_gradient()
    bands()
