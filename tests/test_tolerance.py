"""Random numbers against the oracle, within bounds that follow from the arithmetic.

A sum of n products in any order errs by at most n * eps * the sum of their magnitudes. For the 16-bit types the bound
is twice torch's own error in the same type. Winograd's convolution has a bound of its own (test_kernels_winograd.py).
"""

from __future__ import annotations

import backends
import cases
import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as reference
from tensors import channels_last, contiguous, normal

from fastconv import algorithms, allow_winograd, force_algorithm
from fastconv import functional as F

pytestmark = pytest.mark.backends
EXACT_TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
HALF_TYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
LAYOUTS = pytest.mark.parametrize("arrange", [contiguous, channels_last])


def rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The values as the kernel sees them, in float64."""
    return torch.from_numpy(values).to(dtype).double().numpy()


def within(result: torch.Tensor, want: np.ndarray, bound: np.ndarray) -> None:
    error = np.abs(result.detach().double().cpu().numpy() - want)
    assert np.isfinite(error).all()
    excess = error - bound
    assert (excess <= 0).all(), f"error {error.flat[excess.argmax()]} beyond {bound.flat[excess.argmax()]}"


def eps(dtype: torch.dtype) -> float:
    # The oracle rounds too, in float64.
    return torch.finfo(dtype).eps + torch.finfo(torch.float64).eps


def conv2d(case: cases.Conv, *leaves: torch.Tensor) -> torch.Tensor:
    return F.conv2d(*leaves, case.stride, case.padding, case.dilation, case.groups)


def conv_operands(case: cases.Conv, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    x = normal(case.n, case.c, case.h, case.w, seed=1)
    w = normal(case.k, case.c // case.groups, case.r, case.s, seed=2)
    return rounded(x, dtype), rounded(w, dtype), rounded(normal(case.k, seed=3), dtype)


def placed(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return backends.place(torch.from_numpy(values.copy()).to(dtype))


def leaves_of(operands, dtype: torch.dtype, arrange) -> list[torch.Tensor]:
    return [(arrange(t) if t.dim() > 1 else t).requires_grad_() for t in (placed(a, dtype) for a in operands)]


@EXACT_TYPES
@LAYOUTS
@pytest.mark.parametrize("case", cases.CONV, ids=str)
def test_conv(case: cases.Conv, dtype: torch.dtype, arrange) -> None:
    options = (case.stride, case.padding, case.dilation, case.groups)
    x, w, b = conv_operands(case, dtype)
    want = oracle.conv_forward(x, w, b, *options)
    gy = rounded(normal(*want.shape, seed=4), dtype)
    gw, gb = oracle.conv_weight_gradient(gy, x, (case.r, case.s), *options)
    wants = [oracle.conv_input_gradient(gy, w, (case.h, case.w), *options), gw, gb]
    magnitude = oracle.conv_forward(*map(np.abs, (x, w, b)), *options)
    gw, gb = oracle.conv_weight_gradient(np.abs(gy), np.abs(x), (case.r, case.s), *options)
    magnitudes = [oracle.conv_input_gradient(np.abs(gy), np.abs(w), (case.h, case.w), *options), gw, gb]
    terms = case.c // case.groups * case.r * case.s + 1
    positions = gy[:, 0].size
    counts = [case.k // case.groups * case.r * case.s, positions, positions]

    leaves = leaves_of((x, w, b), dtype, arrange)
    gradient = arrange(placed(gy, dtype))
    with allow_winograd(False):
        names = algorithms("conv2d", *leaves, *options)
    for i in range(max(map(len, names.values()))):
        forced = {primitive: choices[min(i, len(choices) - 1)] for primitive, choices in names.items()}
        with force_algorithm(**forced):
            y = conv2d(case, *leaves)
            within(y, want, terms * eps(dtype) * magnitude)
            gradients = torch.autograd.grad(y, leaves, gradient)
        for got, expected, count, size in zip(gradients, wants, counts, magnitudes, strict=True):
            within(got, expected, count * eps(dtype) * size)


@HALF_TYPES
@LAYOUTS
@pytest.mark.parametrize("case", cases.CONV, ids=str)
def test_conv_half(case: cases.Conv, dtype: torch.dtype, arrange) -> None:
    x, w, b = conv_operands(case, dtype)
    want = oracle.conv_forward(x, w, b, case.stride, case.padding, case.dilation, case.groups)
    gy = rounded(normal(*want.shape, seed=4), dtype)
    gx = oracle.conv_input_gradient(gy, w, (case.h, case.w), case.stride, case.padding, case.dilation, case.groups)
    gw, gb = oracle.conv_weight_gradient(gy, x, (case.r, case.s), case.stride, case.padding, case.dilation, case.groups)
    leaves = leaves_of((x, w, b), dtype, arrange)
    gradient = arrange(placed(gy, dtype))
    y = conv2d(case, *leaves)
    ours = (y, *torch.autograd.grad(y, leaves, gradient))
    padded = reference.pad(leaves[0], (*case.padding[1], *case.padding[0]))
    y = reference.conv2d(padded, leaves[1], leaves[2], case.stride, 0, case.dilation, case.groups)
    torchs = (y, *torch.autograd.grad(y, leaves, gradient))
    for got, other, expected in zip(ours, torchs, (want, gx, gw, gb), strict=True):
        no_worse_than_twice(got, other, expected)


def no_worse_than_twice(ours: torch.Tensor, torchs: torch.Tensor, want: np.ndarray) -> None:
    """The greatest error, which one rounding of the greatest value excuses where torch was lucky."""
    error, other = (np.abs(t.detach().double().cpu().numpy() - want).max() for t in (ours, torchs))
    one_rounding = torch.finfo(ours.dtype).eps / 2 * np.abs(want).max()
    assert error <= 2 * max(other, one_rounding)


POOLS = [case for case in cases.POOL if case.dilation == (1, 1)]


@EXACT_TYPES
@LAYOUTS
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("divisor", [0, 7])
@pytest.mark.parametrize("case", POOLS, ids=str)
def test_avg_pool(case: cases.Pool, divisor: int, count_include_pad: bool, dtype: torch.dtype, arrange) -> None:
    options = (case.kernel, case.stride, case.padding)
    last = (count_include_pad, divisor)
    x = rounded(normal(case.n, case.c, case.h, case.w, seed=1), dtype)
    want = oracle.avg_pool(x, *options, case.ceil_mode, *last)
    gy = rounded(normal(*want.shape, seed=2), dtype)
    (input,) = leaves_of((x,), dtype, arrange)
    y = F.avg_pool2d(input, *options, case.ceil_mode, count_include_pad, divisor or None)
    within(y, want, 10 * eps(dtype) * oracle.avg_pool(np.abs(x), *options, case.ceil_mode, *last))
    gx = torch.autograd.grad(y, input, arrange(placed(gy, dtype)))[0]
    size = x.shape[2:]
    bound = 10 * eps(dtype) * oracle.avg_pool_backward(np.abs(gy), size, *options, *last)
    within(gx, oracle.avg_pool_backward(gy, size, *options, *last), bound)


@EXACT_TYPES
@LAYOUTS
@pytest.mark.parametrize("case", cases.ADAPTIVE, ids=str)
def test_adaptive_avg_pool(case: cases.Adaptive, dtype: torch.dtype, arrange) -> None:
    x = rounded(normal(case.n, case.c, case.h, case.w, seed=1), dtype)
    want = oracle.adaptive_avg_pool(x, case.size)
    gy = rounded(normal(*want.shape, seed=2), dtype)
    (input,) = leaves_of((x,), dtype, arrange)
    y = F.adaptive_avg_pool2d(input, case.size)
    within(y, want, 10 * eps(dtype) * oracle.adaptive_avg_pool(np.abs(x), case.size))
    gx = torch.autograd.grad(y, input, arrange(placed(gy, dtype)))[0]
    bound = 10 * eps(dtype) * oracle.adaptive_avg_pool_backward(np.abs(gy), x.shape[2:])
    within(gx, oracle.adaptive_avg_pool_backward(gy, x.shape[2:]), bound)


@EXACT_TYPES
@LAYOUTS
@pytest.mark.parametrize("case", cases.LRN, ids=str)
def test_lrn(case: cases.Lrn, dtype: torch.dtype, arrange) -> None:
    options = (case.size, case.alpha, case.beta, case.k)
    x, gy = (rounded(normal(*case.shape, seed=seed), dtype) for seed in (1, 2))
    want = oracle.lrn(x, *options)
    (input,) = leaves_of((x,), dtype, arrange)
    y = F.local_response_norm(input, *options)
    # At least 3 terms: the sum, the power and the product round too.
    relative = 3 * max(case.size, 3) * eps(dtype)
    within(y, want, relative * np.abs(want))
    gx = torch.autograd.grad(y, input, arrange(placed(gy, dtype)))[0]
    # gx is a difference of two sums; what they cancel is no excuse the bound may forget.
    own = np.abs(gy * want / x)
    magnitude = 2 * own - oracle.lrn_backward(np.abs(x), np.abs(gy), *options)
    within(gx, oracle.lrn_backward(x, gy, *options), 2 * relative * magnitude)


@HALF_TYPES
@LAYOUTS
def test_pool_and_lrn_half(dtype: torch.dtype, arrange) -> None:
    x = rounded(normal(2, 20, 13, 15, seed=1), dtype)
    operators = [
        (
            "avg_pool2d",
            lambda f, x: f.avg_pool2d(x, 3, 2, 1),
            oracle.avg_pool(x, (3, 3), (2, 2), (1, 1)),
            lambda gy: oracle.avg_pool_backward(gy, (13, 15), (3, 3), (2, 2), (1, 1)),
        ),
        (
            "adaptive_avg_pool2d",
            lambda f, x: f.adaptive_avg_pool2d(x, (4, 3)),
            oracle.adaptive_avg_pool(x, (4, 3)),
            lambda gy: oracle.adaptive_avg_pool_backward(gy, (13, 15)),
        ),
        (
            "local_response_norm",
            lambda f, x: f.local_response_norm(x, 5, 0.5),
            oracle.lrn(x, 5, 0.5),
            lambda gy: oracle.lrn_backward(x, gy, 5, 0.5),
        ),
    ]
    for name, function, want, backward in operators:
        gy = rounded(normal(*want.shape, seed=2), dtype)
        # torch lacks local_response_norm in these types: what it gives in float32, rounded, is as good as it can be.
        kinds = ((F, dtype), (reference, torch.float32 if "local" in name else dtype))
        results = []
        for f, kind in kinds:
            (input,) = leaves_of((x,), kind, arrange)
            y = function(f, input)
            gx = torch.autograd.grad(y, input, arrange(placed(gy, kind)))[0]
            results.append((y.to(dtype), gx.to(dtype)))
        for ours, torchs, expected in zip(*results, (want, backward(gy)), strict=True):
            no_worse_than_twice(ours, torchs, expected)
