"""The package as users get it: a wheel built without torch, installed in an empty environment, and tested there."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch

ROOT = Path(__file__).parent.parent
NOT_SOURCE = (".git", ".venv", "build", "dist", "runs", "__pycache__", "*.so", "*.egg-info", ".*_cache", ".benchmarks")


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that knows nothing of the checkout or of the environment that the tests run in."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def build_wheel(folder: Path) -> Path:
    """Built by pip in its isolated environment, from a copy of the source without anything that was built before."""
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    os.environ.setdefault("FASTCONV_CUDA", "off")  # minutes of nvcc would show nothing more about the wheel
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, "./source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, folder: Path) -> Path:
    """The scripts' folder of a new environment with the wheel; torch and NumPy are borrowed, as they are large."""
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    scripts = folder / "venv" / "bin"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        scripts / "python",
        "install",
        "--quiet",
        "--no-deps",
        wheel,
        cwd=folder,
    )
    own = Path(
        run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    borrowed = {Path(module.__file__).parent.parent for module in (torch, numpy) if module.__file__}
    # These come after the environment's own folder, and .pth files in them (of an editable fastconv) do not count.
    (own / "borrowed.pth").write_text("".join(f"{path}\n" for path in sorted(borrowed)))
    return scripts


def test_torch_is_not_needed_to_build() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^\[build-system\]\nrequires = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
    assert requires is not None
    assert "pybind11" in requires[1]
    assert "torch" not in requires[1]


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    """One test, since every process of a parallel run that needs the wheel would build it."""
    wheel = build_wheel(tmp_path)
    assert_complete(wheel)
    assert_works(install(wheel, tmp_path), tmp_path)


def assert_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    package = ROOT / "fastconv"
    sources = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py*") if "__pycache__" not in path.parts}
    assert sources | {"fastconv/py.typed"} <= names
    assert len([name for name in names if re.fullmatch(r"fastconv/_C\..*\.so", name)]) == 1
    assert not [name for name in names if name.startswith(("tests", "csrc"))]
    assert any(name.endswith("LICENSE") for name in names)
    assert "Requires-Dist: torch>=2.11" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "Provides-Extra: all" in metadata


def assert_works(environment: Path, tmp_path: Path) -> None:
    where = run(environment / "python", "-c", "import fastconv; print(fastconv.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment.parent)
    assert re.search(r"All \d+ checks passed", run(environment / "fastconv", "check", cwd=tmp_path))
    program = (
        "import torch; from fastconv import convert, nn; print(type(convert(torch.nn.Conv2d(1, 1, 1))) is nn.Conv2d)"
    )
    assert run(environment / "python", "-c", program, cwd=tmp_path) == "True\n"
