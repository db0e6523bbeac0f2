"""The kernels: problem structs, plans and functions that take memory (csrc/bindings.cpp)."""

import enum
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

from torch import Tensor, dtype, memory_format

Memory: TypeAlias = Tensor | int | None  # a tensor, which is not checked; an address; or nothing

class Dtype(enum.Enum):
    float32 = ...
    float64 = ...
    float16 = ...
    bfloat16 = ...

class Layout(enum.Enum):
    channels_first = ...
    channels_last = ...

class MaxIndex(enum.Enum):
    window = ...
    plane = ...

class ConvProblem:
    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    p: int
    q: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_bottom: int
    pad_left: int
    pad_right: int
    dilation_h: int
    dilation_w: int
    groups: int
    layout: Layout
    weight_layout: Layout
    dtype: Dtype
    allow_tf32: bool
    relu: bool
    allow_winograd: bool

class PoolProblem:
    n: int
    c: int
    h: int
    w: int
    r: int
    s: int
    p: int
    q: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    pad_bottom: int
    pad_right: int
    dilation_h: int
    dilation_w: int
    count_include_pad: bool
    divisor: int
    adaptive: bool
    layout: Layout
    dtype: Dtype
    def validate(self) -> None: ...
    @property
    def fits_window_index(self) -> bool: ...

class LrnProblem:
    n: int
    c: int
    spatial: int
    size: int
    alpha: float
    beta: float
    k: float
    layout: Layout
    dtype: Dtype
    def validate(self) -> None: ...

class ConvPlan:
    def __init__(self, problem: ConvProblem, primitive: str, threads: int, algorithm: str = "") -> None: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def packed_bytes(self) -> int: ...
    def pack(self, w: Memory, packed: Memory, workspace: Memory, /) -> None: ...
    def forward(self, x: Memory, w: Memory, b: Memory, y: Memory, workspace: Memory, packed: Memory = None) -> None: ...
    def input_gradient(
        self, gy: Memory, w: Memory, b: Memory, gx: Memory, workspace: Memory, packed: Memory = None
    ) -> None: ...
    def weight_gradient(self, gy: Memory, x: Memory, gw: Memory, gb: Memory, workspace: Memory, /) -> None: ...

interface: str

def isa() -> str: ...
def compiled_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def useful_threads(operations: int, threads: int) -> int: ...
def multiply_add_ceiling(steps: int, threads: int) -> float: ...
def conv_algorithms(problem: ConvProblem, primitive: str) -> list[str]: ...
def max_pool_forward(
    problem: PoolProblem, kind: MaxIndex, x: Memory, y: Memory, index: Memory, threads: int, /
) -> None: ...
def max_pool_backward(
    problem: PoolProblem, kind: MaxIndex, gy: Memory, index: Memory, gx: Memory, threads: int, /
) -> bool: ...
def max_pool_gather(
    problem: PoolProblem, kind: MaxIndex, v: Memory, index: Memory, y: Memory, threads: int, /
) -> bool: ...
def average_pool_forward(problem: PoolProblem, x: Memory, y: Memory, threads: int, /) -> None: ...
def average_pool_backward(problem: PoolProblem, gy: Memory, gx: Memory, threads: int, /) -> None: ...
def lrn_forward(problem: LrnProblem, x: Memory, y: Memory, threads: int, /) -> None: ...
def lrn_backward(problem: LrnProblem, gy: Memory, x: Memory, gx: Memory, threads: int, /) -> None: ...

# Calls made ready, found by all about their arguments but the tensors' addresses (csrc/ready.cpp, csrc/tensor.cpp).
def connect(
    exchange: object,
    tensor: type,
    parameter: type,
    forward_levels: dict[str, Any],
    nothing_watches: Callable[[], bool],
    is_grad_enabled: Callable[[], bool],
    empty_like: Callable[[Tensor], Tensor],
    dispatch_keys_tell: bool,
    threads: Callable[[], int],
    current_target: ContextVar[Any],
    target_of: Callable[[Tensor], Any],
) -> None: ...
def dispatch_keys() -> tuple[int, int] | None: ...
def find(*arguments: Any) -> Any: ...
def keep(ready: object, /, *arguments: Any) -> None: ...
def forget() -> None: ...
def kept() -> int: ...
def first_order(gradient: object, /) -> bool: ...

class Kernel:
    """A function made ready: called with its inputs, it returns its outputs, or None where the function says False.

    function(*parameters, *inputs, *outputs, threads); None computes nothing. inputs: their strides, else they are
    copied by `contiguous(memory_format=format)`. outputs: (shape, strides, dtype), allocated like what
    blank(first input, shape, strides, dtype) returns.
    """

    def __new__(
        cls,
        function: Callable[..., bool | None] | None,
        parameters: tuple[Any, ...],
        inputs: tuple[tuple[int, ...], ...],
        outputs: tuple[tuple[tuple[int, ...], tuple[int, ...], dtype], ...],
        threads: int,
        format: memory_format,
        blank: Callable[[Tensor, tuple[int, ...], tuple[int, ...], dtype], Tensor],
    ) -> Kernel: ...
    def __call__(self, *inputs: Tensor) -> Any: ...

class KernelFault(RuntimeError): ...

class DevicePlan:
    @property
    def algorithm(self) -> str: ...
    @property
    def workspace_bytes(self) -> int: ...
    def forward(self, x: Memory, w: Memory, b: Memory, y: Memory, workspace: Memory, stream: int, /) -> None: ...
    def input_gradient(
        self, gy: Memory, w: Memory, b: Memory, gx: Memory, workspace: Memory, stream: int, /
    ) -> None: ...
    def weight_gradient(
        self, gy: Memory, x: Memory, gw: Memory, gb: Memory, workspace: Memory, stream: int, /
    ) -> None: ...

class _Device:
    """A submodule: the CUDA kernels of a GPU or of the simulated one."""

    def conv_algorithms(self, problem: ConvProblem, primitive: str) -> list[str]: ...
    def ConvPlan(
        self, problem: ConvProblem, primitive: str, multiprocessors: int, algorithm: str = ""
    ) -> DevicePlan: ...
    def max_pool_forward(self, problem: PoolProblem, x: Memory, y: Memory, stream: int, /) -> None: ...
    def max_pool_forward_with_index(
        self, problem: PoolProblem, kind: MaxIndex, x: Memory, y: Memory, index: Memory, stream: int, /
    ) -> None: ...
    def max_pool_backward(
        self, problem: PoolProblem, kind: MaxIndex, gy: Memory, index: Memory, gx: Memory, stream: int, /
    ) -> bool: ...
    def max_pool_gather(
        self, problem: PoolProblem, kind: MaxIndex, v: Memory, index: Memory, y: Memory, stream: int, /
    ) -> bool: ...
    def average_pool_forward(self, problem: PoolProblem, x: Memory, y: Memory, stream: int, /) -> None: ...
    def average_pool_backward(self, problem: PoolProblem, gy: Memory, gx: Memory, stream: int, /) -> None: ...
    def lrn_forward(self, problem: LrnProblem, x: Memory, y: Memory, stream: int, /) -> None: ...
    def lrn_backward(self, problem: LrnProblem, gy: Memory, x: Memory, gx: Memory, stream: int, /) -> None: ...

class _Simulation(_Device):
    def stream(self, order: str, seed: int, architecture: str) -> int: ...

class _Cuda(_Device):
    architectures: list[str]
    nvcc: str

simulation: _Simulation
cuda: _Cuda  # in a build with nvcc
without_cuda: str  # in a build without: why
