"""The operators as functions with the signatures of torch.nn.functional.

Every function takes float32, float64, float16 and bfloat16 tensors, on the CPU or (built with nvcc) on a GPU, there on
torch's current stream, contiguous or channels_last without a copy
(other strides: one contiguous copy), differentiates any number of times, and returns the same bits for any number of
threads and whether a sample is alone or inside a batch. To torch.compile, torch.export and torch.func it is an
operator `torch.ops.fastconv.*`. Bad arguments raise what torch raises: RuntimeError for sizes, TypeError for types,
ValueError for integers beyond 64 bits; NotImplementedError for a dtype or device that fastconv lacks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from fastconv import _C, autograd, checks, ops
from fastconv.autograd import Ready, call, eager, wants_gradient

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "local_response_norm",
    "max_pool1d",
    "max_pool2d",
]

_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch._C._is_any_autocast_enabled

# Calls made ready (autograd.Ready) are found by their arguments: a second call with equal ones skips all checks.
_find = _C.find
_keep = _C.keep


def _watched(*tensors: Tensor | None) -> bool:
    """Whether something looks on or takes part, so that an operator is to be called."""
    return is_compiling() or not eager(*tensors)


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """Convolutions run in autocast's dtype, as torch's do (its pooling and LRN do not); float64 stays."""
    kind = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


# ---- convolution


def _conv(
    dims: int, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Tensor:
    if _is_autocast_enabled():
        x, w, b = _autocast(x, w, b)
    key = "conv", dims, x, w, b, stride, padding, dilation, groups
    found = None if is_dynamo_compiling() else _find(*key)
    if found is None:
        args = checks.conv(dims, x, w, b, stride, padding, dilation, groups)
        if x.dim() == dims + 1:
            return _conv(dims, x.unsqueeze(0), w, b, stride, padding, dilation, groups).squeeze(0)
        if _watched(x, w, b):
            return call(ops.conv_forward, x, w, b, *args)
        found = ops.conv_forward_call(x, w, b, *args), args
        _keep(found, *key)
    if wants_gradient(x, w, b):
        return autograd.eager_conv(x, w, b, found)
    return found[0].forward(x, w, b)


def _conv_transpose(
    dims: int,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
) -> Tensor:
    if _is_autocast_enabled():
        x, w, b = _autocast(x, w, b)
    key = "conv_transpose", dims, x, w, b, stride, padding, output_padding, groups, dilation
    found = None if is_dynamo_compiling() else _find(*key)
    if found is None:
        size, *rest = checks.conv_transpose(dims, x, w, b, stride, padding, output_padding, groups, dilation)
        args: tuple[Any, ...] = tuple(rest)
        if x.dim() == dims + 1:
            x = x.unsqueeze(0)
            return _conv_transpose(dims, x, w, b, stride, padding, output_padding, groups, dilation).squeeze(0)
        if _watched(x, w, b):
            return call(ops.conv_input_gradient, x, w, b, size, *args)
        found = ops.conv_input_gradient_call(x, w, b, size, *args), args
        _keep(found, *key)
    if wants_gradient(x, w, b):
        return autograd.eager_conv_transpose(x, w, b, found)
    return found[0].input_gradient(x, w, b)


def conv_call(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> ops.ConvCall:
    """The call of a convolution made ready (`config.algorithms`)."""
    args = checks.conv(dims, input, weight, bias, stride, padding, dilation, groups)
    x = input if input.dim() == dims + 2 else input.unsqueeze(0)
    return ops.conv_forward_call(x, weight, bias, *args)


def conv_transpose_call(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> ops.ConvCall:
    """The call of a transposed convolution made ready (`config.algorithms`)."""
    args = checks.conv_transpose(dims, input, weight, bias, stride, padding, output_padding, groups, dilation)
    x = input if input.dim() == dims + 2 else input.unsqueeze(0)
    return ops.conv_input_gradient_call(x, weight, bias, *args)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] | Sequence[Sequence[int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """One-dimensional convolution (cross-correlation), as torch.nn.functional.conv1d.

    Args:
        input: [batch, in_channels, width], or without the batch.
        weight: [out_channels, in_channels / groups, width], of the input's dtype.
        bias: [out_channels], of the input's dtype.
        stride, dilation: a number, or one a dimension; at least 1.
        padding: zeros around the input: a number, or one a dimension; 'valid' (none); 'same' (the output has the
            input's size; stride 1 only); or, beyond torch, a pair a dimension: ((left, right),).
        groups: divides both channel numbers.

    Returns:
        [batch, out_channels, ...] with floor((size + padding - dilation * (kernel - 1) - 1) / stride) + 1 a dimension.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit together, or an empty output; TypeError: an argument of
            another type; ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv1d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] | Sequence[Sequence[int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Two-dimensional convolution (cross-correlation), as torch.nn.functional.conv2d.

    Args:
        input: [batch, in_channels, height, width], or without the batch.
        weight: [out_channels, in_channels / groups, height, width], of the input's dtype.
        bias: [out_channels], of the input's dtype.
        stride, dilation: a number, or one a dimension; at least 1.
        padding: zeros around the input: a number, or one a dimension; 'valid' (none); 'same' (the output has the
            input's size; stride 1 only); or, beyond torch, a pair a dimension: ((top, bottom), (left, right)).
        groups: divides both channel numbers.

    Returns:
        [batch, out_channels, ...] with floor((size + padding - dilation * (kernel - 1) - 1) / stride) + 1 a
        dimension, channels_last if the input or the weight is.
    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit together, or an empty output; TypeError: an argument of
            another type; ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv2d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """One-dimensional transposed convolution, as torch.nn.functional.conv_transpose1d.

    It is the gradient of the convolution with the same weight along its input (Dumoulin and Visin, "A guide to
    convolution arithmetic for deep learning", 2016).

    Args:
        input: [batch, in_channels, width], or without the batch.
        weight: [in_channels, out_channels / groups, width], of the input's dtype.
        bias: [out_channels], of the input's dtype.
        stride, dilation: a number, or one a dimension; at least 1.
        padding: dilation * (kernel - 1) - padding zeros surround the input; a number, or one a dimension.
        output_padding: added to one side of the output; less than the stride or the dilation.
        groups: divides both channel numbers.

    Returns:
        [batch, out_channels, ...] with (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding +
        1 a dimension.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit together, or an empty output; TypeError: an argument of
            another type; ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv_transpose1d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            dilation=dilation,
        )
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Two-dimensional transposed convolution, as torch.nn.functional.conv_transpose2d.

    It is the gradient of the convolution with the same weight along its input (Dumoulin and Visin, "A guide to
    convolution arithmetic for deep learning", 2016).

    Args:
        input: [batch, in_channels, height, width], or without the batch.
        weight: [in_channels, out_channels / groups, height, width], of the input's dtype.
        bias: [out_channels], of the input's dtype.
        stride, dilation: a number, or one a dimension; at least 1.
        padding: dilation * (kernel - 1) - padding zeros surround the input; a number, or one a dimension.
        output_padding: added to one side of the output; less than the stride or the dilation.
        groups: divides both channel numbers.

    Returns:
        [batch, out_channels, ...] with (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding +
        1 a dimension, channels_last if the input or the weight is.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit together, or an empty output; TypeError: an argument of
            another type; ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            conv_transpose2d,
            (input, weight, bias),
            input,
            weight,
            bias,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            dilation=dilation,
        )
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


# ---- pooling


def _max_pool(
    dims: int,
    x: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    return_indices: Any,
) -> Any:
    key = "max_pool", dims, x, kernel_size, stride, padding, dilation, ceil_mode
    found = None if is_dynamo_compiling() else _find(*key)
    if found is None:
        checks.pool_input(dims, x)
        checks.boolean("ceil_mode", ceil_mode)
        kernel, strides, pads, dilations = checks.pool_window(dims, kernel_size, stride, padding, dilation)
        size = checks.pool_output_size(x.shape[-dims:], kernel, strides, pads, dilations, ceil_mode)
        if x.dim() == dims + 1:
            out = _max_pool(dims, x.unsqueeze(0), kernel_size, stride, padding, dilation, ceil_mode, return_indices)
            return tuple(t.squeeze(0) for t in out) if return_indices else out.squeeze(0)
        args = (kernel, strides, tuple(side for p in pads for side in (p, p)), dilations)
        if _watched(x):
            return _max_pool_watched(x, size, args, return_indices)
        found = ops.max_pool_call(x, size, *args), args
        _keep(found, *key)
    return _max_pool_ready(x, found, return_indices)


def _max_pool_watched(x: Tensor, size: Any, args: tuple[Any, ...], return_indices: bool) -> Any:
    if return_indices:
        return call(ops.max_pool, x, size, *args, "plane")
    index = ops.index_kind(args[0]) if x.requires_grad or autograd.transforming() else "none"
    return call(ops.max_pool, x, size, *args, index)[0]


def _max_pool_ready(x: Tensor, found: Ready[ops.PoolCall], return_indices: bool) -> Any:
    if x.requires_grad and _is_grad_enabled():
        if return_indices:
            return autograd.eager_max_pool_with_indices(x, found)
        return autograd.eager_max_pool(x, found)
    return found[0].max_with_index["plane"](x) if return_indices else found[0].max(x)


def _adaptive_max_pool(dims: int, x: Tensor, output_size: Any, return_indices: Any) -> Any:
    key = "adaptive_max_pool", dims, x, output_size
    found = None if is_dynamo_compiling() else _find(*key)
    if found is None:
        size = checks.adaptive_size(dims, x, output_size, optional=dims > 1)
        if x.dim() == dims + 1:
            out = _adaptive_max_pool(dims, x.unsqueeze(0), output_size, return_indices)
            return tuple(t.squeeze(0) for t in out) if return_indices else out.squeeze(0)
        args: tuple[Any, ...] = ((), (), (), ())
        if _watched(x):
            return _max_pool_watched(x, size, args, return_indices)
        found = ops.max_pool_call(x, size, *args), args
        _keep(found, *key)
    return _max_pool_ready(x, found, return_indices)


def _average_pool(
    dims: int,
    x: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    count_include_pad: Any,
    divisor: Any,
) -> Tensor:
    key = "average_pool", dims, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor
    found = None if is_dynamo_compiling() else _find(*key)
    if found is None:
        checks.pool_input(dims, x)
        checks.boolean("ceil_mode", ceil_mode)
        checks.boolean("count_include_pad", count_include_pad)
        kernel, strides, pads, ones = checks.pool_window(dims, kernel_size, stride, padding, 1)
        size = checks.pool_output_size(x.shape[-dims:], kernel, strides, pads, ones, ceil_mode)
        divisor_override = checks.divisor(divisor)
        if x.dim() == dims + 1:
            x = x.unsqueeze(0)
            return _average_pool(dims, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor).squeeze(
                0
            )
        args = (kernel, strides, tuple(side for p in pads for side in (p, p)), count_include_pad, divisor_override)
        if _watched(x):
            return call(ops.average_pool, x, size, *args)
        found = ops.average_pool_call(x, size, *args), args
        _keep(found, *key)
    return _average_pool_ready(x, found)


def _average_pool_ready(x: Tensor, found: Ready[ops.PoolCall]) -> Tensor:
    if x.requires_grad and _is_grad_enabled():
        return autograd.eager_average_pool(x, found)
    return found[0].average(x)


def _adaptive_average_pool(dims: int, x: Tensor, output_size: Any) -> Tensor:
    key = "adaptive_average_pool", dims, x, output_size
    found = None if is_dynamo_compiling() else _find(*key)
    if found is None:
        size = checks.adaptive_size(dims, x, output_size, optional=dims > 1, empty_channels=True)
        if x.dim() == dims + 1:
            return _adaptive_average_pool(dims, x.unsqueeze(0), output_size).squeeze(0)
        args = ((), (), (), True, 0)
        if _watched(x):
            return call(ops.average_pool, x, size, *args)
        found = ops.average_pool_call(x, size, *args), args
        _keep(found, *key)
    return _average_pool_ready(x, found)


def max_pool1d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum over windows, as torch.nn.functional.max_pool1d. NaN wins; of equal values the first.

    Args:
        input: [batch, channels, width], or without the batch.
        kernel_size, dilation: a number, or one a dimension; at least 1.
        stride: the same; None: the kernel size.
        padding: minus infinity on both sides, at most half of the dilated kernel size.
        ceil_mode: also windows that reach past the padded input (they begin inside it).
        return_indices: also return where each maximum is.

    Returns:
        [batch, channels, ...], or with it int64 indices of the same shape: position along the width.

    Raises:
        RuntimeError: sizes that do not fit together, or an empty output; TypeError: an argument of another type;
            ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            max_pool1d,
            (input,),
            input,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            ceil_mode=ceil_mode,
            return_indices=return_indices,
        )
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Maximum over windows, as torch.nn.functional.max_pool2d. NaN wins; of equal values the first.

    Args:
        input: [batch, channels, height, width], or without the batch.
        kernel_size, dilation: a number, or one a dimension; at least 1.
        stride: the same; None: the kernel size.
        padding: minus infinity on both sides, at most half of the dilated kernel size.
        ceil_mode: also windows that reach past the padded input (they begin inside it).
        return_indices: also return where each maximum is.

    Returns:
        [batch, channels, ...], or with it int64 indices of the same shape: position height_index * width +
        width_index in the input plane.

    Raises:
        RuntimeError: sizes that do not fit together, or an empty output; TypeError: an argument of another type;
            ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            max_pool2d,
            (input,),
            input,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            ceil_mode=ceil_mode,
            return_indices=return_indices,
        )
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def avg_pool1d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean over windows, as torch.nn.functional.avg_pool1d.

    Args:
        input: [batch, channels, width], or without the batch.
        kernel_size: a number, or one a dimension; at least 1.
        stride: the same; None: the kernel size.
        padding: zeros on both sides, at most half of the kernel size.
        ceil_mode: also windows that reach past the padded input (they begin inside it); what lies beyond counts
            nowhere.
        count_include_pad: whether padding counts in the divisor.

    Returns:
        [batch, channels, ...].

    Raises:
        RuntimeError: sizes that do not fit together, or an empty output; TypeError: an argument of another type;
            ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            avg_pool1d,
            (input,),
            input,
            kernel_size,
            stride=stride,
            padding=padding,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
        )
    return _average_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean over windows, as torch.nn.functional.avg_pool2d.

    Args:
        input: [batch, channels, height, width], or without the batch.
        kernel_size: a number, or one a dimension; at least 1.
        stride: the same; None: the kernel size.
        padding: zeros on both sides, at most half of the kernel size.
        ceil_mode: also windows that reach past the padded input (they begin inside it); what lies beyond counts
            nowhere.
        count_include_pad: whether padding counts in the divisor.
        divisor_override: divides every sum by this (not 0).

    Returns:
        [batch, channels, ...].

    Raises:
        RuntimeError: sizes that do not fit together, or an empty output; TypeError: an argument of another type;
            ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            avg_pool2d,
            (input,),
            input,
            kernel_size,
            stride=stride,
            padding=padding,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            divisor_override=divisor_override,
        )
    return _average_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool1d(input: Tensor, output_size: int | Sequence[int]) -> Tensor:
    """Mean over windows that divide the input evenly, as torch.nn.functional.adaptive_avg_pool1d.

    Output i of n averages the input from floor(i * size / n) to ceil((i + 1) * size / n).

    Args:
        input: [batch, channels, width], or without the batch.
        output_size: the output's width.

    Returns:
        [batch, channels, *output_size].

    Raises:
        RuntimeError: sizes that do not fit together, or an empty output; TypeError: an argument of another type;
            ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_avg_pool1d, (input,), input, output_size)
    return _adaptive_average_pool(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Mean over windows that divide the input evenly, as torch.nn.functional.adaptive_avg_pool2d.

    Output i of n averages the input from floor(i * size / n) to ceil((i + 1) * size / n).

    Args:
        input: [batch, channels, height, width], or without the batch.
        output_size: the output's height and width, or one number for both; None: the input's.

    Returns:
        [batch, channels, *output_size].

    Raises:
        RuntimeError: sizes that do not fit together, or an empty output; TypeError: an argument of another type;
            ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_avg_pool2d, (input,), input, output_size)
    return _adaptive_average_pool(2, input, output_size)


def adaptive_max_pool1d(input: Tensor, output_size: int | Sequence[int], return_indices: bool = False) -> Any:
    """Maximum over windows that divide the input evenly, as torch.nn.functional.adaptive_max_pool1d.

    Output i of n covers the input from floor(i * size / n) to ceil((i + 1) * size / n).
    NaN wins; of equal values the first.

    Args:
        input: [batch, channels, width], or without the batch.
        output_size: the output's width.
        return_indices: also return where each maximum is.

    Returns:
        [batch, channels, *output_size], or with it int64 indices of the same shape: position along the width.

    Raises:
        RuntimeError: sizes that do not fit together, or an empty output; TypeError: an argument of another type;
            ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_max_pool1d, (input,), input, output_size, return_indices=return_indices)
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Any:
    """Maximum over windows that divide the input evenly, as torch.nn.functional.adaptive_max_pool2d.

    Output i of n covers the input from floor(i * size / n) to ceil((i + 1) * size / n).
    NaN wins; of equal values the first.

    Args:
        input: [batch, channels, height, width], or without the batch.
        output_size: the output's height and width, or one number for both; None: the input's.
        return_indices: also return where each maximum is.

    Returns:
        [batch, channels, *output_size], or with it int64 indices of the same shape: position height_index * width +
        width_index in the input plane.

    Raises:
        RuntimeError: sizes that do not fit together, or an empty output; TypeError: an argument of another type;
            ValueError: an integer beyond 64 bits; NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_max_pool2d, (input,), input, output_size, return_indices=return_indices)
    return _adaptive_max_pool(2, input, output_size, return_indices)


# ---- local response normalisation


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Divides by the energy of neighbouring channels, as torch.nn.functional.local_response_norm.

    y[c] = x[c] * (k + alpha / size * sum of x[j]^2 for j from c - size // 2 to c + (size - 1) // 2) ^ -beta; channels
    that do not exist count as zeros (Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep
    convolutional neural networks", 2012, who do not divide alpha by the size: `fastconv.nn.LocalResponseNorm` has
    their convention too).

    Args:
        input: [batch, channels, ...], at least 3-D.
        size: number of channels in the sum; at least 1, may exceed the channels.
        alpha, beta, k: numbers, as in the formula.

    Returns:
        A tensor of the input's shape.

    Raises:
        ValueError: an input of fewer dimensions; RuntimeError: a size below 1; TypeError: an argument of another type;
            NotImplementedError: an unsupported dtype or device.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(local_response_norm, (input,), input, size, alpha=alpha, beta=beta, k=k)
    key = "local_response_norm", input, size, alpha, beta, k
    found = None if is_dynamo_compiling() else _find(*key)
    if found is None:
        args = checks.lrn(input, size, alpha, beta, k)
        if _watched(input):
            return call(ops.lrn, input, *args)
        found = ops.lrn_call(input, *args), args
        _keep(found, *key)
    if input.requires_grad and _is_grad_enabled():
        return autograd.eager_lrn(input, found)
    return found[0].forward(input)
