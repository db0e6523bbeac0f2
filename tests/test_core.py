"""The native module as a binary: instruction sets, symbols, libraries, threads, processes, large tensors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fastconv import _C, algorithms, force_algorithm
from fastconv import functional as F

HERE = Path(__file__).parent
OBJECTS = sorted(HERE.parent.glob("build/**/kernels_*.dir/**/*.o"))


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in another process, in this folder so that what is installed is imported."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_isa_of_this_process() -> None:
    assert _C.isa() in _C.available_isas()
    assert set(_C.available_isas()) <= set(_C.compiled_isas())
    assert _C.available_isas()[-1] == "baseline"


@pytest.mark.parametrize("isa", _C.compiled_isas())
def test_isa_is_honoured_or_refused(isa: str) -> None:
    done = python("import fastconv; print(fastconv._C.isa())", FASTCONV_ISA=isa)
    if isa in _C.available_isas():
        assert (done.returncode, done.stdout.strip()) == (0, isa)
    else:
        assert done.returncode == 1
        assert f"ImportError: FASTCONV_ISA={isa}: this machine lacks it; it has" in done.stderr


def test_isa_unknown() -> None:
    done = python("import fastconv", FASTCONV_ISA="altivec")
    assert done.returncode == 1
    assert "ImportError: FASTCONV_ISA=altivec: expected one of avx512, avx2, baseline" in done.stderr


def test_isa_default_is_the_best() -> None:
    done = python("import fastconv; print(fastconv._C.isa())", FASTCONV_ISA="")
    assert done.stdout.strip() == _C.available_isas()[0]


def test_kernels_of_another_version_are_refused(tmp_path: Path) -> None:
    package = tmp_path / "fastconv"
    shutil.copytree(Path(_C.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(package / "_C.pyi", "a") as stub:
        stub.write("def added() -> None: ...\n")
    done = python("import fastconv", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert re.search(
        r"ImportError: .*fastconv/_C\..*\.so belong to another version .*install fastconv again", done.stderr
    )


def test_links_neither_openmp_nor_torch() -> None:
    dynamic = subprocess.run(["readelf", "-d", _C.__file__], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert needed
    assert not [name for name in needed if re.search("gomp|omp5|torch|c10|python", name)], needed


def test_one_openmp_runtime() -> None:
    code = """if True:
        import torch, fastconv
        x, w = torch.randn(4, 64, 30, 30), torch.randn(64, 64, 3, 3)
        fastconv.functional.conv2d(x, w)
        print({line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split("/")[-1]})
    """
    assert python(code).stdout.count(".so") == 1


@pytest.mark.skipif(not OBJECTS, reason="no build folder beside the tests")
def test_no_code_of_an_instruction_set_outside_its_namespace() -> None:
    """The linker keeps one definition of a template or inline function: it must not be one that uses AVX-512."""
    for path in OBJECTS:
        isa = re.search(r"kernels_(\w+)\.dir", str(path))[1]
        symbols = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        names = [line.split()[2] for line in symbols.splitlines() if re.search(r" [A-Zuvw] ", line)]
        strangers = [
            n for n in names if f"8fastconv3cpu{len(isa)}{isa}" not in n and n != "DW.ref.__gxx_personality_v0"
        ]
        assert not strangers, f"{path.name} for {isa}: {strangers}"


def test_gil_is_released() -> None:
    """While a kernel runs in another thread, this one goes on: it wakes again and again before the kernel ends."""
    x, w = torch.randn(16, 64, 64, 64), torch.randn(64, 64, 5, 5)
    started, done = threading.Event(), threading.Event()

    def work() -> None:
        torch.set_num_threads(1)
        started.set()
        F.conv2d(x, w)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    wakings = 0
    while not done.is_set():
        time.sleep(0.001)
        wakings += 1
    thread.join()
    assert wakings >= 10


# Tensors so small that torch's own operators stay in one thread: those do hang in a forked child.
FORK = """if True:
    import os, sys, torch
    from fastconv import functional as F
    torch.set_num_threads(2)
    x, w = torch.randn(2, 32, 14, 14, requires_grad=True), torch.randn(48, 32, 3, 3, requires_grad=True)
    def all_operators():
        y = F.conv2d(x, w, padding=1)
        z = F.local_response_norm(F.max_pool2d(y, 2) + F.avg_pool2d(y, 2), 5)
        return [y.detach(), z.detach(), *torch.autograd.grad(z, (x, w), torch.ones_like(z))]
    want = all_operators()
    child = os.fork()
    if child == 0:
        os._exit(0 if all(map(torch.equal, all_operators(), want)) else 1)
    status = os.waitpid(child, 0)[1]
    sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_fork_after_threads() -> None:
    """libgomp's threads do not survive a fork; a child must neither hang nor compute something else."""
    done = python(FORK)
    assert done.returncode == 0, done.stderr


