"""make gpu: builds for the GPU of this machine, runs the operators' tests there, also sanitized, and measures.

Measured are what a call costs, whole models, also as a CUDA graph, for each convolution of the suite "gpu" every
algorithm and tile that can do it (whether the one that the plan's rule takes is the fastest), and the suite beside
torch, with the targets. What does not fit into nine minutes is left out, and named.

Needs no network and installs nothing: python3 with torch, pybind11, cmake, ninja, numba and pytest, and nvcc. Writes
gpu.json, gpu.md and, with matplotlib, pictures to benchmarks/results/<date>-<gpu>/. Exit status 1 if any step failed.
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
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
OPERATORS = ("test_exact.py", "test_tolerance.py", "test_determinism.py", "test_functional.py", "test_gradients.py")
OTHERS = ("test_cuda.py", "test_device.py", "test_interop.py")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZED = "(test_conv_algorithms and (plain_3x3 or strided_2 or grouped_2 or stem_3x3)) or (pool and 3x3_overlap)"
LIMIT = 120  # seconds a step may take; four groups of steps follow each other, and then the measurements
ALL = 520  # seconds for everything
DTYPES = ("float16", "tf32", "float32", "bfloat16")
PASSES = ("forward", "input_gradient", "weight_gradient", "backward")
CLOSE = 1.03  # what is slower by less than this factor counts as equally fast
LEAD = 6e-3  # seconds that the GPU waits while the calls of a sample queue up
SECONDS = 0.1  # for a row of the suite, and a quarter of it for one of the rules
MODELS = (("alexnet", 128), ("vgg16", 32), ("googlenet", 64), ("resnet50", 64), ("densenet121", 64))  # and the batch

# Ratio of torch's time to ours, each in its better layout unless one is named: families, dtypes, layout, the geometric
# mean asked for and the least of any row.
HALF, ANY = ("float16", "bfloat16"), DTYPES
FEW = ("depthwise", "groups of 2-4", "groups of 8", "groups of 16+")
DENSE = ("3x3", "3x3, few channels", "1x1", "strided", "dilated", "5x5", "other dense")
TARGETS = (
    ("depthwise and groups of few channels", FEW, ANY, "best", 2.0, 1.0),
    ("LRN", ("LRN",), ANY, "best", 5.0, 0.0),
    ("pooling", ("max pooling", "average pooling"), ANY, "best", 1.3, 0.0),
    ("stem, 1-D, kernel = stride", ("stem", "1-D"), ANY, "best", 1.5, 0.0),
    ("dense, channels_last, 16-bit", DENSE, HALF, "channels_last", 1.0, 0.8),
    ("dense, channels_first, 16-bit", DENSE, HALF, "channels_first", 1.0, 0.0),
    ("dense, strict float32", DENSE, ("float32",), "best", 1.0, 0.0),
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


def time_algorithms(
    case: Any, pass_: str, layout: str, dtype: str, peer: Any, clock: Callable[[], float], cache: int
) -> dict[str, float]:
    """Seconds of every algorithm of one pass of a convolution, the plan's choice first."""
    import fastconv
    from fastconv.bench import gpu
    from fastconv.bench.peers import inputs
    from fastconv.bench.run import torch_type
    from fastconv.bench.timing import interleave

    type_ = torch_type(dtype)
    primitive = (
        {"forward": "input_gradient", "input_gradient": "forward"}.get(pass_, pass_) if case.is_transposed else pass_
    )
    tensors = inputs(case, layout, type_, peer.device)
    arguments = {key: value for key, value in case.parameters.items() if key != "bias"}
    names = fastconv.algorithms(case.operator, *tensors, **arguments)[primitive]
    sets = gpu.input_sets(case.bytes(pass_, type_.itemsize), cache)

    def forced(name: str) -> Callable[[], Any]:
        with fastconv.force_algorithm(**{primitive: name}):
            work = gpu.in_turn([peer.prepare(case, pass_, layout, type_) for _ in range(sets)])

        def run() -> Any:
            with fastconv.force_algorithm(**{primitive: name}):
                return work()

        return run

    samples = interleave({name: forced(name) for name in names}, SECONDS / 4, clock=clock)
    return {name: statistics.median(values) for name, values in samples.items()}


def verdict(times: dict[str, float]) -> str:
    """What the times say of the plan's choice, which is the first."""
    chosen, best = next(iter(times)), min(times, key=lambda name: times[name])
    factor = times[chosen] / times[best]
    # "tensor_core" is its rule's choice of a tile, which the same tile by name can only equal.
    if factor < CLOSE:
        return "supports the rule"
    return f"against the rule: {best} is {factor:.2f} times as fast as {chosen}"


