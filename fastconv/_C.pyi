"""The kernels: problem structs, plans and functions that take addresses (csrc/bindings.cpp)."""

import enum

class Dtype(enum.Enum):
    float32 = ...
    float64 = ...
    float16 = ...
    bfloat16 = ...

class Layout(enum.Enum):
    channels_first = ...
    channels_last = ...

class MaxIndex(enum.Enum):
    none = ...
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
    def forward(self, x: int, w: int, b: int, y: int, workspace: int, /) -> None: ...
    def input_gradient(self, gy: int, w: int, b: int, gx: int, workspace: int, /) -> None: ...
    def weight_gradient(self, gy: int, x: int, gw: int, gb: int, workspace: int, /) -> None: ...

interface: str

def isa() -> str: ...
def compiled_isas() -> list[str]: ...
def available_isas() -> list[str]: ...
def useful_threads(operations: int, threads: int) -> int: ...
def multiply_add_ceiling(steps: int, threads: int) -> float: ...
def conv_algorithms(problem: ConvProblem, primitive: str) -> list[str]: ...
def max_pool_forward(problem: PoolProblem, x: int, y: int, index: int, kind: MaxIndex, threads: int, /) -> None: ...
def max_pool_backward(problem: PoolProblem, gy: int, index: int, kind: MaxIndex, gx: int, threads: int, /) -> bool: ...
def max_pool_gather(problem: PoolProblem, v: int, index: int, kind: MaxIndex, y: int, threads: int, /) -> bool: ...
def average_pool_forward(problem: PoolProblem, x: int, y: int, threads: int, /) -> None: ...
def average_pool_backward(problem: PoolProblem, gy: int, gx: int, threads: int, /) -> None: ...
def lrn_forward(problem: LrnProblem, x: int, y: int, threads: int, /) -> None: ...
def lrn_backward(problem: LrnProblem, x: int, gy: int, gx: int, threads: int, /) -> None: ...