def test_worker_process_of_a_dataloader() -> None:
    code = """if True:
        import torch
        from fastconv import functional as F
        class Images(torch.utils.data.Dataset):
            def __len__(self): return 8
            def __getitem__(self, i): return F.conv2d(torch.full((3, 64, 64), float(i)), torch.ones(16, 3, 5, 5))
        F.conv2d(torch.randn(8, 32, 32, 32), torch.randn(32, 32, 3, 3))
        loader = torch.utils.data.DataLoader(Images(), batch_size=4, num_workers=2, multiprocessing_context="fork")
        assert [b[:, 0, 0, 0].tolist() for b in loader] == [[75.0 * i for i in r] for r in (range(4), range(4, 8))]
    """
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_many_python_threads() -> None:
    problems = [(torch.randn(2, 8 + i, 17, 16), torch.randn(9, 8 + i, 3, 3)) for i in range(12)]

    def work(i: int) -> list[torch.Tensor]:
        x, w = (t.clone().requires_grad_() for t in problems[i])
        y = F.conv2d(x, w, padding=1)
        z = F.local_response_norm(F.max_pool2d(y, 2), 3)
        return [y.detach(), z.detach(), *torch.autograd.grad(z.sum(), (x, w))]

    want = [work(i) for i in range(len(problems))]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, expected in zip(pool.map(work, range(len(problems))), want, strict=True):
                assert all(map(torch.equal, got, expected))


def zeros(*shape: int, dtype: type = np.float32) -> torch.Tensor:
    """Zeros that take no memory until they are written: pages that were only read are all one page."""
    return torch.from_numpy(np.zeros(shape, dtype))


def test_pooling_of_more_than_2_31_elements() -> None:
    side = 46342  # its square is just over 2^31
    x = zeros(1, 1, side, side, dtype=np.float16)
    x[0, 0, -1, -1], x[0, 0, -2, 7] = 3.0, 2.0
    options = {"kernel_size": (2, 1289), "stride": (2, 1289), "ceil_mode": True}
    y, index = F.max_pool2d(x, **options, return_indices=True)
    assert y[0, 0, -1, -1] == 3.0
    assert index[0, 0, -1, -1] == side * side - 1 > 2**31
    assert y[0, 0, -1, 0] == 2.0
    assert index[0, 0, -1, 0] == (side - 2) * side + 7
    assert y.count_nonzero() == 2
    y = F.avg_pool2d(x, **options, divisor_override=1)
    assert (y[0, 0, -1, -1], y[0, 0, -1, 0], y.count_nonzero()) == (3.0, 2.0, 2)


@pytest.mark.parametrize("channels", [1, 4])
def test_convolution_of_more_than_2_31_elements(channels: int) -> None:
    """Strides so long that little of it is read."""
    x = zeros(1, channels, 2**18 // channels + 1, 2**13)
    x[0, -1, -1, -3:] = torch.tensor([1.0, 2.0, 3.0])
    w = torch.tensor([1.0, 10.0, 100.0]).expand(5, channels, 1, 3).contiguous().requires_grad_()
    stride = (2**18 // channels, 2**13 - 3)
    for algorithm in algorithms("conv2d", x, w, None, stride)["forward"]:
        with force_algorithm(forward=algorithm):
            y = F.conv2d(x, w, None, stride)
        assert y.shape == (1, 5, 2, 2)
        assert bool((y[0, :, 1, 1] == 321.0).all())
        assert y.count_nonzero() == 5
    (gw,) = torch.autograd.grad(y[0, 2, 1, 1], w)
    assert gw[2, -1, 0].tolist() == [1.0, 2.0, 3.0]
    assert gw.count_nonzero() == 3
