"""Small problems in the shape classes of oneDNN's benchdnn: each class is one way in which a kernel can go wrong.

Plain numbers, nothing of torch. Sizes straddle the vector widths (4, 8, 16 floats; 2, 4, 8 doubles) and the kernels'
tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

Pair = tuple[int, int]
Sides = tuple[Pair, Pair]


@dataclass(frozen=True)
class Conv:
    """x [n, c, h, w], w [k, c / groups, r, s]; padding is ((top, bottom), (left, right))."""

    name: str
    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: Pair = (1, 1)
    padding: Sides = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Transposed:
    """x [n, c, h, w], w [c, k / groups, r, s], arguments as conv_transpose2d's."""

    name: str
    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    output_padding: Pair = (0, 0)
    groups: int = 1
    dilation: Pair = (1, 1)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Pool:
    name: str
    n: int
    c: int
    h: int
    w: int
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)  # max pooling only
    ceil_mode: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Adaptive:
    name: str
    n: int
    c: int
    h: int
    w: int
    size: Pair

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Lrn:
    name: str
    shape: tuple[int, ...]
    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    def __str__(self) -> str:
        return self.name


def square(p: int) -> Sides:
    return ((p, p), (p, p))


CONV = [
    # plain
    Conv("plain_3x3", 2, 16, 9, 10, 32, 3, 3, padding=square(1)),
    Conv("plain_5x5", 1, 8, 12, 11, 16, 5, 5),
    Conv("rectangular_kernel", 2, 8, 9, 13, 8, 2, 5, padding=((1, 1), (2, 2))),
    Conv("kernel_covers_input", 3, 6, 5, 5, 20, 5, 5),
    # 1x1
    Conv("pointwise", 2, 32, 7, 7, 48, 1, 1),
    Conv("pointwise_strided", 2, 17, 9, 9, 19, 1, 1, stride=(2, 2)),
    Conv("pointwise_padded", 1, 5, 6, 7, 9, 1, 1, padding=square(1)),
    Conv("pointwise_one_pixel", 5, 33, 1, 1, 35, 1, 1),
    # channel tails
    Conv("tail_c3_k5", 1, 3, 8, 9, 5, 3, 3, padding=square(1)),
    Conv("tail_c17_k15", 2, 17, 7, 6, 15, 3, 3, padding=square(1)),
    Conv("tail_c1_k1", 2, 1, 9, 17, 1, 3, 3),
    Conv("tail_c31_k33", 1, 31, 5, 5, 33, 3, 3, padding=square(1)),
    Conv("deep_reduction", 1, 160, 6, 5, 10, 3, 3, padding=square(1)),
    Conv("many_outputs", 1, 4, 5, 6, 130, 3, 3, padding=square(1)),
    # strided
    Conv("strided_2", 2, 8, 11, 12, 16, 3, 3, stride=(2, 2), padding=square(1)),
    Conv("strided_unequal", 1, 5, 13, 14, 9, 3, 2, stride=(3, 2), padding=((1, 1), (0, 0))),
    Conv("stride_beyond_kernel", 2, 4, 13, 13, 8, 2, 2, stride=(4, 3)),
    Conv("stride_leaves_rows", 1, 3, 12, 12, 4, 3, 3, stride=(5, 5)),
    # dilated
    Conv("dilated_2", 1, 8, 12, 13, 16, 3, 3, padding=square(2), dilation=(2, 2)),
    Conv("dilated_unequal", 2, 5, 11, 15, 6, 3, 3, padding=((3, 3), (1, 1)), dilation=(3, 1)),
    Conv("dilated_strided", 1, 7, 15, 14, 9, 3, 3, stride=(2, 3), padding=square(2), dilation=(2, 3)),
    # small spatial
    Conv("small_1x1_input", 4, 16, 1, 1, 16, 3, 3, padding=square(1)),
    Conv("small_2x3_input", 3, 9, 2, 3, 18, 3, 3, padding=square(1)),
    Conv("one_row", 2, 6, 1, 40, 7, 1, 5, padding=((0, 0), (2, 2))),
    Conv("one_column", 2, 6, 40, 1, 7, 5, 1, padding=((2, 2), (0, 0))),
    # large padding: as large as the kernel and larger, so that some outputs see no input at all
    Conv("padding_is_kernel", 1, 4, 5, 6, 8, 3, 3, padding=square(3)),
    Conv("padding_beyond_kernel", 2, 3, 4, 4, 5, 2, 3, stride=(2, 1), padding=((5, 5), (7, 7))),
    Conv("padding_beyond_input", 1, 2, 1, 2, 3, 2, 2, padding=((4, 4), (9, 9)), dilation=(2, 3)),
    # asymmetric padding
    Conv("asymmetric", 1, 6, 8, 9, 7, 3, 3, padding=((0, 1), (2, 0))),
    Conv("asymmetric_same_even_kernel", 2, 5, 7, 8, 9, 4, 2, padding=((1, 2), (0, 1))),
    Conv("asymmetric_strided", 1, 4, 10, 11, 6, 3, 3, stride=(2, 2), padding=((0, 3), (4, 1))),
    # grouped
    Conv("grouped_2", 2, 8, 8, 7, 12, 3, 3, padding=square(1), groups=2),
    Conv("grouped_4_strided", 1, 16, 9, 9, 32, 3, 3, stride=(2, 2), padding=square(1), groups=4),
    Conv("grouped_tails", 2, 15, 6, 7, 21, 3, 3, padding=square(1), groups=3),
    Conv("grouped_32_resnext", 1, 64, 5, 6, 64, 3, 3, padding=square(1), groups=32),
    Conv("grouped_pointwise", 2, 24, 5, 5, 36, 1, 1, groups=6),
    Conv("grouped_many_inputs", 1, 40, 5, 6, 4, 3, 3, padding=square(1), groups=2),
    Conv("grouped_asymmetric_dilated", 1, 9, 10, 9, 6, 3, 3, padding=((2, 0), (1, 3)), dilation=(2, 1), groups=3),
    # depthwise, and with a multiplier
    Conv("depthwise_3x3", 2, 16, 9, 10, 16, 3, 3, padding=square(1), groups=16),
    Conv("depthwise_5x5_strided", 1, 13, 12, 11, 13, 5, 5, stride=(2, 2), padding=square(2), groups=13),
    Conv("depthwise_7x7", 1, 9, 14, 35, 9, 7, 7, padding=square(3), groups=9),
    Conv("depthwise_dilated", 1, 17, 11, 12, 17, 3, 3, padding=square(2), dilation=(2, 2), groups=17),
    Conv("depthwise_tail_33", 1, 33, 6, 18, 33, 3, 3, padding=square(1), groups=33),
    Conv("depthwise_large_padding", 2, 5, 4, 5, 5, 3, 3, padding=square(4), groups=5),
    Conv("depthwise_asymmetric", 1, 8, 9, 8, 8, 2, 4, padding=((0, 1), (1, 2)), groups=8),
    Conv("depthwise_rectangular_strides", 1, 6, 14, 15, 6, 3, 5, stride=(1, 2), padding=((1, 1), (2, 2)), groups=6),
    Conv("multiplier_2", 2, 9, 8, 7, 18, 3, 3, padding=square(1), groups=9),
    Conv("multiplier_3_strided", 1, 5, 9, 9, 15, 3, 3, stride=(2, 2), padding=square(1), groups=5),
    Conv("multiplier_16", 1, 3, 6, 8, 48, 3, 3, padding=square(1), groups=3),
    # one dimension
    Conv("conv1d", 2, 12, 1, 50, 16, 1, 3, padding=((0, 0), (1, 1))),
    Conv("conv1d_strided_dilated", 2, 5, 1, 61, 7, 1, 4, stride=(1, 3), padding=((0, 0), (2, 2)), dilation=(1, 2)),
    Conv("conv1d_depthwise", 1, 20, 1, 33, 20, 1, 4, padding=((0, 0), (3, 0)), groups=20),
    # stem
    Conv("stem_7x7", 1, 3, 30, 31, 16, 7, 7, stride=(2, 2), padding=square(3)),
    Conv("stem_11x11", 1, 3, 35, 35, 8, 11, 11, stride=(4, 4), padding=square(2)),
    Conv("stem_grey", 2, 1, 32, 32, 6, 5, 5),
    Conv("stem_3x3", 1, 3, 17, 16, 32, 3, 3, stride=(2, 2), padding=square(1)),
    # enough work for three threads in one image
    Conv("work_pointwise", 1, 40, 13, 14, 70, 1, 1),
    Conv("work_grouped", 1, 24, 20, 21, 36, 3, 3, padding=square(1), groups=6),
    Conv("work_depthwise", 1, 25, 23, 41, 25, 3, 3, padding=square(1), groups=25),
    Conv("work_depthwise_strided", 1, 40, 33, 32, 40, 5, 5, stride=(2, 2), padding=square(2), groups=40),
    Conv("work_one_channel", 1, 1, 64, 65, 5, 5, 5, padding=square(2)),
    Conv("work_conv1d", 1, 20, 1, 200, 24, 1, 5, padding=((0, 0), (2, 2))),
    # regressions
    Conv("lenet_c3", 2, 6, 14, 14, 16, 5, 5),
    Conv("batch_7", 7, 4, 6, 6, 8, 3, 3, padding=square(1)),
    Conv("wide_row", 1, 4, 3, 70, 8, 3, 3, padding=square(1)),
]

