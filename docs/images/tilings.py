"""Draws the tilings of the CPU kernels: `python docs/images/tilings.py` writes tiling_*.svg beside this file."""

from pathlib import Path

CELL = 18
COLOURS = {"plain": "#f2f2ee", "pad": "#d9d9d4", "read": "#a9cbe8", "weight": "#f3d08a", "sum": "#e79a86"}


class Drawing:
    """Grids of cells with captions, placed by hand, in pixels."""

    def __init__(self, name: str, width: int, height: int) -> None:
        self.name, self.size = name, (width, height)
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, bold: bool = False) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(f'<text x="{x}" y="{y}"{weight}>{text}</text>')

    def grid(self, x: int, y: int, rows: int, columns: int, fill: dict[tuple[int, int], str], cell: int = CELL) -> None:
        """`fill` names the colour of (row, column); the others are plain."""
        for i in range(rows):
            for j in range(columns):
                colour = COLOURS[fill.get((i, j), "plain")]
                self.parts.append(
                    f'<rect x="{x + j * cell}" y="{y + i * cell}" width="{cell}" height="{cell}" fill="{colour}"'
                    ' stroke="#888" stroke-width="0.5"/>'
                )

    def frame(self, x: int, y: int, rows: int, columns: int, cell: int = CELL) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{columns * cell}" height="{rows * cell}" fill="none" stroke="#b03020"'
            ' stroke-width="2.5"/>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self.parts.append(f'<path d="M{x1} {y1} L{x2} {y2}" stroke="#333" stroke-width="1.5" marker-end="url(#head)"/>')

    def write(self, folder: Path) -> None:
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
            ' font-family="sans-serif" font-size="12">\n'
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
            '<path d="M0 0 L6 3 L0 6 z" fill="#333"/></marker></defs>\n'
            f'<rect width="{width}" height="{height}" fill="white"/>\n'
        )
        (folder / f"tiling_{self.name}.svg").write_text(head + "\n".join(self.parts) + "\n</svg>\n")


def area(rows: range, columns: range, colour: str) -> dict[tuple[int, int], str]:
    return {(i, j): colour for i in rows for j in columns}


def depthwise() -> Drawing:
    d = Drawing("depthwise", 960, 310)
    d.text(20, 24, "NCHW: a lane is a column", bold=True)
    padded = area(range(12), range(20), "pad") | area(range(1, 11), range(2, 18), "plain")
    d.grid(20, 40, 12, 20, padded | area(range(1, 11), range(7, 15), "read"))
    d.frame(20 + 7 * CELL, 40 + CELL, 10, 8)
    d.text(20, 276, "a plane, or a band of one, copied with zeros around it:")
    d.text(20, 292, "10 loads of a vector, one for each input row ...")
    d.arrow(385, 140, 420, 140)
    d.grid(430, 68, 8, 8, area(range(8), range(8), "sum"))
    d.text(430, 232, "... serve 8 rows of sums in registers,")
    d.text(430, 248, "for each of the three tap columns")
    d.text(690, 24, "channels_last: a lane is a channel", bold=True)
    d.grid(690, 40, 6, 13, area(range(1, 4), range(1, 11), "read") | {(2, j): "sum" for j in range(2, 10)})
    d.frame(690 + CELL, 40 + CELL, 3, 10)
    d.text(690, 180, "8 outputs of one row (red), 8 channels")
    d.text(690, 196, "deep, read 3 x 10 pixels where they lie;")
    d.text(690, 212, "then the next channels of these, then")
    d.text(690, 228, "the next 8 outputs, then the next row")
    return d


