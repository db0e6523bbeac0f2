"""Same input, same bits: for any number of threads, run after run, and for a sample alone or inside a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import backends
import cases
import native
import numpy as np
import pytest
import torch
from tensors import DTYPES, channels_last, contiguous, normal

from fastconv import functional as F


@dataclass(frozen=True)
class Operator:
    """A function of an image batch and of parameters, on random numbers."""

    name: str
    shape: tuple[int, ...]
    function: Callable[..., torch.Tensor]
    parameters: tuple[tuple[int, ...], ...] = ()
    small: bool = False

    @property
    def simulated_cost(self) -> float:
        """As a part of what the simulation is given to do (backends.py)."""
        return 0 if self.small else 2

    def __str__(self) -> str:
        return self.name


def conv(name: str, x: tuple[int, ...], w: tuple[int, ...], small: bool = False, **options) -> Operator:
    function = F.conv1d if len(w) == 3 else F.conv2d
    return Operator(name, x, lambda x, w, b: function(x, w, b, **options), (w, w[:1]), small)


def conv_transpose(name: str, x: tuple[int, ...], w: tuple[int, ...], groups: int = 1, **options) -> Operator:
    function = F.conv_transpose1d if len(w) == 3 else F.conv_transpose2d
    parameters = (w, (w[1] * groups,))
    return Operator(name, x, lambda x, w, b: function(x, w, b, groups=groups, **options), parameters)


OPERATORS = [
    conv("conv_3x3", (5, 16, 15, 17), (20, 16, 3, 3), padding=1),
    conv("conv_5x5_strided", (5, 9, 21, 20), (24, 9, 5, 5), stride=2, padding=2),
    conv("conv_1x1", (5, 64, 9, 8), (72, 64, 1, 1)),
    conv("conv_1x1_strided", (5, 33, 11, 12), (40, 33, 1, 1), stride=2),
    conv("conv_stem", (4, 3, 32, 33), (16, 3, 7, 7), stride=2, padding=3),
    conv("conv_one_channel", (6, 1, 28, 28), (6, 1, 5, 5), padding=2),
    conv("conv_small_spatial", (7, 96, 3, 3), (64, 96, 3, 3), padding=1),
    conv("conv_dilated", (3, 12, 19, 18), (14, 12, 3, 3), dilation=3, padding=3),
    conv("conv_grouped", (4, 24, 14, 13), (36, 6, 3, 3), groups=4, padding=1),
    conv("conv_resnext", (3, 64, 14, 14), (64, 2, 3, 3), groups=32, padding=1),
    conv("conv_depthwise", (4, 35, 19, 18), (35, 1, 3, 3), groups=35, padding=1),
    conv("conv_depthwise_strided", (4, 20, 21, 22), (20, 1, 5, 5), groups=20, padding=2, stride=2),
    conv("conv_multiplier", (4, 12, 15, 14), (24, 1, 3, 3), groups=12, padding=1),
    conv("conv1d", (5, 24, 90), (32, 24, 5), padding=2),
    conv_transpose("conv_transpose", (5, 24, 9, 10), (24, 20, 4, 4), stride=2, padding=1),
    conv_transpose("conv_transpose_grouped", (4, 24, 9, 9), (24, 6, 3, 3), 4, stride=2, output_padding=1),
    conv_transpose("conv_transpose1d", (4, 24, 50), (24, 16, 4), stride=2),
    Operator("max_pool", (5, 24, 41, 39), lambda x: F.max_pool2d(x, 3, 2, 1)),
    Operator("max_pool_indices", (5, 24, 41, 39), lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0]),
    Operator("max_pool1d", (5, 24, 410), lambda x: F.max_pool1d(x, 3, 2, 1)),
    Operator("avg_pool", (5, 24, 41, 39), lambda x: F.avg_pool2d(x, 3, 2, 1)),
    Operator("avg_pool_global", (5, 64, 31, 29), lambda x: F.avg_pool2d(x, (31, 29))),
    Operator("avg_pool1d", (5, 24, 410), lambda x: F.avg_pool1d(x, 5, 2, 2)),
    Operator("adaptive_avg_pool", (5, 64, 31, 29), lambda x: F.adaptive_avg_pool2d(x, (6, 5))),
    Operator("adaptive_avg_pool_global", (5, 64, 31, 29), lambda x: F.adaptive_avg_pool2d(x, 1)),
    Operator("adaptive_max_pool", (5, 64, 31, 29), lambda x: F.adaptive_max_pool2d(x, (6, 5))),
    Operator("local_response_norm", (5, 64, 21, 19), lambda x: F.local_response_norm(x, 5, 0.1)),
    conv("small_conv", (3, 9, 5, 6), (10, 9, 3, 3), small=True, padding=1),
    conv("small_conv_strided", (3, 8, 7, 6), (12, 4, 3, 2), small=True, stride=2, groups=2),
    Operator("small_max_pool", (3, 8, 9, 8), lambda x: F.max_pool2d(x, 3, 2, 1), small=True),
    Operator("small_avg_pool", (3, 8, 9, 8), lambda x: F.avg_pool2d(x, 3, 2, 1), small=True),
    Operator("small_adaptive_avg_pool", (3, 8, 9, 8), lambda x: F.adaptive_avg_pool2d(x, (4, 3)), small=True),
    Operator("small_local_response_norm", (3, 20, 5, 4), lambda x: F.local_response_norm(x, 5, 0.1), small=True),
]


def placed(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return backends.place(torch.from_numpy(normal(*shape, seed=seed)).to(dtype))


def operands(operator: Operator, dtype: torch.dtype, arrange) -> list[torch.Tensor]:
    shapes = (operator.shape, *operator.parameters)
    values = [placed(shape, dtype, seed=i) for i, shape in enumerate(shapes)]
    return [arrange(values[0]).requires_grad_(), *(v.requires_grad_() for v in values[1:])]


def run(operator: Operator, leaves: list[torch.Tensor], arrange) -> list[torch.Tensor]:
    """The output and all gradients."""
    y = operator.function(*leaves)
    gy = placed(tuple(y.shape), y.dtype, seed=9)
    return [y.detach(), *torch.autograd.grad(y, leaves, arrange(gy))]


def assert_same_bits(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for name, a, b in zip(("output", "x gradient", "w gradient", "b gradient"), got, want, strict=False):
        assert torch.equal(a, b), f"{name}: {int((a != b).sum())} of {a.numel()} differ"


LAYOUTS = pytest.mark.parametrize("arrange", [contiguous, channels_last])


@pytest.mark.backends
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_threads_and_runs(operator: Operator, dtype: torch.dtype, arrange) -> None:
    leaves = operands(operator, dtype, arrange)
    torch.set_num_threads(1)
    want = run(operator, leaves, arrange)
    assert all(bool(t.isfinite().all()) and bool(t.any()) for t in want)
    for threads in (2, 2, 3, 1):
        torch.set_num_threads(threads)
        assert_same_bits(run(operator, leaves, arrange), want)


@pytest.mark.backends
@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_sample_alone_or_in_a_batch(operator: Operator, dtype: torch.dtype, arrange) -> None:
    leaves = operands(operator, dtype, arrange)
    batch = run(operator, leaves, arrange)
    for i in range(operator.shape[0]):
        alone = leaves[0].detach()[i : i + 1].requires_grad_()
        y = operator.function(alone, *leaves[1:])
        gy = placed(tuple(batch[0].shape), dtype, seed=9)[i : i + 1]
        gx = torch.autograd.grad(y, alone, arrange(gy))[0]
        assert_same_bits([y.detach(), gx], [batch[0][i : i + 1], batch[1][i : i + 1]])


@pytest.mark.parametrize("primitive", native.PRIMITIVES)
@pytest.mark.parametrize("case", [case for case in cases.CONV if case.n > 1 or "work" in case.name], ids=str)
def test_every_conv_algorithm(case: cases.Conv, primitive: str) -> None:
    """As above, for algorithms that are not the plan's choice."""
    problem = native.problem_of(case)
    x = normal(case.n, case.c, case.h, case.w, seed=1)
    w = normal(case.k, case.c // case.groups, case.r, case.s, seed=2)
    gy = normal(case.n, case.k, problem.p, problem.q, seed=3)
    b = normal(case.c if primitive == "input_gradient" else case.k, seed=4)
    named: dict[str, tuple[np.ndarray, ...]] = {
        "forward": (x, w, b),
        "input_gradient": (gy, w, b),
        "weight_gradient": (gy, x),
    }
    inputs = [torch.from_numpy(a) for a in named[primitive]]
    one_image = replace(case, n=1)
    for config in native.configurations(case, primitive):
        if config.threads == 1:
            continue
        got = native.run_conv(case, config, *inputs)
        for a, c in zip(got, native.run_conv(case, replace(config, threads=1), *inputs), strict=True):
            assert torch.equal(a, c), config
        for i in range(case.n if primitive != "weight_gradient" else 0):
            alone = native.run_conv(one_image, config, inputs[0][i : i + 1], *inputs[1:])[0]
            assert torch.equal(alone, got[0][i : i + 1]), f"sample {i} alone: {config}"


@LAYOUTS
def test_plan_does_not_depend_on_the_batch(arrange) -> None:
    layout = torch.channels_last if arrange is channels_last else torch.contiguous_format
    for case in cases.CONV:
        for primitive in ("forward", "input_gradient"):
            chosen = {native.plan(replace(case, n=n), primitive, layout).algorithm for n in (1, 2, 7, 64)}
            assert len(chosen) == 1, f"{case} {primitive}: {chosen}"
