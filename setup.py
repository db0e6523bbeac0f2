"""Builds fastconv._C with CMake and Ninja; everything else about the package is in pyproject.toml.

Environment: FASTCONV_CUDA=auto|on|off (CUDA kernels where nvcc is found, or else an error, or never),
FASTCONV_CUDA_ARCHS="80;90a", CUDACXX=/path/to/nvcc, FASTCONV_CMAKE_ARGS for anything else.
"""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-G",
            "Ninja",
            f"-S{ROOT}",
            f"-B{build}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *(
                f"-D{name}={os.environ[name]}"
                for name in ("FASTCONV_CUDA", "FASTCONV_CUDA_ARCHS")
                if name in os.environ
            ),
            *os.environ.get("FASTCONV_CMAKE_ARGS", "").split(),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(ext_modules=[Extension("fastconv._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
