"""Winograd's convolution: within the bound of its arithmetic, the same bits however it runs, honest with infinities.

It is not exact on integers: its matrices hold fractions. Each result is a chain of sums of products; the bound is the
number of roundings in the longest chain times what the chain gives of magnitudes, as for every other kernel.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import native
import numpy as np
import pytest
import torch
from cases import Conv, square
from tensors import normal
from test_exact import conv_oracle

import fastconv
from fastconv import _C
from fastconv import functional as F

ALGORITHM = "winograd_f4"
ALGORITHMS = {3: ALGORITHM, 5: "winograd_f2"}  # by the kernel's size
EXACT = "implicit_gemm"
FLAT, LAST = torch.contiguous_format, torch.channels_last

CASES = [
    Conv("channel_tails", 2, 19, 9, 10, 21, 3, 3, padding=square(1)),
    # several vectors, panels and blocks of tiles (96), of output channels (96) and of the reduction (64)
    Conv("blocks", 2, 70, 30, 37, 117, 3, 3, padding=square(1)),
    Conv("more_outputs_than_tiles", 1, 135, 14, 14, 70, 3, 3, padding=square(1)),
    Conv("blocks_of_shared_tiles", 5, 20, 14, 14, 100, 3, 3, padding=square(1)),
    Conv("one_tile_each", 37, 33, 3, 4, 40, 3, 3, padding=square(1)),
    Conv("partial_tiles", 3, 40, 7, 7, 33, 3, 3, padding=square(1)),
    Conv("one_pixel", 3, 8, 1, 1, 9, 3, 3, padding=square(1)),
    Conv("one_row", 2, 9, 1, 50, 8, 3, 3, padding=square(1)),
    Conv("one_channel", 1, 1, 12, 13, 1, 3, 3),
    Conv("unequal_padding", 1, 20, 13, 11, 24, 3, 3, padding=((2, 0), (0, 1))),
    Conv("cropped", 1, 16, 14, 13, 16, 3, 3, padding=((-1, -2), (1, -3))),
    Conv("padding_beyond_kernel", 1, 5, 5, 6, 7, 3, 3, padding=square(5)),
    Conv("groups", 2, 32, 8, 9, 48, 3, 3, padding=square(1), groups=2),
    Conv("dilated", 2, 20, 40, 45, 24, 3, 3, padding=square(2), dilation=(2, 2)),
    Conv("dilated_unequally", 1, 20, 13, 11, 24, 3, 3, padding=((3, 1), (0, 2)), dilation=(3, 1)),
    Conv("dilated_beyond_output", 1, 9, 15, 15, 10, 3, 3, padding=square(1), dilation=(7, 6)),
    Conv("5x5_channel_tails", 2, 19, 9, 10, 21, 5, 5, padding=square(2)),
    Conv("5x5_blocks", 2, 70, 15, 28, 117, 5, 5, padding=square(2)),
    Conv("5x5_more_outputs_than_tiles", 1, 135, 7, 7, 70, 5, 5, padding=square(2)),
    Conv("5x5_one_pixel", 19, 8, 1, 1, 9, 5, 5, padding=square(2)),
    Conv("5x5_one_channel", 1, 1, 12, 13, 1, 5, 5),
    Conv("5x5_unequal_padding", 1, 20, 13, 11, 24, 5, 5, padding=((3, 0), (1, -2))),
    Conv("5x5_padding_beyond_kernel", 1, 5, 5, 6, 7, 5, 5, padding=square(7)),
    Conv("5x5_groups", 2, 32, 8, 9, 48, 5, 5, padding=square(1), groups=2),
    Conv("5x5_dilated_unequally", 1, 20, 13, 14, 24, 5, 5, padding=((3, 4), (5, 3)), dilation=(3, 2)),
]

# ---- the matrices, from the points: rows of G and columns of A^T are powers of them, rows of B^T the polynomials with
# all other points as roots

POINTS = np.array([0, 5 / 8, -5 / 8, 3 / 2, -3 / 2])


def powers(count: int, scale: np.ndarray | None = None) -> np.ndarray:
    """[6, count]: powers of the points and, for infinity, the last coefficient alone."""
    finite = POINTS[:, None] ** np.arange(count)
    if scale is not None:
        finite /= scale[:, None]
    return np.vstack([finite, np.eye(count)[-1]])


DERIVATIVES = np.array([np.prod([p - q for q in POINTS if q != p]) for p in POINTS])
INPUT = np.array(
    [np.pad(np.poly([q for q in POINTS if q != p])[::-1], (0, 1)) for p in POINTS] + [np.poly(POINTS)[::-1]]
)


@pytest.mark.parametrize("taps", [3, 5])
def test_matrices_compute_a_convolution(taps: int) -> None:
    outputs = 7 - taps
    d, g, gy = normal(6, seed=1), normal(taps, seed=2), normal(outputs, seed=3)
    y = powers(outputs).T @ ((powers(taps, DERIVATIVES) @ g) * (INPUT @ d))
    np.testing.assert_allclose(y, [d[i : i + taps] @ g for i in range(outputs)], rtol=1e-12)
    gw = powers(taps).T @ ((powers(outputs, DERIVATIVES) @ gy) * (INPUT @ d))
    np.testing.assert_allclose(gw, [d[i : i + outputs] @ gy for i in range(taps)], rtol=1e-12)


def positions(out: int, size: int, pad: int, dilation: int, outputs: int) -> np.ndarray:
    """[tile, size]: where each tile's window lies along an axis, sub-image after sub-image."""
    of_phase = (out + dilation - 1) // dilation
    phases, tiles = np.arange(min(dilation, out)), np.arange((of_phase + outputs - 1) // outputs)
    first = phases[:, None] + outputs * dilation * tiles - pad
    return first.reshape(-1, 1) + dilation * np.arange(size)


def windows(images: np.ndarray, out, size: int, pad, dilation, outputs: int) -> np.ndarray:
    """[n, c, tile row, tile column, size, size], zero beyond the images."""
    rows, columns = (
        positions(*axis) for axis in zip(out, (size, size), pad, dilation, (outputs, outputs), strict=True)
    )
    inside_h, inside_w = (rows >= 0) & (rows < images.shape[2]), (columns >= 0) & (columns < images.shape[3])
    taken = images[
        :,
        :,
        np.clip(rows, 0, images.shape[2] - 1)[:, None, :, None],
        np.clip(columns, 0, images.shape[3] - 1)[None, :, None, :],
    ]
    return taken * (inside_h[:, None, :, None] & inside_w[None, :, None, :])


def both_axes(matrix: np.ndarray, squares: np.ndarray) -> np.ndarray:
    return np.abs(matrix) @ np.abs(squares) @ np.abs(matrix).T


def magnitudes(x: np.ndarray, w: np.ndarray, out, pad, dilation) -> np.ndarray:
    """What Winograd's convolution gives where every number and every entry of its matrices is replaced by its size."""
    taps = w.shape[-1]
    outputs = 7 - taps
    v = both_axes(INPUT, windows(x, out, 6, pad, dilation, outputs))
    u = both_axes(powers(taps, DERIVATIVES), w)
    y = both_axes(powers(outputs).T, np.einsum("ncabij,kcij->nkabij", v, u, optimize=True))
    rows, columns = (positions(size, outputs, 0, d, outputs) for size, d in zip(out, dilation, strict=True))
    result = np.zeros((*y.shape[:2], rows.max() + 1, columns.max() + 1))
    result[:, :, rows[:, None, :, None], columns[None, :, None, :]] = y
    return result[:, :, : out[0], : out[1]]


def weight_magnitudes(gy: np.ndarray, x: np.ndarray, taps: int, pad, dilation) -> tuple[np.ndarray, int]:
    """The same for the weight gradient, and the number of tiles."""
    out, outputs = gy.shape[2:], 7 - taps
    v = both_axes(INPUT, windows(x, out, 6, pad, dilation, outputs))
    u = both_axes(powers(outputs, DERIVATIVES), windows(gy, out, outputs, (0, 0), dilation, outputs))
    sums = np.einsum("ncabij,nkabij->kcij", v, u, optimize=True)
    return both_axes(powers(taps).T, sums), v.shape[0] * v.shape[2] * v.shape[3]


def bound(case: Conv, primitive: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # Roundings in a chain, besides the sum: 2 along each axis in B^T d, 6 in G g with its constants, 4 in A^T m, one in
    # the product, one of a bias. The sum is cut into chunks of 64.
    def roundings(terms: int) -> float:
        return 2 * (2 + 6 + 4) + 2 + terms + terms / 64 + 1

    pad, groups = (case.padding[0][0], case.padding[1][0]), case.groups
    unit = torch.finfo(torch.float32).eps / 2 * 1.001
    if primitive == "forward":
        problem = native.problem_of(case)

        def forward(x, w):
            return magnitudes(x, w, (problem.p, problem.q), pad, case.dilation)

        pairs = zip(np.split(first, groups, 1), np.split(second, groups, 0), strict=True)
        return unit * roundings(case.c // groups) * np.concatenate([forward(*pair) for pair in pairs], 1)
    if primitive == "input_gradient":
        pad = tuple((case.r - 1) * d - p for d, p in zip(case.dilation, pad, strict=True))

        def input_gradient(gy, w):
            return magnitudes(gy, w.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], (case.h, case.w), pad, case.dilation)

        pairs = zip(np.split(first, groups, 1), np.split(second, groups, 0), strict=True)
        return unit * roundings(case.k // groups) * np.concatenate([input_gradient(*pair) for pair in pairs], 1)
    found = [
        weight_magnitudes(gy, x, case.r, pad, case.dilation)
        for gy, x in zip(np.split(first, groups, 1), np.split(second, groups, 1), strict=True)
    ]
    return unit * roundings(found[0][1]) * np.concatenate([size for size, _ in found])


def operands(case: Conv, primitive: str) -> list[torch.Tensor]:
    problem = native.problem_of(case)
    x, w = normal(case.n, case.c, case.h, case.w, seed=1), normal(case.k, case.c // case.groups, case.r, case.s, seed=2)
    gy = normal(case.n, case.k, problem.p, problem.q, seed=3)
    b = normal(case.c if primitive == "input_gradient" else case.k, seed=4)
    chosen = {"forward": (x, w, b), "input_gradient": (gy, w, b), "weight_gradient": (gy, x)}[primitive]
    return [torch.from_numpy(a).float() for a in chosen]


def config(case: Conv, primitive: str, layout=FLAT, weight_layout=FLAT, threads=1, algorithm="") -> native.Config:
    algorithm = algorithm or ALGORITHMS[case.r]
    return native.Config(primitive, algorithm, torch.float32, layout, weight_layout, threads, bias=True)


@pytest.mark.parametrize("primitive", native.PRIMITIVES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_within_the_bound(case: Conv, primitive: str) -> None:
    inputs = operands(case, primitive)
    exact = [t.double().numpy() for t in inputs]
    want, *bias_gradient = conv_oracle(case, primitive, *exact)
    limit = bound(case, primitive, *exact[:2])
    if primitive != "weight_gradient":
        want = want + exact[2][:, None, None]
        limit = limit + np.abs(exact[2])[:, None, None] * torch.finfo(torch.float32).eps
    for layout, weight_layout in product((FLAT, LAST), repeat=2):
        got, *got_bias = native.run_conv(case, config(case, primitive, layout, weight_layout), *inputs)
        excess = np.abs(got.double().numpy() - want) - limit
        assert excess.max() <= 0, f"{excess.max()} beyond the bound: {layout}, weights {weight_layout}"
        for result, expected in zip(got_bias, bias_gradient, strict=True):
            count = exact[0][:, 0].size
            room = count * torch.finfo(torch.float32).eps * np.abs(exact[0]).sum(axis=(0, 2, 3))
            assert (np.abs(result.double().numpy() - expected) <= room).all()


@pytest.mark.parametrize("primitive", native.PRIMITIVES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits(case: Conv, primitive: str) -> None:
    """For any number of threads, in both layouts, and (not the weight gradient) for a sample alone."""
    inputs = operands(case, primitive)
    want = native.run_conv(case, config(case, primitive), *inputs)
    for layout, threads in product((FLAT, LAST), (1, 2, 3)):
        got = native.run_conv(case, config(case, primitive, layout, layout, threads), *inputs)
        assert torch.equal(got[0], want[0]), f"{threads} threads, {layout}"
    if primitive == "weight_gradient":
        return
    for layout, i in product((FLAT, LAST), {0, case.n - 1}):
        alone = native.run_conv(
            replace(case, n=1), config(case, primitive, layout, layout, 2), inputs[0][i : i + 1], *inputs[1:]
        )
        assert torch.equal(alone[0], want[0][i : i + 1]), f"sample {i} alone, {layout}"


@pytest.mark.parametrize("primitive", native.PRIMITIVES)
@pytest.mark.parametrize(("channels", "taps"), [(64, 3), (512, 3), (64, 5), (256, 5)])
def test_error_of_realistic_layers(channels: int, taps: int, primitive: str) -> None:
    """Results around 1, as in a normalised network: inside assert_close's defaults and 1e-5 of their size."""
    case = Conv("layer", 2, channels, 14, 14, channels, taps, taps, padding=square(taps // 2))
    first, second, *bias = operands(case, primitive)
    terms = 2 * 14 * 14 if primitive == "weight_gradient" else taps**2 * channels
    second = second / terms**0.5
    wants = conv_oracle(case, primitive, first.double().numpy(), second.double().numpy())
    want = torch.from_numpy(wants[0])
    got = native.run_conv(case, replace(config(case, primitive), bias=False), first, second, *bias)[0].double()
    torch.testing.assert_close(got.float(), want.float())
    size = want.square().mean().sqrt()
    assert (got - want).square().mean().sqrt() < 1.2e-6 * size
    assert (got - want).abs().max() < 1.2e-5 * size


# ---- what is not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("primitive", ["forward", "input_gradient"])
@pytest.mark.parametrize("layout", [FLAT, LAST], ids=str)
@pytest.mark.parametrize("taps", [3, 5])
def test_images_that_are_not_finite_are_as_without_winograd(taps: int, layout, primitive: str, value: float) -> None:
    """Where a number spoils its tile, or a transform overflows, the image is that of implicit_gemm; others stay."""
    case = Conv("spoiled", 5, 20, 6, 7, 18, taps, taps, padding=square(taps // 2))
    inputs = operands(case, primitive)
    inputs[1] = inputs[1].clamp(-0.9, 0.9)  # 3e38 stays finite in a convolution
    clean = native.run_conv(case, config(case, primitive, layout, layout), *inputs)[0]
    inputs[0][3, 2, 4, 1] = value
    for threads in (1, 3):
        got = native.run_conv(case, config(case, primitive, layout, layout, threads), *inputs)[0]
        want = native.run_conv(case, config(case, primitive, layout, layout, threads, EXACT), *inputs)[0]
        for i in (0, 1, 2, 4):
            assert torch.equal(got[i], clean[i])
            assert not torch.equal(got[i], want[i])
        torch.testing.assert_close(got[3], want[3], rtol=0, atol=0, equal_nan=True)
        assert bool(want[3].isfinite().all()) == (value == 3e38)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layout", [FLAT, LAST], ids=str)
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("taps", [3, 5])
def test_weight_gradient_that_is_not_finite_is_as_without_winograd(
    taps: int, operand: int, layout, value: float
) -> None:
    case = Conv("spoiled", 2, 20, 6, 7, 18, taps, taps, padding=square(taps // 2))
    inputs = operands(case, "weight_gradient")
    inputs[operand][1, 2, 0, 0] = value
    for threads in (1, 3):
        got = native.run_conv(case, config(case, "weight_gradient", layout, layout, threads), *inputs)
        want = native.run_conv(case, config(case, "weight_gradient", layout, layout, threads, EXACT), *inputs)
        assert not bool(want[0].isfinite().all())
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


# ---- where it is used


def chosen(case: Conv, primitive: str = "forward", dtype=torch.float32, allowed: bool = True) -> str:
    problem = native.problem_of(case, dtype)
    problem.allow_winograd = allowed
    return _C.ConvPlan(problem, primitive, 1).algorithm


def test_plan() -> None:
    for taps, algorithm in ALGORITHMS.items():
        case = Conv("layer", 8, 64, 56, 56, 64, taps, taps, padding=square(taps // 2))
        for primitive in native.PRIMITIVES:
            assert chosen(case, primitive) == algorithm
            assert chosen(case, primitive, allowed=False) == EXACT
            assert chosen(case, primitive, torch.float64) == EXACT
            for other in (replace(case, stride=(2, 2)), replace(case, r=4), replace(case, c=4)):
                assert "winograd" not in chosen(other, primitive)
        for primitive, size in product(("forward", "input_gradient"), (7, 14, 28)):
            small = replace(case, c=256, k=256, h=size, w=size)
            assert chosen(small, primitive) == chosen(replace(small, n=1), primitive)


def test_plan_of_few_channels() -> None:
    few = Conv("few", 8, 16, 28, 28, 32, 3, 3, padding=square(1))
    for primitive in native.PRIMITIVES:
        assert chosen(few, primitive) == "winograd_f4"
        assert chosen(replace(few, c=64, k=128, groups=4), primitive) == "winograd_f4"
        assert chosen(replace(few, dilation=(2, 2), padding=square(2)), primitive) != "winograd_f4"
    square16 = replace(few, k=16)  # as many operations for transforms as for products
    assert chosen(square16) == "winograd_f4"
    assert chosen(square16, "weight_gradient") != "winograd_f4"


def test_allow_winograd() -> None:
    x, w = torch.randn(1, 64, 16, 16), torch.randn(64, 64, 3, 3)

    def listed() -> bool:
        return ALGORITHM in fastconv.algorithms("conv2d", x, w)["forward"]

    fast = F.conv2d(x, w)
    with fastconv.allow_winograd(False):
        assert not listed()
        plain = F.conv2d(x, w)
        transposed = F.conv_transpose2d(x, w)
        with fastconv.force_algorithm(ALGORITHM), pytest.raises(ValueError, match=ALGORITHM):
            F.conv2d(x, w)
        with fastconv.allow_winograd(True):
            assert torch.equal(F.conv2d(x, w), fast)
        assert not listed()
    assert listed()
    with fastconv.force_algorithm(EXACT):
        assert torch.equal(F.conv2d(x, w), plain)
        assert torch.equal(F.conv_transpose2d(x, w), transposed)
    assert not torch.equal(F.conv2d(x, w), plain)
    assert not torch.equal(F.conv_transpose2d(x, w), transposed)
    setting = fastconv.allow_winograd(False)
    try:
        assert torch.equal(F.conv2d(x, w), plain)
    finally:
        setting.__exit__()
    assert torch.equal(F.conv2d(x, w), fast)
    with pytest.raises(TypeError, match="allowed"):
        fastconv.allow_winograd(1)
