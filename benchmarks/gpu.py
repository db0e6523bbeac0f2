"""make gpu: builds for the GPU of this machine, runs the operators' tests there, also sanitized, and measures.

Needs no network and installs nothing: python3 with torch, pybind11, cmake, ninja, numba and pytest, and nvcc. Writes
gpu.json and gpu.md to benchmarks/results/<date>-<gpu>/. Exit status 1 if any step failed.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
OPERATORS = ("test_exact.py", "test_tolerance.py", "test_determinism.py", "test_functional.py", "test_gradients.py")
OTHERS = ("test_cuda.py", "test_device.py", "test_interop.py")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZED = "(test_conv_algorithms and (plain_3x3 or strided_2 or grouped_2 or stem_3x3)) or (pool and 3x3_overlap)"
LIMIT = 120  # seconds a step may take; four groups of steps and the benchmark follow each other
LAYERS = (
    "conv2d:32,64,56,56,64,3x3,padding=1",
    "conv2d:32,256,14,14,256,3x3,padding=1",
    "conv2d:32,256,56,56,64,1x1",
    "conv2d:32,3,224,224,64,7x7,stride=2,padding=3",
    "conv2d:32,128,28,28,128,3x3,padding=1,groups=128",
    "conv2d:32,128,28,28,128,3x3,padding=1,groups=32",
    "max_pool2d:32,64,112,112,3x3,stride=2,padding=1",
    "avg_pool2d:32,64,56,56,2x2",
    "local_response_norm:32,96,55,55,5",
)


def architecture() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}a" if major == 9 else f"{major}{minor}"


def step(name: str, *command: str, **environment: str) -> dict[str, Any]:
    """Runs a command in the tests' folder; how it ended."""
    begin = time.perf_counter()
    where = ROOT if "setup.py" in command else ROOT / "tests"
    paths = {"PYTHONPATH": str(ROOT), **environment}
    try:
        done = subprocess.run(
            command, cwd=where, env={**os.environ, **paths}, text=True, timeout=LIMIT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        status, output = -1, f"{late.output or ''}\nstopped after {LIMIT} s"
    seconds = time.perf_counter() - begin
    print(f"==> {name}", *output.splitlines()[-(1 if status == 0 else 40) :], sep="\n", flush=True)
    return {"step": name, "passed": status == 0, "seconds": round(seconds, 1), "end": output[-2000:]}


def sanitized(tool: str) -> dict[str, Any]:
    """Some exact tests under one of compute-sanitizer's tools."""
    under = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    tests = ["-m", "backends", "-k", f"({SANITIZED}) and not channels_last", "test_exact.py"]
    # Memory by cudaMalloc, so that bounds and initialisation are each tensor's own.
    environment = {"FASTCONV_BACKENDS": "cuda", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return step(tool, *under, *PYTEST, *tests, **environment)


def milliseconds(work: Any, repeats: int = 20) -> float:
    """Of one call, by the GPU's clock."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / repeats


def measure() -> list[dict[str, Any]]:
    """fastconv beside torch, interleaved; medians of five rounds, forward and training step."""
    from fastconv.bench.layers import parse
    from fastconv.bench.peers import FASTCONV, TORCH, inputs

    torch.backends.cudnn.benchmark = True
    rows = []
    for problem in LAYERS:
        case = parse(problem)
        for dtype in (torch.float32, torch.float16):
            for layout in ("channels_first", "channels_last"):
                tensors = [t.cuda().requires_grad_() for t in inputs(case, layout, dtype)]
                for training in (False, True):
                    work = {}
                    for peer in (TORCH, FASTCONV):
                        operator = peer.operator(case)
                        gy = torch.ones_like(operator(*tensors))

                        def call(operator: Any = operator, gy: Any = gy, train: bool = training) -> Any:
                            y = operator(*tensors)  # noqa: B023
                            return torch.autograd.grad(y, tensors, gy) if train else y  # noqa: B023

                        milliseconds(call, 5)
                        work[peer.name] = call
                    rounds: dict[str, list[float]] = {name: [] for name in work}
                    for _ in range(5):
                        for name, call in work.items():
                            rounds[name].append(milliseconds(call))
                    times = {name: statistics.median(values) for name, values in rounds.items()}
                    row = {"problem": problem, "dtype": str(dtype)[6:], "layout": layout}
                    row |= {"pass": "training step" if training else "forward"}
                    rows.append({**row, **times, "ratio": times[TORCH.name] / times[FASTCONV.name]})
    return rows


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"# {result['gpu']}", "", f"torch {result['torch']}, {result['architecture']}, {result['date']}", ""]
    lines += ["| step | | seconds |", "|---|---|---:|"]
    lines += [f"| {s['step']} | {'passed' if s['passed'] else 'FAILED'} | {s['seconds']} |" for s in result["steps"]]
    lines += [
        "",
        "Milliseconds a call; the ratio is torch's time by fastconv's (TF32 as torch's defaults have it).",
        "",
    ]
    lines += ["| problem | dtype | layout | pass | torch | fastconv | ratio |", "|---|---|---|---|---:|---:|---:|"]
    for r in result["benchmark"]:
        times = f"{r['torch']:.3f} | {r['fastconv']:.3f} | {r['ratio']:.2f}"
        lines.append(f"| {r['problem']} | {r['dtype']} | {r['layout']} | {r['pass']} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    if not torch.cuda.is_available():
        print("make gpu: torch finds no CUDA device on this machine", file=sys.stderr)
        return 1
    date, name = datetime.date.today().isoformat(), torch.cuda.get_device_name()
    result: dict[str, Any] = {"gpu": name, "date": date, "torch": torch.__version__, "architecture": architecture()}
    build = {"FASTCONV_CUDA": "on", "FASTCONV_CUDA_ARCHS": architecture()}
    steps = [step("build", sys.executable, "setup.py", "build_ext", "--inplace", **build)]
    result |= {"steps": steps, "benchmark": []}
    if steps[0]["passed"]:
        cuda = {"FASTCONV_BACKENDS": "cuda"}
        # One process a file: a GPU takes the calls of several, and each of them waits mostly for Python.
        with ThreadPoolExecutor() as pool:
            steps += pool.map(lambda file: step(file, *PYTEST, "-m", "backends", file, **cuda), OPERATORS)
            steps += pool.map(lambda file: step(file, *PYTEST, file), OTHERS)
            if shutil.which("compute-sanitizer"):
                steps += pool.map(sanitized, SANITIZERS)
        sys.path.insert(0, str(ROOT))
        print("==> benchmark", flush=True)
        result["benchmark"] = measure()
    folder = ROOT / "benchmarks" / "results" / f"{date}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(result, indent=1))
    (folder / "gpu.md").write_text(table(result))
    print(table(result))
    return 0 if all(s["passed"] for s in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
