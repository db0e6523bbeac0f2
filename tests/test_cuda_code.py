"""What nvcc makes of the CUDA kernels: no spills, registers for enough resident blocks, the intended instructions."""

import os
import re
import shutil
import site
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Where CMakeLists.txt looks for it.
NVCC = os.environ.get("CUDACXX") or shutil.which(
    "nvcc",
    path=os.pathsep.join([os.environ.get("PATH", ""), f"{os.environ.get('CUDA_HOME')}/bin", "/usr/local/cuda/bin"]),
)
REGISTERS = 65536  # of a multiprocessor

# Both architectures for the tensor cores; one for what contains no instruction of its own.
SOURCES = [
    ("conv_tensor_core", "sm_80"),
    ("conv_tensor_core", "sm_90a"),
    ("conv_tensor_core_weight", "sm_80"),
    ("conv_tensor_core_weight", "sm_90a"),
    ("conv_stem", "sm_80"),
    ("conv_grouped", "sm_80"),
    ("conv_grouped", "sm_90a"),
    ("conv_grouped_weight", "sm_80"),
    ("conv_grouped_weight", "sm_90a"),
    ("conv_implicit_gemm", "sm_80"),
    ("conv_winograd", "sm_80"),
    ("conv_direct", "sm_90a"),
    ("conv_direct_weight", "sm_80"),
    ("lrn", "sm_80"),
    ("pool", "sm_80"),
]

# Threads that are to reside on a multiprocessor, by the kernels' launch bounds.
RESIDENT = {
    r"(gather|weight)_tensor_core.*Li128": 256,
    r"(gather|weight)_tensor_core.*TileIfLi64": 3 * 128,
    r"(gather|weight)_tensor_core.*(Half|BFloat16)ELi64": 4 * 128,
    r"grouped_tensor_core.*Li4": 2 * 256,
    r"grouped_tensor_core": 3 * 256,
    r"grouped_weight_tensor_core": 2 * 256,
    r"gather_gemm|weight_gemm": 2 * 256,
    r"winograd_(inputs|outputs)": 4 * 256,
    r"direct_gatherI(f|N)": 3 * 256,
    r"direct_weight": 2 * 256,
    r"(max|average)_.*_(last|band|any)": 4 * 256,
    r"lrn_.*_tile": 4 * 256,
}

# Instructions that a kernel must contain: kernel, architecture, instructions.
HALF_PRODUCT = ["HMMA.16816.F32", "LDGSTS.E.BYPASS.128"]
INSTRUCTIONS = [
    ("conv_tensor_core", r"gather_tensor_core.*Half", [*HALF_PRODUCT, "LDSM.16.M88.4", "LDSM.16.MT88.4", "STG.E.128"]),
    ("conv_tensor_core", r"gather_tensor_core.*BFloat16", ["HMMA.16816.F32.BF16", "LDSM.16.M88.4", "STG.E.128"]),
    ("conv_tensor_core", r"gather_tensor_core.*TileIf", ["HMMA.1688.F32.TF32", "LDGSTS.E.BYPASS.128", "STG.E.128"]),
    ("conv_tensor_core", r"transpose_to_channels_last", ["LDG.E.128", "LDS.128", "STG.E.128"]),
    ("conv_tensor_core_weight", r"weight_tensor_core.*Half", [*HALF_PRODUCT, "LDSM.16.MT88.4"]),
    ("conv_tensor_core_weight", r"weight_tensor_core.*TileIf", ["HMMA.1688.F32.TF32", "LDGSTS.E.BYPASS.128"]),
    ("conv_grouped", r"grouped_tensor_core.*HalfELi1", [*HALF_PRODUCT, "LDSM.16.M88.4", "LDSM.16.MT88.2"]),
    ("conv_grouped", r"grouped_tensor_core.*HalfELi[24]", [*HALF_PRODUCT, "LDSM.16.M88.4", "LDSM.16.MT88.4"]),
    ("conv_grouped_weight", r"grouped_weight_tensor_core.*Half", [*HALF_PRODUCT, "LDSM.16.MT88.4"]),
    ("conv_implicit_gemm", r"(gather|weight)_gemmIf", ["LDS.128", "FFMA", "LDGSTS.E"]),
    ("conv_implicit_gemm", r"(gather|weight)_gemmId", ["LDS.128", "DFMA", "LDGSTS.E.64"]),
    ("conv_direct", r"direct_gatherIf.*WalkILi4ELb1", ["LDGSTS.E.BYPASS.128", "LDS.128", "LDG.E.128", "STG.E.128"]),
    ("conv_direct", r"direct_gatherIN.*WalkILi4ELb1", ["LDGSTS.E.BYPASS.128", "LDS.64", "LDG.E.128", "STG.E.64"]),
    ("conv_direct_weight", r"direct_weightIf.*WalkILi4ELb1", ["LDGSTS.E.BYPASS.128", "LDS.128", "SHFL.BFLY"]),
    ("lrn", r"lrn_(forward|backward)_tile", ["LDG.E.128", "STG.E.128"]),
    ("pool", r"(max|average)_.*_(last|band)", ["LDG.E.128", "STG.E.128"]),
]

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="nvcc is not installed"),
    pytest.mark.xdist_group("nvcc"),
]


