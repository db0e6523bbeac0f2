"""Hand-written convolution, pooling and local-response-normalisation kernels that drop into PyTorch models."""

import torch  # noqa: F401  (first: the kernels bind to the OpenMP runtime that torch has loaded)

from fastconv import interface  # noqa: F401  (next: all else would crash in kernels of another version)

# isort: split
from fastconv import functional, interop, models, nn
from fastconv._C import KernelFault
from fastconv.config import algorithms, allow_winograd, force_algorithm, show_config, simulate_cuda
from fastconv.convert import ConversionReport, accelerate, convert, revert
from fastconv.frozen import freeze, unfreeze
from fastconv.tune import TuningReport, tune

__version__ = "0.1.0"
__all__ = [
    "ConversionReport",
    "KernelFault",
    "TuningReport",
    "accelerate",
    "algorithms",
    "allow_winograd",
    "convert",
    "force_algorithm",
    "freeze",
    "functional",
    "interop",
    "models",
    "nn",
    "revert",
    "show_config",
    "simulate_cuda",
    "tune",
    "unfreeze",
]
