"""Receptive fields, followed through a running model operator by operator.

Every tensor that comes from the input carries, for each of its dimensions, the axis of the input that it runs along,
how many of that axis' positions one value sees, and how far neighbours lie apart. Araujo, Norris, Sim: Computing
Receptive Fields of Convolutional Neural Networks, Distill 2019.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["ReceptiveFields", "Window", "window_of"]


class Window(NamedTuple):
    """What one operator slides over its input: one number for each spatial dimension, the last ones."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False


class _Along(NamedTuple):
    """One dimension of a tensor: it runs along an axis of the input, in steps; a value sees `size` positions."""

    axis: int
    size: Fraction
    step: Fraction

    def over(self, count: int) -> Fraction:
        """What `count` neighbours see together."""
        return self.size + (count - 1) * self.step


@dataclass(frozen=True)
class _View:
    """What the values of a tensor see: by dimension, and on axes that are no dimension any more."""

    dims: tuple[_Along | None, ...]
    gathered: Mapping[int, Fraction] = field(default_factory=dict)

    def gather(self, spread: Sequence[tuple[_Along | None, int]]) -> dict[int, Fraction]:
        """What is seen on axes that are no dimension once these, with their sizes, have become one value."""
        result = dict(self.gathered)
        for along, count in spread:
            if along is not None:
                result[along.axis] = max(result.get(along.axis, Fraction(0)), along.over(count))
        return result


class ReceptiveFields:
    """The receptive fields of the tensors that were computed from `inputs`; tell it every operator by `record`.

    An input of three or more dimensions is [N, C, ...], one of integers [N, ...]. Counted are convolutions, pooling,
    interpolation, reductions and matrix products; other operators pass on what their inputs saw, if the output is of
    the same shape, or else nothing.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._views = WeakTensorKeyDictionary()
        for tensor in inputs:
            first = 2 if tensor.is_floating_point() else 1
            axes = range(max(0, tensor.dim() - first))
            along = (_Along(axis, Fraction(1), Fraction(1)) for axis in axes)
            self._views[tensor] = _View((*[None] * (tensor.dim() - len(axes)), *along))

    def of(self, tensor: Tensor) -> tuple[int, ...] | None:
        """How many positions along each axis of the input one value of `tensor` depends on; None if that is unknown."""
        view = self._views.get(tensor)
        if view is None:
            return None
        sizes = dict(view.gathered)
        for along in view.dims:
            if along is not None:
                sizes[along.axis] = max(along.size, sizes.get(along.axis, Fraction(0)))
        return tuple(math.ceil(sizes[axis]) for axis in sorted(sizes)) or None

    def record(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Take note that `operator` (of torch.ops) gave `result` for these arguments."""
        seen = [tensor for tensor in _tensors((*args, *kwargs.values())) if tensor in self._views]
        outputs = list(_tensors([result]))
        if not seen or not outputs:
            return
        name = operator.overloadpacket.__name__
        window = window_of(operator, args, result)
        views: list[_View | None]
        if window is not None:
            views = [_slide(self._views[seen[0]], window)]
        elif name in _RULES:
            views = [_RULES[name](self._views, args, kwargs, outputs)]
        else:
            views = [_pointwise([self._views[tensor] for tensor in seen], output) for output in outputs]
        for output, view in zip(outputs, views * len(outputs), strict=False):
            if view is not None and len(view.dims) == output.dim():
                self._views[output] = view
            else:
                self._views.pop(output, None)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _per_dimension(values: Any, count: int) -> tuple[int, ...]:
    values = [values] if isinstance(values, int) else list(values)
    return tuple(values * count if len(values) == 1 else values)


