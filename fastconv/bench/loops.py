"""What one would write oneself: the definitions as loops, compiled by numba, one plane of the result a task."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from fastconv.bench.layers import ADAPTIVE_POOLINGS, Case
from fastconv.bench.peers import Work, inputs


def covers(case: Case) -> bool:
    """Whether there are loops for this operator."""
    return not case.is_transposed and case.operator not in ADAPTIVE_POOLINGS


def prepare(case: Case) -> Work:
    """The forward pass as a function of no arguments."""
    import numba

    loops = _compiled()
    numba.set_num_threads(min(torch.get_num_threads(), os.cpu_count() or 1))
    planes = [
        tensor.numpy().reshape(*tensor.shape[:2], -1, tensor.shape[-1]) if tensor.dim() > 2 else tensor.numpy()
        for tensor in inputs(case, "channels_first")
    ]
    parameters = case.parameters
    if case.operator == "local_response_norm":
        numbers = parameters["alpha"] / case.kernel[0], parameters["beta"], parameters["k"]
        return lambda: torch.from_numpy(loops["lrn"](planes[0], case.kernel[0], *numbers)).view(case.shape)

    def pair(sizes: tuple[int, ...], filler: int) -> tuple[int, int]:
        return (filler, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])

    out = pair(case.output_shape[2:], 1)
    stride, padding = pair(case.spatial("stride"), 1), pair(case.spatial("padding"), 0)
    dilation, kernel = pair(case.spatial("dilation"), 1), pair(case.kernel, 1)
    if case.is_convolution:
        x, weight = planes[:2]
        bias = planes[2] if parameters["bias"] else torch.zeros(case.out_channels).numpy()
        run = loops["convolution"]
        work = lambda: run(x, weight, bias, out, stride, padding, dilation, parameters["groups"])  # noqa: E731
    elif "max" in case.operator:
        work = lambda: loops["max_pooling"](planes[0], out, kernel, stride, padding, dilation)  # noqa: E731
    else:
        whole = parameters["count_include_pad"]
        work = lambda: loops["average_pooling"](planes[0], out, kernel, stride, padding, whole)  # noqa: E731
    return lambda: torch.from_numpy(work()).view(case.output_shape)


@cache
def _compiled() -> dict[str, Callable[..., Any]]:
    """What one would write oneself: the definition as loops, parallel over planes, the compiler left to vectorise."""
    from numba import njit, prange

    @njit(parallel=True, fastmath=True)
    def convolution(x, w, b, out, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
        n, _, h, width = x.shape
        outputs, per_group, r, s = w.shape
        y = np.empty((n, outputs, out[0], out[1]), np.float32)
        for plane in prange(n * outputs):
            image, k = plane // outputs, plane % outputs
            first = k // (outputs // groups) * per_group
            result = y[image, k]
            result[:] = b[k]
            for channel in range(per_group):
                source = x[image, first + channel]
                for dy in range(r):
                    for dx in range(s):
                        weight = w[k, channel, dy, dx]
                        left = dx * dilation[1] - padding[1]
                        begin = max(0, -(left // stride[1]))
                        end = min(out[1], (width - 1 - left) // stride[1] + 1)
                        for p in range(out[0]):
                            row = p * stride[0] + dy * dilation[0] - padding[0]
                            if 0 <= row < h:
                                for q in range(begin, end):
                                    result[p, q] += weight * source[row, q * stride[1] + left]
        return y

    @njit(parallel=True)
    def max_pooling(x, out, kernel, stride, padding, dilation):  # type: ignore[no-untyped-def]
        n, c, h, width = x.shape
        y = np.empty((n, c, out[0], out[1]), np.float32)
        for plane in prange(n * c):
            source, result = x[plane // c, plane % c], y[plane // c, plane % c]
            for p in range(out[0]):
                for q in range(out[1]):
                    best = np.float32(-np.inf)
                    for dy in range(kernel[0]):
                        row = p * stride[0] + dy * dilation[0] - padding[0]
                        for dx in range(kernel[1]):
                            column = q * stride[1] + dx * dilation[1] - padding[1]
                            if 0 <= row < h and 0 <= column < width:
                                best = max(best, source[row, column])
                    result[p, q] = best
        return y

    @njit(parallel=True)
    def average_pooling(x, out, kernel, stride, padding, count_include_pad):  # type: ignore[no-untyped-def]
        n, c, h, width = x.shape
        y = np.empty((n, c, out[0], out[1]), np.float32)
        for plane in prange(n * c):
            source, result = x[plane // c, plane % c], y[plane // c, plane % c]
            for p in range(out[0]):
                top = p * stride[0] - padding[0]
                bottom = min(top + kernel[0], h + padding[0])
                for q in range(out[1]):
                    left = q * stride[1] - padding[1]
                    right = min(left + kernel[1], width + padding[1])
                    rows = max(top, 0), min(bottom, h)
                    columns = max(left, 0), min(right, width)
                    total = np.float32(0)
                    for row in range(rows[0], rows[1]):
                        for column in range(columns[0], columns[1]):
                            total += source[row, column]
                    count = (bottom - top) * (right - left)
                    if not count_include_pad:
                        count = (rows[1] - rows[0]) * (columns[1] - columns[0])
                    result[p, q] = total / np.float32(count)
        return y

    @njit(parallel=True, fastmath=True)
    def lrn(x, size, alpha, beta, k):  # type: ignore[no-untyped-def]
        n, c, h, width = x.shape
        y = np.empty_like(x)
        for plane in prange(n * c):
            image, channel = plane // c, plane % c
            first, last = max(0, channel - size // 2), min(c, channel + (size + 1) // 2)
            for row in range(h):
                for column in range(width):
                    total = np.float32(0)
                    for other in range(first, last):
                        total += x[image, other, row, column] ** 2
                    scale = np.float32(k) + np.float32(alpha) * total
                    y[image, channel, row, column] = x[image, channel, row, column] * scale ** np.float32(-beta)
        return y

    return {
        "convolution": convolution,
        "max_pooling": max_pooling,
        "average_pooling": average_pooling,
        "lrn": lrn,
    }
