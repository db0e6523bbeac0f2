"""PyTorch's own samples of these operators, read from the installed torch: values, gradients, types of errors."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from fastconv import functional as F

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

NAMES = [
    *(
        "conv1d",
        "conv2d",
        "conv_transpose1d",
        "conv_transpose2d",
        "max_pool1d",
        "max_pool2d",
        "avg_pool1d",
        "avg_pool2d",
    ),
    *(
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "local_response_norm",
    ),
]
OPINFO = {op.name.removeprefix("nn.functional."): op for op in op_db if op.name.startswith("nn.functional.")}


def values_and_gradients(function, sample) -> tuple[Any, Any]:
    out = function(sample.input, *sample.args, **sample.kwargs)
    first = out[0] if isinstance(out, (tuple, list)) else out
    operands = (sample.input, *sample.args, *sample.kwargs.values())
    leaves = [t for t in operands if isinstance(t, torch.Tensor) and t.requires_grad]
    if not leaves or not first.requires_grad:
        return out, None
    gradient = torch.linspace(-1, 2, first.numel(), dtype=first.dtype).view(first.shape)
    return out, torch.autograd.grad(first, leaves, gradient, allow_unused=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_samples(name: str, dtype: torch.dtype) -> None:
    count = 0
    for sample in OPINFO[name].sample_inputs("cpu", dtype, requires_grad=True):
        got = values_and_gradients(getattr(F, name), sample)
        want = values_and_gradients(OPINFO[name].op, sample)
        assert_close(got, want, msg=lambda text, sample=sample: f"{sample}: {text}")
        count += 1
    assert count > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NAMES if OPINFO[name].error_inputs_func])
def test_errors(name: str) -> None:
    for error in OPINFO[name].error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type):
            getattr(F, name)(sample.input, *sample.args, **sample.kwargs)
