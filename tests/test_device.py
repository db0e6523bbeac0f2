"""Where calls go: which GPUs the kernels run on, on which stream, and what is said where they cannot go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fastconv
from fastconv import _C, device
from fastconv import functional as F


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["sm_80"], (8, 0), True),
        (["sm_80"], (8, 6), True),  # a later one of the same generation
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_90a"], (9, 1), False),  # only this one
        (["sm_90a"], (10, 0), False),
        (["compute_80"], (7, 5), False),
        (["compute_80"], (8, 0), True),
        (["compute_90"], (12, 0), True),
        (["compute_90a"], (12, 0), False),
        (["sm_120"], (12, 0), True),
        (["sm_80", "sm_90a", "compute_90"], (7, 5), False),
        (["sm_80", "sm_90a", "compute_90"], (8, 9), True),
        (["sm_80", "sm_90a", "compute_90"], (10, 3), True),
        ([], (8, 0), False),
    ],
)
def test_which_gpus_code_runs_on(built: list[str], capability: tuple[int, int], runs: bool) -> None:
    assert device.runs_on(built, capability) is runs


def test_calls_take_the_current_stream_of_their_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, played by a variable: the first is current."""
    now = [0]

    @contextmanager
    def on(index: int) -> Iterator[None]:
        before, now[0] = now[0], index
        yield
        now[0] = before

    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: now[0], raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 100 + index, raising=False)
    monkeypatch.setattr(torch.cuda, "device", on)
    for index in (0, 1):
        launch = device.gpu_launcher(index)
        assert launch(lambda *args: (args, now[0]), "x", 7) == (("x", 7, 100 + index), index)
    assert now[0] == 0


def test_a_device_has_the_functions_of_the_cpu() -> None:
    simulated = device.on_simulation(device.Algorithms(), 0).native
    for name in (*device.DEVICE_FUNCTIONS, "conv_algorithms", "ConvPlan"):
        assert callable(getattr(simulated, name))
        assert callable(getattr(_C, name))


def test_there_is_one_target_of_each() -> None:
    """They are compared by identity in every key."""
    with fastconv.simulate_cuda("random", 5):
        first = device.current.get()
    with fastconv.simulate_cuda("random", 5):
        assert device.current.get() is first
    with fastconv.simulate_cuda("random", 6):
        assert device.current.get() is not first
    with fastconv.force_algorithm("implicit_gemm"):
        assert device.current.get() is device.on_cpu(
            device.Algorithms("implicit_gemm", "implicit_gemm", "implicit_gemm")
        )
    assert device.current.get() is device.on_cpu(device.Algorithms())


def test_without_kernels_for_gpus_the_error_says_why() -> None:
    if device.CUDA:
        pytest.skip("built with CUDA")
    with FakeTensorMode():
        x = torch.empty(1, 2, 4, 4, device="cuda")
    with pytest.raises(NotImplementedError, match=r"input: expected .* built without CUDA, since .*: install it again"):
        F.max_pool2d(x, 2)
    assert f"cuda:            not built ({_C.without_cuda})" in fastconv.show_config()


def test_what_is_built_is_said() -> None:
    if not device.CUDA:
        pytest.skip("built without CUDA")
    text = fastconv.show_config()
    assert all(name in text for name in _C.cuda.architectures)
    assert any(words in text for words in ("without CUDA", "no device present", "present: "))


def test_an_error_of_a_launch_names_kernel_and_problem() -> None:
    if not device.CUDA or torch.cuda.is_available():
        pytest.skip("needs a build with CUDA on a machine without a GPU")
    problem = _C.PoolProblem()
    problem.n = problem.c = problem.h = problem.w = problem.r = problem.s = problem.p = problem.q = 1
    problem.stride_h = problem.stride_w = problem.dilation_h = problem.dilation_w = 1
    with pytest.raises(RuntimeError, match=r"average_forward\w*: .*\nin pooling of \[1, 1, 1, 1\]"):
        _C.cuda.average_pool_forward(problem, 0, 0, 0)


def test_a_gpu_without_code_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, multi_processor_count = "NVIDIA T4", 7, 5, 40

    class Module:
        architectures = ("sm_80", "compute_80")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(_C, "cuda", Module, raising=False)
    message = "built for sm_80, compute_80, but cuda:63 .NVIDIA T4. is sm_75: set FASTCONV_CUDA_ARCHS=75"
    with pytest.raises(RuntimeError, match=message):
        device.on_gpu(device.Algorithms(), 63, False)