def grouped() -> Drawing:
    d = Drawing("grouped", 940, 290)
    d.text(20, 24, "padded pixels of a bundle of groups (64 bytes each)", bold=True)
    d.grid(20, 40, 4, 14, area(range(4), range(14), "plain") | area(range(1), range(14), "read"))
    d.frame(20, 40, 1, 14)
    d.text(20, 140, "one input channel of 14 neighbouring pixels,")
    d.text(20, 156, "each broadcast to a vector (4 channels a group:")
    d.text(20, 172, "that channel of two groups, to 4 lanes each) ...")
    d.arrow(285, 49, 410, 49)
    d.text(420, 24, "weights", bold=True)
    d.grid(420, 40, 3, 8, area(range(3), range(8), "weight"))
    d.text(420, 124, "... times the 8 output channels")
    d.text(420, 140, "of the group, for the three")
    d.text(420, 156, "taps of a row ...")
    d.arrow(580, 49, 670, 49)
    d.text(680, 24, "sums", bold=True)
    d.grid(680, 40, 12, 8, area(range(12), range(8), "sum"), cell=14)
    d.text(680, 228, "... added to 12 sums in 16 registers")
    d.text(680, 244, "(6 pixels x 2 vectors and one tap")
    d.text(680, 260, "for 16 channels)")
    return d


def direct() -> Drawing:
    d = Drawing("direct", 900, 190)
    d.text(20, 24, "a zero-padded plane as one flat axis of positions", bold=True)
    fill = area(range(1), range(26), "plain") | area(range(1), range(2, 26), "read")
    fill |= {(0, j): "pad" for j in (0, 1, 12, 13, 24, 25)}
    d.grid(20, 40, 1, 26, fill)
    d.frame(20 + 2 * CELL, 40, 1, 24)
    d.text(20, 84, "3 vectors of neighbouring positions, over the end of a row: a tap is an offset.")
    d.text(20, 100, "What is computed between two rows (grey) is dropped.")
    d.text(540, 24, "weights", bold=True)
    d.grid(540, 40, 4, 1, area(range(4), range(1), "weight"))
    d.text(540, 130, "4 output channels,")
    d.text(540, 146, "broadcast")
    d.text(640, 24, "sums", bold=True)
    d.grid(640, 40, 4, 24, area(range(4), range(24), "sum"), cell=8)
    d.text(640, 92, "4 channels x 3 vectors = 12 registers")
    d.text(20, 150, "channels_last: squares of 8 x 8 are transposed in registers on the way in and out.")
    return d


def pooling() -> Drawing:
    d = Drawing("pooling", 960, 260)
    d.text(20, 24, "forward, NCHW", bold=True)
    d.grid(20, 40, 3, 17, area(range(3), range(17), "read"))
    d.arrow(170, 98, 170, 122)
    d.text(180, 114, "the rows of the windows, combined")
    d.grid(20, 126, 1, 17, area(range(1), range(17), "weight"))
    d.arrow(170, 148, 170, 172)
    d.text(180, 164, "every second column: three vectors for three window columns")
    d.grid(20, 176, 1, 8, area(range(1), range(8), "sum"), cell=36)
    d.text(20, 240, "8 outputs of a 3x3 window with stride 2")
    d.text(620, 24, "backward of the maximum, NCHW", bold=True)
    d.grid(620, 40, 2, 8, area(range(2), range(8), "read"), cell=32)
    d.text(620, 122, "two lines of output gradients and one-byte positions")
    d.arrow(740, 130, 740, 154)
    d.text(750, 148, "where the position is this tap")
    d.grid(620, 160, 1, 16, area(range(1), range(16), "sum"), cell=16)
    d.text(620, 196, "16 inputs of a row: even and odd columns")
    d.text(620, 212, "are two sums, interleaved at the end")
    return d


def lrn() -> Drawing:
    d = Drawing("lrn", 700, 230)
    d.text(20, 24, "NCHW: a tile of pixels, channel after channel", bold=True)
    d.grid(20, 40, 8, 16, area(range(2, 7), range(16), "read") | {(4, j): "sum" for j in range(16)})
    d.frame(20, 40 + 2 * CELL, 5, 16)
    d.text(20, 204, "rows are channels; five of them stay in the first-level cache")
    d.text(400, 24, "channels_last", bold=True)
    d.grid(400, 40, 4, 14, area(range(1), range(14), "read") | {(0, j): "sum" for j in range(3, 11)})
    d.frame(400 + CELL, 40, 1, 12)
    d.text(400, 134, "rows are pixels: five loads, each one channel")
    d.text(400, 150, "further, of a copy with zeros at its ends")
    return d


if __name__ == "__main__":
    for draw in (depthwise, grouped, direct, pooling, lrn):
        draw().write(Path(__file__).parent)
