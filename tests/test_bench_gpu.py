"""The benchmark of GPUs, as far as it can be tried without one: clock, input sets, and the kernels it compares with."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from test_simt import ROOT, compile_program, output

import fastconv
from fastconv.bench import gpu, gpu_loops
from fastconv.bench.layers import Case, parse
from fastconv.bench.peers import FASTCONV, TORCH, FunctionalPeer, Work
from fastconv.bench.run import run_pass
from fastconv.cli import main

CASES = [
    "conv2d:2,6,7,8,4,3x2,stride=2x1,padding=1x0,dilation=1x2,groups=2",
    "conv2d:1,3,5,5,2,1x1",
    "conv2d:1,4,6,5,4,3x3,padding=2,groups=4",
]


class Event:
    """Recorded at the times that `now` tells, in milliseconds."""

    def __init__(self, now: list[float]) -> None:
        self.now = now

    def record(self) -> None:
        self.at = self.now.pop(0)

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Event) -> float:
        return later.at - self.at


def test_the_clock_adds_what_passes_between_readings() -> None:
    times = [1000.0, 1002.0, 1005.0]
    clock = gpu.Clock(lambda: Event(times))
    assert [clock(), clock()] == pytest.approx([2e-3, 5e-3])


@pytest.mark.parametrize(
    ("bytes_", "cache", "sets"), [(10, 0, 1), (100, 50, 2), (100, 1000, gpu.MOST_SETS), (1000, 10, 1)]
)
def test_sets_of_inputs_exceed_the_cache(bytes_: int, cache: int, sets: int) -> None:
    assert gpu.input_sets(bytes_, cache) == sets


def test_sets_of_inputs_take_turns() -> None:
    case = parse(CASES[0])
    calls: dict[str, list[int]] = {"torch": [], "fastconv": []}

    @dataclass(frozen=True)
    class Recording(FunctionalPeer):
        def prepare(self, case: Case, pass_: str, layout: str, dtype: torch.dtype = torch.float32) -> Work:
            work, mine = super().prepare(case, pass_, layout, dtype), calls[self.name]
            number = mine.count(-1)
            mine.append(-1)

            def recorded() -> object:
                mine.append(number)
                return work()

            return recorded

    peers = [Recording(peer.name, peer.functional) for peer in (TORCH, FASTCONV)]
    run_pass(case, "forward", 0.01, ("channels_first",), peers, 1, cache=case.bytes("forward"))
    for mine in calls.values():
        assert mine[:3] == [-1, -1, -1]
        assert all(number == turn % 3 for turn, number in enumerate(mine[3:]))


def reference(case: Case) -> torch.Tensor:
    x, w, b = (integers(shape) for shape in (case.shape, case.weight_shape, (case.out_channels,)))
    parameters = {key: value for key, value in case.parameters.items() if key != "bias"}
    return torch.nn.functional.conv2d(x, w, b, **parameters)


def integers(shape: tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 7 % 5 - 2).float().view(shape)


@pytest.mark.parametrize("problem", CASES)
def test_the_numba_kernel(problem: str, tmp_path: Path) -> None:
    """On numba's own simulator."""
    case = parse(problem)
    program = f"""
import numpy as np
from fastconv.bench.gpu_loops import numba_kernel
from fastconv.bench.layers import parse
case = parse({problem!r})
def integers(shape):
    return (np.arange(np.prod(shape)) * 7 % 5 - 2).astype(np.float32).reshape(shape)
y = np.zeros(case.output_shape, np.float32)
arguments = [case.spatial(name) for name in ("stride", "padding", "dilation")]
inputs = [integers(shape) for shape in (case.shape, case.weight_shape, (case.out_channels,))]
numba_kernel()[-(-y.size // 32), 32](*inputs, y, *arguments, case.parameters["groups"])
np.save({str(tmp_path / "y.npy")!r}, y)
"""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=300)
    import numpy as np

    assert torch.equal(torch.from_numpy(np.load(tmp_path / "y.npy")), reference(case))


def test_the_cupy_kernel(tmp_path: Path) -> None:
    """On the simulation of CUDA that checks every access."""
    (tmp_path / "convolution.cu").write_text(gpu_loops.CUPY_SOURCE)
    program = compile_program("plain", tmp_path, f"-I{tmp_path}")
    for problem in CASES:
        case = parse(problem)
        got = output(program, *gpu_loops.sizes(case)).split()
        assert torch.equal(torch.tensor([float(value) for value in got]).view(case.output_shape), reference(case))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "tf32"], "--dtype tf32: only with --device cuda"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: torch finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_this_machine_cannot_measure(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "quick", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("pass_", ["forward", "input_gradient", "weight_gradient"])
def test_make_gpu_times_every_algorithm_and_tile(pass_: str) -> None:
    """In the simulation, where the times mean nothing."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))
    case = parse("conv2d:1,8,4,5,8,3x3,padding=1")
    with fastconv.simulate_cuda():
        times = script["time_algorithms"](case, pass_, "channels_last", "float16", FASTCONV, time.perf_counter, 0)
        x, w = (
            torch.empty(shape, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
            for shape in (case.shape, case.weight_shape)
        )
        assert list(times) == fastconv.algorithms("conv2d", x, w, None, 1, 1)[pass_]
    assert {"tensor_core", "tensor_core_128x128", "tensor_core_64x64"} <= set(times)


def test_make_gpu_says_whether_a_figure_supports_the_rule() -> None:
    verdict = runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))["verdict"]
    assert verdict({"direct": 1.0, "tensor_core": 0.99}) == "supports the rule"
    assert (
        verdict({"direct": 1.0, "tensor_core": 0.5}) == "against the rule: tensor_core is 2.00 times as fast as direct"
    )
