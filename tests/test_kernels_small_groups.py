"""Bit for bit against the oracle: the fast paths of the kernels for few channels a group, each of their branches."""

from __future__ import annotations

from dataclasses import replace

import native
import pytest
import torch
from cases import Conv, square
from test_exact import conv_operands, conv_oracle, mismatch

ALGORITHMS = ("depthwise", "direct", "grouped")


def depthwise(name: str, c: int, h: int, w: int, r: int, s: int, multiplier: int = 1, n: int = 2, **options) -> Conv:
    options.setdefault("padding", ((r // 2, r // 2), (s // 2, s // 2)))
    return Conv(f"depthwise_{name}_{h}x{w}", n, c, h, w, c * multiplier, r, s, groups=c, **options)


def grouped(name: str, groups: int, c: int, k: int, h: int, w: int, r: int, s: int, n: int = 2, **options) -> Conv:
    """c and k channels in each group."""
    options.setdefault("padding", ((r // 2, r // 2), (s // 2, s // 2)))
    return Conv(f"grouped_{name}_{h}x{w}", n, groups * c, h, w, groups * k, r, s, groups=groups, **options)


DEPTHWISE = [
    # Every kernel height that has a strip kernel, and others; 4, 7 and 8 rows a strip; sizes around 4, 8, 16 lanes.
    *(
        depthwise(f"{r}x{s}_c{c}", c, h, w, r, s)
        for r, s, c, h, w in [
            (1, 1, 5, 3, 3),
            (1, 5, 17, 9, 16),
            (2, 2, 8, 8, 15),
            (3, 3, 3, 4, 7),
            (3, 3, 16, 7, 8),
            (3, 3, 17, 8, 9),
            (3, 3, 130, 5, 3),
            (3, 3, 33, 14, 17),
            (3, 3, 5, 29, 33),
            (4, 3, 9, 9, 12),
            (5, 5, 24, 8, 16),
            (5, 5, 7, 14, 14),
            (6, 2, 4, 9, 9),
            (7, 7, 20, 8, 24),
            (7, 7, 5, 14, 7),
            (9, 3, 6, 11, 20),
            (3, 11, 4, 6, 31),
        ]
    ),
    # A plane that is worked on in bands.
    depthwise("bands", 2, 150, 70, 3, 3, n=1),
    depthwise("bands_strided", 2, 151, 71, 5, 3, n=1, stride=(2, 2)),
    # Strides: shared rows at 2, none above; odd and even sizes: the phases of an input gradient differ in length.
    *(
        depthwise(f"{r}x{r}_stride_{a}_{b}", 9, h, w, r, r, stride=(a, b))
        for r, a, b, h, w in [
            (3, 2, 2, 9, 17),
            (3, 2, 2, 16, 34),
            (5, 2, 2, 15, 16),
            (7, 2, 2, 14, 33),
            (3, 3, 2, 13, 19),
            (2, 2, 3, 8, 29),
            (3, 1, 2, 8, 9),
            (1, 2, 2, 5, 9),
            (2, 4, 5, 13, 16),
        ]
    ),
    # Dilation: rows shared between outputs a dilation apart, unless the dilation is as large as the output.
    depthwise("dilated_2", 9, 15, 18, 3, 3, dilation=(2, 2), padding=square(2)),
    depthwise("dilated_3_1", 5, 20, 9, 5, 3, dilation=(3, 1), padding=((6, 6), (1, 1))),
    depthwise("dilated_beyond_output", 4, 9, 9, 3, 3, dilation=(4, 4)),
    depthwise("dilated_far", 3, 4, 5, 3, 3, dilation=(7, 9), padding=((7, 7), (9, 9))),
    depthwise("dilated_strided", 6, 15, 17, 3, 3, stride=(2, 2), dilation=(2, 2), padding=square(2)),
    depthwise("dilated_3_strided_2", 6, 15, 17, 3, 3, stride=(2, 2), dilation=(3, 3), padding=square(3)),
    # Padding: none, as large as the kernel, beyond it, unequal.
    depthwise("valid", 9, 8, 17, 3, 3, padding=square(0)),
    depthwise("padding_is_kernel", 9, 5, 6, 3, 3, padding=square(3)),
    depthwise("padding_beyond_kernel", 4, 4, 5, 3, 2, padding=((6, 5), (11, 9)), stride=(2, 1)),
    depthwise("padding_unequal", 8, 7, 9, 3, 3, padding=((0, 2), (2, 0))),
    # Several outputs of each channel.
    depthwise("multiplier_2", 9, 8, 10, 3, 3, 2),
    depthwise("multiplier_2_many", 70, 4, 5, 3, 3, 2),
    depthwise("multiplier_3_strided", 5, 9, 11, 3, 3, 3, stride=(2, 2)),
    depthwise("multiplier_4_dilated", 3, 9, 18, 5, 3, 4, dilation=(2, 2), padding=((4, 4), (2, 2))),
    # One axis.
    depthwise("row", 6, 1, 75, 1, 7, n=3),
    depthwise("row_strided", 9, 1, 40, 1, 4, stride=(1, 2)),
    depthwise("column", 6, 75, 1, 7, 1, n=3),
    depthwise("long_row", 2, 1, 300, 1, 31, n=1, padding=((0, 0), (0, 0))),
]

DIRECT = [
    # Every split of a group's channels into tiles, and widths around the lanes.
    *(
        grouped(f"{c}_to_{k}", 3, c, k, h, w, 3, 3)
        for c, k, h, w in [
            (2, 1, 4, 5),
            (1, 2, 5, 9),
            (3, 3, 5, 8),
            (4, 4, 7, 14),
            (2, 5, 6, 15),
            (5, 6, 3, 16),
            (3, 7, 4, 17),
            (8, 8, 5, 7),
            (7, 9, 3, 11),
            (10, 11, 4, 4),
            (16, 16, 4, 6),
            (2, 30, 3, 3),
        ]
    ),
    # So many positions that every length of tile occurs, and bands.
    *(grouped(f"width_{w}", 1, 2, 3, 3, w, 3, 3, n=1) for w in (21, 29, 37, 45, 53, 61, 90)),
    grouped("bands", 2, 4, 4, 70, 60, 3, 3, n=1),
    grouped("bands_strided", 2, 4, 4, 130, 61, 3, 3, n=1, stride=(2, 2)),
    # Bundles of groups that do not divide their number.
    grouped("bundle", 7, 4, 4, 5, 6, 3, 3),
    grouped("bundle_unequal", 5, 3, 8, 5, 6, 3, 3),
    *(
        grouped(f"{r}x{s}_stride_{a}_{b}", 3, 3, 5, h, w, r, s, stride=(a, b))
        for r, s, a, b, h, w in [
            (3, 3, 2, 2, 9, 17),
            (3, 3, 2, 2, 10, 34),
            (5, 5, 2, 2, 13, 16),
            (2, 3, 3, 2, 11, 13),
            (1, 1, 2, 2, 7, 9),
            (2, 2, 4, 3, 13, 13),
            (11, 7, 4, 4, 31, 30),
        ]
    ),
    grouped("dilated", 2, 3, 4, 9, 12, 3, 3, dilation=(2, 3), padding=((2, 2), (3, 3))),
    grouped("dilated_strided", 2, 3, 4, 11, 13, 3, 3, stride=(2, 3), dilation=(3, 2), padding=square(3)),
    grouped("padding_beyond_kernel", 2, 4, 3, 4, 5, 2, 3, padding=((3, 5), (7, 9))),
    grouped("valid", 2, 4, 4, 6, 18, 3, 3, padding=square(0)),
    grouped("row", 4, 4, 4, 1, 70, 1, 5),
    grouped("column", 4, 4, 4, 70, 1, 5, 1),
    # Dense, and small: LeNet's.
    Conv("lenet_c1", 5, 1, 32, 32, 6, 5, 5),
    Conv("lenet_c3", 5, 6, 14, 14, 16, 5, 5),
    Conv("lenet_c5", 3, 16, 5, 5, 32, 5, 5),
]

GROUPED = [
    # Packs of groups whose channels fill a vector, the last one not, and every way in which taps share an input.
    *(
        grouped(f"packs_{groups}_of_{c}_taps_{s}_stride_{stride}", groups, c, c, 5, 11, 2, s, stride=(1, stride))
        for groups, c, s, stride in [
            (9, 2, 3, 1),
            (5, 4, 3, 1),
            (3, 8, 3, 1),
            (13, 2, 3, 2),
            (7, 4, 3, 2),
            (3, 8, 3, 2),
            (5, 2, 2, 1),
            (5, 4, 4, 1),
            (3, 8, 2, 1),
            (3, 4, 5, 1),
            (5, 4, 6, 2),
            (3, 4, 3, 3),
            (3, 2, 1, 2),
        ]
    ),
    # Every length of a tile, of one vector and of two.
    *(grouped(f"tile_{w}", 2, 8, 8, 2, w, 2, 3, n=1) for w in (*range(1, 14), 25)),
    *(grouped(f"wide_tile_{w}", 1, 16, 16, 2, w, 2, 3, n=1) for w in (*range(1, 8), 15)),
    grouped("packs_dilated", 5, 4, 4, 7, 9, 3, 3, dilation=(1, 2), padding=((1, 1), (2, 2))),
    grouped("bands", 2, 8, 8, 70, 33, 3, 3, n=1),
]

SMALL_GROUPS = DEPTHWISE + DIRECT + GROUPED


def configurations(case: Conv, primitive: str, dtypes=(torch.float32, torch.float64), threads=(1, 3)) -> list:
    return [c for c in native.configurations(case, primitive, dtypes, threads) if c.algorithm in ALGORITHMS]


def check(case: Conv, primitive: str) -> int:
    operands = conv_operands(case, primitive)
    wants = conv_oracle(case, primitive, *operands)
    tensors = [torch.from_numpy(a) for a in operands]
    configs = configurations(case, primitive)
    for config in configs:
        for result, want in zip(native.run_conv(case, config, *tensors), wants, strict=False):
            bias = operands[2][:, None, None] if config.bias and primitive != "weight_gradient" else 0.0
            expected = torch.from_numpy(want + bias).to(config.dtype)
            assert torch.equal(result, expected), f"{config}: {mismatch(result, expected)}"
    return len(configs)


@pytest.mark.parametrize("primitive", native.PRIMITIVES)
@pytest.mark.parametrize("case", SMALL_GROUPS, ids=str)
def test_small_groups(case: Conv, primitive: str) -> None:
    assert check(case, primitive) > 0


SAME_BITS = [
    depthwise("3x3", 17, 15, 19, 3, 3, n=5),
    depthwise("5x5_strided", 9, 15, 18, 5, 5, n=5, stride=(2, 2)),
    depthwise("multiplier_2", 5, 9, 9, 3, 3, 2, n=5),
    grouped("4", 6, 4, 4, 13, 15, 3, 3, n=5),
    grouped("5_to_7_strided", 2, 5, 7, 12, 13, 3, 3, n=5, stride=(2, 2)),
    grouped("8", 3, 8, 8, 13, 15, 3, 3, n=5),
    grouped("16", 2, 16, 16, 9, 10, 3, 3, n=5),
]


def random_operands(case: Conv, primitive: str) -> list[torch.Tensor]:
    return [torch.from_numpy(a) + torch.randn(a.shape, dtype=torch.float64) for a in conv_operands(case, primitive)]


@pytest.mark.parametrize("primitive", native.PRIMITIVES)
@pytest.mark.parametrize("case", SAME_BITS, ids=str)
def test_same_bits_for_any_number_of_threads(case: Conv, primitive: str) -> None:
    operands = random_operands(case, primitive)
    for config in configurations(case, primitive, threads=(1,)):
        alone = native.run_conv(case, config, *operands)
        for threads in (2, 3):
            together = native.run_conv(case, replace(config, threads=threads), *operands)
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True)), str(config)


@pytest.mark.parametrize("primitive", ["forward", "input_gradient"])
@pytest.mark.parametrize("case", SAME_BITS, ids=str)
def test_same_bits_alone_and_in_a_batch(case: Conv, primitive: str) -> None:
    operands = random_operands(case, primitive)
    one = replace(case, n=1)
    for config in configurations(case, primitive, threads=(2,)):
        (batch,) = native.run_conv(case, config, *operands)
        for i in (0, 3):
            (alone,) = native.run_conv(one, config, operands[0][i : i + 1], *operands[1:])
            assert torch.equal(alone[0], batch[i]), str(config)
