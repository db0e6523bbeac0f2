"""fastconv.simulate_cuda: what goes through the CUDA kernels, in which order of threads, and what a fault looks like.

That the kernels compute the right thing there is tested with the other backends (test_backends.py) and by themselves
(test_simt.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import backends
import cases
import native
import pytest
import torch
from backends import tf32
from torch import Tensor

import fastconv
from fastconv import _C, device
from fastconv import functional as F

X1, X2 = torch.randn(2, 4, 9), torch.randn(2, 4, 7, 9)
W1, W2, B = torch.randn(4, 4, 3), torch.randn(4, 4, 3, 2), torch.randn(4)
CALLS: dict[str, Callable[[], Tensor]] = {
    "conv1d": lambda: F.conv1d(X1, W1, B, padding=1),
    "conv2d": lambda: F.conv2d(X2, W2, B, stride=2),
    "conv_transpose1d": lambda: F.conv_transpose1d(X1, W1, B),
    "conv_transpose2d": lambda: F.conv_transpose2d(X2, W2, B, 2),
    "max_pool1d": lambda: F.max_pool1d(X1, 3, 2),
    "max_pool2d": lambda: F.max_pool2d(X2, 3, 2, 1),
    "avg_pool1d": lambda: F.avg_pool1d(X1, 3, 2),
    "avg_pool2d": lambda: F.avg_pool2d(X2, 3, 2, 1),
    "adaptive_avg_pool1d": lambda: F.adaptive_avg_pool1d(X1, 4),
    "adaptive_avg_pool2d": lambda: F.adaptive_avg_pool2d(X2, (3, 2)),
    "adaptive_max_pool1d": lambda: F.adaptive_max_pool1d(X1, 4),
    "adaptive_max_pool2d": lambda: F.adaptive_max_pool2d(X2, (3, 2)),
    "local_response_norm": lambda: F.local_response_norm(X2, 3),
}


def gradients() -> tuple[Tensor, ...]:
    """Of a small network in which every kind of operator has its part."""
    leaves = [t.double().requires_grad_() for t in (X2, W2, B)]
    y = F.local_response_norm(F.conv2d(*leaves, padding=1), 3)
    y = F.max_pool2d(y, 3, 1) + F.avg_pool2d(y, 3, 1)
    y = F.conv_transpose2d(F.adaptive_avg_pool2d(y, 4), leaves[1], leaves[2], 2)
    return torch.autograd.grad(y.square().sum(), leaves)


@pytest.fixture(autouse=True)
def _strict_float32() -> Iterator[None]:
    with tf32(False):
        yield


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the simulation's functions as they are called, by calls with the seed 77."""
    names: list[str] = []

    def recording(name: str) -> Callable[..., object]:
        function = getattr(_C.simulation, name)

        def record(*args: object) -> object:
            names.append(name)
            return function(*args)

        return record

    device.on_simulation.cache_clear()
    for name in (*device.DEVICE_FUNCTIONS, "ConvPlan"):
        monkeypatch.setattr(_C.simulation, name, recording(name))
    return names


@pytest.mark.parametrize("name", CALLS)
def test_inside_the_context_and_only_there(name: str, recorded: list[str]) -> None:
    """Also where the same call was made ready for the CPU before, or for the simulation."""
    want = CALLS[name]()
    assert not recorded
    with fastconv.simulate_cuda("reverse", 77):
        got = CALLS[name]()
    assert len(recorded) == 1
    torch.testing.assert_close(got, want)
    assert torch.equal(CALLS[name](), want)
    assert len(recorded) == 1


def test_gradients_are_simulated_if_the_forward_pass_was(recorded: list[str]) -> None:
    want = gradients()
    assert not recorded
    with fastconv.simulate_cuda(seed=77):
        got = gradients()
        leaf = X2.clone().requires_grad_()
        outside = F.avg_pool2d(leaf, 2)
    torch.testing.assert_close(got, want)
    backward = {"max_pool_backward", "average_pool_backward", "lrn_backward"}
    assert backward <= set(recorded)
    assert recorded.count("ConvPlan") == 6
    recorded.clear()
    outside.sum().backward()
    assert recorded == ["average_pool_backward"]


def test_another_thread_is_not_concerned(recorded: list[str]) -> None:
    with fastconv.simulate_cuda(seed=77):
        thread = threading.Thread(target=CALLS["conv2d"])
        thread.start()
        thread.join()
    assert not recorded


def test_operators_are_simulated(recorded: list[str]) -> None:
    """As a compiled graph calls them."""
    with fastconv.simulate_cuda(seed=77):
        y = torch.ops.fastconv.average_pool(X2, (3, 4), (3, 3), (2, 2), (0, 0, 0, 0), True, 0)
    assert recorded == ["average_pool_forward"]
    torch.testing.assert_close(y, torch.nn.functional.avg_pool2d(X2, 3, 2))


def test_bits_do_not_depend_on_the_order_of_threads_or_the_architecture() -> None:
    with fastconv.simulate_cuda():
        want = gradients()
    for order, seed, architecture in (("reverse", 1, "sm_90"), ("random", 1, "sm_80"), ("random", 2, "sm_90")):
        with fastconv.simulate_cuda(order, seed, architecture):
            assert all(map(torch.equal, gradients(), want))