def window_of(operator: Any, args: Sequence[Any], result: Any) -> Window | None:
    """The window of a convolution or pooling, None for another operator."""
    name = f"{operator.namespace}.{operator.overloadpacket.__name__}"
    if name == "aten.convolution":
        kernel = tuple(args[1].shape[2:])
        stride, dilated = (_per_dimension(args[i], len(kernel)) for i in (3, 5))
        return Window(kernel, stride, dilated, transposed=args[6])
    if name == "fastconv.conv_forward":
        return Window(tuple(args[1].shape[2:]), tuple(args[3]), tuple(args[5]))
    if name == "fastconv.conv_input_gradient":
        return Window(tuple(args[1].shape[2:]), tuple(args[4]), tuple(args[6]), transposed=True)
    if name in ("fastconv.max_pool", "fastconv.average_pool"):
        kernel, stride = tuple(args[2]), tuple(args[3])
        if not kernel:
            return _adaptive(args[0], result)
        return Window(kernel, stride, tuple(args[5]) if name == "fastconv.max_pool" else (1,) * len(kernel))
    if name.startswith(("aten._adaptive", "aten.adaptive")):
        return _adaptive(args[0], result)
    pooling = re.match(r"aten\.(max|avg)_pool([123])d", name)
    if pooling:
        kernel = _per_dimension(args[1], int(pooling[2]))
        stride = _per_dimension(args[2], len(kernel)) if len(args) > 2 and args[2] else kernel
        dilation: Any = args[4] if pooling[1] == "max" and len(args) > 4 else 1
        return Window(kernel, stride, _per_dimension(dilation, len(kernel)))
    return None