TRANSPOSED = [
    Transposed("plain", 2, 8, 5, 6, 12, 3, 3),
    Transposed("upsampling_2", 1, 16, 6, 5, 8, 4, 4, stride=(2, 2), padding=(1, 1)),
    Transposed("output_padding", 2, 5, 4, 6, 7, 3, 3, (2, 3), (1, 1), (1, 2)),
    Transposed("unequal", 1, 7, 5, 4, 6, 2, 5, (3, 2), (0, 2), (2, 0)),
    Transposed("dilated", 1, 6, 5, 5, 9, 3, 3, (2, 2), (1, 2), (1, 0), 1, (3, 2)),
    Transposed("grouped", 2, 8, 4, 5, 12, 3, 3, (2, 2), (1, 1), (1, 1), 4),
    Transposed("depthwise", 1, 10, 5, 6, 10, 3, 3, (2, 2), (1, 1), (1, 1), 10),
    Transposed("pointwise", 2, 9, 4, 4, 17, 1, 1),
    Transposed("stride_beyond_kernel", 1, 4, 4, 5, 6, 2, 2, (4, 3), (0, 0), (3, 1)),
    Transposed("padding_crops", 1, 3, 6, 6, 4, 3, 3, (1, 1), (3, 2)),
    Transposed("work", 1, 20, 9, 8, 24, 4, 4, stride=(2, 2), padding=(1, 1)),
    Transposed("conv_transpose1d", 2, 6, 1, 20, 5, 1, 4, (1, 2), (0, 1), (0, 1)),
]

