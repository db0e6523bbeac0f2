"""Runs the kernels of fastconv._C on torch tensors, one call each, without the operators in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastconv import _C

DTYPES = {
    torch.float32: _C.Dtype.float32,
    torch.float64: _C.Dtype.float64,
    torch.float16: _C.Dtype.float16,
    torch.bfloat16: _C.Dtype.bfloat16,
}
LAYOUTS = {torch.contiguous_format: _C.Layout.channels_first, torch.channels_last: _C.Layout.channels_last}
PRIMITIVES = ("forward", "input_gradient", "weight_gradient")
GUARD = 256  # bytes of canary on either side of what a kernel may write
CANARY = 0xA5


@dataclass(frozen=True)
class Conv:
    """Sizes of a convolution: x [n, c, h, w], w [k, c / groups, r, s]; padding is top, bottom, left, right."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def p(self) -> int:
        top, bottom, _, _ = self.padding
        return (self.h + top + bottom - self.dilation[0] * (self.r - 1) - 1) // self.stride[0] + 1

    @property
    def q(self) -> int:
        _, _, left, right = self.padding
        return (self.w + left + right - self.dilation[1] * (self.s - 1) - 1) // self.stride[1] + 1

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return self.k, self.c // self.groups, self.r, self.s

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.k, self.p, self.q

    def problem(
        self,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
        weight_layout: torch.memory_format | None = None,
    ) -> _C.ConvProblem:
        problem = _C.ConvProblem()
        for name in ("n", "c", "h", "w", "k", "r", "s", "p", "q", "groups"):
            setattr(problem, name, getattr(self, name))
        problem.stride_h, problem.stride_w = self.stride
        problem.pad_top, problem.pad_bottom, problem.pad_left, problem.pad_right = self.padding
        problem.dilation_h, problem.dilation_w = self.dilation
        problem.layout = LAYOUTS[layout]
        problem.weight_layout = LAYOUTS[weight_layout or layout]
        problem.dtype = DTYPES[dtype]
        return problem


class Guarded:
    """A fresh tensor between canaries; `check` raises if a kernel wrote beside it."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format
    ):
        size = torch.empty(0, dtype=dtype).element_size()
        for extent in shape:
            size *= extent
        self.size = size
        self.bytes = torch.full((size + 2 * GUARD + 64,), CANARY, dtype=torch.uint8)
        self.start = GUARD + (-(self.bytes.data_ptr() + GUARD)) % 64
        inside = self.bytes[self.start : self.start + size].view(dtype)
        if layout == torch.channels_last:
            n, c, h, w = shape
            self.tensor = inside.view(n, h, w, c).permute(0, 3, 1, 2)
        else:
            self.tensor = inside.view(shape)

    def check(self) -> None:
        if (self.bytes[: self.start] != CANARY).any():
            raise AssertionError("a kernel wrote before the start of its buffer")
        if (self.bytes[self.start + self.size :] != CANARY).any():
            raise AssertionError("a kernel wrote past the end of its buffer")


def run_conv(
    conv: Conv,
    primitive: str,
    *operands: Tensor | None,
    threads: int = 1,
    algorithm: str = "",
    weight_layout: torch.memory_format | None = None,
    layout: torch.memory_format | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """forward(x, w, b) -> y, input_gradient(gy, w, b) -> gx, weight_gradient(gy, x) -> (gw, gb); b may be None.

    Operands are copied to `layout` and, the weight, to `weight_layout`; without these they stay as they are.
    """
    first = operands[0]
    assert first is not None
    layout = layout or _layout_of(first)
    if weight_layout is None:
        weight_layout = layout if primitive == "weight_gradient" else _layout_of(operands[1])
    formats = (layout, layout if primitive == "weight_gradient" else weight_layout, torch.contiguous_format)
    operands = tuple(
        None if t is None else t.contiguous(memory_format=format) for t, format in zip(operands, formats, strict=False)
    )
    call = prepare_conv(conv, primitive, first.dtype, layout, weight_layout, threads, algorithm)
    return call(*operands)


def prepare_conv(
    conv: Conv,
    primitive: str,
    dtype: torch.dtype,
    layout: torch.memory_format,
    weight_layout: torch.memory_format,
    threads: int = 1,
    algorithm: str = "",
    guarded: bool = True,
) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """A function of the primitive's operands, for repeated calls."""
    plan = _C.ConvPlan(conv.problem(dtype, layout, weight_layout), primitive, threads, algorithm)
    shapes = {
        "forward": [(conv.y_shape, layout)],
        "input_gradient": [(conv.x_shape, layout)],
        "weight_gradient": [(conv.w_shape, weight_layout), ((conv.k,), torch.contiguous_format)],
    }[primitive]

    def call(*operands: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        if guarded:
            buffers = [Guarded(shape, dtype, format) for shape, format in shapes]
            outputs = tuple(buffer.tensor for buffer in buffers)
            workspace = Guarded((plan.workspace_bytes,), torch.uint8)
            buffers.append(workspace)
            workspace_address = workspace.tensor.data_ptr()
        else:
            buffers = []
            outputs = tuple(torch.empty(shape, dtype=dtype, memory_format=format) for shape, format in shapes)
            scratch = torch.empty(plan.workspace_bytes + 63, dtype=torch.uint8)
            workspace_address = (scratch.data_ptr() + 63) // 64 * 64
        addresses = [0 if t is None else t.data_ptr() for t in (*operands, *outputs)]
        getattr(plan, primitive)(*addresses, workspace_address)
        for buffer in buffers:
            buffer.check()
        return outputs[0] if len(outputs) == 1 else outputs

    return call


def _layout_of(t: Tensor | None) -> torch.memory_format:
    assert t is not None
    return torch.contiguous_format if t.is_contiguous() else torch.channels_last


def reference_conv(conv: Conv, primitive: str, *operands: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """The same in float64 by torch."""
    operands = tuple(None if t is None else t.double().contiguous() for t in operands)
    top, bottom, left, right = conv.padding
    geometry = (conv.stride, (0, 0), conv.dilation, False, (0, 0), conv.groups)
    if primitive == "forward":
        x, w, b = operands
        assert x is not None
        padded = torch.nn.functional.pad(x, (left, right, top, bottom))
        return torch.ops.aten.convolution(padded, w, b, *geometry)
    shape = (conv.n, conv.c, conv.h + top + bottom, conv.w + left + right)
    if primitive == "input_gradient":
        gy, w, b = operands
        empty = torch.empty(shape, dtype=torch.float64)
        padded = torch.ops.aten.convolution_backward(gy, empty, w, None, *geometry, (True, False, False))[0]
        gx = torch.nn.functional.pad(padded, (-left, -right, -top, -bottom))
        return gx if b is None else gx + b[:, None, None]
    gy, x = operands
    assert gy is not None
    assert x is not None
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    w = torch.empty(conv.w_shape, dtype=torch.float64)
    gw = torch.ops.aten.convolution_backward(gy, padded, w, None, *geometry, (False, True, False))[1]
    return gw, gy.sum((0, 2, 3))
