"""The operators as plain loops in float64, written from their definitions and independent of torch.

Arrays are NumPy, [N, C, H, W]; a one-dimensional operator is one of height 1. `padding` is ((top, bottom), (left,
right)) for a convolution and (height, width) for pooling. Every other test trusts this file; `test_oracle.py` compares
it with torch.
"""

from __future__ import annotations

import numpy as np
from numba import njit

Pair = tuple[int, int]
Sides = tuple[Pair, Pair]


def conv_size(size: int, kernel: int, stride: int, padding: Pair, dilation: int) -> int:
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


def conv_forward(x, w, b, stride: Pair, padding: Sides, dilation: Pair, groups: int) -> np.ndarray:
    """y[n, k] = b[k] + the sum over c, r, s of x[n, c] (shifted) times w[k, c, r, s]."""
    (n, _, h, width), (k, _, r, s) = x.shape, w.shape
    p = conv_size(h, r, stride[0], padding[0], dilation[0])
    q = conv_size(width, s, stride[1], padding[1], dilation[1])
    y = np.zeros((n, k, p, q))
    if b is not None:
        y += np.asarray(b, np.float64)[:, None, None]
    _conv_forward(_double(x), _double(w), y, stride, (padding[0][0], padding[1][0]), dilation, groups)
    return y


def conv_input_gradient(gy, w, size: Pair, stride: Pair, padding: Sides, dilation: Pair, groups: int) -> np.ndarray:
    """The gradient of sum(y * gy) with respect to x, which is [N, C, *size]."""
    gx = np.zeros((gy.shape[0], w.shape[1] * groups, *size))
    _conv_input_gradient(_double(gy), _double(w), gx, stride, (padding[0][0], padding[1][0]), dilation, groups)
    return gx


