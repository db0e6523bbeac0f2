"""A picture of the feature maps through a network, as SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape

import torch

from fastconv.models.summary import Call, Summary, is_chain

__all__ = ["draw"]

# Colours by what makes the maps: front, top, side.
_COLOURS = {
    "input": ("#d7dbe0", "#e9ecef", "#b9c0c8"),
    "convolution": ("#6ea8dc", "#9cc6ec", "#4a86c0"),
    "pooling": ("#f0b46c", "#f7d0a0", "#d2924a"),
    "block": ("#74c0a4", "#a4dac6", "#4f9c80"),
    "upsampling": ("#c79bd8", "#ddc0e8", "#a678b8"),
    "linear": ("#e58c8a", "#f0b5b3", "#c46a68"),
    "other": ("#bfc5cc", "#d9dde1", "#9da5ae"),
}
_POOLING = tuple(
    family
    for family in vars(torch.nn.modules.pooling).values()
    if isinstance(family, type) and issubclass(family, torch.nn.Module) and family is not torch.nn.Module
)
_CONVOLUTION = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)

_FONT = "font-family='Helvetica, Arial, sans-serif'"
_HEIGHT, _GAP, _MARGIN = 190.0, 26.0, 28.0
_LANE, _LINE = 14.0, "stroke='#9aa3ad' stroke-width='1.5'"


@dataclass(frozen=True)
class _Stage:
    """Maps of one shape, and the layers one after the other that give them from the maps of `sources`."""

    name: str
    title: str
    kind: str
    shape: tuple[int, ...]
    sources: tuple[int, ...] = ()
    repeats: int = 1


def draw(summary: Summary, title: str = "") -> str:
    """The feature maps from input to output as the text of an SVG file.

    Each box is what one layer gives, or a module with branches of its own (a residual block, an inception module), or
    several equal ones in a row. A box is as high as the square root of the maps' height and as deep as that of their
    width, on the scale of the largest map, and as thick as the logarithm of the number of channels; a vector is a
    column as high as the logarithm of its length. Layers that keep shape and positions (normalisation, activation,
    dropout) are left out. Where a box does not take what the one before it gives, or not that alone, lines under the
    boxes show what it takes; to several boxes' maps something is done together, such as adding them.

    Args:
        summary: of `fastconv.models.summary`; the first image of the batch is drawn.
        title: the model's name; its class if not given.
    """
    stages = _stages(summary)
    largest = max((size for stage in stages for size in stage.shape[1:]), default=1)
    boxes, centres, x = [], [], _MARGIN
    for stage in stages:
        box = _Box(stage, largest)
        column = max(box.width, box.label_width)
        centres.append(x + column / 2)
        boxes.append(box.svg(centres[-1]))
        x += column + _GAP
    width = x - _GAP + _MARGIN
    lines, lanes = _lines(stages, centres)
    bottom = _Box.middle + _HEIGHT / 2 + 96 + lanes * _LANE
    trained = f" ({summary.trainable:,} trained)" if summary.trainable != summary.parameters else ""
    heading = f"{title or summary.model}: {summary.parameters:,} parameters{trained}, {summary.macs:,} multiply-adds"
    legend, place = [], _MARGIN
    for kind in dict.fromkeys(stage.kind for stage in stages):
        legend.append(
            f"<rect x='{place}' y='{bottom - 10}' width='12' height='12' rx='2' fill='{_COLOURS[kind][0]}'/>"
            f"<text x='{place + 18}' y='{bottom}' {_FONT} font-size='12' fill='#57606a'>{kind}</text>"
        )
        place += 18 + 7 * len(kind) + 24
    width = max(width, place, 9.5 * len(heading) + 2 * _MARGIN)
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{bottom + 24:.0f}' "
            f"viewBox='0 0 {width:.0f} {bottom + 24:.0f}'>",
            "<rect width='100%' height='100%' fill='white'/>",
            f"<text x='{_MARGIN}' y='34' {_FONT} font-size='17' font-weight='bold' fill='#24292f'>"
            f"{escape(heading)}</text>",
            *lines,
            *boxes,
            *legend,
            "</svg>\n",
        ]
    )


def _stages(summary: Summary) -> list[_Stage]:
    """What is drawn: the input, then each layer or module that changes shape or positions, equal neighbours as one."""
    root = summary.root
    stages = [_Stage("input", "", "input", summary.inputs[0][1:])]
    made: dict[Call, tuple[int, ...]] = {root: (0,)}  # the stages whose maps a call gives, or passes on

    def stages_of(calls: Sequence[Call]) -> tuple[int, ...]:
        return tuple(sorted({index for call in calls for index in made.get(call, ())}))

    for call in _chain(root):
        made[call] = stages_of(call.sources)
        stage = _stage(call)
        if stage is not None:
            stages.append(replace(stage, sources=made[call]))
            made[call] = (len(stages) - 1,)
    output = root.outputs[0][1:] if root.outputs else stages[-1].shape
    if output != stages[-1].shape:
        stages.append(_Stage("output", "", "other", output, stages_of(root.returned)))
    return _merged(stages)


def _merged(stages: Sequence[_Stage]) -> list[_Stage]:
    """Equal stages one after the other as one, where nothing else takes the maps between them."""
    uses = Counter(source for stage in stages for source in stage.sources)
    result: list[_Stage] = []
    place: list[int] = []  # of each stage in the result
    for index, stage in enumerate(stages):
        last = result[-1] if result else stage
        alike = (stage.title, stage.kind, stage.shape) == (last.title, last.kind, last.shape)
        if alike and stage.sources == (index - 1,) and uses[index - 1] == 1:
            result[-1] = replace(last, name=_span(last.name, stage.name), repeats=last.repeats + 1)
        else:
            result.append(replace(stage, sources=tuple(place[source] for source in stage.sources)))
        place.append(len(result) - 1)
    return result


def _lines(stages: Sequence[_Stage], centres: Sequence[float]) -> tuple[list[str], int]:
    """The lines between the boxes: straight to the next one, else under the labels, in so many lanes."""
    links = [(source, index) for index, stage in enumerate(stages) for source in stage.sources]
    lanes: list[list[tuple[int, int]]] = []
    for link in sorted((link for link in links if link[1] - link[0] > 1), key=lambda link: link[1] - link[0]):
        free = (lane for lane in lanes if all(link[1] <= other[0] or other[1] <= link[0] for other in lane))
        lane = next(free, None)
        if lane is None:
            lanes.append(lane := [])
        lane.append(link)
    middle, top = _Box.middle, _Box.middle + _HEIGHT / 2 + 46
    lines = [
        f"<line x1='{centres[source]:.1f}' y1='{middle}' x2='{centres[index]:.1f}' y2='{middle}' {_LINE}/>"
        for source, index in links
        if index - source == 1
    ]
    for number, lane in enumerate(lanes):
        low, radius = top + (number + 1) * _LANE, 6
        for source, index in lane:
            # Leaves a little to the right of the middle and arrives a little to the left of it.
            left, right = centres[source] + 6, centres[index] - 6
            lines.append(
                f"<path d='M{left:.1f},{top} V{low - radius} q0,{radius} {radius},{radius} H{right - radius:.1f} "
                f"q{radius},0 {radius},{-radius} V{top} m-3.5,5 l3.5,-5 l3.5,5' fill='none' {_LINE}/>"
            )
    return lines, len(lanes)


def _chain(call: Call) -> Iterator[Call]:
    """The calls one after the other inside a model; a container that is only a chain of layers is opened."""
    for inner in call.inner:
        if inner.inner and is_chain(inner.module):
            yield from _chain(inner)
        else:
            yield inner


def _stage(call: Call) -> _Stage | None:
    module = call.module
    if not call.outputs or not call.outputs[0][1:]:
        return None
    shape = call.outputs[0][1:]
    window = "×".join(map(str, call.kernel)) if call.kernel else ""
    if isinstance(module, _TRANSPOSED):
        kind = "upsampling"
    elif isinstance(module, _CONVOLUTION) or (call.kernel and call.macs):
        kind = "convolution"
    elif isinstance(module, _POOLING) or call.kernel:
        kind = "pooling"
        if call.kernel and max(call.kernel) == 1:  # an adaptive pooling that has nothing to do
            return None
    elif isinstance(module, torch.nn.Linear):
        kind = "linear"
    elif call.inner:
        kind = "block"
    elif isinstance(module, torch.nn.Embedding):
        kind, shape = "other", (shape[-1], *shape[:-1])  # its channels come last
    else:
        return None
    return _Stage(call.name or type(module).__name__, f"{type(module).__name__} {window}".strip(), kind, shape)


def _span(first: str, last: str) -> str:
    """A name for neighbours: "layer1.0" to "layer1.2" are "layer1.0 – 2"."""
    first = first.partition(" – ")[0]
    common, _, own = last.rpartition(".")
    return f"{first} – {own if first.rpartition('.')[0] == common else last}"


class _Box:
    """One stage as a box in oblique projection, with its shape above and its layer below."""

    middle = 74 + _HEIGHT / 2

    def __init__(self, stage: _Stage, largest: int) -> None:
        self.stage = stage
        channels, *sizes = stage.shape
        if sizes:
            scale = _HEIGHT * 0.72 / math.sqrt(largest)
            self.height = max(3.0, scale * math.sqrt(sizes[0] if len(sizes) > 1 else 1))
            self.depth = max(3.0, scale * math.sqrt(sizes[-1])) * 0.38
            self.thickness = 3 + 3.6 * math.log2(channels + 1)
        else:
            self.height, self.depth, self.thickness = 9 * math.log2(channels + 1), 3.0, 9.0
        self.rise = self.depth * 0.72
        self.width = self.thickness + self.depth
        shape = " × ".join(map(str, stage.shape))
        title = stage.title if stage.repeats == 1 else f"{stage.repeats} × {stage.title}"
        self.labels = (shape, stage.name, title)
        self.label_width = max(6.9 * len(shape), 6.6 * len(stage.name), 5.9 * len(title))

    def svg(self, centre: float) -> str:
        front, top, side = _COLOURS[self.stage.kind]
        left, right = centre - self.width / 2, centre - self.width / 2 + self.thickness
        upper, lower = self.middle + (self.rise - self.height) / 2, self.middle + (self.rise + self.height) / 2
        far, rise = self.depth, self.rise
        faces = (
            (front, ((left, upper), (right, upper), (right, lower), (left, lower))),
            (top, ((left, upper), (left + far, upper - rise), (right + far, upper - rise), (right, upper))),
            (side, ((right, upper), (right + far, upper - rise), (right + far, lower - rise), (right, lower))),
        )
        shape, name, title = map(escape, self.labels)
        below = self.middle + _HEIGHT / 2 + 22
        text = f"<text x='{centre:.1f}' text-anchor='middle' {_FONT}"
        return "\n".join(
            [
                *(_polygon(colour, points) for colour, points in faces),
                f"{text} y='{upper - rise - 8:.1f}' font-size='12' fill='#24292f'>{shape}</text>",
                f"{text} y='{below:.1f}' font-size='11.5' font-weight='bold' fill='#24292f'>{name}</text>",
                f"{text} y='{below + 16:.1f}' font-size='11' fill='#57606a'>{title}</text>",
            ]
        )


def _polygon(colour: str, points: Sequence[tuple[float, float]]) -> str:
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"<polygon points='{corners}' fill='{colour}' stroke='white' stroke-width='0.8' stroke-linejoin='round'/>"