def _adaptive(x: Tensor, result: Any) -> Window:
    """The widest of the windows of an adaptive pooling, whose widths differ where the division has a rest."""
    kernel, stride = [], []
    for before, after in zip(x.shape[2:], next(_tensors([result])).shape[2:], strict=True):
        kernel.append(max(-(-(i + 1) * before // after) - i * before // after for i in range(after)))
        stride.append(-(-before // after))
    return Window(tuple(kernel), tuple(stride), (1,) * len(kernel))


def _slide(view: _View, window: Window) -> _View:
    count = len(window.kernel)
    dims = list(view.dims[:-count])
    for along, kernel, stride, dilation in zip(
        view.dims[-count:], window.kernel, window.stride, window.dilation, strict=True
    ):
        extent = (kernel - 1) * dilation + 1
        if along is None:
            dims.append(None)
        elif window.transposed:
            # A value of the output meets every stride-th element of the kernel.
            dims.append(_Along(along.axis, along.over(-(-extent // stride)), along.step / stride))
        else:
            dims.append(_Along(along.axis, along.over(extent), along.step * stride))
    return _View(tuple(dims), view.gathered)


def _pointwise(views: Sequence[_View], output: Tensor) -> _View | None:
    """Where the shapes are those of the output, or as it is in broadcasting, less one: the largest field of each."""
    rank = output.dim()
    views = [view for view in views if len(view.dims) <= rank]
    if not views:
        return None
    gathered: dict[int, Fraction] = {}
    for view in views:
        for axis, size in view.gathered.items():
            gathered[axis] = max(size, gathered.get(axis, Fraction(0)))
    dims: list[_Along | None] = []
    for dim in range(-rank, 0):
        here = [view.dims[dim] for view in views if -dim <= len(view.dims)]
        alongs = [along for along in here if along is not None]
        if len({along.axis for along in alongs}) == 1:
            axis = alongs[0].axis
            dims.append(_Along(axis, max(a.size for a in alongs), max(a.step for a in alongs)))
        else:
            dims.append(None)
    return _View(tuple(dims), gathered)


Views = Any  # a mapping from tensors to _View
Rule = Callable[[Views, Sequence[Any], Mapping[str, Any], Sequence[Tensor]], "_View | None"]


def _reshape(views: Views, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> _View | None:
    """Dimensions stay where they are found again; those merged into features are gathered."""
    view = views[args[0]]
    if args[0].numel() == 0:
        return None
    before = [(dim, size) for dim, size in enumerate(args[0].shape) if size > 1]
    after = [(dim, size) for dim, size in enumerate(outputs[0].shape) if size > 1]
    kept: dict[int, _Along | None] = {}
    lost = [(view.dims[dim], 1) for dim, size in enumerate(args[0].shape) if size == 1]
    while before:
        # The shortest runs of dimensions that hold the same number of values.
        old, new = [before.pop(0)], [after.pop(0)]
        while (held := math.prod(size for _, size in old)) != (wanted := math.prod(size for _, size in new)):
            if held < wanted:
                old.append(before.pop(0))
            else:
                new.append(after.pop(0))
        if len(old) == len(new) == 1:
            kept[new[0][0]] = view.dims[old[0][0]]
        elif old[0][0] == 0 and any(view.dims[dim] is not None for dim, _ in old):
            return None  # images and positions in one dimension
        else:
            lost += [(view.dims[dim], size) for dim, size in old]
    return _View(tuple(kept.get(dim) for dim in range(outputs[0].dim())), view.gather(lost))


def _permute(views: Views, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> _View | None:
    dims = views[args[0]].dims
    if len(args) == 1:  # t()
        order: list[int] = list(reversed(range(len(dims))))
    elif isinstance(args[1], int):
        order = list(range(len(dims)))
        first, second = args[1] % len(dims), args[2] % len(dims)
        order[first], order[second] = order[second], order[first]
    else:
        order = [dim % len(dims) for dim in args[1]]
    return _View(tuple(dims[dim] for dim in order), views[args[0]].gathered)


def _reduce(views: Views, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> _View | None:
    view, shape = views[args[0]], args[0].shape
    reduced = args[1] if len(args) > 1 else kwargs.get("dim")
    if isinstance(reduced, int):
        reduced = [reduced]
    gone = {dim % len(shape) for dim in reduced} if reduced else set(range(len(shape)))
    gathered = view.gather([(view.dims[dim], shape[dim]) for dim in gone])
    if outputs[0].dim() == len(shape):
        return _View(tuple(None if dim in gone else along for dim, along in enumerate(view.dims)), gathered)
    return _View(tuple(along for dim, along in enumerate(view.dims) if dim not in gone), gathered)


def _matmul(views: Views, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> _View | None:
    """[..., M, K] times [..., K, N]; in front of them the summand of addmm and baddbmm."""
    left, right = args[-2:] if len(args) < 4 else args[1:3]
    dims: list[_Along | None] = [None] * outputs[0].dim()
    gathered: dict[int, Fraction] = {}
    for factor, own, summed in ((left, -2, -1), (right, -1, -2)):
        view = views.get(factor)
        if view is not None:
            dims[own] = view.dims[own]
            for axis, size in view.gather([(view.dims[summed], factor.shape[summed])]).items():
                gathered[axis] = max(size, gathered.get(axis, Fraction(0)))
    return _View(tuple(dims), gathered)


def _interpolate(taps: int) -> Rule:
    """Each new position is computed from as many neighbours."""

    def rule(views: Views, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> _View:
        view = views[args[0]]
        dims: list[_Along | None] = []
        for along, before, after in zip(view.dims, args[0].shape, outputs[0].shape, strict=True):
            if along is not None and before != after:
                along = _Along(along.axis, along.over(taps), along.step * Fraction(before, after))
            dims.append(along)
        return _View(tuple(dims), view.gathered)

    return rule


def _same_dimensions(views: Views, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> _View:
    return views[args[0]]


def _slice(views: Views, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> _View:
    view = views[args[0]]
    dim = (args[1] if len(args) > 1 else 0) % len(view.dims)
    step = args[4] if len(args) > 4 else 1
    dims = list(view.dims)
    along = dims[dim]
    if along is not None:
        dims[dim] = along._replace(step=along.step * step)
    return _View(tuple(dims), view.gathered)


def _select(views: Views, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> _View:
    view, dim = views[args[0]], args[1] % args[0].dim()
    kept = tuple(along for index, along in enumerate(view.dims) if index != dim)
    return _View(kept, view.gather([(view.dims[dim], 1)]))


def _embedding(views: Views, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]) -> _View | None:
    view = views.get(args[1])
    return None if view is None else _View((*view.dims, None), view.gathered)


_RULES: dict[str, Rule] = {}
for _rule, _names in (
    (_reshape, "view _unsafe_view _reshape_copy unsqueeze squeeze view_copy"),
    (_permute, "permute transpose t"),
    (_reduce, "mean sum amax amin max min logsumexp var std argmax prod"),
    (_matmul, "mm addmm bmm baddbmm"),
    (_interpolate(1), "upsample_nearest1d upsample_nearest2d upsample_nearest3d"),
    (_interpolate(2), "upsample_linear1d upsample_bilinear2d upsample_trilinear3d"),
    (_interpolate(4), "upsample_bicubic2d"),
    (_same_dimensions, "constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"),
    (_same_dimensions, "split split_with_sizes expand"),
    (_slice, "slice"),
    (_select, "select"),
    (_embedding, "embedding"),
):
    _RULES |= dict.fromkeys(_names.split(), _rule)
