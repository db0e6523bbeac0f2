"""The benchmark of GPUs, as far as it can be tried without one: clock, input sets, and the kernels it compares with."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_simt import ROOT, compile_program, output

import fastconv
from fastconv import _C
from fastconv.bench import gpu, gpu_loops, overhead, plots, timing
from fastconv.bench.layers import SUITES, Case, Suite, parse
from fastconv.bench.model import ModelSource
from fastconv.bench.peers import FASTCONV, TORCH, FunctionalPeer, Work
from fastconv.bench.run import run_pass
from fastconv.cli import main

CASES = [
    "conv2d:2,6,7,8,4,3x2,stride=2x1,padding=1x0,dilation=1x2,groups=2",
    "conv2d:1,3,5,5,2,1x1",
    "conv2d:1,4,6,5,4,3x3,padding=2,groups=4",
]


class Event:
    """Recorded at the times that `now` tells, in milliseconds, or at the real time."""

    def __init__(self, now: list[float] | None = None) -> None:
        self.now = now

    def record(self) -> None:
        self.at = time.perf_counter() * 1e3 if self.now is None else self.now.pop(0)

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Event) -> float:
        return later.at - self.at


def test_the_clock_adds_what_passes_between_readings() -> None:
    times = [1000.0, 1002.0, 1005.0]
    clock = gpu.Clock(event=lambda: Event(times))
    assert [clock(), clock()] == pytest.approx([2e-3, 5e-3])


def test_the_clock_does_not_count_its_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "_sleep", waits.append, raising=False)
    times = [1000.0, 1002.0, 1009.0, 1010.0, 1020.0]
    clock = gpu.Clock(0.5, lambda: Event(times))
    assert [clock(), clock()] == pytest.approx([2e-3, 3e-3])
    assert waits == [gpu.CYCLES / 2] * 2


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


# ---- the whole of it, with a GPU played by the simulation

Script = Any  # benchmarks/gpu.py as a module


class Nothing:
    """Has every method, and none does anything; what torch.cuda's streams and graphs are to CPU tensors."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Script]:
    """benchmarks/gpu.py with little to do, on a machine where torch seems to find a GPU."""
    spec = spec_from_file_location("benchmarks_gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    properties = SimpleNamespace(name="GPU", major=9, minor=0, multi_processor_count=4, L2_cache_size=1 << 10)
    pretended = {
        "is_available": lambda: True,
        "get_device_name": lambda: "NVIDIA GPU 1",
        "get_device_capability": lambda: (9, 0),
        "get_device_properties": lambda: properties,
        "synchronize": lambda: None,
        "Event": lambda enable_timing: Event(),
        "Stream": Nothing,
        "current_stream": Nothing,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": Nothing,
        "graph": lambda graph, stream: nullcontext(),
        "_sleep": lambda cycles: None,
    }
    for name, value in pretended.items():
        monkeypatch.setattr(torch.cuda, name, value, raising=False)
    monkeypatch.setattr(_C, "cuda", None, raising=False)
    for name, value in {"DEVICE": "cpu", "PEERS": (TORCH, FASTCONV), "SIDE": 64, "COPIED": 1 << 12}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "OTHERS", (gpu.NativePeer(),))
    monkeypatch.setattr(timing, "MIN_ROUNDS", 1)
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.0)
    for name, value in {"ROOT": tmp_path, "SECONDS": 1e-4, "MODELS": (("lenet5", 1),), "find_spec": bool}.items():
        monkeypatch.setattr(module, name, value)
    cases = ("conv2d:2,8,3,3,8,2x2", "conv2d:2,2,3,3,2,2x2,groups=2", "conv1d:2,8,5,8,3", "max_pool2d:2,8,6,6,2")
    monkeypatch.setitem(SUITES, "gpu", Suite(tuple(map(parse, cases))))
    small = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.MaxPool2d(2))
    monkeypatch.setattr(ModelSource, "load", lambda source: (small, (torch.randn(source.batch, 3, 6, 6),)))
    with fastconv.simulate_cuda():
        yield module


