"""Winograd's convolution on GPUs, on the simulation: within the CPU's bound, and honest with infinities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import backends
import native
import numpy as np
import pytest
import torch
from cases import Conv, square
from test_exact import conv_oracle
from test_kernels_winograd import ALGORITHM, CASES, EXACT, FLAT, LAST, bound, config, operands

import fastconv
from fastconv import functional as F

PRIMITIVES = ("forward", "input_gradient")
SMALL = [
    case for case in CASES if case.r == 3 and case.groups == 1 and case.dilation == (1, 1) and case.c * case.k < 600
]


@pytest.fixture(autouse=True)
def _simulated(backend: str) -> Iterator[None]:
    with backends.calls_go_to("simt"):
        yield


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_error_is_within_the_bound(case: Conv, primitive: str) -> None:
    inputs = operands(case, primitive)
    exact = [t.double().numpy() for t in inputs]
    want = conv_oracle(case, primitive, *exact)[0] + exact[2][:, None, None]
    limit = bound(case, primitive, *exact[:2]) + np.abs(exact[2])[:, None, None] * torch.finfo(torch.float32).eps
    results = []
    for layout, weight_layout in ((FLAT, LAST), (LAST, FLAT)):
        results += native.run_conv(case, config(case, primitive, layout, weight_layout), *inputs)
        excess = np.abs(results[-1].double().numpy() - want) - limit
        assert excess.max() <= 0, f"{excess.max()} beyond the bound: {layout}, weights {weight_layout}"
    assert torch.equal(*results)


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_a_sample_alone_has_the_same_bits(primitive: str) -> None:
    case = Conv("images", 3, 9, 9, 10, 7, 3, 3, padding=square(1))
    image, *others = operands(case, primitive)
    together = native.run_conv(case, config(case, primitive), image, *others)[0]
    alone = native.run_conv(replace(case, n=1), config(case, primitive), image[2:], *others)[0]
    assert torch.equal(alone, together[2:])


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_what_is_not_finite_is_as_without_winograd(primitive: str, value: float) -> None:
    case = Conv("spoiled", 2, 5, 9, 7, 6, 3, 3, padding=square(1))
    image, weight, bias = operands(case, primitive)
    image[1, 2, 4, 1] = value
    weight = weight.clamp(-0.9, 0.9)  # 3e38 stays finite in a convolution
    for layout in (FLAT, LAST):
        got, want = (
            native.run_conv(case, config(case, primitive, layout, layout, algorithm=name), image, weight, bias)[0]
            for name in (ALGORITHM, EXACT)
        )
        assert bool(want.isfinite().all()) == (value == 3e38)
        assert torch.equal(got.isfinite(), want.isfinite())
        torch.testing.assert_close(got, want, equal_nan=True)


def test_plan() -> None:
    """Where it is expected to pay: not for few channels, and never where it is not allowed, nor in TF32."""

    def planned(channels: int, size: int) -> str:
        x, w = torch.empty(1, channels, size, size), torch.empty(channels, channels, 3, 3)
        return fastconv.algorithms("conv2d", x, w, None, 1, 1)["forward"][0]

    assert [planned(c, 56) for c in (16, 64, 256)] == ["direct", "winograd_f4", "winograd_f4"]
    assert planned(512, 7) == "winograd_f4"
    with fastconv.allow_winograd(False):
        assert planned(64, 56) == "implicit_gemm"
    with backends.tf32(True):
        assert planned(64, 56) == "tensor_core"


def test_more_images_than_are_taken_at_a_time() -> None:
    x, w = torch.randn(3, 4, 62, 63), torch.randn(8, 4, 3, 3)
    with fastconv.force_algorithm(forward=ALGORITHM):
        y = F.conv2d(x, w, padding=1)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, padding=1), rtol=1e-4, atol=1e-4)