class Compiler:
    """Compiles each kernel source once for a session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cache  # noqa: B019 (it lives as long as the session)
    def compile(self, source: str, arch: str) -> tuple[Path, str]:
        """The machine code, and the assembler's report of its resources."""
        target = self.folder / f"{source}.{arch}.cubin"
        command = [
            str(NVCC),
            "-std=c++17",
            "-O3",
            "-DFASTCONV_BACKEND=cuda",
            f"-arch={arch}",
            "-cubin",
            "-Xptxas",
            "-v",
        ]
        command += ["-o", str(target), str(ROOT / f"csrc/cuda/{source}.cu")]
        run = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stderr
        return target, run.stdout + run.stderr

    def instructions(self, source: str, arch: str) -> dict[str, str]:
        """The disassembly of each kernel, by its mangled name."""
        tool = disassembler()
        if tool is None:
            pytest.skip("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
        cubin, _ = self.compile(source, arch)
        text = subprocess.run([tool, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
        pieces = re.split(r"^//-+ \.text\.(\S+) -+$", text, flags=re.MULTILINE)
        return dict(zip(pieces[1::2], pieces[2::2], strict=True))


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(tmp_path_factory.mktemp("cuda"))


def disassembler() -> str | None:
    """nvdisasm: of the CUDA toolkit, or of the wheels nvidia-cuda-nvdisasm and triton."""
    found = shutil.which("nvdisasm")
    wheels = (p for place in site.getsitepackages() for p in Path(place).glob("nvidia/*/bin/nvdisasm"))
    triton = (p for place in site.getsitepackages() for p in Path(place).glob("triton/backends/nvidia/bin/nvdisasm"))
    return found or next((str(p) for p in (*wheels, *triton)), None)


@pytest.mark.parametrize(("source", "arch"), SOURCES)
def test_no_spills_and_the_registers_that_residency_allows(compiler: Compiler, source: str, arch: str) -> None:
    _, report = compiler.compile(source, arch)
    kernels = re.findall(
        r"entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        report,
        flags=re.DOTALL,
    )
    assert len(kernels) == report.count("Compiling entry function") > 0
    for name, stack, stores, loads, registers in kernels:
        assert (stack, stores, loads) == ("0", "0", "0"), name
        threads = next((threads for pattern, threads in RESIDENT.items() if re.search(pattern, name)), 256)
        allocated = -(-int(registers) // 8) * 8
        assert allocated * threads <= REGISTERS, f"{name}: {registers} registers, {threads} threads"


@pytest.mark.parametrize(("source", "kernel", "expected"), INSTRUCTIONS, ids=[k[1] for k in INSTRUCTIONS])
def test_kernels_contain_the_intended_instructions(
    compiler: Compiler, source: str, kernel: str, expected: list[str]
) -> None:
    for arch in (arch for name, arch in SOURCES if name == source):
        bodies = {name: body for name, body in compiler.instructions(source, arch).items() if re.search(kernel, name)}
        assert bodies
        for name, body in bodies.items():
            found = set(re.findall(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*", body))
            for instruction in expected:
                assert any(i == instruction or i.startswith(instruction + ".") for i in found), (
                    f"{name}: no {instruction}"
                )
            local = {i for i in found if i.split(".")[0] in ("LDL", "STL")}
            assert not local, f"{name}: local memory, {local}"
