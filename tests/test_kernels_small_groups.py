"""Bit for bit against the oracle: the fast paths of the kernels for few channels a group, each of their branches."""

from __future__ import annotations

import native
import pytest
import torch
from cases import Conv
from test_exact import conv_operands, conv_oracle, mismatch

ALGORITHMS = ("depthwise", "direct")


def depthwise(name: str, c: int, h: int, w: int, r: int, s: int, multiplier: int = 1, n: int = 2, **options) -> Conv:
    return Conv(f"depthwise_{name}", n, c, h, w, c * multiplier, r, s, groups=c, **options)


DEPTHWISE = [
    # every kernel height of the strip kernels, rows for tiles of 4, 7 and 8, widths around 4, 8 and 16 lanes
    *(
        depthwise(f"{r}x{s}_{h}x{w}", 17, h, w, r, s, padding=((r // 2, r // 2), (s // 2, s // 2)))
        for r, s, h, w in [
            (1, 1, 3, 3),
            (1, 5, 9, 16),
            (2, 2, 8, 15),
            (3, 3, 4, 7),
            (3, 3, 7, 8),
            (3, 3, 8, 9),
            (3, 3, 14, 17),
            (3, 3, 29, 33),
            (4, 3, 9, 12),
            (5, 5, 8, 16),
            (5, 5, 14, 14),
            (6, 2, 9, 9),
            (7, 7, 8, 24),
            (7, 7, 14, 7),
            (9, 3, 11, 20),
        ]
    ),
]

SMALL_GROUPS = DEPTHWISE


def check(case: Conv, primitive: str, dtypes=(torch.float32, torch.float64), threads=(1, 2, 3)) -> int:
    operands = conv_operands(case, primitive)
    wants = conv_oracle(case, primitive, *operands)
    tensors = [torch.from_numpy(a) for a in operands]
    checked = 0
    for config in native.configurations(case, primitive, dtypes, threads):
        if config.algorithm not in ALGORITHMS:
            continue
        checked += 1
        for result, want in zip(native.run_conv(case, config, *tensors), wants, strict=False):
            bias = operands[2][:, None, None] if config.bias and primitive != "weight_gradient" else 0.0
            expected = torch.from_numpy(want + bias).to(config.dtype)
            assert torch.equal(result, expected), f"{config}: {mismatch(result, expected)}"
    return checked


@pytest.mark.parametrize("primitive", native.PRIMITIVES)
@pytest.mark.parametrize("case", SMALL_GROUPS, ids=str)
def test_small_groups(case: Conv, primitive: str) -> None:
    assert check(case, primitive) > 0