def conv_weight_gradient(gy, x, kernel: Pair, stride: Pair, padding: Sides, dilation: Pair, groups: int):
    """The gradients of sum(y * gy) with respect to w, which is [K, C / groups, *kernel], and to the bias."""
    gw = np.zeros((gy.shape[1], x.shape[1] // groups, *kernel))
    _conv_weight_gradient(_double(gy), _double(x), gw, stride, (padding[0][0], padding[1][0]), dilation, groups)
    return gw, _double(gy).sum(axis=(0, 2, 3))


def conv_transpose(
    x, w, b, stride: Pair, padding: Pair, output_padding: Pair, groups: int, dilation: Pair
) -> np.ndarray:
    """Scatters x[n, c] * w[c, k] to y[n, k]; w is [C, K / groups, R, S] and padding crops the result."""
    (n, _, h, width), (_, k, r, s) = x.shape, w.shape
    size = tuple(
        (i - 1) * st - 2 * pad + d * (kernel - 1) + out + 1
        for i, st, pad, d, kernel, out in zip(
            (h, width), stride, padding, dilation, (r, s), output_padding, strict=True
        )
    )
    y = np.zeros((n, k * groups, *size))
    if b is not None:
        y += np.asarray(b, np.float64)[:, None, None]
    _conv_transpose(_double(x), _double(w), y, stride, padding, dilation, groups)
    return y


def pool_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Number of windows; with ceil_mode one may hang over the end if it begins in the input or the padding before."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    return count


def max_pool(x, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1), ceil_mode: bool = False):
    """(y, index): the first of equal maxima; a NaN is greater than everything, and the last NaN counts.

    `index` is h * width + w in the input plane."""
    n, c, h, w = x.shape
    p, q = (pool_size(*axis, ceil_mode) for axis in zip((h, w), kernel, stride, padding, dilation, strict=True))
    y, index = np.zeros((n, c, p, q)), np.zeros((n, c, p, q), np.int64)
    _max_pool(_double(x), y, index, kernel, stride, padding, dilation)
    return y, index


def max_pool_backward(gy, index, size: Pair) -> np.ndarray:
    gx = np.zeros((*gy.shape[:2], *size))
    _max_pool_backward(_double(gy), index, gx)
    return gx


def avg_pool(
    x,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int = 0,
) -> np.ndarray:
    """The mean of each window; `divisor` 0 is the number of elements, with or without those in the padding."""
    n, c, h, w = x.shape
    p, q = (pool_size(*axis, 1, ceil_mode) for axis in zip((h, w), kernel, stride, padding, strict=True))
    y = np.zeros((n, c, p, q))
    _avg_pool(_double(x), y, kernel, stride, padding, count_include_pad, divisor)
    return y


def avg_pool_backward(
    gy, size: Pair, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool = True, divisor: int = 0
) -> np.ndarray:
    gx = np.zeros((*gy.shape[:2], *size))
    _avg_pool_backward(_double(gy), gx, kernel, stride, padding, count_include_pad, divisor)
    return gx


def adaptive_avg_pool(x, size: Pair) -> np.ndarray:
    y = np.zeros((*x.shape[:2], *size))
    _adaptive_avg_pool(_double(x), y)
    return y


def adaptive_avg_pool_backward(gy, size: Pair) -> np.ndarray:
    gx = np.zeros((*gy.shape[:2], *size))
    _adaptive_avg_pool_backward(_double(gy), gx)
    return gx


def adaptive_max_pool(x, size: Pair):
    y, index = np.zeros((*x.shape[:2], *size)), np.zeros((*x.shape[:2], *size), np.int64)
    _adaptive_max_pool(_double(x), y, index)
    return y, index


def lrn(x, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> np.ndarray:
    """x / (k + alpha / size * the sum of x^2 over `size` neighbouring channels)^beta; x is [N, C, ...]."""
    y = np.zeros(_planes(x).shape)
    _lrn(_planes(x), y, size, alpha / size, beta, k)
    return y.reshape(x.shape)


def lrn_backward(x, gy, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> np.ndarray:
    gx = np.zeros(_planes(x).shape)
    _lrn_backward(_planes(x), _planes(gy), gx, size, alpha / size, beta, k)
    return gx.reshape(x.shape)


def _double(a) -> np.ndarray:
    return np.ascontiguousarray(a, np.float64)


def _planes(x) -> np.ndarray:
    return _double(x).reshape(*x.shape[:2], int(np.prod(x.shape[2:], dtype=np.int64)))


@njit(cache=True)
def _conv_forward(x, w, y, stride, pad, dilation, groups):
    n, k, p, q = y.shape
    _, c, r, s = w.shape
    for ni in range(n):
        for ki in range(k):
            first = ki // (k // groups) * c
            for pi in range(p):
                for qi in range(q):
                    total = 0.0
                    for ci in range(c):
                        for ri in range(r):
                            hi = pi * stride[0] - pad[0] + ri * dilation[0]
                            if hi < 0 or hi >= x.shape[2]:
                                continue
                            for si in range(s):
                                wi = qi * stride[1] - pad[1] + si * dilation[1]
                                if wi >= 0 and wi < x.shape[3]:
                                    total += x[ni, first + ci, hi, wi] * w[ki, ci, ri, si]
                    y[ni, ki, pi, qi] += total


@njit(cache=True)
def _conv_input_gradient(gy, w, gx, stride, pad, dilation, groups):
    n, k, p, q = gy.shape
    _, c, r, s = w.shape
    for ni in range(n):
        for ki in range(k):
            first = ki // (k // groups) * c
            for pi in range(p):
                for qi in range(q):
                    for ci in range(c):
                        for ri in range(r):
                            hi = pi * stride[0] - pad[0] + ri * dilation[0]
                            if hi < 0 or hi >= gx.shape[2]:
                                continue
                            for si in range(s):
                                wi = qi * stride[1] - pad[1] + si * dilation[1]
                                if wi >= 0 and wi < gx.shape[3]:
                                    gx[ni, first + ci, hi, wi] += gy[ni, ki, pi, qi] * w[ki, ci, ri, si]


@njit(cache=True)
def _conv_weight_gradient(gy, x, gw, stride, pad, dilation, groups):
    n, k, p, q = gy.shape
    _, c, r, s = gw.shape
    for ki in range(k):
        first = ki // (k // groups) * c
        for ci in range(c):
            for ri in range(r):
                for si in range(s):
                    total = 0.0
                    for ni in range(n):
                        for pi in range(p):
                            hi = pi * stride[0] - pad[0] + ri * dilation[0]
                            if hi < 0 or hi >= x.shape[2]:
                                continue
                            for qi in range(q):
                                wi = qi * stride[1] - pad[1] + si * dilation[1]
                                if wi >= 0 and wi < x.shape[3]:
                                    total += gy[ni, ki, pi, qi] * x[ni, first + ci, hi, wi]
                    gw[ki, ci, ri, si] = total


@njit(cache=True)
def _conv_transpose(x, w, y, stride, pad, dilation, groups):
    n, c, h, width = x.shape
    _, k, r, s = w.shape
    for ni in range(n):
        for ci in range(c):
            first = ci // (c // groups) * k
            for hi in range(h):
                for wi in range(width):
                    for ki in range(k):
                        for ri in range(r):
                            pi = hi * stride[0] - pad[0] + ri * dilation[0]
                            if pi < 0 or pi >= y.shape[2]:
                                continue
                            for si in range(s):
                                qi = wi * stride[1] - pad[1] + si * dilation[1]
                                if qi >= 0 and qi < y.shape[3]:
                                    y[ni, first + ki, pi, qi] += x[ni, ci, hi, wi] * w[ci, ki, ri, si]


@njit(cache=True)
def _max_pool(x, y, index, kernel, stride, pad, dilation):
    n, c, p, q = y.shape
    h, w = x.shape[2], x.shape[3]
    for ni in range(n):
        for ci in range(c):
            for pi in range(p):
                for qi in range(q):
                    best, at = -np.inf, -1
                    for ri in range(kernel[0]):
                        hi = pi * stride[0] - pad[0] + ri * dilation[0]
                        if hi < 0 or hi >= h:
                            continue
                        for si in range(kernel[1]):
                            wi = qi * stride[1] - pad[1] + si * dilation[1]
                            if wi < 0 or wi >= w:
                                continue
                            value = x[ni, ci, hi, wi]
                            if at < 0 or value > best or np.isnan(value):
                                best, at = value, hi * w + wi
                    y[ni, ci, pi, qi] = best
                    index[ni, ci, pi, qi] = at


@njit(cache=True)
def _max_pool_backward(gy, index, gx):
    n, c, p, q = gy.shape
    w = gx.shape[3]
    for ni in range(n):
        for ci in range(c):
            for pi in range(p):
                for qi in range(q):
                    at = index[ni, ci, pi, qi]
                    gx[ni, ci, at // w, at % w] += gy[ni, ci, pi, qi]


@njit(cache=True)
def _avg_window(i, size, kernel, stride, pad):
    """(begin, end) inside the input, and the number of elements with the padding but not what ceil_mode hangs over."""
    begin = i * stride - pad
    end = min(begin + kernel, size + pad)
    return max(begin, 0), min(end, size), end - begin


@njit(cache=True)
def _avg_pool(x, y, kernel, stride, pad, count_include_pad, divisor):
    n, c, p, q = y.shape
    for pi in range(p):
        h0, h1, padded_h = _avg_window(pi, x.shape[2], kernel[0], stride[0], pad[0])
        for qi in range(q):
            w0, w1, padded_w = _avg_window(qi, x.shape[3], kernel[1], stride[1], pad[1])
            count = padded_h * padded_w if count_include_pad else (h1 - h0) * (w1 - w0)
            if divisor:
                count = divisor
            for ni in range(n):
                for ci in range(c):
                    total = 0.0
                    for hi in range(h0, h1):
                        for wi in range(w0, w1):
                            total += x[ni, ci, hi, wi]
                    y[ni, ci, pi, qi] = total / count if h0 < h1 and w0 < w1 else 0.0


@njit(cache=True)
def _avg_pool_backward(gy, gx, kernel, stride, pad, count_include_pad, divisor):
    n, c, p, q = gy.shape
    for pi in range(p):
        h0, h1, padded_h = _avg_window(pi, gx.shape[2], kernel[0], stride[0], pad[0])
        for qi in range(q):
            w0, w1, padded_w = _avg_window(qi, gx.shape[3], kernel[1], stride[1], pad[1])
            count = padded_h * padded_w if count_include_pad else (h1 - h0) * (w1 - w0)
            if divisor:
                count = divisor
            for ni in range(n):
                for ci in range(c):
                    for hi in range(h0, h1):
                        for wi in range(w0, w1):
                            gx[ni, ci, hi, wi] += gy[ni, ci, pi, qi] / count


@njit(cache=True)
def _adaptive_window(i, size, out):
    return i * size // out, -(-(i + 1) * size // out)


@njit(cache=True)
def _adaptive_avg_pool(x, y):
    n, c, p, q = y.shape
    for pi in range(p):
        h0, h1 = _adaptive_window(pi, x.shape[2], p)
        for qi in range(q):
            w0, w1 = _adaptive_window(qi, x.shape[3], q)
            for ni in range(n):
                for ci in range(c):
                    total = 0.0
                    for hi in range(h0, h1):
                        for wi in range(w0, w1):
                            total += x[ni, ci, hi, wi]
                    y[ni, ci, pi, qi] = total / ((h1 - h0) * (w1 - w0))


@njit(cache=True)
def _adaptive_avg_pool_backward(gy, gx):
    n, c, p, q = gy.shape
    for pi in range(p):
        h0, h1 = _adaptive_window(pi, gx.shape[2], p)
        for qi in range(q):
            w0, w1 = _adaptive_window(qi, gx.shape[3], q)
            for ni in range(n):
                for ci in range(c):
                    for hi in range(h0, h1):
                        for wi in range(w0, w1):
                            gx[ni, ci, hi, wi] += gy[ni, ci, pi, qi] / ((h1 - h0) * (w1 - w0))


@njit(cache=True)
def _adaptive_max_pool(x, y, index):
    n, c, p, q = y.shape
    for pi in range(p):
        h0, h1 = _adaptive_window(pi, x.shape[2], p)
        for qi in range(q):
            w0, w1 = _adaptive_window(qi, x.shape[3], q)
            for ni in range(n):
                for ci in range(c):
                    best, at = -np.inf, -1
                    for hi in range(h0, h1):
                        for wi in range(w0, w1):
                            value = x[ni, ci, hi, wi]
                            if at < 0 or value > best or np.isnan(value):
                                best, at = value, hi * x.shape[3] + wi
                    y[ni, ci, pi, qi] = best
                    index[ni, ci, pi, qi] = at


@njit(cache=True)
def _lrn_base(x, ni, ci, i, size, alpha, k):
    total = 0.0
    for cj in range(max(ci - size // 2, 0), min(ci + (size - 1) // 2 + 1, x.shape[1])):
        total += x[ni, cj, i] * x[ni, cj, i]
    return k + alpha * total


@njit(cache=True)
def _lrn(x, y, size, alpha, beta, k):
    n, c, spatial = x.shape
    for ni in range(n):
        for ci in range(c):
            for i in range(spatial):
                y[ni, ci, i] = x[ni, ci, i] * _lrn_base(x, ni, ci, i, size, alpha, k) ** -beta


@njit(cache=True)
def _lrn_backward(x, gy, gx, size, alpha, beta, k):
    n, c, spatial = x.shape
    for ni in range(n):
        for ci in range(c):
            for i in range(spatial):
                base = _lrn_base(x, ni, ci, i, size, alpha, k)
                g = gy[ni, ci, i]
                gx[ni, ci, i] += g * base**-beta
                slope = -2.0 * alpha * beta * g * x[ni, ci, i] * base ** (-beta - 1.0)
                for cj in range(max(ci - size // 2, 0), min(ci + (size - 1) // 2 + 1, c)):
                    gx[ni, cj, i] += slope * x[ni, cj, i]