POOL = [
    Pool("2x2", 2, 5, 8, 10, (2, 2), (2, 2)),
    Pool("2x2_odd_input", 1, 3, 9, 11, (2, 2), (2, 2)),
    Pool("2x2_ceil", 1, 17, 9, 11, (2, 2), (2, 2), ceil_mode=True),
    Pool("3x3_overlap", 2, 8, 12, 13, (3, 3), (2, 2), (1, 1)),
    Pool("3x3_stride_1", 1, 4, 9, 20, (3, 3), (1, 1), (1, 1)),
    Pool("3x3_ceil_padded", 1, 6, 14, 14, (3, 3), (2, 2), (1, 1), ceil_mode=True),
    Pool("googlenet_ceil", 1, 9, 15, 15, (3, 3), (2, 2), ceil_mode=True),
    Pool("unequal", 2, 3, 13, 17, (2, 5), (3, 2), (1, 2)),
    Pool("stride_beyond_kernel", 1, 4, 13, 14, (2, 2), (4, 3)),
    Pool("stride_beyond_kernel_ceil", 1, 4, 12, 13, (1, 2), (5, 4), (0, 1), ceil_mode=True),
    Pool("global", 3, 10, 7, 7, (7, 7), (7, 7)),
    Pool("one_pixel", 2, 33, 1, 1, (1, 1), (1, 1)),
    Pool("large_window", 1, 2, 20, 21, (17, 16), (3, 2), (8, 8)),
    Pool("one_dimension", 2, 5, 1, 40, (1, 3), (1, 2), (0, 1)),
    Pool("dilated", 1, 5, 12, 14, (3, 3), (2, 1), (1, 1), (2, 3)),
    Pool("dilated_ceil", 1, 3, 13, 13, (2, 3), (3, 2), (1, 1), (3, 2), ceil_mode=True),
    Pool("work_2x2", 1, 24, 64, 50, (2, 2), (2, 2)),
    Pool("work_3x3", 2, 30, 41, 39, (3, 3), (2, 2), (1, 1)),
    Pool("wide_row", 1, 2, 5, 70, (3, 3), (2, 2), (1, 1)),
    Pool("many_channels", 1, 65, 6, 5, (3, 2), (2, 2)),
]

ADAPTIVE = [
    Adaptive("global", 2, 10, 7, 6, (1, 1)),
    Adaptive("even", 1, 5, 12, 8, (3, 4)),
    Adaptive("uneven", 2, 17, 11, 13, (4, 5)),
    Adaptive("identity", 1, 3, 5, 6, (5, 6)),
    Adaptive("enlarging", 1, 4, 3, 5, (7, 8)),
    Adaptive("work", 2, 64, 33, 31, (6, 7)),
    Adaptive("one_dimension", 2, 6, 1, 23, (1, 9)),
]

LRN = [
    Lrn("alexnet", (2, 20, 5, 6), 5, 1e-4, 0.75, 2.0),
    Lrn("strong", (1, 17, 4, 9), 5, 1.0, 0.75, 1.0),
    Lrn("even_size", (2, 9, 7), 4, 0.5, 0.5, 1.0),
    Lrn("size_1", (1, 5, 3, 3), 1, 0.3, 1.0, 0.5),
    Lrn("size_beyond_channels", (2, 3, 4, 5), 9, 0.7, 0.75, 1.5),
    Lrn("three_dimensions", (1, 6, 2, 3, 4), 3, 0.2, 2.0, 1.0),
    Lrn("odd_beta", (1, 8, 33), 5, 0.1, 0.6, 1.0),
    Lrn("many_channels", (1, 96, 3, 5), 5),
    Lrn("work", (2, 64, 31, 30), 5, 1e-2),
]
