"""Where operators compute: on the CPU, on a GPU, or on the simulated GPU, with what settings and native functions."""

import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv import _C

CUDA = hasattr(_C, "cuda")  # built with nvcc

SIMULATED_MULTIPROCESSORS = 4  # few, so that small problems are cut as large ones are on a GPU
DEVICE_FUNCTIONS = (
    "max_pool_forward",
    "max_pool_forward_with_index",
    "max_pool_backward",
    "max_pool_gather",
    "average_pool_forward",
    "average_pool_backward",
    "lrn_forward",
    "lrn_backward",
)


class Algorithms(NamedTuple):
    """What the planner is told: the algorithm forced for a primitive, or ""; and whether it may choose Winograd's."""

    forward: str = ""
    input_gradient: str = ""
    weight_gradient: str = ""
    winograd: bool = True


class Target:
    """A device and the settings of calls on it.

    Part of every cache key. There is one of each, so that it is compared by identity.
    """

    __slots__ = ("algorithms", "native", "simulation", "tf32", "workspace")

    def __init__(
        self,
        native: Any,
        workspace: Callable[[int], Tensor],
        algorithms: Algorithms,
        tf32: bool = False,
        simulation: int | None = None,
    ) -> None:
        self.native = native  # _C, or a Device: what has its functions
        self.workspace = workspace  # scratch memory of so many bytes
        self.algorithms = algorithms
        self.tf32 = tf32  # whether float32 convolutions may round their operands to TF32
        self.simulation = simulation  # the stream of the simulated GPU, by which calls know how to be run


class Device:
    """A GPU, or the simulated one, with the functions of `_C` by the same names and arguments.

    `launch(function, *args)` adds the stream. It stands where the CPU's functions take their threads, which mean
    nothing here: the work is cut for `multiprocessors`.
    """

    max_pool_forward: Callable[..., None]
    max_pool_forward_with_index: Callable[..., None]
    max_pool_backward: Callable[..., bool]
    max_pool_gather: Callable[..., bool]
    average_pool_forward: Callable[..., None]
    average_pool_backward: Callable[..., None]
    lrn_forward: Callable[..., None]
    lrn_backward: Callable[..., None]

    def __init__(self, module: Any, multiprocessors: int, launch: Callable[..., Any]) -> None:
        self._module, self._multiprocessors, self._launch = module, multiprocessors, launch
        self.conv_algorithms = module.conv_algorithms
        for name in DEVICE_FUNCTIONS:
            setattr(self, name, self._without_threads(getattr(module, name)))

    def _without_threads(self, function: Callable[..., Any]) -> Callable[..., Any]:
        launch = self._launch
        return lambda *args: launch(function, *args[:-1])

    def _enqueued(self, method: Callable[..., Any]) -> Callable[..., Any]:
        launch = self._launch
        return lambda *args: launch(method, *args)

    def ConvPlan(self, problem: _C.ConvProblem, primitive: str, threads: int, algorithm: str = "") -> Any:
        """As _C.ConvPlan."""
        plan = self._module.ConvPlan(problem, primitive, self._multiprocessors, algorithm)
        run = {name: self._enqueued(getattr(plan, name)) for name in ("forward", "input_gradient", "weight_gradient")}
        return SimpleNamespace(algorithm=plan.algorithm, workspace_bytes=plan.workspace_bytes, **run)


# ---- workspace

_kept = threading.local()
WORKSPACE_KEPT = 64 << 20


def workspace(size: int) -> Tensor:
    """Scratch memory of at least `size` bytes, valid until this thread asks again; kept unless it is large."""
    buffer: Tensor | None = getattr(_kept, "buffer", None)
    if buffer is None or buffer.numel() < size:
        buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
        if size <= WORKSPACE_KEPT:
            _kept.buffer = buffer
    return buffer


# ---- the CPU


@cache
def on_cpu(algorithms: Algorithms) -> Target:
    return Target(_C, workspace, algorithms)


# ---- the simulated GPU


@cache
def on_simulation(algorithms: Algorithms, stream: int, tf32: bool = False) -> Target:
    def launch(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args, stream)

    device = Device(_C.simulation, SIMULATED_MULTIPROCESSORS, launch)
    return Target(device, workspace, algorithms, tf32, stream)


# ---- GPUs


@cache
def on_gpu(algorithms: Algorithms, index: int, tf32: bool) -> Target:
    return Target(_gpu(index), lambda size: torch.empty(size, dtype=torch.uint8, device=index), algorithms, tf32)


@cache
def _gpu(index: int) -> Device:
    """Raises RuntimeError if the kernels were not built for this GPU."""
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    if not runs_on(_C.cuda.architectures, capability):
        raise RuntimeError(
            f"fastconv was built for {', '.join(_C.cuda.architectures)}, but cuda:{index} ({properties.name}) is "
            f"sm_{capability[0]}{capability[1]}: set FASTCONV_CUDA_ARCHS={capability[0]}{capability[1]} and install "
            "fastconv again"
        )
    return Device(_C.cuda, properties.multi_processor_count, gpu_launcher(index))


def gpu_launcher(index: int) -> Callable[..., Any]:
    """Runs functions with a GPU as the current one, on torch's current stream of it."""
    current, stream = torch._C._cuda_getDevice, torch._C._cuda_getCurrentRawStream

    def launch(function: Callable[..., Any], *args: Any) -> Any:
        if current() == index:
            return function(*args, stream(index))
        with torch.cuda.device(index):
            return function(*args, stream(index))

    return launch


def runs_on(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for one of the architectures ("sm_80", "sm_90a", "compute_90" for PTX) runs on a GPU.

    Machine code runs on GPUs of its generation from its minor version on, code for "sm_90a" on exactly that, PTX on
    all from its version on, except "compute_90a" (CUDA C++ Programming Guide, "Compute Capability").
    """
    for name in architectures:
        kind, number = name.split("_")
        specific = not number[-1].isdigit()
        number = number.rstrip("af")
        built = (int(number[:-1]), int(number[-1]))
        if specific:
            fits = capability == built
        elif kind == "compute":
            fits = capability >= built
        else:
            fits = capability[0] == built[0] and capability >= built
        if fits:
            return True
    return False


# ---- the target of a call

# Where calls on CPU tensors go; the forced algorithms hold for tensors on GPUs too.
current: ContextVar[Target] = ContextVar("fastconv_target", default=on_cpu(Algorithms()))  # noqa: B039 (a constant)


def _tf32() -> bool:
    """torch.backends.cudnn.conv.fp32_precision (of which allow_tf32 is the older form), without the detour."""
    return bool(torch._C._get_fp32_precision_getter("cuda", "conv") == "tf32")


def now(target: Target) -> Target:
    """The target with torch's present switch of TF32, which only GPUs have."""
    if target.simulation is None:
        return target
    return on_simulation(target.algorithms, target.simulation, _tf32())


def target_of(t: Tensor) -> Target:
    """Where a call on a tensor goes."""
    if t.is_cuda:
        return on_gpu(current.get().algorithms, t.get_device(), _tf32())
    return now(current.get())