def test_algorithms_are_those_of_the_gpu_and_can_be_forced() -> None:
    x, w = torch.randint(-3, 4, (2, 8, 7, 6)).float(), torch.randint(-3, 4, (12, 4, 3, 3)).float()
    on_the_cpu = fastconv.algorithms("conv2d", x, w, None, 2, 1, 1, 2)
    want = F.conv2d(x, w, None, 2, 1, 1, 2)
    with fastconv.simulate_cuda(), tf32(True):
        choices = fastconv.algorithms("conv2d", x, w, None, 2, 1, 1, 2)
        assert choices != on_the_cpu
        assert {"tensor_core", "implicit_gemm"} <= set(choices["forward"])
        for name in choices["forward"]:
            with fastconv.force_algorithm(name):
                assert torch.equal(F.conv2d(x, w, None, 2, 1, 1, 2), want)
        with (
            pytest.raises(ValueError, match=r"algorithm: expected one that applies .*tensor_core.*, got fft"),
            fastconv.force_algorithm("fft"),
        ):
            F.conv2d(x, w, None, 2, 1, 1, 2)
    with fastconv.force_algorithm("implicit_gemm"), fastconv.simulate_cuda():
        assert torch.equal(F.conv2d(x, w, None, 2, 1, 1, 2), want)
    assert fastconv.algorithms("conv2d", x, w, None, 2, 1, 1, 2) == on_the_cpu


def test_tf32_follows_torch() -> None:
    """A value that TF32 cannot hold shows which way a float32 convolution went."""
    x, w = torch.full((1, 64, 2, 2), 1 + 2.0**-12), torch.ones(64, 64, 1, 1)
    exact, truncated = torch.full((1, 64, 2, 2), 64 + 2.0**-6), torch.full((1, 64, 2, 2), 64.0)
    with fastconv.simulate_cuda():
        assert torch.equal(F.conv2d(x, w), exact)
        with tf32(True):
            assert torch.equal(F.conv2d(x, w), truncated)
        assert torch.equal(F.conv2d(x, w), exact)
    with tf32(True):
        assert torch.equal(F.conv2d(x, w), exact)


@pytest.mark.parametrize("primitive", ["forward", "input_gradient"])
@pytest.mark.parametrize(
    "case", [cases.Conv("dense", 1, 8, 5, 6, 8, 3, 3), cases.Conv("depthwise", 1, 8, 5, 6, 8, 3, 3, groups=8)]
)
def test_relu_after_the_bias(case: cases.Conv, primitive: str) -> None:
    """The epilogue of every algorithm: what is negative becomes zero, NaN stays NaN; the CPU's kernels have none."""
    problem = native.problem_of(case)
    image, channels = ((8, 5, 6), 8) if primitive == "forward" else ((8, problem.p, problem.q), 8)
    x, w, b = (torch.randint(-3, 4, shape).float() for shape in ((1, *image), (8, 8 // case.groups, 3, 3), (channels,)))
    x[0, 0, 0, 0] = torch.nan
    with backends.calls_go_to("simt"):
        for tf32_allowed in (False, True):
            problem.allow_tf32 = tf32_allowed
            for algorithm in _C.simulation.conv_algorithms(problem, primitive):
                results = []
                for relu in (False, True):
                    problem.relu = relu
                    plan = _C.simulation.ConvPlan(problem, primitive, 4, algorithm)
                    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8)
                    y = torch.empty(1, 8, *((problem.p, problem.q) if primitive == "forward" else (5, 6)))
                    getattr(plan, primitive)(*(t.data_ptr() for t in (x, w, b, y, workspace)), 0)
                    results.append(y)
                assert (results[0] < 0).any()
                assert results[0].isnan().any()
                torch.testing.assert_close(results[1], results[0].relu(), rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="relu: expected false on the CPU"):
        _C.ConvPlan(problem, primitive, 1)


def pooling() -> _C.PoolProblem:
    problem = _C.PoolProblem()
    problem.n = problem.c = problem.p = problem.q = 1
    problem.h = problem.w = problem.r = problem.s = 4
    problem.stride_h = problem.stride_w = problem.dilation_h = problem.dilation_w = 1
    problem.count_include_pad = True
    return problem


def test_a_fault_names_kernel_block_thread_line_and_problem_and_the_process_lives_on() -> None:
    x, y = torch.randn(32), torch.empty(1)
    message = (
        r"(?s)kernel average\w+, block \(0, 0, 0\), thread \(\d+, 0, 0\), .*pool\w*\.cu.*:\d+: misaligned access: .*"
        r"in pooling of \[1, 1, 4, 4\] to \[1, 1, 1, 1\], kernel \(4, 4\).*float32"
    )
    for _ in range(2):
        with pytest.raises(fastconv.KernelFault, match=message):
            _C.simulation.average_pool_forward(pooling(), x.data_ptr() + 1, y.data_ptr(), 0)
        _C.simulation.average_pool_forward(pooling(), x.data_ptr(), y.data_ptr(), 0)
        torch.testing.assert_close(y[0], x[:16].mean())


def test_a_write_to_an_input_is_a_fault() -> None:
    x = torch.ones(32)
    with pytest.raises(fastconv.KernelFault, match="write to a read-only buffer"):
        _C.simulation.average_pool_forward(pooling(), x.data_ptr(), x.data_ptr() + 32, 0)
    assert issubclass(fastconv.KernelFault, RuntimeError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "sideways"}, "order: expected forward, reverse or random, got sideways"),
        ({"architecture": "sm_20"}, "architecture: expected sm_80 or sm_90, got sm_20"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"seed": 2**32}, "seed: expected 0 to"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), fastconv.simulate_cuda(**options):  # type: ignore[arg-type]
        pass
    assert device.current.get().simulation is None