def measure_rules(deadline: float) -> Iterator[dict[str, Any]]:
    """For each convolution of the suite, on tensor cores and without them: which algorithm is the fastest."""
    from fastconv.bench import gpu
    from fastconv.bench.layers import SUITES

    clock, cache, failed = gpu.Clock(LEAD), gpu.cache_bytes(), []
    for dtype in ("float16", "float32"):
        with gpu.precision(dtype):
            for case in SUITES["gpu"].cases:
                for pass_ in PASSES[:3] if case.is_convolution else ():
                    row = {"problem": case.problem, "name": case.name, "dtype": dtype, "pass": pass_, "seconds": {}}
                    if time.perf_counter() > deadline:
                        yield {**row, "verdict": "not measured: no time left"}
                        continue
                    layout = "channels_last" if case.dimensions == 2 else "channels_first"
                    try:
                        times = time_algorithms(case, pass_, layout, dtype, gpu.PEERS[1], clock, cache)
                    except RuntimeError as error:
                        failed.append(f"{case.name}, {dtype}, {pass_}: {error}")
                        yield {**row, "verdict": "FAILED"}
                    else:
                        yield {**row, "seconds": times, "verdict": verdict(times)}
    if failed:
        raise RuntimeError("\n".join(failed))


def measure_models(deadline: float) -> Iterator[Any]:
    """What calls cost, then each model under autocast: reports."""
    from fastconv.bench import gpu, overhead
    from fastconv.bench.model import LIBRARIES, ModelSource, Setting, run_model
    from fastconv.bench.peers import LAYOUTS
    from fastconv.bench.run import Report

    with gpu.precision("float32"):
        calls = overhead.run(SECONDS, peers=gpu.PEERS, clock=gpu.host_clock)
        yield Report(gpu.described("float32"), gpu.measure_ceiling(torch.float32, 5 * SECONDS), [], calls, {})
    with gpu.precision("float16"):
        machine, ceiling = gpu.described("float16"), gpu.measure_ceiling(torch.float16, 5 * SECONDS)
        setting = Setting(gpu.DEVICE, "float16", gpu.Clock(), graph=True)
        for name, batch in MODELS:
            if time.perf_counter() > deadline:
                print(f"{name}: not measured, no time left", flush=True)
                continue
            source = ModelSource(name, batch=batch)
            model = run_model(source, 5 * SECONDS, LAYOUTS, setting=setting, choices=LIBRARIES)
            yield Report(machine, ceiling, [], [], {}, model)
            if any(run.wrong for run in model.runs):
                raise RuntimeError(f"{name}: another result than torch's")


def measure(deadline: float) -> Iterator[Any]:
    """The suite beside torch, a report for each dtype that there is time for."""
    from fastconv.bench import gpu
    from fastconv.bench.layers import SUITES, Suite
    from fastconv.bench.peers import LAYOUTS
    from fastconv.bench.run import Report, run_suite, torch_type

    others = tuple(peer for peer in gpu.OTHERS if not peer.missing)
    clock, cache, failed = gpu.Clock(), gpu.cache_bytes(), []
    for dtype in DTYPES:
        with gpu.precision(dtype):
            ceiling, results = gpu.measure_ceiling(torch_type(dtype), 5 * SECONDS), []
            for case in SUITES["gpu"].cases:
                if time.perf_counter() > deadline:
                    break
                suite, peers = Suite((case,)), (*gpu.PEERS, *others)
                try:
                    results += run_suite(
                        suite, SECONDS, LAYOUTS, PASSES, peers=peers, dtype=dtype, clock=clock, cache=cache
                    )
                except RuntimeError as error:
                    failed.append(f"{case.name}, {dtype}: {error}")
            failed += [f"{r.name}, {dtype}, {r.pass_}: differs from torch by {r.error:.1g}" for r in results if r.wrong]
            yield Report(gpu.described(dtype), ceiling, results, [], {})
    if failed:
        raise RuntimeError("\n".join(failed))


def collected(name: str, found: Iterable[Any], into: list[Any]) -> dict[str, Any]:
    """What is measured goes into the list as it comes, so that a failure loses only the rest; how it ended."""
    print(f"==> {name}", flush=True)
    begin, end = time.perf_counter(), ""
    try:
        for one in found:
            into.append(one)
    except Exception:
        end = traceback.format_exc()
        print(end, flush=True)
    return {"step": name, "passed": not end, "seconds": round(time.perf_counter() - begin, 1), "end": end[-2000:]}