def test_make_gpu_from_end_to_end(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the subprocesses: build, tests and sanitizers."""
    commands: list[tuple[str, ...]] = []

    def step(name: str, *command: str, **environment: str) -> dict[str, Any]:
        commands.append(command)
        return {"step": name, "passed": True, "seconds": 1.0, "end": ""}

    monkeypatch.setattr(script, "step", step)
    monkeypatch.setattr(script.shutil, "which", lambda name: name)
    monkeypatch.setattr(script, "DTYPES", ("tf32", "float32"))  # torch's CPU lacks some operators in float16
    drawn: list[Path] = []
    monkeypatch.setattr(plots, "save", lambda report, folder: drawn.append(folder))
    status = script.main()
    out = capsys.readouterr().out
    (folder,) = (tmp_path / "benchmarks" / "results").iterdir()
    result = json.loads((folder / "gpu.json").read_text())
    assert status == 0, [step for step in result["steps"] if not step["passed"]]
    assert len(commands) == 1 + len(script.OPERATORS) + len(script.OTHERS) + len(script.SANITIZERS)
    assert (folder / "gpu.md").read_text() in out
    assert all(row["seconds"] and "rule" in row["verdict"] for row in result["rules"])
    assert len(result["rules"]) == 2 * 3 * 3  # dtypes, convolutions, passes
    calls, model, *suites = result["benchmark"]
    assert len(calls["overhead"]) == 2 * len(overhead.CASES)
    assert {run["pass_"] for run in model["model"]["runs"]} == {"inference", "inference as a graph", "training step"}
    assert {run["dtype"] for run in model["model"]["runs"]} == {"float16"}
    assert [suite["machine"]["dtype"] for suite in suites] == ["tf32", "float32"]
    assert all(len({r["problem"] for r in suite["results"]}) == 4 for suite in suites)
    assert "torch native" in str(suites)
    assert drawn == [folder / "tf32", folder / "float32"]
    assert "| dense, strict float32 | 3 |" in out


def test_make_gpu_goes_on_after_a_failure(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that fails costs its rows, and the step is said to have failed."""

    def fail(case: Case, *args: object) -> dict[str, float]:
        if case.parameters["groups"] == 2:
            raise RuntimeError("out of order")
        return {"direct": 1.0}

    monkeypatch.setattr(script, "time_algorithms", fail)
    rows: list[dict[str, Any]] = []
    step = script.collected("algorithms", script.measure_rules(time.perf_counter() + 100), rows)
    assert not step["passed"]
    assert step["end"].count("out of order") == 2 * 3
    assert [row["verdict"] for row in rows].count("FAILED") == 2 * 3
    assert len(rows) == 2 * 3 * 3
    assert {row["verdict"] for row in script.measure_rules(time.perf_counter() - 1)} == {"not measured: no time left"}


def test_the_benchmark_of_a_gpu(script: Script, tmp_path: Path) -> None:
    """fastconv bench --device cuda."""
    for more in (["--overhead"], ["--model", "lenet5", "--batch", "1"], ["conv2d:1,8,4,5,8,3x3"]):
        file = tmp_path / "bench.json"
        assert main(["bench", "--device", "cuda", "--seconds", "0.001", "--json", str(file), *more]) == 0
        assert json.loads(file.read_text())["machine"]["cuda"] == torch.version.cuda


@pytest.mark.parametrize("peer", gpu_loops.PLAIN, ids=[peer.name for peer in gpu_loops.PLAIN])
def test_plain_peers_give_tensors_and_sizes_to_their_kernels(
    peer: gpu_loops.PlainPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy and numba, played: what a kernel is called with. The kernels themselves are tested above."""
    case = parse(CASES[0])
    calls: list[tuple[Any, ...]] = []
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)

    def kernel(*call: Any) -> None:
        calls.append(call)

    cupy = SimpleNamespace(
        RawKernel=lambda source, name: kernel,
        from_dlpack=lambda t: t,
        int32=int,
        cuda=SimpleNamespace(ExternalStream=lambda number: nullcontext(calls.append((number,)))),
    )
    numba = SimpleNamespace(as_cuda_array=lambda t: t, external_stream=lambda number: number)

    class Launched:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            calls.append(grid)
            return kernel

    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(gpu_loops, "cuda", numba)
    monkeypatch.setattr(gpu_loops, "numba_kernel", Launched)
    y = replace(peer, device="cpu").prepare(case, "forward", "channels_first")()
    assert y.shape == case.output_shape
    blocks = -(-y.numel() // gpu_loops.THREADS)
    if peer.name == "cupy":
        (number,), (grid, block, arguments) = calls
        assert (number, grid, block) == (7, (blocks,), (gpu_loops.THREADS,))
        assert arguments[3] is y
        assert arguments[4:] == gpu_loops.sizes(case)
    else:
        grid, arguments = calls
        assert grid == (blocks, gpu_loops.THREADS, 7)
        assert arguments[3] is y
        assert arguments[4:] == ((2, 1), (1, 0), (1, 2), 2)
