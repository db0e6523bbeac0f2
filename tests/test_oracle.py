"""The oracle against torch in float64, on every case."""

from __future__ import annotations

import cases
import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

EXACT = {"rtol": 0.0, "atol": 0.0}
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def tensor(a: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(a).clone()


def crop_or_pad(x: torch.Tensor, padding: cases.Sides) -> torch.Tensor:
    return F.pad(x, (*padding[1], *padding[0]))


@pytest.mark.parametrize("case", cases.CONV, ids=str)
def test_conv(case: cases.Conv) -> None:
    options = (case.stride, case.padding, case.dilation, case.groups)
    x, w = random(case.n, case.c, case.h, case.w), random(case.k, case.c // case.groups, case.r, case.s)
    b = random(case.k)
    tx, tw, tb = (tensor(a).requires_grad_() for a in (x, w, b))
    y = F.conv2d(crop_or_pad(tx, case.padding), tw, tb, case.stride, 0, case.dilation, case.groups)
    gy = random(*y.shape)
    y.backward(tensor(gy))

    gw, gb = oracle.conv_weight_gradient(gy, x, (case.r, case.s), *options)
    assert_close(tensor(oracle.conv_forward(x, w, b, *options)), y.detach(), **CLOSE)
    assert_close(tensor(oracle.conv_input_gradient(gy, w, (case.h, case.w), *options)), tx.grad, **CLOSE)
    assert_close(tensor(gw), tw.grad, **CLOSE)
    assert_close(tensor(gb), tb.grad, **CLOSE)


@pytest.mark.parametrize("case", cases.TRANSPOSED, ids=str)
def test_conv_transpose(case: cases.Transposed) -> None:
    options = (case.stride, case.padding, case.output_padding, case.groups, case.dilation)
    x, w, b = (
        random(case.n, case.c, case.h, case.w),
        random(case.c, case.k // case.groups, case.r, case.s),
        random(case.k),
    )
    want = F.conv_transpose2d(tensor(x), tensor(w), tensor(b), *options)
    assert_close(tensor(oracle.conv_transpose(x, w, b, *options)), want, **CLOSE)


def with_special_values(x: np.ndarray) -> np.ndarray:
    """Ties, NaN, infinities and negative zero among the values."""
    rng = np.random.default_rng(1)
    x = np.round(x * 2)
    for value in (np.nan, np.inf, -np.inf, -0.0):
        x[rng.random(x.shape) < 0.05] = value
    x[:, 0] = -np.inf
    return x


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("case", cases.POOL, ids=str)
def test_max_pool(case: cases.Pool, special: bool) -> None:
    options = (case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode)
    x = random(case.n, case.c, case.h, case.w)
    x = with_special_values(x) if special else x
    tx = tensor(x).requires_grad_()
    y, index = F.max_pool2d(tx, *options, return_indices=True)
    got, got_index = oracle.max_pool(x, *options)
    assert_close(tensor(got), y.detach(), equal_nan=True, **EXACT)
    assert_close(tensor(got_index), index, **EXACT)
    gy = random(*y.shape)
    y.backward(tensor(gy))
    assert_close(tensor(oracle.max_pool_backward(gy, got_index, x.shape[2:])), tx.grad, **CLOSE)


@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("divisor", [0, 7])
@pytest.mark.parametrize("case", [c for c in cases.POOL if c.dilation == (1, 1)], ids=str)
def test_avg_pool(case: cases.Pool, count_include_pad: bool, divisor: int) -> None:
    x = random(case.n, case.c, case.h, case.w)
    tx = tensor(x).requires_grad_()
    y = F.avg_pool2d(tx, case.kernel, case.stride, case.padding, case.ceil_mode, count_include_pad, divisor or None)
    got = oracle.avg_pool(x, case.kernel, case.stride, case.padding, case.ceil_mode, count_include_pad, divisor)
    assert_close(tensor(got), y.detach(), **CLOSE)
    gy = random(*y.shape)
    y.backward(tensor(gy))
    got = oracle.avg_pool_backward(gy, x.shape[2:], case.kernel, case.stride, case.padding, count_include_pad, divisor)
    assert_close(tensor(got), tx.grad, **CLOSE)


@pytest.mark.parametrize("case", cases.ADAPTIVE, ids=str)
def test_adaptive(case: cases.Adaptive) -> None:
    x = random(case.n, case.c, case.h, case.w)
    tx = tensor(x).requires_grad_()
    y = F.adaptive_avg_pool2d(tx, case.size)
    assert_close(tensor(oracle.adaptive_avg_pool(x, case.size)), y.detach(), **CLOSE)
    gy = random(*y.shape)
    y.backward(tensor(gy))
    assert_close(tensor(oracle.adaptive_avg_pool_backward(gy, x.shape[2:])), tx.grad, **CLOSE)
    for values in (x, with_special_values(x)):
        want, want_index = F.adaptive_max_pool2d(tensor(values), case.size, return_indices=True)
        got, got_index = oracle.adaptive_max_pool(values, case.size)
        assert_close(tensor(got), want, equal_nan=True, **EXACT)
        assert_close(tensor(got_index), want_index, **EXACT)


@pytest.mark.parametrize("case", cases.LRN, ids=str)
def test_lrn(case: cases.Lrn) -> None:
    options = (case.size, case.alpha, case.beta, case.k)
    x = random(*case.shape)
    tx = tensor(x).requires_grad_()
    y = F.local_response_norm(tx, *options)
    assert_close(tensor(oracle.lrn(x, *options)), y.detach(), **CLOSE)
    gy = random(*y.shape)
    y.backward(tensor(gy))
    assert_close(tensor(oracle.lrn_backward(x, gy, *options)), tx.grad, **CLOSE)