def targets(reports: Iterable[Any]) -> list[str]:
    """A line of Markdown for each target: what was reached."""
    from fastconv.bench.timing import geometric_mean

    found = [(result, measured.ceiling) for measured in reports for result in measured.results]
    lines = ["| target | rows | geometric mean | asked | least | asked | share of ceiling | |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---|")
    for name, families, dtypes, layout, mean, least in TARGETS:
        rows = [
            (result.ratio(layout), result.share(ceiling))
            for result, ceiling in found
            if result.family in families
            and result.dtype in dtypes
            and (layout == "best" or layout in result.timings["torch"])
        ]
        if not rows:
            lines.append(f"| {name} | 0 | | {mean} | | {least} | | not measured |")
            continue
        reached, worst, share = geometric_mean(r for r, _ in rows), min(rows)[0], geometric_mean(s for _, s in rows)
        met = "reached" if reached >= mean and worst >= least else "MISSED"
        lines.append(f"| {name} | {len(rows)} | {reached:.2f} | {mean} | {worst:.2f} | {least} | {share:.0%} | {met} |")
    return lines


def table(result: dict[str, Any], reports: list[Any]) -> str:
    """The result as Markdown."""
    from fastconv.bench import report
    from fastconv.bench.layers import SUITES

    lines = [f"# {result['gpu']}", "", f"torch {result['torch']}, {result['architecture']}, {result['date']}", ""]
    lines += ["| step | | seconds |", "|---|---|---:|"]
    lines += [f"| {s['step']} | {'passed' if s['passed'] else 'FAILED'} | {s['seconds']} |" for s in result["steps"]]
    lines += ["", "## Targets", "", *targets(reports)]
    lines += [
        "",
        "## Algorithms",
        "",
        "Milliseconds of the kernels alone, the plan's choice first, in channels_last.",
        "",
    ]
    lines += ["| problem | dtype | pass | algorithms | |", "|---|---|---|---|---|"]
    for r in result["rules"]:
        times = ", ".join(f"{name} {seconds * 1e3:.3f}" for name, seconds in r["seconds"].items())
        lines.append(f"| {r['name']} | {r['dtype']} | {r['pass']} | {times} | {r['verdict']} |")
    for measured in reports:
        count = len({result.problem for result in measured.results})
        title = f"{count} of {len(SUITES['gpu'].cases)} problems" if count else "calls and models"
        lines += ["", f"## {measured.machine['dtype']}: {title}", ""]
        lines += [t.markdown() for t in report.tables(measured)]
    return "\n".join(lines) + "\n"


def draw(reports: Iterable[Any], folder: Path) -> None:
    """Ratios and rooflines of the suite, where matplotlib is installed."""
    from fastconv.bench import plots

    if find_spec("matplotlib"):
        for measured in reports:
            if measured.results:
                plots.save(measured, folder / measured.machine["dtype"])


def main() -> int:
    if not torch.cuda.is_available():
        print("make gpu: torch finds no CUDA device on this machine", file=sys.stderr)
        return 1
    begin = time.perf_counter()
    date, name = datetime.date.today().isoformat(), torch.cuda.get_device_name()
    result: dict[str, Any] = {"gpu": name, "date": date, "torch": torch.__version__, "architecture": architecture()}
    build = {"FASTCONV_CUDA": "on", "FASTCONV_CUDA_ARCHS": architecture()}
    steps = [step("build", sys.executable, "setup.py", "build_ext", "--inplace", **build)]
    result |= {"steps": steps, "rules": [], "benchmark": []}
    reports: list[Any] = []
    if steps[0]["passed"]:
        cuda = {"FASTCONV_BACKENDS": "cuda"}
        # One process a file: a GPU takes the calls of several, and each of them waits mostly for Python.
        with ThreadPoolExecutor() as pool:
            steps += pool.map(lambda file: step(file, *PYTEST, "-m", "backends", file, **cuda), OPERATORS)
            steps += pool.map(lambda file: step(file, *PYTEST, file), OTHERS)
            if shutil.which("compute-sanitizer"):
                steps += pool.map(sanitized, SANITIZERS)
        sys.path.insert(0, str(ROOT))

        def until(part: float) -> float:
            now = time.perf_counter()
            return now + (begin + ALL - now) * part

        steps.append(collected("calls and models", measure_models(until(0.3)), reports))
        steps.append(collected("algorithms", measure_rules(until(0.4)), result["rules"]))
        steps.append(collected("suite", measure(until(1)), reports))
        result["benchmark"] = [json.loads(measured.to_json()) for measured in reports]
    folder = ROOT / "benchmarks" / "results" / f"{date}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(result, indent=1))
    (folder / "gpu.md").write_text(table(result, reports))
    draw(reports, folder)
    print(table(result, reports))
    return 0 if all(s["passed"] for s in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
