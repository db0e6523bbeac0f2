"""Which algorithm computes what, and what this build can do."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastconv import _C, device, tuning
from fastconv.tuning import PRIMITIVES


@contextmanager
def _calls_go_to(target: device.Target) -> Iterator[None]:
    token = device.current.set(target)
    try:
        yield
    finally:
        device.current.reset(token)


@contextmanager
def simulate_cuda(order: str = "forward", seed: int = 1, architecture: str = "sm_90") -> Iterator[None]:
    """CPU tensors inside the context go through the CUDA kernels, run on the CPU, slowly, with every access checked.

    The planning and launch code is the GPU's. A race in shared memory, an access out of bounds, a missing barrier, an
    output that is never written and the like end the call with `fastconv.KernelFault`, which names the kernel, block,
    thread and source line. Outputs and workspace are poisoned first. Meant for tests: a hundred thousand multiply-adds
    take about a tenth of a second. A backward pass is simulated if its forward pass was. The context is local to the
    thread (a context variable).

    Args:
        order: in which the threads of a block, and blocks, get their turns: "forward", "reverse" or "random".
        seed: of the random order, 0 to 2^32 - 1.
        architecture: whose launch limits hold: "sm_80" or "sm_90".

    Raises:
        ValueError: for an unknown order or architecture, or a seed out of range.
    """
    stream = _C.simulation.stream(order, seed, architecture)
    with _calls_go_to(device.on_simulation(device.current.get().algorithms, stream)):
        yield


@contextmanager
def force_algorithm(
    name: str = "", *, forward: str = "", input_gradient: str = "", weight_gradient: str = ""
) -> Iterator[None]:
    """Convolutions inside the context use the algorithm `name`, or a primitive's own where that is given.

    The primitives are those of the kernels: a transposed convolution's forward pass is `input_gradient`. A backward
    pass uses what was forced when its forward pass ran. A call for which the name is unknown or does not apply raises
    ValueError, naming the choices. The context is local to the thread (a context variable).
    """
    names = (forward or name, input_gradient or name, weight_gradient or name)
    target = device.current.get()
    with _calls_go_to(_planned(target, device.Algorithms(*names, target.algorithms.winograd))):
        yield


class allow_winograd:
    """Whether convolutions may use Winograd's algorithm (Lavin and Gray, arXiv 1509.09308); at first they may.

    It needs a quarter of the multiplications of a 3x3 convolution of float32, 36 in 100 of a 5x5 one, but forms
    differences of its operands, which round: errors are about three times those of a sum of products, still within
    the defaults of torch.testing.assert_close for numbers around 1. What is not finite is computed again without
    Winograd, so infinities and NaN come out as they would.

    `allow_winograd(False)` takes effect at once, and `with allow_winograd(False):` until the block ends. A backward
    pass uses what was allowed when its forward pass ran. The setting is local to the thread (a context variable).

    Raises:
        TypeError: `allowed` is not a bool.
    """

    def __init__(self, allowed: bool) -> None:
        if not isinstance(allowed, bool):
            raise TypeError(f"allowed: expected a bool, got {allowed!r}")
        target = device.current.get()
        self._token = device.current.set(_planned(target, target.algorithms._replace(winograd=allowed)))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        device.current.reset(self._token)


def _planned(target: device.Target, algorithms: device.Algorithms) -> device.Target:
    """The target with other algorithms."""
    stream = target.simulation
    return device.on_cpu(algorithms) if stream is None else device.on_simulation(algorithms, stream)


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
        "conv1d": functional.conv_call,
        "conv2d": functional.conv_call,
        "conv_transpose1d": functional.conv_transpose_call,
        "conv_transpose2d": functional.conv_transpose_call,
    }
    if op_name not in problems:
        raise ValueError(f"op_name: expected one of {', '.join(problems)}, got {op_name!r}")
    call = problems[op_name](int(op_name[-2]), *args, **kwargs)
    names = {primitive: call.target.native.conv_algorithms(call.problem, primitive) for primitive in PRIMITIVES}
    if call.target.native is _C:
        for primitive, choices in names.items():
            tuned = tuning.algorithm(call.problem, primitive)
            choices.sort(key=lambda name: name != tuned)
    return names


def _tuning() -> str:
    file = tuning.path()
    return "off (FASTCONV_TUNING)" if file is None else f"{tuning.known()} choices of {file}"


def _cuda() -> str:
    if not device.CUDA:
        return f"not built ({_C.without_cuda})"
    built = f"built for {', '.join(_C.cuda.architectures)} by nvcc {_C.cuda.nvcc}"
    if torch.version.cuda is None:
        return f"{built}; this torch is without CUDA"
    if not torch.cuda.is_available():
        return f"{built}; no device present"
    names = []
    for i in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(i)
        runs = device.runs_on(_C.cuda.architectures, capability)
        name = f"{torch.cuda.get_device_name(i)} (sm_{capability[0]}{capability[1]})"
        names.append(name if runs else f"{name}, not built for: set FASTCONV_CUDA_ARCHS={capability[0]}{capability[1]}")
    return f"{built}; present: {'; '.join(names)}"


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
        "tuning": _tuning(),
        "cuda": _cuda(),
    }
    return "\n".join(f"{name + ':':<17}{value}" for name, value in lines.items())
