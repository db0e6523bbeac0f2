"""Hypothesis draws calls, degenerate ones too: each gives torch's result, or the type of exception torch raises.

torch computes on the CPU, whichever backend is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import backends
import pytest
import torch
import torch.nn.functional as reference
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._pytree import tree_map_only

from fastconv import functional as F

SETTINGS = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)

# Mostly reasonable, now and then not.
sizes = st.integers(1, 9) | st.integers(0, 2)
kernels = st.integers(1, 4) | st.integers(-1, 6)
strides = st.integers(1, 3) | st.integers(-1, 5)
paddings = st.integers(0, 2) | st.integers(-1, 7)
dilations = st.integers(1, 3) | st.integers(-1, 4)


def several(numbers: st.SearchStrategy[int], dims: int) -> st.SearchStrategy[Any]:
    """A number, or one for each dimension; rarely a wrong count of them."""
    each = st.tuples(*[numbers] * dims)
    return numbers | each | each | st.lists(numbers, min_size=1, max_size=3)


dtypes = st.sampled_from([torch.float32, torch.float64])


def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@st.composite
def image_of(draw: st.DrawFn, dims: int, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """[N, C, ...] or [C, ...], in some arrangement in memory."""
    spatial = draw(st.tuples(*[sizes] * dims))
    batch = draw(st.sampled_from([(), (1,), (2,), (3,), (0,)]))
    x = tensor((*batch, channels, *spatial), dtype, seed=1)
    arrangement = draw(st.sampled_from(["contiguous", "contiguous", "channels_last", "strided", "expanded"]))
    if arrangement == "channels_last" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    elif arrangement == "strided":
        x = x.repeat_interleave(2, -1)[..., ::2]
    elif arrangement == "expanded":
        x = x[..., :1].expand(x.shape)
    return x


def first(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


def outcome(function: Callable[..., Any], tensors: list[torch.Tensor | None], options: tuple) -> Any:
    """The result with its strides and gradients, or the type of the exception."""
    place = backends.place if function.__module__.startswith("fastconv") else torch.Tensor.cpu
    leaves = [None if t is None else place(t.detach()).requires_grad_() for t in tensors]
    try:
        out = function(*leaves, *options)
    except Exception as error:
        return type(error), str(error)
    y = first(out)
    gradient = place(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape))
    try:
        gradients = torch.autograd.grad(y, [t for t in leaves if t is not None], gradient, allow_unused=True)
    except RuntimeError:  # torch's pooling refuses some empty gradients
        gradients = ()
    return tree_map_only(torch.Tensor, torch.Tensor.cpu, (out, gradients))


def same(name: str, tensors: list[torch.Tensor | None], *options: Any) -> None:
    want = outcome(getattr(reference, name), tensors, options)
    got = outcome(getattr(F, name), tensors, options)
    if any(t is not None and t.numel() == 0 for t in tensors):
        # torch answers an empty call by whichever check comes first, if any; an exception of any usual type will do.
        assert not isinstance(got[0], type) or issubclass(got[0], (RuntimeError, TypeError, ValueError, IndexError))
        return
    if isinstance(want[0], type):
        event(f"{name}: {want[0].__name__}")
        assert isinstance(got[0], type), f"expected {want[0].__name__} ({want[1]}), got a result"
        assert got[0] is want[0], f"expected {want[0].__name__} ({want[1]}), got {got[0].__name__} ({got[1]})"
        assert got[1], "an error without a message"
        return
    event(f"{name}: a result")
    assert not isinstance(got[0], type), f"expected a result, got {got[0].__name__} ({got[1]})"
    assert_close(got[0], want[0])
    if want[1]:
        assert_close(got[1], want[1])
    assert first(got[0]).dtype == first(want[0]).dtype


@st.composite
def conv_calls(draw: st.DrawFn, transposed: bool) -> tuple[str, list[torch.Tensor | None], tuple]:
    dims = draw(st.sampled_from([1, 2, 2]))
    dtype = draw(dtypes)
    groups = draw(st.sampled_from([1, 1, 2, 3, 0, -1]))
    channels = draw(st.integers(0, 3)) * max(groups, 1)
    outputs = draw(st.integers(0, 3)) * max(groups, 1)
    mistake = draw(st.sampled_from([0] * 8 + [1]))
    x = draw(image_of(dims, channels, dtype))
    per_group = (outputs if transposed else channels) // max(groups, 1) + (0 if transposed else mistake)
    rows = channels + mistake if transposed else outputs
    weight = tensor((rows, per_group, *draw(st.tuples(*[st.integers(1, 4) | st.integers(0, 6)] * dims))), dtype, seed=2)
    bias = tensor((outputs + draw(st.sampled_from([0] * 9 + [1])),), dtype, seed=3) if draw(st.booleans()) else None
    stride, padding, dilation = (draw(several(s, dims)) for s in (strides, paddings, dilations))
    if transposed:
        output_padding = draw(several(st.integers(0, 2) | st.integers(-1, 3), dims))
        return f"conv_transpose{dims}d", [x, weight, bias], (stride, padding, output_padding, groups, dilation)
    padding = draw(st.just(padding) | st.just(padding) | st.sampled_from(["same", "valid", "full"]))
    return f"conv{dims}d", [x, weight, bias], (stride, padding, dilation, groups)


@pytest.mark.backends
@SETTINGS
@given(conv_calls(transposed=False))
def test_conv(call) -> None:
    name, tensors, options = call
    same(name, tensors, *options)


@pytest.mark.backends
@SETTINGS
@given(conv_calls(transposed=True))
def test_conv_transpose(call) -> None:
    name, tensors, options = call
    same(name, tensors, *options)


@pytest.mark.backends
@SETTINGS
@given(st.data())
def test_max_pool(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 2, 2]))
    x = data.draw(image_of(dims, data.draw(st.integers(0, 4)), data.draw(dtypes)))
    stride = data.draw(st.none() | several(strides, dims))
    kernel, padding, dilation = (data.draw(several(s, dims)) for s in (kernels, paddings, dilations))
    ceil_mode, return_indices = data.draw(st.booleans()), data.draw(st.booleans())
    options = (kernel, stride, padding, dilation, ceil_mode)
    # Where a dilated window steps over the input, torch's index is outside it and its backward pass corrupts memory.
    index = None
    with suppress(Exception):
        index = getattr(reference, f"max_pool{dims}d")(x, *options, return_indices=True)[1]
    assume(index is None or not index.numel() or index.max() < x.shape[-dims:].numel())
    same(f"max_pool{dims}d", [x], *options, return_indices)


def test_max_pool_window_that_steps_over_the_input() -> None:
    x = torch.randn(4, 2, 3, requires_grad=True)
    y = F.max_pool2d(x, 2, padding=1, dilation=3, ceil_mode=True)
    assert bool((y == -torch.inf).all())
    assert not torch.autograd.grad(y.sum(), x)[0].any()


@pytest.mark.backends
@SETTINGS
@given(st.data())
def test_avg_pool(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 2, 2]))
    x = data.draw(image_of(dims, data.draw(st.integers(0, 4)), data.draw(dtypes)))
    kernel, padding = (data.draw(several(s, dims)) for s in (kernels, paddings))
    stride = data.draw(st.none() | several(strides, dims))
    options: tuple = (kernel, stride, padding, data.draw(st.booleans()), data.draw(st.booleans()))
    if dims == 2:
        options += (data.draw(st.sampled_from([None, None, 1, 3, -2, 0])),)
    same(f"avg_pool{dims}d", [x], *options)


@pytest.mark.backends
@SETTINGS
@given(st.data())
def test_adaptive_pool(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([1, 2, 2]))
    x = data.draw(image_of(dims, data.draw(st.integers(0, 4)), data.draw(dtypes)))
    out = st.integers(1, 9) | st.integers(-1, 12)
    size = data.draw(several(out, dims) | st.tuples(*[out | st.none()] * dims))
    if data.draw(st.booleans()):
        same(f"adaptive_avg_pool{dims}d", [x], size)
    else:
        same(f"adaptive_max_pool{dims}d", [x], size, data.draw(st.booleans()))


@pytest.mark.backends
@SETTINGS
@given(st.data())
def test_local_response_norm(data: st.DataObject) -> None:
    dims = data.draw(st.integers(0, 3))
    x = data.draw(image_of(dims, data.draw(st.integers(0, 7)), data.draw(dtypes)))
    size = data.draw(st.integers(1, 9) | st.integers(-1, 12))
    alpha, beta, k = (data.draw(st.floats(low, 2)) for low in (0, -1, 0.5))
    same("local_response_norm", [x], size, alpha, beta, k)


@pytest.mark.backends
@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("channels_last", [False, True])
def test_empty_batch(batch: int, channels_last: bool) -> None:
    """Valid arguments on no images give no images, and zero gradients of the weights."""
    x = torch.randn(batch, 4, 7, 6)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    w, transposed, b = torch.randn(6, 4, 3, 3), torch.randn(4, 6, 3, 3), torch.randn(6)
    calls: list[tuple[str, list[torch.Tensor], tuple]] = [
        ("conv2d", [x, w, b], (2, 1)),
        ("conv_transpose2d", [x, transposed, b], (2, 1)),
        ("max_pool2d", [x], (2,)),
        ("avg_pool2d", [x], (2,)),
        ("adaptive_avg_pool2d", [x], (2,)),
        ("adaptive_max_pool2d", [x], (2,)),
        ("local_response_norm", [x], (3,)),
    ]
    for name, tensors, options in calls:
        want = outcome(getattr(reference, name), tensors, options)
        assert_close(outcome(getattr(F, name), tensors, options), want, msg=lambda text, name=name: f"{name}: {text}")
