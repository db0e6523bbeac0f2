"""Turns arguments into canonical form, and bad ones into the exception type that torch raises.

Messages name the argument, what was expected and what came. Sizes may be SymInts: all is plain integer arithmetic.
"""

import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastconv import _C, device

Ints = tuple[int, ...]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DEVICES = ("cpu", "meta", "cuda") if device.CUDA else ("cpu", "meta")
INT64_MAX = 2**63 - 1
AXES = {1: ("width",), 2: ("height", "width")}


def fail(name: str, expected: str, got: object, error: type[Exception] = RuntimeError) -> NoReturn:
    raise error(f"{name}: expected {expected}, got {got}")


# ---- scalars and tuples


def integer(name: str, value: Any) -> int:
    """`value` as an int: TypeError for floats, strings and bools, ValueError beyond 64 bits."""
    if isinstance(value, bool) or not (isinstance(value, (int, torch.SymInt)) or hasattr(value, "__index__")):
        fail(name, "an int", f"{value!r} ({type(value).__name__})", TypeError)
    if not isinstance(value, (int, torch.SymInt)):
        value = operator.index(value)
    if isinstance(value, int) and not -INT64_MAX <= value <= INT64_MAX:
        fail(name, "an int of at most 64 bits", value, ValueError)
    return value


def integers(name: str, value: Any, dims: int) -> Ints:
    """An int, or a sequence of 1 or `dims` ints, as `dims` ints."""
    if isinstance(value, (tuple, list)):
        if len(value) not in (1, dims):
            fail(name, f"an int or {dims} of them", value)
        values = tuple(integer(name, v) for v in value)
        return values if len(values) == dims else values * dims
    return (integer(name, value),) * dims


def at_least(name: str, values: Sequence[int], least: int) -> None:
    for value in values:
        if value < least:
            fail(name, f"at least {least}", value)


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        fail(name, "a bool", f"{value!r} ({type(value).__name__})", TypeError)
    return value


def extent(kernel: int, dilation: int) -> int:
    """Size of a dilated kernel."""
    return dilation * (kernel - 1) + 1


def fits(name: str, values: Sequence[int]) -> None:
    """Every intermediate of the kernels' index arithmetic must fit in 64 bits."""
    for value in values:
        if isinstance(value, int) and abs(value) > INT64_MAX // 2:
            fail(name, "sizes whose products fit in 64 bits", value)


def elements(name: str, shape: Sequence[int]) -> None:
    """The bytes of a tensor must be countable in 64 bits."""
    total = 8
    for size in shape:
        if size < 0:
            fail(name, "a size of at least 0", tuple(shape))
        total = total * size
        if isinstance(total, int) and total > INT64_MAX:
            fail(name, "sizes whose product fits in 64 bits", tuple(shape))


# ---- tensors


def tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        fail(name, "a Tensor", type(value).__name__, TypeError)


def supported(name: str, value: Tensor) -> None:
    """RuntimeError (NotImplementedError for a dtype or device that fastconv lacks)."""
    if value.dtype not in DTYPES:
        known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        fail(name, f"one of the dtypes {known} (use torch's own function for others)", value.dtype, NotImplementedError)
    if value.device.type not in DEVICES:
        why = "fastconv has no kernels for other devices"
        if value.device.type == "cuda":
            why = f"fastconv was built without CUDA, since {_C.without_cuda}: install it again where nvcc is found"
        fail(
            name,
            f"a tensor on one of the devices {', '.join(DEVICES)} ({why}; or use torch's own function, or "
            "fastconv.convert, which leaves such layers to torch)",
            value.device,
            NotImplementedError,
        )
    if value.layout != torch.strided:
        fail(name, "a dense tensor", value.layout)


