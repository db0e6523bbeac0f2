"""The simulated GPU reports planted bugs and not their correct twins; the CUDA kernels run on it, exact and clean."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLAGS = ["-std=gnu++17", "-O2", "-g1", "-Wall", "-Wextra", "-Werror"]
INSTRUMENTED = [
    *("-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0", "-fno-threadsafe-statics"),
    *("-DFASTCONV_BACKEND=simulation", "-Wno-unknown-pragmas"),
]
RUNTIME = ["fiber", "runtime", "memory", "tensor_core"]

# What the fault must say. Where the order of threads decides which symptom comes first, any of several.
EXPECTED = {
    "read_after_write": ["race, read after write", "uninitialised shared memory"],
    "write_after_read": ["race, write after read", "race, read after write"],
    "write_after_write": ["race, write after write"],
    "warp_barrier": ["race, read after write", "uninitialised shared memory"],
    "uninitialised_shared": ["uninitialised shared memory"],
    "shared_bounds": ["write outside the block's shared memory"],
    "async_wait": ["cp.async data that was not waited for"],
    "async_barrier": ["race, read after write", "uninitialised shared memory"],
    "async_exit": ["exits with cp.async in flight"],
    "async_pipeline": ["cp.async", "race, write after read", "uninitialised shared memory"],
    "read_bounds": ["global read out of bounds: 4 bytes at byte 256 of x (256 bytes)"],
    "write_bounds": ["global write out of bounds: 4 bytes at byte -4 of y (256 bytes)"],
    "byte_bounds": ["global read out of bounds: 1 bytes at byte 256 of x (256 bytes)"],
    "vector_bounds": ["global read out of bounds: 16 bytes at byte 256 of x (256 bytes)"],
    "misaligned_vector": ["misaligned access: 16 bytes"],
    "misaligned_plain": ["misaligned access: 8 bytes"],
    "local_of_another": ["global read out of bounds: 4 bytes"],
    "misaligned_async": ["cp.async: misaligned"],
    "read_only": ["write to a read-only buffer"],
    "never_written": ["byte 68 of y was never written"],
    "unwritten_global": ["read of global memory that was never written"],
    "divergent_barrier": ["divergent __syncthreads"],
    "exit_before_barrier": ["exits while others wait at __syncthreads", "after threads of the block have exited"],
    "wrong_mask": ["wrong mask: it names lanes that have exited", "lanes of its warp wait for it"],
    "not_in_mask": ["wrong mask: the calling lane is not in it"],
    "shuffle_from_outside": ["lane 0 reads lane 20, which is not in the mask"],
    "divergent_warp": ["divergent warp"],
    "deadlock": ["deadlock", "divergent __syncthreads"],
    "ldmatrix_race": ["race, read after write", "uninitialised shared memory"],
    "too_many_threads": ["exceeds 1024 threads (sm_90)"],
    "too_much_shared": ["232449 bytes of dynamic shared memory exceed 232448"],
    "too_large_grid": ["grid (1, 65536, 1) exceeds"],
}
# Found when the launch is refused or has ended: there is no line to name.
WITHOUT_LINE = {"never_written", "async_exit", "too_many_threads", "too_much_shared", "too_large_grid"}
ORDERS = [("forward", 1), ("reverse", 1), ("random", 1), ("random", 2), ("random", 3)]


def compile_program(source: str, folder: Path, *flags: str, kernels: Sequence[Path] = ()) -> Path:
    """Builds a test program the way the kernels are built: kernels instrumented, the runtime not."""
    objects = []
    for name in RUNTIME:
        objects.append(folder / f"{name}.o")
        subprocess.run(["g++", *FLAGS, *flags, "-c", ROOT / f"csrc/simt/{name}.cpp", "-o", objects[-1]], check=True)
    program = folder / source
    for path in (ROOT / f"tests/simt/{source}.cpp", *kernels):
        objects.append(folder / f"{path.name}.o")
        instrumented = [*FLAGS, *flags, *INSTRUMENTED, "-x", "c++", "-c", path, "-o", objects[-1]]
        subprocess.run(["g++", *instrumented], check=True)
    subprocess.run(["g++", *objects, "-ldl", "-o", program], check=True)
    return program


def output(*command: object) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, timeout=1800).stdout


@pytest.fixture(scope="module", params=["hand-written switch", "portable switch"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ["-DFASTCONV_PORTABLE_FIBERS"] if request.param == "portable switch" else []
    return compile_program("planted", tmp_path_factory.mktemp("planted"), *flags)


@pytest.mark.xdist_group("simt")
def test_every_case_has_an_expectation(planted: Path) -> None:
    assert set(output(planted).split()) == set(EXPECTED)


@pytest.mark.xdist_group("simt")
@pytest.mark.parametrize("case", EXPECTED)
def test_planted_bug_is_reported_and_its_twin_is_not(planted: Path, case: str) -> None:
    for order, seed in ORDERS:
        assert output(planted, case, "clean", order, seed) == "clean\n"
        fault = output(planted, case, "bug", order, seed)
        assert any(text in fault for text in EXPECTED[case]), fault
        if case not in WITHOUT_LINE:
            assert "planted.cpp:" in fault, fault
            assert "block (" in fault, fault
            assert "thread (" in fault, fault


@pytest.mark.xdist_group("simt")
def test_tensor_cores_are_exact_on_small_integers(tmp_path: Path) -> None:
    lines = output(compile_program("tensor_core", tmp_path)).splitlines()
    assert lines == ["float16 1", "bfloat16 1", "tf32 1", "float64 1", "conversions 1"]


@pytest.mark.xdist_group("simt")
def test_kernels_are_exact_and_clean(tmp_path: Path) -> None:
    """Convolution, pooling and normalisation, every algorithm, dtype and layout, against plain loops."""
    program = compile_program("kernels", tmp_path, "-O1", kernels=sorted(ROOT.glob("csrc/cuda/*.cu")))
    for order in ("forward", "reverse", "random"):
        assert output(program, order) == "done\n"


@pytest.mark.xdist_group("simt")
def test_the_documents_example(tmp_path: Path) -> None:
    """Of a kernel of one's own, as its commands compile it: it says that the barrier is missing."""
    text = (ROOT / "docs" / "simulation.md").read_text()
    (program,) = re.findall(r"```cpp\n(.*?)```", text, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    (tmp_path / "csrc").symlink_to(ROOT / "csrc")
    (tmp_path / "own.cpp").write_text(program)
    done = subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "kernel reverse, block (0, 0, 0), thread (" in done.stdout
    assert "uninitialised shared memory" in done.stdout
    assert "own.cpp:11" in done.stdout
