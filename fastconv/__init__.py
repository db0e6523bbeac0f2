"""Hand-written convolution, pooling and local-response-normalisation kernels that drop into PyTorch models."""

import torch  # noqa: F401  (first: the kernels bind to the OpenMP runtime that torch has loaded)

from fastconv import _C  # noqa: F401