def same_kind(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        fail(f"{name} dtype", f"{other.dtype}, as the {other_name} has", value.dtype)
    if value.device != other.device:
        fail(f"{name} device", f"{other.device}, as the {other_name} has", value.device)


def rank(name: str, value: Tensor, ranks: Sequence[int], meaning: str) -> None:
    if value.dim() not in ranks:
        fail(name, f"{' or '.join(f'{r}-D' for r in ranks)} {meaning}", f"shape {list(value.shape)}")


def shape(name: str, value: Tensor, expected: Sequence[int]) -> None:
    if len(value.shape) != len(expected) or any(a != b for a, b in zip(value.shape, expected, strict=True)):
        fail(name, f"shape {list(expected)}", list(value.shape))


# ---- convolution


def conv_tensors(dims: int, x: Any, w: Any, b: Any) -> None:
    """What convolution and transposed convolution ask of input, weight and bias before looking at sizes."""
    tensor("input", x)
    tensor("weight", w)
    if b is not None:
        tensor("bias", b)
    supported("input", x)
    same_kind("weight", w, "input", x)
    supported("weight", w)
    if b is not None:
        same_kind("bias", b, "input", x)
    rank("input", x, (dims + 1, dims + 2), "(unbatched or batched)")
    rank("weight", w, (dims + 2,), "")


def conv_padding(padding: Any, dims: int, kernel: Sequence[int], stride: Ints, dilation: Ints) -> Ints:
    """Padding per side (top, bottom, left, right), from numbers, 'same', 'valid' or a pair a dimension."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0,) * (2 * dims)
        if padding != "same":
            fail("padding", "'same', 'valid' or numbers", repr(padding))
        if any(s != 1 for s in stride):
            fail("padding", "numbers where the stride is not 1", "'same'")
        totals = [extent(k, d) - 1 for k, d in zip(kernel, dilation, strict=True)]
        return tuple(side for total in totals for side in (total // 2, total - total // 2))
    if isinstance(padding, (tuple, list)) and padding and all(isinstance(p, (tuple, list)) for p in padding):
        if len(padding) != dims or any(len(pair) != 2 for pair in padding):
            fail("padding", f"{dims} (before, after) pairs", padding)
        sides = tuple(integer("padding", side) for pair in padding for side in pair)
    else:
        sides = tuple(side for p in integers("padding", padding, dims) for side in (p, p))
    at_least("padding", sides, 0)
    return sides


def conv_window(name: str, kernel: Sequence[int], stride: Ints, dilation: Ints, groups: int) -> None:
    at_least(f"{name} kernel size", kernel, 1)
    at_least("stride", stride, 1)
    at_least("dilation", dilation, 1)
    at_least("groups", (groups,), 1)
    fits("stride", stride)
    fits("dilation", [extent(k, d) for k, d in zip(kernel, dilation, strict=True)])


def conv_output_size(
    in_size: Sequence[int], kernel: Sequence[int], stride: Ints, padding: Ints, dilation: Ints
) -> Ints:
    sizes = []
    for i, (size, k) in enumerate(zip(in_size, kernel, strict=True)):
        padded = size + padding[2 * i] + padding[2 * i + 1]
        span = padded - extent(k, dilation[i])
        fits("padding", (padded,))
        if span < 0:
            fail(
                f"weight kernel size of the {AXES[len(kernel)][i]}",
                f"(dilated) at most the padded input size {padded}",
                extent(k, dilation[i]),
            )
        sizes.append(span // stride[i] + 1)
    return tuple(sizes)


def conv_channels(x_channels: int, w: Tensor, b: Tensor | None, groups: int) -> None:
    if w.shape[0] < 1 or w.shape[0] % groups != 0:
        fail("weight size of dimension 0 (output channels)", f"a positive multiple of groups {groups}", w.shape[0])
    if x_channels != w.shape[1] * groups:
        fail("input channels", f"{w.shape[1] * groups} (weight {list(w.shape)}, groups {groups})", x_channels)
    if b is not None:
        shape("bias", b, (w.shape[0],))


def conv(
    dims: int, x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[Ints, Ints, Ints, int]:
    """Canonical (stride, padding per side, dilation, groups) of a convolution whose arguments are all valid."""
    conv_tensors(dims, x, w, b)
    strides, dilations, n_groups = (
        integers("stride", stride, dims),
        integers("dilation", dilation, dims),
        integer("groups", groups),
    )
    kernel = w.shape[2:]
    conv_window("weight", kernel, strides, dilations, n_groups)
    sides = conv_padding(padding, dims, kernel, strides, dilations)
    conv_channels(x.shape[-dims - 1], w, b, n_groups)
    at_least("input size", x.shape[-dims:], 1)
    out_size = conv_output_size(x.shape[-dims:], kernel, strides, sides, dilations)
    elements("output", (*x.shape[: -dims - 1], w.shape[0], *out_size))
    return strides, sides, dilations, n_groups


def conv_transpose(
    dims: int, x: Any, w: Any, b: Any, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> tuple[Ints, Ints, Ints, Ints, int]:
    """Canonical (output size, stride, padding per side, dilation, groups) of a transposed convolution.

    Padding is that of the convolution whose input gradient this is: where the output padding reaches the stride, that
    convolution reads less than its whole input, which a smaller (perhaps negative) padding at the end expresses.
    """
    conv_tensors(dims, x, w, b)
    strides, dilations, n_groups = (
        integers("stride", stride, dims),
        integers("dilation", dilation, dims),
        integer("groups", groups),
    )
    pads, extra = integers("padding", padding, dims), integers("output_padding", output_padding, dims)
    kernel = w.shape[2:]
    conv_window("weight", kernel, strides, dilations, n_groups)
    at_least("padding", pads, 0)
    at_least("output_padding", extra, 0)
    fits("padding", pads)
    if w.shape[0] < 1 or w.shape[0] % n_groups != 0:
        fail("weight size of dimension 0 (input channels)", f"a positive multiple of groups {n_groups}", w.shape[0])
    if x.shape[-dims - 1] != w.shape[0]:
        fail("input channels", f"{w.shape[0]} (weight {list(w.shape)})", x.shape[-dims - 1])
    at_least("weight size of dimension 1 (output channels / groups)", (w.shape[1],), 1)
    out_channels = w.shape[1] * n_groups
    if b is not None:
        shape("bias", b, (out_channels,))
    in_size = x.shape[-dims:]
    at_least("input size", in_size, 1)
    out_size, sides = [], []
    for i in range(dims):
        if extra[i] >= strides[i] and extra[i] >= dilations[i]:
            fail("output_padding", f"less than the stride {strides[i]} or the dilation {dilations[i]}", extra[i])
        size = (in_size[i] - 1) * strides[i] - 2 * pads[i] + extent(kernel[i], dilations[i]) + extra[i]
        if size < 1:
            fail(f"output size of the {AXES[dims][i]}", "at least 1 (less padding)", size)
        out_size.append(size)
        sides += [pads[i], pads[i] - extra[i] if extra[i] >= strides[i] else pads[i]]
    fits("output size", out_size)
    elements("output", (*x.shape[: -dims - 1], out_channels, *out_size))
    return tuple(out_size), strides, tuple(sides), dilations, n_groups


# ---- pooling


def pool_input(dims: int, x: Any, empty_channels: bool = False) -> None:
    """A pooling input: unbatched or batched; only the batch may be empty (and the channels where torch lets them)."""
    tensor("input", x)
    supported("input", x)
    rank("input", x, (dims + 1, dims + 2), "(unbatched or batched)")
    at_least("input size", x.shape[-dims:], 1)
    if x.dim() == dims + 2 and not empty_channels:
        at_least("input channels", (x.shape[1],), 1)


def pool_window(dims: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> tuple[Ints, Ints, Ints, Ints]:
    """Canonical (kernel, stride, padding, dilation): without a stride it is the kernel size."""
    kernel = integers("kernel_size", kernel_size, dims)
    unset = stride is None or (isinstance(stride, (tuple, list)) and not stride)
    strides = kernel if unset else integers("stride", stride, dims)
    pads, dilations = integers("padding", padding, dims), integers("dilation", dilation, dims)
    at_least("kernel_size", kernel, 1)
    at_least("stride", strides, 1)
    at_least("padding", pads, 0)
    at_least("dilation", dilations, 1)
    for k, p, d in zip(kernel, pads, dilations, strict=True):
        fits("kernel_size", (k, extent(k, d)))
        size = k if dims == 1 else extent(k, d)  # torch's one-dimensional pooling leaves out the dilation
        if p > size // 2:
            fail("padding", f"at most half of the kernel size {size}", p)
    product = 1
    for k in kernel:
        product = product * k
    fits("kernel_size", (product, *strides))
    return kernel, strides, pads, dilations


def pool_output_size(
    in_size: Sequence[int], kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool
) -> Ints:
    sizes = []
    for i, (size, k) in enumerate(zip(in_size, kernel, strict=True)):
        span = size + 2 * padding[i] - extent(k, dilation[i])
        out = (span + (stride[i] - 1 if ceil_mode else 0)) // stride[i] + 1
        # The last window must begin inside the input or its leading padding.
        if ceil_mode and (out - 1) * stride[i] >= size + padding[i]:
            out = out - 1
        if out < 1:
            fail(f"output size of the {AXES[len(kernel)][i]}", "at least 1 (a smaller kernel_size)", out)
        sizes.append(out)
    return tuple(sizes)


def divisor(value: Any) -> int:
    """Average pooling's divisor_override, 0 for None."""
    if value is None:
        return 0
    number = integer("divisor_override", value)
    if number == 0:
        fail("divisor_override", "a number other than 0", 0)
    return number


def adaptive_size(dims: int, x: Any, output_size: Any, optional: bool, empty_channels: bool = False) -> Ints:
    """Canonical output size; None (only where `optional`) means the input's."""
    tensor("input", x)
    given = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * dims
    if optional and isinstance(output_size, (tuple, list)) and len(output_size) >= x.dim():
        fail("input", f"more than {len(output_size)} dimensions", f"shape {list(x.shape)}", ValueError)
    pool_input(dims, x, empty_channels)
    if output_size is None:
        fail("output_size", "an int or a sequence of them", None, TypeError)
    if len(given) != dims:
        fail("output_size", f"an int or {dims} of them", output_size)
    sizes = []
    for size, own in zip(given, x.shape[-dims:], strict=True):
        sizes.append(own if size is None and optional else integer("output_size", size))
    at_least("output_size", sizes, 0)
    elements("output", (*x.shape[:-dims], *sizes))
    for size, own in zip(sizes, x.shape[-dims:], strict=True):
        fits("output_size", (size * own,))
    return tuple(sizes)


# ---- local response normalisation


def lrn(x: Any, size: Any, alpha: Any, beta: Any, k: Any) -> tuple[int, float, float, float]:
    tensor("input", x)
    if x.dim() < 3:
        fail("input", "at least 3-D [batch, channels, ...]", f"shape {list(x.shape)}", ValueError)
    supported("input", x)
    count = integer("size", size)
    at_least("size", (count,), 1)
    fits("size", (count,))
    for name, value in (("alpha", alpha), ("beta", beta), ("k", k)):
        if not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
            fail(name, "a number", f"{value!r} ({type(value).__name__})", TypeError)
    return count, alpha, beta, k
