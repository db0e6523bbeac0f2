"""Bit for bit against the oracle: on small integers every partial sum is exact, whatever its order."""

from __future__ import annotations

import cases
import native
import numpy as np
import oracle
import pytest
import torch


def integers(*shape: int, seed: int) -> np.ndarray:
    """Small integers other than zero."""
    return np.random.default_rng(seed).choice([-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0], shape)


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
        got = native.run_conv(case, config, *tensors)
        for result, want in zip(got, wants, strict=False):
            bias = operands[2][:, None, None] if config.bias and primitive != "weight_gradient" else 0.0
            expected = torch.from_numpy(want + bias).to(config.dtype)
            assert torch.equal(result, expected), f"{config}: {mismatch(result, expected)}"


def mismatch(result: torch.Tensor, expected: torch.Tensor) -> str:
    wrong = (result != expected).nonzero()
    at = tuple(wrong[0].tolist())
    return (
        f"{len(wrong)} of {result.numel()} differ, first at {at}: {result[at].item()}, expected {expected[at].item()}"
    )
