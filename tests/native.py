"""Runs a case through a native convolution of the backend: any primitive, algorithm, dtype, layout, number of threads.

Outputs and workspace are filled with NaN beforehand, and all tensors lie between guard bytes that must survive; under
AddressSanitizer they are allocated to the byte instead, so that it sees every access beyond them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import backends
import torch
from cases import Conv
from oracle import conv_size

from fastconv import _C

SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
GUARD = 256 + 8  # tensors of torch may lie at any multiple of their element's size
WORKSPACE_GUARD = 256  # 64-byte aligned
DTYPES = {
    torch.float32: _C.Dtype.float32,
    torch.float64: _C.Dtype.float64,
    torch.float16: _C.Dtype.float16,
    torch.bfloat16: _C.Dtype.bfloat16,
}
LAYOUTS = {torch.contiguous_format: _C.Layout.channels_first, torch.channels_last: _C.Layout.channels_last}
PRIMITIVES = ("forward", "input_gradient", "weight_gradient")


class Buffer:
    """Memory for a tensor of a shape and memory format, NaN all over, between guard bytes that must stay 255."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
    ) -> None:
        guard = 0 if SANITIZED else WORKSPACE_GUARD if dtype is torch.uint8 else GUARD
        size = torch.Size(shape).numel() * dtype.itemsize
        self._bytes = backends.place(torch.full((guard + size + guard,), 255, dtype=torch.uint8))
        self._inside = slice(guard, guard + size)
        flat = self._bytes[self._inside].view(dtype)
        if memory_format is torch.channels_last:
            n, c, h, w = shape
            self.tensor = flat.view(n, h, w, c).permute(0, 3, 1, 2)
        else:
            self.tensor = flat.view(shape)

    @classmethod
    def of(cls, values: torch.Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Buffer:
        buffer = cls(tuple(values.shape), dtype, memory_format)
        buffer.tensor.copy_(values)
        return buffer

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    def guards_intact(self) -> bool:
        inside = self._inside
        return bool((self._bytes[: inside.start] == 255).all() and (self._bytes[inside.stop :] == 255).all())


def problem_of(
    case: Conv,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    weight_layout: torch.memory_format = torch.contiguous_format,
) -> _C.ConvProblem:
    problem = _C.ConvProblem()
    for name in ("n", "c", "h", "w", "k", "r", "s", "groups"):
        setattr(problem, name, getattr(case, name))
    problem.stride_h, problem.stride_w = case.stride
    problem.dilation_h, problem.dilation_w = case.dilation
    (problem.pad_top, problem.pad_bottom), (problem.pad_left, problem.pad_right) = case.padding
    problem.p = conv_size(case.h, case.r, case.stride[0], case.padding[0], case.dilation[0])
    problem.q = conv_size(case.w, case.s, case.stride[1], case.padding[1], case.dilation[1])
    problem.dtype, problem.layout, problem.weight_layout = DTYPES[dtype], LAYOUTS[layout], LAYOUTS[weight_layout]
    problem.allow_tf32 = backends.current != "cpu" and layout is torch.channels_last  # on a GPU both ways are tested
    return problem


def plan(case: Conv, primitive: str, layout: torch.memory_format, threads: int = 1) -> Any:
    """The plan's own choice."""
    return backends.native().ConvPlan(problem_of(case, layout=layout), primitive, threads)


@dataclass(frozen=True)
class Config:
    """How a problem is to be computed."""

    primitive: str
    algorithm: str
    dtype: torch.dtype
    layout: torch.memory_format
    weight_layout: torch.memory_format
    threads: int
    bias: bool

    def __str__(self) -> str:
        return " ".join(str(v).replace("torch.", "") for v in vars(self).values())


def configurations(
    case: Conv, primitive: str, dtypes: Sequence[torch.dtype] = tuple(DTYPES), counts: Sequence[int] = ()
) -> list[Config]:
    """Every applicable algorithm in every dtype and layout, with and without a bias; `counts` of threads if given.

    float32 in all combinations; the other types share its code beyond the first and last step, so fewer do for them.
    GPUs have no threads; with one number of them or another, a call is the same."""
    if backends.current != "cpu":
        counts = counts[-1:] or (2,)
    found = []
    for dtype, layout, weight_layout in product(dtypes, LAYOUTS, LAYOUTS):
        if dtype is not torch.float32 and layout is not weight_layout:
            continue
        problem = problem_of(case, dtype, layout, weight_layout)
        for algorithm in backends.native().conv_algorithms(problem, primitive):
            if algorithm.startswith("tensor_core_") and dtype is torch.bfloat16:
                continue  # another tile with another type: one of the two at a time will do
            for threads in counts or ((1, 3) if dtype is torch.float32 else (2,)):
                bias = threads != 1
                found.append(Config(primitive, algorithm, dtype, layout, weight_layout, threads, bias))
    return found


def run_conv(case: Conv, config: Config, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(y,) from (x, w, b), (gx,) from (gy, w, b), or (gw, gb) from (gy, x), in the configuration's dtype."""
    dtype, layout, weight_layout = config.dtype, config.layout, config.weight_layout
    problem = problem_of(case, dtype, layout, weight_layout)
    plan = backends.native().ConvPlan(problem, config.primitive, config.threads, config.algorithm)
    assert plan.algorithm == config.algorithm
    weight_shape = (case.k, case.c // case.groups, case.r, case.s)
    flat = torch.contiguous_format
    if config.primitive == "weight_gradient":
        inputs = [Buffer.of(t, dtype, layout) for t in operands]
        outputs = [Buffer(weight_shape, dtype, weight_layout)]
        if config.bias:
            outputs.append(Buffer((case.k,), dtype))
    else:
        image, weight, bias = operands
        inputs = [Buffer.of(image, dtype, layout), Buffer.of(weight, dtype, weight_layout)]
        if config.bias:
            inputs.append(Buffer.of(bias, dtype, flat))
        forward = config.primitive == "forward"
        shape = (case.n, case.k, problem.p, problem.q) if forward else (case.n, case.c, case.h, case.w)
        outputs = [Buffer(shape, dtype, layout)]
    workspace = Buffer((plan.workspace_bytes,), torch.uint8)
    addresses = [b.address for b in inputs]
    if config.primitive != "weight_gradient" and not config.bias:
        addresses.append(0)
    addresses += [b.address for b in outputs]
    if config.primitive == "weight_gradient" and not config.bias:
        addresses.append(0)
    getattr(plan, config.primitive)(*addresses, workspace.address)
    for buffer in (*inputs, *outputs, workspace):
        assert buffer.guards_intact(), f"wrote outside a tensor: {config}"
    return tuple(b.tensor.cpu() for b in outputs)
