"""Bit for bit against the oracle: on small integers every partial sum is exact, whatever its order.

Winograd's algorithm, whose matrices hold fractions, has a bound of its own (test_kernels_winograd.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import backends
import cases
import native
import numpy as np
import oracle
import pytest
import torch
from tensors import ARRANGEMENTS, DTYPES, integers

from fastconv import _C, algorithms, allow_winograd, force_algorithm
from fastconv import functional as F


@pytest.fixture(autouse=True)
def without_winograd():
    with allow_winograd(False):
        yield


def mismatch(result: torch.Tensor, expected: torch.Tensor) -> str:
    wrong = (result != expected).nonzero()
    at = tuple(wrong[0].tolist())
    return (
        f"{len(wrong)} of {result.numel()} differ, first at {at}: {result[at].item()}, expected {expected[at].item()}"
    )


def trusted(want: np.ndarray, reachable: np.ndarray) -> bool:
    """Whether a result can prove anything: most of what can be other than zero is."""
    return bool(np.count_nonzero(reachable) > 0 and np.count_nonzero(want) >= 0.5 * np.count_nonzero(reachable))


def conv_operands(case: cases.Conv, primitive: str) -> tuple[np.ndarray, ...]:
    problem = native.problem_of(case)
    x = integers(case.n, case.c, case.h, case.w, seed=1)
    w = integers(case.k, case.c // case.groups, case.r, case.s, seed=2)
    gy = integers(case.n, case.k, problem.p, problem.q, seed=3)
    b = integers(case.c if primitive == "input_gradient" else case.k, seed=4)
    return {"forward": (x, w, b), "input_gradient": (gy, w, b), "weight_gradient": (gy, x)}[primitive]


def conv_oracle(case: cases.Conv, primitive: str, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
    """The results without a bias."""
    options = (case.stride, case.padding, case.dilation, case.groups)
    first, second = operands[:2]
    if primitive == "forward":
        return (oracle.conv_forward(first, second, None, *options),)
    if primitive == "input_gradient":
        return (oracle.conv_input_gradient(first, second, (case.h, case.w), *options),)
    return oracle.conv_weight_gradient(first, second, (case.r, case.s), *options)


@pytest.mark.backends
@pytest.mark.parametrize("primitive", native.PRIMITIVES)
@pytest.mark.parametrize("case", cases.CONV, ids=str)
def test_conv_algorithms(case: cases.Conv, primitive: str) -> None:
    operands = conv_operands(case, primitive)
    wants = conv_oracle(case, primitive, *operands)
    reachable = conv_oracle(case, primitive, *(np.ones_like(a) for a in operands))
    assert all(trusted(*pair) for pair in zip(wants, reachable, strict=True))
    assert all(np.abs(want).max() < 2**22 for want in wants)
    tensors = [torch.from_numpy(a) for a in operands]
    for config in native.configurations(case, primitive):
        if "winograd" in config.algorithm:
            continue
        got = native.run_conv(case, config, *tensors)
        for result, want in zip(got, wants, strict=False):
            bias = operands[2][:, None, None] if config.bias and primitive != "weight_gradient" else 0.0
            expected = torch.from_numpy(want + bias).to(config.dtype)
            assert torch.equal(result, expected), f"{config}: {mismatch(result, expected)}"


def same_bits(result: torch.Tensor, want: np.ndarray, what: str = "") -> None:
    result, expected = result.cpu(), torch.from_numpy(want).to(result.dtype)
    both_nan = result.isnan() & expected.isnan()
    assert result.shape == expected.shape
    assert bool(((result == expected) | both_nan).all()), f"{what}: {mismatch(result.detach(), expected)}"


def leaf(values: np.ndarray, dtype: torch.dtype, arrange=ARRANGEMENTS[0]) -> torch.Tensor:
    return placed(values, dtype, arrange).requires_grad_()


def placed(values: np.ndarray, dtype: torch.dtype, arrange=ARRANGEMENTS[0]) -> torch.Tensor:
    return arrange(backends.place(torch.from_numpy(values).to(dtype)))


def lines(values: np.ndarray) -> np.ndarray:
    """[N, C, 1, W] to [N, C, W]."""
    assert values.shape[2] == 1
    return values[:, :, 0]


@pytest.mark.backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("case", [case for case in cases.CONV if case.n > 1 or "work" in case.name], ids=str)
def test_conv(case: cases.Conv, arrange, dtype: torch.dtype) -> None:
    x, w, b = conv_operands(case, "forward")
    gy = conv_operands(case, "input_gradient")[0]
    y = conv_oracle(case, "forward", x, w)[0] + b[:, None, None]
    gx = conv_oracle(case, "input_gradient", gy, w)[0]
    gw, gb = conv_oracle(case, "weight_gradient", gy, x)
    one_dimension = case.h == 1 and case.r == 1
    padding = case.padding
    if one_dimension:
        x, w, y, gy, gx, gw = map(lines, (x, w, y, gy, gx, gw))
        padding = case.padding[1:]
    leaves = [leaf(x, dtype, arrange), leaf(w, dtype, arrange), leaf(b, dtype)]
    options = (
        (leaves[0], leaves[1], leaves[2], case.stride[1:], padding, case.dilation[1:], case.groups)
        if one_dimension
        else (leaves[0], leaves[1], leaves[2], case.stride, padding, case.dilation, case.groups)
    )
    got = (F.conv1d if one_dimension else F.conv2d)(*options)
    same_bits(got, y, "output")
    gradients = torch.autograd.grad(got, leaves, placed(gy, dtype, arrange))
    for name, result, want in zip("xwb", gradients, (gx, gw, gb), strict=True):
        same_bits(result, want, f"gradient of {name}")


@pytest.mark.backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("case", cases.TRANSPOSED, ids=str)
def test_conv_transpose(case: cases.Transposed, arrange, dtype: torch.dtype) -> None:
    options = (case.stride, case.padding, case.output_padding, case.groups, case.dilation)
    x = integers(case.n, case.c, case.h, case.w, seed=1)
    w = integers(case.c, case.k // case.groups, case.r, case.s, seed=2)
    b = integers(case.k, seed=3)
    y = oracle.conv_transpose(x, w, b, *options)
    gy = integers(*y.shape, seed=4)
    sides = tuple((p, p) for p in case.padding)
    gx = oracle.conv_forward(gy, w, None, case.stride, sides, case.dilation, case.groups)[:, :, : case.h, : case.w]
    gw, _ = oracle.conv_weight_gradient(x, gy, (case.r, case.s), case.stride, sides, case.dilation, case.groups)
    gb = gy.sum(axis=(0, 2, 3))
    assert trusted(y, np.ones_like(y))
    one_dimension = case.h == 1 and case.r == 1
    if one_dimension:
        x, w, y, gy, gx, gw = map(lines, (x, w, y, gy, gx, gw))
        options = (*(pair[1:] for pair in options[:3]), case.groups, case.dilation[1:])
    function = F.conv_transpose1d if one_dimension else F.conv_transpose2d
    leaves = [leaf(x, dtype, arrange), leaf(w, dtype, arrange), leaf(b, dtype)]
    name = function.__name__
    for algorithm in algorithms(name, *leaves, *options)["input_gradient"]:
        with force_algorithm(input_gradient=algorithm):
            same_bits(function(*leaves, *options), y, algorithm)
    gradients = torch.autograd.grad(function(*leaves, *options), leaves, placed(gy, dtype, arrange))
    for which, result, want in zip("xwb", gradients, (gx, gw, gb), strict=True):
        same_bits(result, want, f"gradient of {which}")


def with_special_values(x: np.ndarray) -> np.ndarray:
    """Ties, NaN, infinities and negative zero among the values."""
    rng = np.random.default_rng(1)
    x = x.copy()
    for value in (np.nan, np.inf, -np.inf, -0.0):
        x[rng.random(x.shape) < 0.03] = value
    x[:, 0] = -np.inf
    return x


@pytest.mark.backends
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("case", cases.POOL, ids=str)
def test_max_pool(case: cases.Pool, arrange, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    options = (case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode)
    for x in (
        integers(case.n, case.c, case.h, case.w, seed=1),
        with_special_values(integers(case.n, case.c, case.h, case.w, seed=2)),
    ):
        y, index = oracle.max_pool(x, *options)
        gy = integers(*y.shape, seed=3)
        gx = oracle.max_pool_backward(gy, index, x.shape[2:])
        input = leaf(x, dtype, arrange)
        gradient = placed(gy, dtype, arrange)
        got, got_index = F.max_pool2d(input, *options, return_indices=True)
        same_bits(got, y, "with indices")
        same_bits(got_index, index, "indices")
        same_bits(torch.autograd.grad(got, input, gradient)[0], gx, "gradient by indices")
        got = F.max_pool2d(input, *options)
        same_bits(got, y, "without indices")
        same_bits(torch.autograd.grad(got, input, gradient)[0], gx, "gradient")
        same_bits(F.max_pool2d(input.detach(), *options), y, "without gradient")


@pytest.mark.backends
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("case", [case for case in cases.POOL if case.dilation == (1, 1)], ids=str)
def test_avg_pool(case: cases.Pool, arrange, dtype: torch.dtype, threads: int) -> None:
    """Sums are exact and a divisor of 1 or 4 keeps them so; for others `test_tolerance.py`."""
    torch.set_num_threads(threads)
    options = (case.kernel, case.stride, case.padding)
    x = integers(case.n, case.c, case.h, case.w, seed=1)
    for divisor, count_include_pad in ((1, False), (4, True)):
        y = oracle.avg_pool(x, *options, case.ceil_mode, count_include_pad, divisor)
        gy = integers(*y.shape, seed=3)
        gx = oracle.avg_pool_backward(gy, x.shape[2:], *options, count_include_pad, divisor)
        input = leaf(x, dtype, arrange)
        got = F.avg_pool2d(input, *options, case.ceil_mode, count_include_pad, divisor)
        same_bits(got, y, "output")
        gradient = placed(gy, dtype, arrange)
        same_bits(torch.autograd.grad(got, input, gradient)[0], gx, "gradient")


@pytest.mark.backends
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("case", cases.ADAPTIVE, ids=str)
def test_adaptive_max_pool(case: cases.Adaptive, arrange, dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    x = with_special_values(integers(case.n, case.c, case.h, case.w, seed=1))
    y, index = oracle.adaptive_max_pool(x, case.size)
    gy = integers(*y.shape, seed=2)
    input = leaf(x, dtype, arrange)
    got, got_index = F.adaptive_max_pool2d(input, case.size, return_indices=True)
    same_bits(got, y, "output")
    same_bits(got_index, index, "indices")
    gx = oracle.max_pool_backward(gy, index, x.shape[2:])
    same_bits(torch.autograd.grad(got, input, placed(gy, dtype, arrange))[0], gx, "gradient")


def test_instruction_set_is_the_one_asked_for() -> None:
    wanted = os.environ.get("FASTCONV_ISA")
    assert not wanted or _C.isa() == wanted


@pytest.mark.skipif("FASTCONV_ISA" in os.environ, reason="this is the run with another instruction set")
@pytest.mark.parametrize("isa", [isa for isa in _C.available_isas() if isa != _C.isa()])
def test_other_instruction_sets(isa: str) -> None:
    """The instruction set is chosen at import: run this file again in another process."""
    environment = {**os.environ, "FASTCONV_ISA": isa, "FASTCONV_BACKENDS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", Path(__file__).name]
    # In this folder, so that what is installed is imported and not the sources in the root.
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
