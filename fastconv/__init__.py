"""Hand-written convolution, pooling and local-response-normalisation kernels that drop into PyTorch models."""

import torch  # noqa: F401  (first: the kernels bind to the OpenMP runtime that torch has loaded)

from fastconv import functional
from fastconv.config import algorithms, force_algorithm, show_config

__version__ = "0.1.0"
__all__ = ["algorithms", "force_algorithm", "functional", "show_config"]
