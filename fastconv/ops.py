"""The operators torch.ops.fastconv.*: problems made ready for kernels, real and fake implementations, flop formulas.

Operators take one or two spatial dimensions and a batch; their parameters are canonical (`checks`): one number a
dimension, padding per side. Values come from `ConvCall`, `PoolCall` and `LrnCall`: everything about a call that does
not depend on the addresses of its tensors, made once and cached, so that a call only allocates and runs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fastconv import _C, checks, frozen, tuning
from fastconv.checks import Ints
from fastconv.device import Target, target_of

DTYPES = {
    torch.float32: _C.Dtype.float32,
    torch.float64: _C.Dtype.float64,
    torch.float16: _C.Dtype.float16,
    torch.bfloat16: _C.Dtype.bfloat16,
}
LAYOUTS = {False: _C.Layout.channels_first, True: _C.Layout.channels_last}
FORMATS = {False: torch.contiguous_format, True: torch.channels_last}

CACHE_SIZE = 4096
WINDOW_INDEX_MOST = 255  # positions a uint8 window index can name


class Cache(dict[Any, Any]):
    """A bounded dictionary: starts afresh when full, which loses only the time to prepare calls again."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) >= CACHE_SIZE:
            self.clear()
        super().__setitem__(key, value)


Output: TypeAlias = tuple[Ints, Ints, torch.dtype]  # shape, strides, dtype


# ---- memory


def suggests_channels_last(t: Tensor) -> bool:
    """Whether torch would call the strides channels_last (Tensor::suggest_memory_format), ambiguous ones included."""
    if t.dim() != 4:
        return False
    sizes, strides = t.shape, t.stride()
    if strides[1] == 0:
        return False
    least = 0
    for d in (1, 3, 2, 0):
        if sizes[d] == 0 or strides[d] < least:
            return False
        # N111 and a slice of N11W could be either: they count as contiguous.
        if d == 0 and least == strides[1]:
            return False
        least = strides[d] * sizes[d] if sizes[d] > 1 else strides[d]
    return True


def dense_strides(shape: Sequence[int], channels_last: bool) -> Ints:
    return torch.empty(tuple(shape), device="meta", memory_format=FORMATS[channels_last]).stride()


def blank(t: Tensor, shape: Ints, strides: Ints, dtype: torch.dtype) -> Tensor:
    """A tensor on t's device without memory: torch.empty_like of it is the fastest way to a tensor of such strides."""
    out = t.new_empty_strided(shape, strides, dtype=dtype)
    out.untyped_storage().resize_(0)
    return out


