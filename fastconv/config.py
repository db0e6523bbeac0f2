"""Which algorithm computes what, and what this build can do."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from fastconv import _C

PRIMITIVES = ("forward", "input_gradient", "weight_gradient")

# One forced algorithm a primitive, "" for the planner's choice. Part of every plan's cache key.
forced: ContextVar[tuple[str, str, str]] = ContextVar("fastconv_forced_algorithms", default=("", "", ""))


@contextmanager
def force_algorithm(
    name: str = "", *, forward: str = "", input_gradient: str = "", weight_gradient: str = ""
) -> Iterator[None]:
    """Convolutions inside the context use the algorithm `name`, or a primitive's own where that is given.

    The primitives are those of the kernels: a transposed convolution's forward pass is `input_gradient`. A backward
    pass uses what was forced when its forward pass ran. A call for which the name is unknown or does not apply raises
    ValueError, naming the choices. The context is local to the thread (a context variable).
    """
    token = forced.set((forward or name, input_gradient or name, weight_gradient or name))
    try:
        yield
    finally:
        forced.reset(token)


def algorithms(op_name: str, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
    """The algorithms that can compute a call, best first.

    Args:
        op_name: "conv1d", "conv2d", "conv_transpose1d" or "conv_transpose2d".
        *args, **kwargs: the arguments of that function in `fastconv.functional`; tensors may be on the meta device.

    Returns:
        A list of names for each of "forward", "input_gradient" and "weight_gradient" (see `force_algorithm`). The
        names of a transposed convolution's forward pass stand under "input_gradient".

    Raises:
        ValueError: for another `op_name`; and what the function itself raises.
    """
    from fastconv import functional

    problems: dict[str, Callable[..., Any]] = {
        "conv1d": functional.conv_problem,
        "conv2d": functional.conv_problem,
        "conv_transpose1d": functional.conv_transpose_problem,
        "conv_transpose2d": functional.conv_transpose_problem,
    }
    if op_name not in problems:
        raise ValueError(f"op_name: expected one of {', '.join(problems)}, got {op_name!r}")
    problem = problems[op_name](int(op_name[-2]), *args, **kwargs)
    return {primitive: _C.conv_algorithms(problem, primitive) for primitive in PRIMITIVES}


def show_config() -> str:
    """What this build has and uses, as text."""
    from fastconv import __version__

    lines = {
        "fastconv": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "instruction set": f"{_C.isa()} (this machine has {', '.join(_C.available_isas())})",
        "compiled for": ", ".join(_C.compiled_isas()),
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads)",
        "openmp": "shared with torch",
        "cuda": "not built",
    }
    return "\n".join(f"{name + ':':<17}{value}" for name, value in lines.items())
