"""The dense kernels where their blocks end: bit for bit against the oracle, however work is shared.

`cases.CONV` holds small problems; these have several blocks of pixels, of output channels and of the
reduction, and most are large enough for several threads.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import native
import numpy as np
import pytest
import torch
from cases import Conv, square
from test_exact import conv_operands, conv_oracle, mismatch

ALGORITHM = "implicit_gemm"

DENSE = [
    # several blocks of pixels (192 in NCHW, 96 in NHWC), whose vectors cross rows and images
    Conv("many_pixels", 11, 5, 17, 19, 7, 3, 3, padding=square(1)),
    Conv("many_tiny_images", 560, 6, 2, 2, 9, 3, 3, padding=square(1)),
    Conv("narrow_rows", 18, 5, 90, 3, 8, 3, 2, padding=((1, 1), (0, 1))),
    Conv("long_row", 1, 3, 1, 450, 5, 1, 7, padding=((0, 0), (3, 3))),
    Conv("valid_rows", 2, 9, 12, 13, 8, 3, 5),
    # several blocks of output channels (192 in NCHW, 384 in NHWC)
    Conv("many_outputs", 2, 11, 5, 5, 403, 1, 1),
    Conv("many_outputs_grouped", 1, 16, 6, 7, 440, 3, 3, padding=square(1), groups=2),
    # several chunks of the reduction (256), cut inside a channel or a tap
    Conv("chunks", 2, 75, 9, 10, 21, 3, 3, padding=square(1)),
    Conv("chunks_pointwise", 4, 700, 6, 6, 18, 1, 1),
    Conv("kernel_beyond_a_chunk", 1, 2, 23, 24, 5, 17, 18, padding=square(4)),
    Conv("chunks_strided", 2, 70, 11, 13, 20, 3, 3, stride=(2, 2), padding=square(1)),
    # few channels: a row of the kernel is one run in NHWC, copied where it crosses the padding
    Conv("stem_7x7", 2, 3, 30, 31, 20, 7, 7, stride=(2, 2), padding=square(3)),
    Conv("stem_11x11", 3, 3, 39, 39, 18, 11, 11, stride=(4, 4)),
    Conv("stem_wide_padding", 8, 4, 6, 5, 17, 3, 9, padding=((1, 1), (8, 8))),
    Conv("stem_dilated", 1, 3, 14, 15, 17, 3, 3, padding=square(2), dilation=(2, 2)),
    Conv("stem_patches", 2, 3, 16, 24, 40, 8, 8, stride=(8, 8)),
    Conv("stem_cropped", 2, 6, 31, 34, 10, 3, 4, stride=(2, 3), padding=((-1, 2), (1, -2)), groups=2),
    Conv("eight_channels", 4, 8, 15, 9, 33, 3, 3, padding=square(1)),
    # phases of the input gradient: of unequal sizes, without taps, of one dilated tap
    Conv("phases", 3, 12, 19, 18, 26, 4, 4, stride=(2, 2), padding=square(1)),
    Conv("phases_3", 6, 20, 17, 16, 13, 3, 4, stride=(3, 2), padding=square(2)),
    Conv("phases_without_taps", 2, 7, 13, 14, 9, 1, 2, stride=(3, 4)),
    Conv("phases_dilated", 1, 9, 21, 20, 8, 3, 3, stride=(2, 2), padding=square(2), dilation=(2, 3)),
    # weight gradient: many chunks of pixels (256), in slices, and more than one block of the weight (192)
    Conv("slices", 8, 4, 30, 31, 6, 3, 3, padding=square(1)),
    Conv("weight_blocks", 2, 50, 17, 18, 40, 3, 3, padding=square(1)),
    Conv("one_weight", 5, 1, 40, 41, 1, 1, 1),
]


# Few output channels, for a tile of at most four; bands of rows, chunks of input channels.
NARROW = {
    "forward": [
        Conv("one_output", 2, 70, 90, 31, 1, 5, 5, padding=square(2)),
        Conv("two_outputs", 3, 9, 20, 21, 2, 3, 2, padding=((0, 1), (2, 0))),
        Conv("three_outputs", 1, 300, 9, 8, 3, 3, 3, padding=square(1)),
        Conv("four_outputs", 2, 40, 61, 60, 4, 4, 3, padding=square(3)),
        Conv("five_outputs", 2, 33, 14, 15, 5, 3, 3, padding=square(2), dilation=(2, 3)),
        Conv("eleven_outputs", 2, 18, 10, 17, 11, 1, 7, padding=((0, 0), (3, 3))),
        Conv("groups", 2, 30, 12, 9, 14, 3, 3, padding=((-1, 2), (1, -2)), groups=2),
    ],
    "input_gradient": [
        Conv("one_input", 2, 1, 120, 31, 70, 5, 5, stride=(3, 2), padding=square(2)),
        Conv("two_inputs", 3, 2, 20, 21, 9, 3, 2, stride=(1, 2), padding=((0, 1), (2, 0))),
        Conv("three_inputs", 2, 3, 95, 75, 40, 11, 11, stride=(4, 4)),
        Conv("three_inputs_padded", 2, 3, 60, 75, 64, 7, 7, stride=(2, 2), padding=square(3)),
        Conv("four_inputs", 2, 4, 21, 20, 19, 3, 3, stride=(2, 3), padding=square(2), dilation=(2, 2)),
        Conv("thirteen_inputs", 2, 13, 15, 17, 33, 3, 3, padding=square(1)),
        Conv("without_taps", 2, 5, 13, 14, 9, 1, 2, stride=(3, 4)),
        Conv("stride_beyond_image", 1, 3, 4, 3, 6, 2, 2, stride=(9, 9)),
        Conv("groups", 2, 6, 19, 18, 34, 4, 4, stride=(2, 2), padding=square(1), groups=2),
    ],
}
PROBLEMS = [pytest.param(ALGORITHM, p, case, id=f"{case}-{p}") for case, p in product(DENSE, native.PRIMITIVES)]
PROBLEMS += [pytest.param("narrow", p, case, id=f"narrow-{case}-{p}") for p, cases in NARROW.items() for case in cases]


def configurations(
    algorithm: str, primitive: str, dtypes=(torch.float32, torch.float64), threads=(1, 3)
) -> list[native.Config]:
    """Every layout of images and weights, with a bias and, on several threads, without."""
    return [
        native.Config(primitive, algorithm, dtype, layout, weight_layout, t, bias=t == 1)
        for dtype, layout, weight_layout, t in product(dtypes, native.LAYOUTS, native.LAYOUTS, threads)
    ]


@pytest.mark.parametrize(("algorithm", "primitive", "case"), PROBLEMS)
def test_exact(algorithm: str, primitive: str, case: Conv) -> None:
    operands = conv_operands(case, primitive)
    wants = conv_oracle(case, primitive, *operands)
    assert all(np.abs(want).max() < 2**22 for want in wants)
    tensors = [torch.from_numpy(a) for a in operands]
    for config in configurations(algorithm, primitive):
        for result, want in zip(native.run_conv(case, config, *tensors), wants, strict=False):
            bias = operands[2][:, None, None] if config.bias and primitive != "weight_gradient" else 0.0
            expected = torch.from_numpy(want + bias).to(config.dtype)
            assert torch.equal(result, expected), f"{config}: {mismatch(result, expected)}"


@pytest.mark.parametrize(("algorithm", "primitive", "case"), PROBLEMS)
def test_same_bits(algorithm: str, primitive: str, case: Conv) -> None:
    """Random numbers: the order of a sum depends neither on the threads nor on the rest of the batch."""
    generator = np.random.default_rng(5)
    inputs = [torch.from_numpy(generator.standard_normal(a.shape)) for a in conv_operands(case, primitive)]
    for config in configurations(algorithm, primitive, (torch.float32,), (1,)):
        want = native.run_conv(case, config, *inputs)
        for threads in (2, 3):
            for a, b in zip(native.run_conv(case, replace(config, threads=threads), *inputs), want, strict=True):
                assert torch.equal(a, b), f"{threads} threads: {config}"
        if primitive != "weight_gradient":
            alone = native.run_conv(replace(case, n=1), config, inputs[0][-1:], *inputs[1:])[0]
            assert torch.equal(alone, want[0][-1:]), f"a sample alone: {config}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", native.LAYOUTS, ids=str)
def test_half_is_rounded_once(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """A 16-bit result is the float32 result of the same operands, rounded; NaN and infinity come through."""
    case = Conv("half", 2, 20, 9, 11, 17, 3, 3, padding=square(1))
    generator = np.random.default_rng(6)
    for primitive in native.PRIMITIVES:
        inputs = [torch.from_numpy(generator.standard_normal(a.shape)) for a in conv_operands(case, primitive)]
        inputs[0][0, 0, 0, 0], inputs[0][1, 1, 4, 4] = float("nan"), float("inf")
        inputs = [t.to(dtype).float() for t in inputs]
        config = native.Config(primitive, ALGORITHM, dtype, layout, layout, threads=2, bias=True)
        wide = native.run_conv(case, replace(config, dtype=torch.float32), *inputs)
        for got, want in zip(native.run_conv(case, config, *inputs), wide, strict=True):
            assert bool(got.isnan().any())
            assert bool(got.isinf().any())
            assert torch.equal(got.nan_to_num(1.5), want.to(dtype).nan_to_num(1.5))


def test_plan_of_narrow() -> None:
    """Gradients of images in colour, and what ends in an image; neither threads nor the batch matter."""
    stem = Conv("stem", 8, 3, 64, 64, 40, 7, 7, stride=(2, 2), padding=square(3))
    last = Conv("last", 8, 64, 32, 32, 3, 3, 3, padding=square(1))
    for layout, n, threads in product(native.LAYOUTS, (1, 8), (1, 4)):
        for case, primitive in ((stem, "input_gradient"), (last, "forward")):
            assert native.plan(replace(case, n=n), primitive, layout, threads).algorithm == "narrow"
        assert native.plan(replace(stem, n=n, c=13), "input_gradient", layout, threads).algorithm == ALGORITHM
        assert native.plan(replace(last, n=n, stride=(2, 2)), "forward", layout, threads).algorithm == ALGORITHM
        assert (
            native.plan(replace(last, n=n, r=1, s=1, padding=square(0)), "forward", layout, threads).algorithm
            == ALGORITHM
        )