def _volume(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _pair(values: Ints, fill: int) -> Ints:
    """One-dimensional parameters as two-dimensional ones of height 1."""
    return values if len(values) == 2 else (fill, *values)


def _is_dense(b: Tensor) -> bool:
    return b.stride() == (1,)


# ---- convolution


class ConvCall:
    """A convolution y = conv(x, w) + b and its two gradients, made ready."""

    __slots__ = (
        "_plans",
        "channels",
        "channels_last",
        "empty_reduction",
        "format",
        "problem",
        "sums",
        "target",
        "threads",
        "w_format",
        "w_shape",
        "w_strides",
        "workspace",
        "x_shape",
        "x_strides",
        "y_shape",
        "y_strides",
    )

    def __init__(
        self,
        x_shape: Ints,
        w_shape: Ints,
        y_shape: Ints,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        groups: int,
        dtype: torch.dtype,
        channels_last: bool,
        w_channels_last: bool,
        threads: int,
        target: Target,
    ) -> None:
        self.x_shape, self.w_shape, self.y_shape = x_shape, w_shape, y_shape
        self.x_strides = dense_strides(x_shape, channels_last)
        self.w_strides = dense_strides(w_shape, w_channels_last)
        self.y_strides = dense_strides(y_shape, channels_last)
        self.channels_last = channels_last
        self.format, self.w_format = FORMATS[channels_last], FORMATS[w_channels_last]
        self.threads, self.target, self.workspace = threads, target, target.workspace
        self._plans: list[Any] = [None, None, None]
        self.sums: ChannelSumCall | None = None
        self.problem = p = _C.ConvProblem()
        p.n, p.c = x_shape[:2]
        p.k = w_shape[0]
        p.h, p.w = _pair(x_shape[2:], 1)
        p.r, p.s = _pair(w_shape[2:], 1)
        p.p, p.q = _pair(y_shape[2:], 1)
        p.stride_h, p.stride_w = _pair(stride, 1)
        p.pad_top, p.pad_bottom, p.pad_left, p.pad_right = padding if len(padding) == 4 else (0, 0, *padding)
        p.dilation_h, p.dilation_w = _pair(dilation, 1)
        p.groups = groups
        p.layout, p.weight_layout = LAYOUTS[channels_last], LAYOUTS[w_channels_last]
        p.dtype = DTYPES[dtype]
        p.allow_tf32 = target.tf32
        p.allow_winograd = target.algorithms.winograd

    def _plan(self, primitive: int) -> Any:
        """The native plan of a primitive; False where there is nothing to compute: a tensor of the problem is empty."""
        if self._plans[primitive] is None:
            if 0 in (_volume(self.x_shape), _volume(self.w_shape), _volume(self.y_shape)):
                self._plans[primitive] = False
            else:
                name = tuning.PRIMITIVES[primitive]
                algorithm = self.target.algorithms[primitive]
                if not algorithm and self.target.native is _C:
                    algorithm = tuning.algorithm(self.problem, name)
                plan = self.target.native.ConvPlan(self.problem, name, self.threads, algorithm)
                packing = None
                if self.target.native is _C and plan.packed_bytes:
                    packing = self._packing_key(plan.algorithm, name), plan
                self._plans[primitive] = (getattr(plan, name), plan.workspace_bytes, packing)
        return self._plans[primitive]

    def _packing_key(self, algorithm: str, primitive: str) -> tuple[Any, ...]:
        """All that decides how an algorithm packs the weight (ConvAlgorithm::pack in csrc/cpu/kernels.h)."""
        p = self.problem
        return (
            algorithm, primitive, self.w_shape, self.w_strides, p.groups, p.layout,
            p.stride_h, p.stride_w, p.pad_top, p.pad_left, p.dilation_h, p.dilation_w,
            min(p.stride_h, p.h), min(p.stride_w, p.w),
        )  # fmt: skip

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return self._image(0, x, self.x_strides, w, b, self.y_shape, self.y_strides)

    def input_gradient(self, gy: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return self._image(1, gy, self.y_strides, w, b, self.x_shape, self.x_strides)

    def _image(
        self, primitive: int, t: Tensor, strides: Ints, w: Tensor, b: Tensor | None, out_shape: Ints, out_strides: Ints
    ) -> Tensor:
        """The two primitives that make an image of an image, the weight and perhaps a bias."""
        out = t.new_empty_strided(out_shape, out_strides)
        plan = self._plans[primitive] or self._plan(primitive)
        if not plan:
            return out.zero_() if b is None else out.copy_(_per_channel(b, out))
        if t.stride() != strides:
            t = t.contiguous(memory_format=self.format)
        if w.stride() != self.w_strides:
            w = w.contiguous(memory_format=self.w_format)
        if b is not None and not _is_dense(b):
            b = b.contiguous()
        run, size, packing = plan
        scratch = self.workspace(size) if size else None
        form = frozen.packed(w, packing, scratch) if packing and frozen.weights else None
        if form is None:
            run(t, w, b, out, scratch)
        else:
            run(t, w, b, out, scratch, form)
        return out

    def weight_gradient(self, gy: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor | None]:
        gw = gy.new_empty_strided(self.w_shape, self.w_strides)
        plan = self._plans[2] or self._plan(2)
        if not plan:
            return gw.zero_(), channel_sum_real(gy) if bias else None
        gb = gy.new_empty_strided(self.w_shape[:1], (1,)) if bias else None
        if gy.stride() != self.y_strides:
            gy = gy.contiguous(memory_format=self.format)
        if x.stride() != self.x_strides:
            x = x.contiguous(memory_format=self.format)
        run, size, _ = plan
        run(gy, x, gw, gb, self.workspace(size) if size else None)
        return gw, gb

    def x_channel_sum(self, t: Tensor) -> Tensor:
        """Sums over the channels of a tensor of x's shape, such as the gradient of a transposed convolution's bias."""
        if self.sums is None:
            if 0 in self.x_shape or t.dtype not in (torch.float32, torch.float64):
                return channel_sum_real(t)
            self.sums = ChannelSumCall(self.x_shape, t.dtype, self.channels_last, self.threads, self.target)
        return self.sums.run(t)


def _per_channel(b: Tensor, y: Tensor) -> Tensor:
    return b.reshape(-1, *(1,) * (y.dim() - 2)).expand(y.shape)


_conv_calls = Cache()


def conv_call(t: Tensor, *key: Any) -> ConvCall:
    """The call on a tensor's device for ConvCall's arguments but the last two, which come from the current settings."""
    key = (*key, torch.get_num_threads(), target_of(t))
    call = _conv_calls.get(key)
    if call is None:
        call = _conv_calls[key] = ConvCall(*key)
    return call


def conv_forward_call(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> ConvCall:
    y_shape = conv_forward_shape(x, w, b, stride, padding, dilation, groups)
    w_last = suggests_channels_last(w)
    last = w_last or suggests_channels_last(x)
    return conv_call(
        x, tuple(x.shape), tuple(w.shape), y_shape, stride, padding, dilation, groups, x.dtype, last, w_last
    )


def conv_input_gradient_call(
    gy: Tensor, w: Tensor, b: Tensor | None, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> ConvCall:
    x_shape = conv_input_gradient_shape(gy, w, b, size, stride, padding, dilation, groups)
    w_last = suggests_channels_last(w)
    last = w_last or suggests_channels_last(gy)
    return conv_call(
        gy, x_shape, tuple(w.shape), tuple(gy.shape), stride, padding, dilation, groups, gy.dtype, last, w_last
    )


def conv_forward_shape(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Ints:
    _conv_operands("x", x, w, b, stride, padding, dilation, groups)
    checks.conv_channels(x.shape[1], w, b, groups)
    size = checks.conv_output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    return (x.shape[0], w.shape[0], *size)


def conv_input_gradient_shape(
    gy: Tensor, w: Tensor, b: Tensor | None, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Ints:
    _conv_operands("gy", gy, w, b, stride, padding, dilation, groups)
    if b is not None:
        checks.shape("b", b, (w.shape[1] * groups,))
    y_size = checks.conv_output_size(size, w.shape[2:], stride, padding, dilation)
    checks.shape("gy", gy, (gy.shape[0], w.shape[0], *y_size))
    return (gy.shape[0], w.shape[1] * groups, *size)


def conv_weight_gradient_shape(
    gy: Tensor, x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Ints:
    _conv_operands("gy", gy, x, None, stride, padding, dilation, groups, "x")
    size = checks.conv_output_size(x.shape[2:], kernel, stride, padding, dilation)
    checks.shape("gy", gy, (x.shape[0], gy.shape[1], *size))
    for name, t in (("x", x), ("gy", gy)):
        if t.shape[1] % groups != 0:
            checks.fail(f"{name} channels", f"a multiple of groups {groups}", t.shape[1])
    return (gy.shape[1], x.shape[1] // groups, *kernel)


def _conv_operands(
    name: str,
    t: Tensor,
    other: Tensor,
    b: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    other_name: str = "w",
) -> None:
    checks.supported(name, t)
    checks.same_kind(other_name, other, name, t)
    if b is not None:
        checks.same_kind("b", b, name, t)
    dims = t.dim() - 2
    if dims not in (1, 2) or other.dim() != dims + 2:
        checks.fail(name, f"3-D or 4-D, as {other_name} {list(other.shape)}", f"shape {list(t.shape)}")
    for parameter, values, count in (
        ("stride", stride, dims),
        ("padding", padding, 2 * dims),
        ("dilation", dilation, dims),
    ):
        if len(values) != count:
            checks.fail(parameter, f"{count} numbers", values)
    checks.at_least("stride", stride, 1)
    checks.at_least("dilation", dilation, 1)
    checks.at_least("groups", (groups,), 1)


def conv_forward_real(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    return conv_forward_call(x, w, b, stride, padding, dilation, groups).forward(x, w, b)


def conv_input_gradient_real(
    gy: Tensor, w: Tensor, b: Tensor | None, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    return conv_input_gradient_call(gy, w, b, size, stride, padding, dilation, groups).input_gradient(gy, w, b)


def conv_weight_gradient_real(
    gy: Tensor,
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    w_shape = conv_weight_gradient_shape(gy, x, kernel, stride, padding, dilation, groups)
    last = suggests_channels_last(x) or suggests_channels_last(gy)
    call = conv_call(
        x, tuple(x.shape), w_shape, tuple(gy.shape), stride, padding, dilation, groups, gy.dtype, last, channels_last
    )
    gw, gb = call.weight_gradient(gy, x, True)
    assert gb is not None
    return gw, gb


def _fake(t: Tensor, shape: Sequence[int], channels_last: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or t.dtype, device=t.device, memory_format=FORMATS[channels_last])


def conv_forward_fake(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    shape = conv_forward_shape(x, w, b, stride, padding, dilation, groups)
    return _fake(x, shape, suggests_channels_last(w) or suggests_channels_last(x))


def conv_input_gradient_fake(
    gy: Tensor, w: Tensor, b: Tensor | None, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    shape = conv_input_gradient_shape(gy, w, b, size, stride, padding, dilation, groups)
    return _fake(gy, shape, suggests_channels_last(w) or suggests_channels_last(gy))


def conv_weight_gradient_fake(
    gy: Tensor,
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    shape = conv_weight_gradient_shape(gy, x, kernel, stride, padding, dilation, groups)
    return _fake(gy, shape, channels_last and len(shape) == 4), _fake(gy, shape[:1])


# ---- pooling


class PoolCall:
    """Max or average pooling of an input, made ready. An empty kernel means adaptive windows."""

    __slots__ = (
        "_gather",
        "_max_backward",
        "average",
        "average_backward",
        "empty",
        "kind",
        "max",
        "max_with_index",
        "problem",
        "x_shape",
        "x_strides",
    )

    def __init__(
        self,
        x_shape: Ints,
        y_shape: Ints,
        kernel: Ints,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        count_include_pad: bool,
        divisor: int,
        dtype: torch.dtype,
        channels_last: bool,
        threads: int,
        target: Target,
    ) -> None:
        self.x_shape = x_shape
        self.x_strides, y_strides = dense_strides(x_shape, channels_last), dense_strides(y_shape, channels_last)
        self.empty = 0 in y_shape
        self.kind = index_kind(kernel)
        self.problem = p = _C.PoolProblem()
        p.n, p.c = x_shape[:2]
        p.h, p.w = _pair(x_shape[2:], 1)
        p.p, p.q = _pair(y_shape[2:], 1)
        p.adaptive = not kernel
        p.r, p.s = _pair(kernel, 1) if kernel else (1, 1)
        p.stride_h, p.stride_w = _pair(stride, 1) if kernel else (1, 1)
        p.dilation_h, p.dilation_w = _pair(dilation, 1) if kernel else (1, 1)
        if kernel:
            p.pad_top, p.pad_bottom, p.pad_left, p.pad_right = padding if len(padding) == 4 else (0, 0, *padding)
        p.count_include_pad, p.divisor = count_include_pad, divisor
        p.layout, p.dtype = LAYOUTS[channels_last], DTYPES[dtype]
        p.validate()
        reads = _volume(kernel) if kernel else max(1, _volume(x_shape[2:]) // max(1, _volume(y_shape[2:])))
        threads = _C.useful_threads(_volume(y_shape) * reads, threads)

        x = x_shape, self.x_strides, dtype
        y = y_shape, y_strides, dtype
        native = target.native

        def kernel_of(function: Any, inputs: tuple[Ints, ...], *outputs: Output, index: Any = None) -> Any:
            parameters = (p,) if index is None else (p, index)
            function = None if self.empty else function
            return _C.Kernel(function, parameters, inputs, outputs, threads, FORMATS[channels_last], blank)

        self.max = kernel_of(native.max_pool_forward, x[1:2], y)
        self.average = kernel_of(native.average_pool_forward, x[1:2], y)
        self.average_backward = self._zeros if self.empty else kernel_of(native.average_pool_backward, y[1:2], x)
        self.max_with_index, self._max_backward, self._gather = {}, {}, {}
        for kind, index in INDEX_KINDS.items():
            positions = y_shape, y_strides, INDEX_DTYPES[kind]
            self.max_with_index[kind] = kernel_of(native.max_pool_forward_with_index, x[1:2], y, positions, index=index)
            self._max_backward[kind] = kernel_of(native.max_pool_backward, (y_strides, y_strides), x, index=index)
            self._gather[kind] = kernel_of(native.max_pool_gather, (self.x_strides, y_strides), y, index=index)

    def _zeros(self, gy: Tensor) -> Tensor:
        return gy.new_empty_strided(self.x_shape, self.x_strides).zero_()

    def max_backward(self, gy: Tensor, index: Tensor, kind: str) -> Tensor:
        if self.empty:
            return self._zeros(gy)
        gx = self._max_backward[kind](gy, index)
        return self._bad_index(index, kind) if gx is None else gx

    def gather(self, v: Tensor, index: Tensor, kind: str) -> Tensor:
        y = self._gather[kind](v, index)
        return self._bad_index(index, kind) if y is None else y

    def _bad_index(self, index: Tensor, kind: str) -> NoReturn:
        limit = _volume(self.x_shape[2:])
        expected = (
            f"positions inside the input plane of {limit}" if kind == "plane" else "positions inside their windows"
        )
        checks.fail("index", expected, f"values from {index.min().item()} to {index.max().item()}")


INDEX_DTYPES = {"window": torch.uint8, "plane": torch.int64}
INDEX_KINDS = {"window": _C.MaxIndex.window, "plane": _C.MaxIndex.plane}


def index_kind(kernel: Ints) -> str:
    """How max pooling remembers positions for its gradient: one byte, where one is enough."""
    return "window" if kernel and _volume(kernel) <= WINDOW_INDEX_MOST else "plane"


def _kind_of(index: Tensor) -> str:
    for kind, dtype in INDEX_DTYPES.items():
        if index.dtype == dtype:
            return kind
    checks.fail("index dtype", "torch.uint8 (position in the window) or torch.int64 (in the plane)", index.dtype)


_pool_calls = Cache()


def pool_call(t: Tensor, *key: Any) -> PoolCall:
    """The call on a tensor's device for PoolCall's arguments but the last two, which come from the current settings."""
    key = (*key, torch.get_num_threads(), target_of(t))
    call = _pool_calls.get(key)
    if call is None:
        call = _pool_calls[key] = PoolCall(*key)
    return call


def _pool_operand(
    name: str, t: Tensor, x_size: Ints, y_size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> None:
    checks.supported(name, t)
    checks.rank(name, t, (3, 4), "")
    dims = t.dim() - 2
    sizes = ("size", x_size, dims), ("output_size", y_size, dims)
    window = (
        ("kernel", kernel, dims),
        ("stride", stride, dims),
        ("padding", padding, 2 * dims),
        ("dilation", dilation, dims),
    )
    for parameter, values, count in (*sizes, *(window if kernel else ())):
        if len(values) != count:
            checks.fail(parameter, f"{count} numbers", values)
    checks.at_least("size", x_size, 0)
    checks.at_least("output_size", y_size, 0)
    if not kernel:
        return
    checks.at_least("kernel", kernel, 1)
    checks.at_least("stride", stride, 1)
    checks.at_least("padding", padding, 0)
    checks.at_least("dilation", dilation, 1)
    for i in range(dims):
        span = x_size[i] + padding[2 * i] + padding[2 * i + 1] - checks.extent(kernel[i], dilation[i])
        least, most = span // stride[i] + 1, (span + stride[i] - 1) // stride[i] + 1
        if y_size[i] < least or y_size[i] > most:
            checks.fail("output_size", f"from {least} to {most} (ceil_mode) for an input of {x_size[i]}", y_size[i])


def max_pool_call(x: Tensor, output_size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> PoolCall:
    _pool_operand("x", x, x.shape[2:], output_size, kernel, stride, padding, dilation)
    y_shape = (*x.shape[:2], *output_size)
    last = suggests_channels_last(x)
    return pool_call(x, tuple(x.shape), y_shape, kernel, stride, padding, dilation, True, 0, x.dtype, last)


def average_pool_call(
    x: Tensor, output_size: Ints, kernel: Ints, stride: Ints, padding: Ints, count_include_pad: bool, divisor: int
) -> PoolCall:
    dilation = (1,) * len(kernel)
    _pool_operand("x", x, x.shape[2:], output_size, kernel, stride, padding, dilation)
    y_shape = (*x.shape[:2], *output_size)
    last = suggests_channels_last(x)
    return pool_call(
        x, tuple(x.shape), y_shape, kernel, stride, padding, dilation, count_include_pad, divisor, x.dtype, last
    )


def max_pool_real(
    x: Tensor, output_size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, index: str
) -> tuple[Tensor, Tensor]:
    _index_choice(index, kernel)
    call = max_pool_call(x, output_size, kernel, stride, padding, dilation)
    return (call.max(x), x.new_empty(0, dtype=torch.uint8)) if index == "none" else call.max_with_index[index](x)


def _index_choice(index: str, kernel: Ints) -> None:
    if index not in ("none", *INDEX_KINDS) or (index == "window" and index_kind(kernel) != "window"):
        checks.fail("index", "'none', 'plane', or for windows of at most 255 positions 'window'", repr(index))


def _max_pool_gradient_call(
    name: str, t: Tensor, index: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> PoolCall:
    _max_pool_gradient_checks(name, t, index, size, kernel, stride, padding, dilation)
    x_shape = (*index.shape[:2], *size)
    last = suggests_channels_last(index)
    return pool_call(t, x_shape, tuple(index.shape), kernel, stride, padding, dilation, True, 0, t.dtype, last)


def _max_pool_gradient_checks(
    name: str, t: Tensor, index: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> None:
    _pool_operand(name, t, size, index.shape[2:], kernel, stride, padding, dilation)
    _index_choice(_kind_of(index), kernel)
    if t.device != index.device:
        checks.fail("index device", str(t.device), index.device)
    checks.shape(name, t, index.shape if name == "gy" else (*index.shape[:2], *size))


def max_pool_backward_real(
    gy: Tensor, index: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    call = _max_pool_gradient_call("gy", gy, index, size, kernel, stride, padding, dilation)
    return call.max_backward(gy, index, _kind_of(index))


def max_pool_gather_real(v: Tensor, index: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    call = _max_pool_gradient_call("v", v, index, tuple(v.shape[2:]), kernel, stride, padding, dilation)
    return call.gather(v, index, _kind_of(index))


def average_pool_real(
    x: Tensor, output_size: Ints, kernel: Ints, stride: Ints, padding: Ints, count_include_pad: bool, divisor: int
) -> Tensor:
    return average_pool_call(x, output_size, kernel, stride, padding, count_include_pad, divisor).average(x)


def average_pool_backward_real(
    gy: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, count_include_pad: bool, divisor: int
) -> Tensor:
    dilation = (1,) * len(kernel)
    _pool_operand("gy", gy, size, gy.shape[2:], kernel, stride, padding, dilation)
    x_shape = (*gy.shape[:2], *size)
    last = suggests_channels_last(gy)
    call = pool_call(
        gy, x_shape, tuple(gy.shape), kernel, stride, padding, dilation, count_include_pad, divisor, gy.dtype, last
    )
    return call.average_backward(gy)


def max_pool_fake(
    x: Tensor, output_size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, index: str
) -> tuple[Tensor, Tensor]:
    _pool_operand("x", x, x.shape[2:], output_size, kernel, stride, padding, dilation)
    _index_choice(index, kernel)
    shape, last = (*x.shape[:2], *output_size), suggests_channels_last(x)
    positions = x.new_empty(0, dtype=torch.uint8) if index == "none" else _fake(x, shape, last, INDEX_DTYPES[index])
    return _fake(x, shape, last), positions


def max_pool_backward_fake(
    gy: Tensor, index: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    _max_pool_gradient_checks("gy", gy, index, size, kernel, stride, padding, dilation)
    return _fake(gy, (*gy.shape[:2], *size), suggests_channels_last(index))


def max_pool_gather_fake(v: Tensor, index: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    _max_pool_gradient_checks("v", v, index, tuple(v.shape[2:]), kernel, stride, padding, dilation)
    return _fake(v, index.shape, suggests_channels_last(index))


def average_pool_fake(
    x: Tensor, output_size: Ints, kernel: Ints, stride: Ints, padding: Ints, count_include_pad: bool, divisor: int
) -> Tensor:
    _pool_operand("x", x, x.shape[2:], output_size, kernel, stride, padding, (1,) * len(kernel))
    return _fake(x, (*x.shape[:2], *output_size), suggests_channels_last(x))


def average_pool_backward_fake(
    gy: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, count_include_pad: bool, divisor: int
) -> Tensor:
    _pool_operand("gy", gy, size, gy.shape[2:], kernel, stride, padding, (1,) * len(kernel))
    return _fake(gy, (*gy.shape[:2], *size), suggests_channels_last(gy))


# ---- sums over channels


class ChannelSumCall:
    """Sums over all dimensions but the second, made ready.

    They are average poolings with divisor 1: over each plane, and then over the batch as the height of a
    channels_last image; a channels_last input is such an image already. Unlike torch's own sum, the bits do not
    depend on the number of threads.
    """

    __slots__ = ("format", "native", "planes", "rows", "strides", "threads")

    def __init__(self, shape: Ints, dtype: torch.dtype, channels_last: bool, threads: int, target: Target) -> None:
        n, c, (h, w) = *shape[:2], _pair(shape[2:], 1)
        self.format, self.strides = FORMATS[channels_last], dense_strides(shape, channels_last)
        self.native = target.native

        def problem(n: int, h: int, w: int, channels_last: bool) -> _C.PoolProblem:
            window = ((h, w), (1, 1), (0, 0, 0, 0), (1, 1), True, 1)
            return PoolCall((n, c, h, w), (n, c, 1, 1), *window, dtype, channels_last, 1, target).problem

        self.planes = None if channels_last else problem(n, h, w, False)
        self.rows = problem(1, n * h, w, True) if channels_last else problem(1, n, 1, True)
        self.threads = _C.useful_threads(_volume(shape), threads)

    def run(self, x: Tensor) -> Tensor:
        y = x.new_empty(x.shape[1])
        if x.stride() != self.strides:
            x = x.contiguous(memory_format=self.format)
        if self.planes is not None:
            sums = x.new_empty(x.shape[:2])
            self.native.average_pool_forward(self.planes, x, sums, self.threads)
            x = sums
        self.native.average_pool_forward(self.rows, x, y, self.threads)
        return y


_channel_sum_calls = Cache()


def channel_sum_real(x: Tensor) -> Tensor:
    checks.supported("x", x)
    checks.rank("x", x, (3, 4), "")
    if x.numel() == 0:
        return x.new_zeros(x.shape[1])
    if x.dtype in (torch.float16, torch.bfloat16):
        return channel_sum_real(x.float()).to(x.dtype)
    key = x.shape, x.dtype, suggests_channels_last(x), torch.get_num_threads(), target_of(x)
    call = _channel_sum_calls.get(key)
    if call is None:
        call = _channel_sum_calls[key] = ChannelSumCall(*key)
    return call.run(x)


def channel_sum_fake(x: Tensor) -> Tensor:
    return _fake(x, x.shape[1:2])


# ---- local response normalisation


class LrnCall:
    """Local response normalisation of an input, made ready."""

    __slots__ = ("backward", "forward")

    def __init__(
        self,
        shape: Ints,
        size: int,
        alpha: float,
        beta: float,
        k: float,
        dtype: torch.dtype,
        channels_last: bool,
        threads: int,
        target: Target,
    ) -> None:
        p = _C.LrnProblem()
        p.n, p.c, p.spatial = *shape[:2], _volume(shape[2:])
        p.size, p.alpha, p.beta, p.k = size, alpha / size, beta, k
        p.layout, p.dtype = LAYOUTS[channels_last], DTYPES[dtype]
        p.validate()
        threads = _C.useful_threads(_volume(shape) * 16, threads)  # a power costs about 16 simple operations
        strides = dense_strides(shape, channels_last)
        native, rest = target.native, (((shape, strides, dtype),), threads, FORMATS[channels_last], blank)
        empty = 0 in shape
        self.forward = _C.Kernel(None if empty else native.lrn_forward, (p,), (strides,), *rest)
        self.backward = _C.Kernel(None if empty else native.lrn_backward, (p,), (strides, strides), *rest)


_lrn_calls = Cache()


def lrn_call(x: Tensor, size: int, alpha: float, beta: float, k: float) -> LrnCall:
    last, threads = suggests_channels_last(x), torch.get_num_threads()
    key = (tuple(x.shape), size, alpha, beta, k, x.dtype, last, threads, target_of(x))
    call = _lrn_calls.get(key)
    if call is None:
        call = _lrn_calls[key] = LrnCall(*key)
    return call


def _lrn_operands(gy: Tensor, x: Tensor) -> None:
    checks.same_kind("gy", gy, "x", x)
    checks.shape("gy", gy, x.shape)


def lrn_real(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    checks.lrn(x, size, alpha, beta, k)
    return lrn_call(x, size, alpha, beta, k).forward(x)


def lrn_backward_real(gy: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    checks.lrn(x, size, alpha, beta, k)
    _lrn_operands(gy, x)
    return lrn_call(x, size, alpha, beta, k).backward(gy, x)


def lrn_fake(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    checks.lrn(x, size, alpha, beta, k)
    return _fake(x, x.shape, suggests_channels_last(x))


def lrn_backward_fake(gy: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    checks.lrn(x, size, alpha, beta, k)
    _lrn_operands(gy, x)
    return _fake(x, x.shape, suggests_channels_last(x))


# ---- registration

library = torch.library.Library("fastconv", "DEF")

_CONV = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
_POOL = "SymInt[] kernel, SymInt[] stride, SymInt[] padding"
_AVERAGE = f"{_POOL}, bool count_include_pad, SymInt divisor"
_LRN = "SymInt size, float alpha, float beta, float k"


def _register(name: str, schema: str, real: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    def implementation(*args: Any) -> Any:
        return real(*(tuple(a) if isinstance(a, list) else a for a in args))

    def fake_implementation(*args: Any) -> Any:
        return fake(*(tuple(a) if isinstance(a, list) else a for a in args))

    library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, implementation, "CPU")
    library.impl(name, implementation, "CUDA")
    torch.library.register_fake(f"fastconv::{name}", fake_implementation, lib=library)
    return getattr(torch.ops.fastconv, name).default


conv_forward = _register(
    "conv_forward", f"(Tensor x, Tensor w, Tensor? b, {_CONV}) -> Tensor", conv_forward_real, conv_forward_fake
)
conv_input_gradient = _register(
    "conv_input_gradient",
    f"(Tensor gy, Tensor w, Tensor? b, SymInt[] size, {_CONV}) -> Tensor",
    conv_input_gradient_real,
    conv_input_gradient_fake,
)
conv_weight_gradient = _register(
    "conv_weight_gradient",
    f"(Tensor gy, Tensor x, SymInt[] kernel, {_CONV}, bool channels_last) -> (Tensor, Tensor)",
    conv_weight_gradient_real,
    conv_weight_gradient_fake,
)
channel_sum = _register("channel_sum", "(Tensor x) -> Tensor", channel_sum_real, channel_sum_fake)
max_pool = _register(
    "max_pool",
    f"(Tensor x, SymInt[] output_size, {_POOL}, SymInt[] dilation, str index) -> (Tensor, Tensor)",
    max_pool_real,
    max_pool_fake,
)
max_pool_backward = _register(
    "max_pool_backward",
    f"(Tensor gy, Tensor index, SymInt[] size, {_POOL}, SymInt[] dilation) -> Tensor",
    max_pool_backward_real,
    max_pool_backward_fake,
)
max_pool_gather = _register(
    "max_pool_gather",
    f"(Tensor v, Tensor index, {_POOL}, SymInt[] dilation) -> Tensor",
    max_pool_gather_real,
    max_pool_gather_fake,
)
average_pool = _register(
    "average_pool", f"(Tensor x, SymInt[] output_size, {_AVERAGE}) -> Tensor", average_pool_real, average_pool_fake
)
average_pool_backward = _register(
    "average_pool_backward",
    f"(Tensor gy, SymInt[] size, {_AVERAGE}) -> Tensor",
    average_pool_backward_real,
    average_pool_backward_fake,
)
lrn = _register("lrn", f"(Tensor x, {_LRN}) -> Tensor", lrn_real, lrn_fake)
lrn_backward = _register(
    "lrn_backward", f"(Tensor gy, Tensor x, {_LRN}) -> Tensor", lrn_backward_real, lrn_backward_fake
)


# ---- flop formulas: two for every multiply-add, as torch counts its own convolutions; they get shapes for tensors


def _conv_flops(x_channels: int, w_shape: Sequence[int], y_shape: Sequence[int], groups: int) -> int:
    return 2 * _volume(y_shape) * (x_channels // groups) * _volume(w_shape[2:])


@register_flop_formula(torch.ops.fastconv.conv_forward)
def conv_forward_flops(x: Ints, w: Ints, b: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
    return _conv_flops(x[1], w, out_shape, args[3])


@register_flop_formula(torch.ops.fastconv.conv_input_gradient)
def conv_input_gradient_flops(
    gy: Ints, w: Ints, b: Any, size: Ints, *args: Any, out_shape: Any = None, **_: Any
) -> int:
    return _conv_flops(out_shape[1], w, gy, args[3])


@register_flop_formula(torch.ops.fastconv.conv_weight_gradient)
def conv_weight_gradient_flops(gy: Ints, x: Ints, kernel: Ints, *args: Any, out_shape: Any = None, **_: Any) -> int:
    return _conv_flops(x[1], out_shape[0], gy, args[3])
