"""Derivatives of the operators, and the three ways into them.

The three convolution primitives are closed under differentiation, and so are max pooling's backward and gather, and
average pooling and its backward: every derivative is again an operator. Each operator's `autograd.Function` below is
its one set of rules: `remember` and `backward` also serve the operator itself (tracers), and `vmap` folds the mapped
dimension into the batch or the groups. `call` chooses the way in:

- a tracer (torch.compile, export), a dispatch mode or a tensor subclass gets the operator;
- torch.func and forward-mode differentiation get the Function;
- plain tensors get the kernels; `functional` has for them, where a gradient is wanted, a Function of the older form
  (last section), which costs half as much a call.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad
from torch.compiler import is_compiling

from fastconv import _C, checks, device, ops
from fastconv.checks import Ints

_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms_active = torch._C._are_functorch_transforms_active
_is_tracing = torch._C._is_tracing
_key_is_included = torch._C._dispatch_tls_is_dispatch_key_included
# The older vmap, behind torch.autograd.grad(is_grads_batched=True): its tensors are of type Tensor.
_VMAP_MODE = torch._C._dispatch_key_parse("VmapMode")
_is_grad_enabled = torch.is_grad_enabled
_first_order = _C.first_order

PLAIN = frozenset((Tensor, torch.nn.Parameter))


def transforming() -> bool:
    """Whether torch.func or forward-mode differentiation is at work."""
    return _transforms_active() or forward_ad._current_level >= 0


def _nothing_watches() -> bool:
    """Whether no tracer, dispatch mode, transform of torch.func or forward-mode differentiation is at work."""
    return not (
        _transforms_active()
        or forward_ad._current_level >= 0
        or _dispatch_modes()
        or _is_tracing()
        or _key_is_included(_VMAP_MODE)
    )


def _plain(t: Tensor | None) -> bool:
    return t is None or (type(t) in PLAIN and (t.is_cpu or t.is_cuda) and not t.is_neg())


def call(operator: Any, *args: Any) -> Any:
    """Runs an operator the way the situation asks for."""
    if is_compiling():
        return operator(*args)
    rules = _rules[operator]
    if transforming():
        return rules.apply(*args)
    if _is_tracing():  # of torch.jit: sizes become constants, which the operator checks against its tensors
        return operator(*(tuple(map(int, a)) if isinstance(a, tuple) else a for a in args))
    args = unwrap_dead_wrappers(args)  # what torch.func.vjp saved, seen after it has ended
    tensors = [a for a in args if isinstance(a, Tensor)]
    if not _nothing_watches() or not all(_plain(t) for t in tensors):
        return operator(*args)
    if wants_gradient(*tensors):
        return rules.apply(*args)
    return rules.real(*args)


class Rules(Function):
    """The rules of one operator. `remember` stores on ctx what `backward` needs and returns the tensors to save."""

    operator: Any
    real: Callable[..., Any]
    remember: Callable[..., tuple[Tensor, ...]]

    @classmethod
    def forward(cls, *args: Any) -> Any:
        return cls.operator(*args)

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = cls.remember(ctx, inputs, output)
        ctx.save_for_backward(*tensors)
        if transforming():
            ctx.save_for_forward(*tensors)


_rules: dict[Any, type[Rules]] = {}


def _rules_of(operator: Any, real: Callable[..., Any]) -> Callable[[type[Rules]], type[Rules]]:
    """Ties a class of rules to its operator: for tracers, and for `call`."""

    def register(rules: type[Rules]) -> type[Rules]:
        rules.operator, rules.real = operator, staticmethod(real)
        _rules[operator] = rules

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            inputs = tuple(tuple(a) if isinstance(a, list) else a for a in inputs)
            ctx.save_for_backward(*rules.remember(ctx, inputs, output))

        name = operator.name()
        torch.library.register_autograd(name, rules.backward, setup_context=setup_context, lib=ops.library)
        torch.library.register_vmap(name, rules.vmap, lib=ops.library)
        return rules

    return register


def _first(t: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension in front; where there is none, expanded."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _into_batch(t: Tensor, dim: int | None, size: int) -> Tensor:
    return _first(t, dim, size).flatten(0, 1)


def _into_channels(t: Tensor, dim: int | None, size: int) -> Tensor:
    return _first(t, dim, size).movedim(0, 1).flatten(1, 2)


def _into_first(t: Tensor, dim: int | None, size: int) -> Tensor:
    """Folds into dimension 0, which for a weight are the output channels."""
    return _first(t, dim, size).flatten(0, 1)


def _sum_of(terms: Sequence[Tensor | None]) -> Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


# ---- convolution


@_rules_of(ops.conv_forward, ops.conv_forward_real)
class Conv(Rules):
    """conv_forward(x, w, b, stride, padding, dilation, groups)."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.args = inputs[3:]
        return inputs[0], inputs[1]

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        x, w = ctx.saved_tensors
        return *conv_gradients(ctx.needs_input_grad, gy, x, w, ctx.args), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None, *_: Any) -> Tensor | None:
        x, w = ctx.saved_tensors
        along_x = None if tx is None else call(ops.conv_forward, tx, w, tb, *ctx.args)
        if tw is None and (tx is not None or tb is None):
            return along_x
        along_w = call(
            ops.conv_forward, x, torch.zeros_like(w) if tw is None else tw, tb if tx is None else None, *ctx.args
        )
        return _sum_of([along_x, along_w])

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, w: Tensor, b: Tensor | None, *args: Any) -> tuple[Tensor, int]:
        size, (x_dim, w_dim, b_dim) = info.batch_size, in_dims[:3]
        if w_dim is None:
            y = call(
                ops.conv_forward, _into_batch(x, x_dim, size), w, None if b_dim is not None else b, *args
            ).unflatten(0, (size, -1))
            if b_dim is not None and b is not None:
                y = y + b.movedim(b_dim, 0).reshape(size, 1, -1, *(1,) * (y.dim() - 3))
            return y, 0
        stride, padding, dilation, groups = args
        if x_dim is not None or groups != 1:
            x, groups = _into_channels(x, x_dim, size), groups * size
        bias = None if b is None else _into_first(b, b_dim, size)
        y = call(ops.conv_forward, x, _into_first(w, w_dim, size), bias, stride, padding, dilation, groups)
        return y.unflatten(1, (size, -1)), 1


@_rules_of(ops.conv_input_gradient, ops.conv_input_gradient_real)
class ConvInputGradient(Rules):
    """conv_input_gradient(gy, w, b, size, stride, padding, dilation, groups): also the transposed convolution of gy."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.size, ctx.args = inputs[3], inputs[4:]
        return inputs[0], inputs[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        gy, w = ctx.saved_tensors
        return *conv_transpose_gradients(ctx.needs_input_grad, v, gy, w, ctx.args), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tg: Tensor | None, tw: Tensor | None, tb: Tensor | None, *_: Any) -> Tensor | None:
        gy, w = ctx.saved_tensors
        along_gy = None if tg is None else call(ops.conv_input_gradient, tg, w, tb, ctx.size, *ctx.args)
        if tw is None and (tg is not None or tb is None):
            return along_gy
        tw, tb = torch.zeros_like(w) if tw is None else tw, tb if tg is None else None
        return _sum_of([along_gy, call(ops.conv_input_gradient, gy, tw, tb, ctx.size, *ctx.args)])

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, gy: Tensor, w: Tensor, b: Tensor | None, out_size: Ints, *args: Any
    ) -> tuple[Tensor, int]:
        size, (gy_dim, w_dim, b_dim) = info.batch_size, in_dims[:3]
        if w_dim is None:
            bias = None if b_dim is not None else b
            gx = call(ops.conv_input_gradient, _into_batch(gy, gy_dim, size), w, bias, out_size, *args).unflatten(
                0, (size, -1)
            )
            if b_dim is not None and b is not None:
                gx = gx + b.movedim(b_dim, 0).reshape(size, 1, -1, *(1,) * (gx.dim() - 3))
            return gx, 0
        stride, padding, dilation, groups = args
        bias = None if b is None else _into_first(b, b_dim, size)
        gy, w = _into_channels(gy, gy_dim, size), _into_first(w, w_dim, size)
        gx = call(ops.conv_input_gradient, gy, w, bias, out_size, stride, padding, dilation, groups * size)
        return gx.unflatten(1, (size, -1)), 1


@_rules_of(ops.conv_weight_gradient, ops.conv_weight_gradient_real)
class ConvWeightGradient(Rules):
    """conv_weight_gradient(gy, x, kernel, stride, padding, dilation, groups, channels_last) -> (gw, gb)."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.kernel, ctx.args, ctx.channels_last = inputs[2], inputs[3:7], inputs[7]
        ctx.set_materialize_grads(False)
        return inputs[0], inputs[1]

    @staticmethod
    def backward(ctx: Any, vw: Tensor | None, vb: Tensor | None) -> tuple[Any, ...]:
        gy, x = ctx.saved_tensors
        along_gy = along_x = None
        if ctx.needs_input_grad[0]:
            if vw is not None:
                along_gy = call(ops.conv_forward, x, vw, vb, *ctx.args)
            elif vb is not None:
                along_gy = vb.reshape(-1, *(1,) * (gy.dim() - 2)).expand(gy.shape)
        if ctx.needs_input_grad[1] and vw is not None:
            along_x = call(ops.conv_input_gradient, gy, vw, None, tuple(x.shape[2:]), *ctx.args)
        return along_gy, along_x, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tg: Tensor | None, tx: Tensor | None, *_: Any) -> tuple[Tensor | None, Tensor | None]:
        gy, x = ctx.saved_tensors
        rest = (ctx.kernel, *ctx.args, ctx.channels_last)
        gw, gb = (None, None) if tg is None else call(ops.conv_weight_gradient, tg, x, *rest)
        if tx is not None:
            along_x = call(ops.conv_weight_gradient, gy, tx, *rest)[0]
            gw, gb = _sum_of([gw, along_x]), gy.new_zeros(gy.shape[1]) if gb is None else gb
        return gw, gb

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        gy: Tensor,
        x: Tensor,
        kernel: Ints,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        groups: int,
        channels_last: bool,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        size, (gy_dim, x_dim) = info.batch_size, in_dims[:2]
        if x_dim is not None or groups != 1:
            x, groups = _into_channels(x, x_dim, size), groups * size
        gy = _into_channels(gy, gy_dim, size)
        gw, gb = call(ops.conv_weight_gradient, gy, x, kernel, stride, padding, dilation, groups, channels_last)
        return (gw.unflatten(0, (size, -1)), gb.unflatten(0, (size, -1))), (0, 0)


@_rules_of(ops.channel_sum, ops.channel_sum_real)
class ChannelSum(Rules):
    """channel_sum(x): over all dimensions but the second."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.shape = inputs[0].shape
        return ()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return v.reshape(-1, *(1,) * (len(ctx.shape) - 2)).expand(ctx.shape)

    @staticmethod
    def jvp(ctx: Any, tx: Tensor) -> Any:
        return call(ops.channel_sum, tx)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        return call(ops.channel_sum, _into_channels(x, in_dims[0], info.batch_size)).unflatten(
            0, (info.batch_size, -1)
        ), 0


def conv_gradients(
    needs: Sequence[bool], gy: Tensor, x: Tensor, w: Tensor, args: tuple[Any, ...]
) -> tuple[Any, Any, Any]:
    """Gradients of conv_forward along x, w and the bias, as far as needed."""
    gx = gw = gb = None
    if needs[0]:
        gx = call(ops.conv_input_gradient, gy, w, None, tuple(x.shape[2:]), *args)
    if needs[1]:
        last = ops.suggests_channels_last(w)
        gw, gb = call(ops.conv_weight_gradient, gy, x, tuple(w.shape[2:]), *args, last)
    elif needs[2]:
        gb = call(ops.channel_sum, gy)
    return gx, gw, gb if needs[2] else None


def conv_transpose_gradients(
    needs: Sequence[bool], v: Tensor, gy: Tensor, w: Tensor, args: tuple[Any, ...]
) -> tuple[Any, Any, Any]:
    """Gradients of conv_input_gradient along gy, w and the bias, as far as needed."""
    along_gy = call(ops.conv_forward, v, w, None, *args) if needs[0] else None
    along_w = None
    if needs[1]:
        last = ops.suggests_channels_last(w)
        along_w = call(ops.conv_weight_gradient, gy, v, tuple(w.shape[2:]), *args, last)[0]
    return along_gy, along_w, call(ops.channel_sum, v) if needs[2] else None


# ---- pooling


@_rules_of(ops.max_pool, ops.max_pool_real)
class MaxPool(Rules):
    """max_pool(x, output_size, kernel, stride, padding, dilation, index) -> (y, index)."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.size, ctx.args, ctx.kind = tuple(inputs[0].shape[2:]), inputs[2:6], inputs[6]
        return (output[1],)

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Any) -> tuple[Any, ...]:
        if ctx.kind == "none":
            checks.fail("index", "'window' or 'plane' where a gradient is wanted", "'none'")
        gx = call(ops.max_pool_backward, gy, ctx.saved_tensors[0], ctx.size, *ctx.args)
        return gx, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, *_: Any) -> tuple[Tensor, None]:
        if ctx.kind == "none":
            checks.fail("index", "'window' or 'plane' where a gradient is wanted", "'none'")
        return call(ops.max_pool_gather, tx, ctx.saved_tensors[0], *ctx.args), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *args: Any) -> tuple[Any, Any]:
        y, index = call(ops.max_pool, _into_batch(x, in_dims[0], info.batch_size), *args)
        if args[-1] == "none":
            return (y.unflatten(0, (info.batch_size, -1)), index), (0, None)
        return tuple(t.unflatten(0, (info.batch_size, -1)) for t in (y, index)), (0, 0)


@_rules_of(ops.max_pool_backward, ops.max_pool_backward_real)
class MaxPoolBackward(Rules):
    """max_pool_backward(gy, index, size, kernel, stride, padding, dilation)."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.size, ctx.args = inputs[2], inputs[3:]
        return (inputs[1],)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        return call(ops.max_pool_gather, v, ctx.saved_tensors[0], *ctx.args), None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tg: Tensor, *_: Any) -> Any:
        return call(ops.max_pool_backward, tg, ctx.saved_tensors[0], ctx.size, *ctx.args)

    @staticmethod
    def vmap(info: Any, in_dims: Any, gy: Tensor, index: Tensor, *args: Any) -> tuple[Tensor, int]:
        gy, index = (_into_batch(t, d, info.batch_size) for t, d in zip((gy, index), in_dims[:2], strict=True))
        return call(ops.max_pool_backward, gy, index, *args).unflatten(0, (info.batch_size, -1)), 0


@_rules_of(ops.max_pool_gather, ops.max_pool_gather_real)
class MaxPoolGather(Rules):
    """max_pool_gather(v, index, kernel, stride, padding, dilation)."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.size, ctx.args = tuple(inputs[0].shape[2:]), inputs[2:]
        return (inputs[1],)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        return call(ops.max_pool_backward, gy, ctx.saved_tensors[0], ctx.size, *ctx.args), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tv: Tensor, *_: Any) -> Any:
        return call(ops.max_pool_gather, tv, ctx.saved_tensors[0], *ctx.args)

    @staticmethod
    def vmap(info: Any, in_dims: Any, v: Tensor, index: Tensor, *args: Any) -> tuple[Tensor, int]:
        v, index = (_into_batch(t, d, info.batch_size) for t, d in zip((v, index), in_dims[:2], strict=True))
        return call(ops.max_pool_gather, v, index, *args).unflatten(0, (info.batch_size, -1)), 0


@_rules_of(ops.average_pool, ops.average_pool_real)
class AveragePool(Rules):
    """average_pool(x, output_size, kernel, stride, padding, count_include_pad, divisor)."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.x_size, ctx.size, ctx.args = tuple(inputs[0].shape[2:]), inputs[1], inputs[2:]
        return ()

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        return call(ops.average_pool_backward, gy, ctx.x_size, *ctx.args), None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, *_: Any) -> Any:
        return call(ops.average_pool, tx, ctx.size, *ctx.args)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *args: Any) -> tuple[Tensor, int]:
        return call(ops.average_pool, _into_batch(x, in_dims[0], info.batch_size), *args).unflatten(
            0, (info.batch_size, -1)
        ), 0


@_rules_of(ops.average_pool_backward, ops.average_pool_backward_real)
class AveragePoolBackward(Rules):
    """average_pool_backward(gy, size, kernel, stride, padding, count_include_pad, divisor)."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.y_size, ctx.size, ctx.args = tuple(inputs[0].shape[2:]), inputs[1], inputs[2:]
        return ()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        return call(ops.average_pool, v, ctx.y_size, *ctx.args), None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tg: Tensor, *_: Any) -> Any:
        return call(ops.average_pool_backward, tg, ctx.size, *ctx.args)

    @staticmethod
    def vmap(info: Any, in_dims: Any, gy: Tensor, *args: Any) -> tuple[Tensor, int]:
        gx = call(ops.average_pool_backward, _into_batch(gy, in_dims[0], info.batch_size), *args)
        return gx.unflatten(0, (info.batch_size, -1)), 0


# ---- local response normalisation


@_rules_of(ops.lrn, ops.lrn_real)
class Lrn(Rules):
    """lrn(x, size, alpha, beta, k)."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.args = inputs[1:]
        return (inputs[0],)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        return call(ops.lrn_backward, gy, ctx.saved_tensors[0], *ctx.args), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, *_: Any) -> Tensor:
        return _lrn_along(ctx.saved_tensors[0], tx, *ctx.args)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *args: Any) -> tuple[Tensor, int]:
        return call(ops.lrn, _into_batch(x, in_dims[0], info.batch_size), *args).unflatten(0, (info.batch_size, -1)), 0


@_rules_of(ops.lrn_backward, ops.lrn_backward_real)
class LrnBackward(Rules):
    """lrn_backward(gy, x, size, alpha, beta, k)."""

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> tuple[Tensor, ...]:
        ctx.args = inputs[2:]
        return inputs[0], inputs[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        gy, x = ctx.saved_tensors
        # lrn_backward is the transposed Jacobian, so along gy this is the Jacobian itself.
        along_gy = _lrn_along(x, v, *ctx.args) if ctx.needs_input_grad[0] else None
        along_x = _lrn_second(x, gy, v, *ctx.args) if ctx.needs_input_grad[1] else None
        return along_gy, along_x, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tg: Tensor | None, tx: Tensor | None, *_: Any) -> Tensor | None:
        gy, x = ctx.saved_tensors
        along_gy = None if tg is None else call(ops.lrn_backward, tg, x, *ctx.args)
        # The derivative of x -> J(x)^T gy is symmetric: it is the Hessian of <y(x), gy>.
        return _sum_of([along_gy, None if tx is None else _lrn_second(x, gy, tx, *ctx.args)])

    @staticmethod
    def vmap(info: Any, in_dims: Any, gy: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, int]:
        gy, x = (_into_batch(t, d, info.batch_size) for t, d in zip((gy, x), in_dims[:2], strict=True))
        return call(ops.lrn_backward, gy, x, *args).unflatten(0, (info.batch_size, -1)), 0


def _window_sum(t: Tensor, size: int) -> Tensor:
    """Sums over `size` neighbouring channels: [i - size / 2, i + (size - 1) / 2] for channel i."""
    window = ((size, 1), (1, 1), (size // 2, (size - 1) // 2, 0, 0), True, 1)
    image = t.reshape(t.shape[0], 1, t.shape[1], -1)
    return call(ops.average_pool, image, tuple(image.shape[2:]), *window).reshape(t.shape)


def _window_sum_transposed(t: Tensor, size: int) -> Tensor:
    window = ((size, 1), (1, 1), (size // 2, (size - 1) // 2, 0, 0), True, 1)
    image = t.reshape(t.shape[0], 1, t.shape[1], -1)
    return call(ops.average_pool_backward, image, tuple(image.shape[2:]), *window).reshape(t.shape)


def _lrn_along(x: Tensor, v: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Derivative of lrn(x) along v: v s^-b - 2 a b x s^(-b - 1) W(v x), with s = k + a W(x^2) and W the window sum."""
    if x.numel() == 0:
        return v.clone()
    dtype, a = x.dtype, alpha / size
    if dtype in (torch.float16, torch.bfloat16):
        x, v = x.float(), v.float()
    s = k + a * _window_sum(x * x, size)
    return (v * s**-beta - 2 * a * beta * x * s ** (-beta - 1) * _window_sum(v * x, size)).to(dtype)


def _lrn_second(x: Tensor, gy: Tensor, v: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Gradient along x of <lrn_backward(gy, x), v>."""
    if x.numel() == 0:
        return v.clone()
    dtype, a = x.dtype, alpha / size
    if dtype in (torch.float16, torch.bfloat16):
        x, gy, v = x.float(), gy.float(), v.float()
    s = k + a * _window_sum(x * x, size)
    u = _window_sum(v * x, size)
    p1, p2 = s ** (-beta - 1), s ** (-beta - 2)
    direct = gy * p1 * u + v * _window_sum_transposed(gy * x * p1, size)
    through_s = _window_sum_transposed(gy * (2 * a * (beta + 1) * x * p2 * u - v * p1), size)
    return (2 * a * beta * (x * through_s - direct)).to(dtype)


# ---- the short way: plain tensors, whose call is already made ready
#
# `eager` says whether it may be taken. `ready` is what `functional` found: the call; and the operator's parameters, for
# when backward cannot take the short way because a graph of the gradient is wanted (create_graph) or something watches.
#
# Between calls of torch every step here is cold for the processor: it costs twice what a loop around it would say.
# So what is asked in every call is asked in C++ (csrc/ready.cpp), which Python tells below what that is.

Call = TypeVar("Call", ops.ConvCall, ops.PoolCall, ops.LrnCall)
Ready: TypeAlias = tuple[Call, tuple[Any, ...]]


def eager(*tensors: Tensor | None) -> bool:
    """Whether nothing but plain tensors on one device and plain execution is involved."""
    if not (all(map(_plain, tensors)) and _nothing_watches()):
        return False
    places = {t.device for t in tensors if t is not None}
    return len(places) == 1 and (device.CUDA or places.pop().type == "cpu")


def _dispatch_keys_tell() -> bool:
    """Whether the native module sees torch's state of dispatch change. Else it asks `_nothing_watches` each time."""
    before = _C.dispatch_keys()
    with torch._C._IncludeDispatchKeyGuard(torch._C.DispatchKey.Python):
        return before is not None and _C.dispatch_keys() not in (None, before)


def connect(dispatch_keys_tell: bool) -> None:
    """Gives the native module what it asks in every call."""
    _C.connect(
        exchange=Tensor.__dlpack_c_exchange_api__,
        tensor=Tensor,
        parameter=torch.nn.Parameter,
        forward_levels=vars(forward_ad),
        nothing_watches=_nothing_watches,
        is_grad_enabled=_is_grad_enabled,
        empty_like=torch.empty_like,
        dispatch_keys_tell=dispatch_keys_tell,
        threads=torch.get_num_threads,
        current_target=device.current,
        target_of=device.target_of,
    )


connect(_dispatch_keys_tell())


def wants_gradient(*tensors: Tensor | None) -> bool:
    if _is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def _direct_apply(function: type[Function]) -> Any:
    """`function.apply` without its tests for torch.func, which `eager` has made: a third of the cost of a call.

    Nor does its backward pass look for what to call.
    """
    function._backward_cls.apply = function.backward
    return super(Function, function).apply  # type: ignore[misc]


class EagerConv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, ready: Ready[ops.ConvCall]) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.ready = ready
        return ready[0].forward(x, w, b)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        x, w = ctx.saved_tensors
        along_x, along_w, along_b, _ = ctx.needs_input_grad
        ready, args = ctx.ready
        if not _first_order(gy):
            return *conv_gradients((along_x, along_w, along_b), gy, x, w, args), None
        gx = ready.input_gradient(gy, w, None) if along_x else None
        gw = gb = None
        if along_w:
            gw, gb = ready.weight_gradient(gy, x, along_b)
        elif along_b:
            gb = ops.channel_sum_real(gy)
        return gx, gw, gb, None


class EagerConvTranspose(Function):
    @staticmethod
    def forward(ctx: Any, gy: Tensor, w: Tensor, b: Tensor | None, ready: Ready[ops.ConvCall]) -> Tensor:
        ctx.save_for_backward(gy, w)
        ctx.ready = ready
        return ready[0].input_gradient(gy, w, b)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        gy, w = ctx.saved_tensors
        along_gy, along_w, along_b, _ = ctx.needs_input_grad
        ready, args = ctx.ready
        if not _first_order(v):
            return *conv_transpose_gradients((along_gy, along_w, along_b), v, gy, w, args), None
        gx = ready.forward(v, w, None) if along_gy else None
        gw = ready.weight_gradient(gy, v, False)[0] if along_w else None
        return gx, gw, ready.x_channel_sum(v) if along_b else None, None


class EagerMaxPool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ready: Ready[ops.PoolCall]) -> Tensor:
        call = ready[0]
        y, index = call.max_with_index[call.kind](x)
        ctx.save_for_backward(index)
        ctx.ready = ready
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        (index,) = ctx.saved_tensors
        ready, args = ctx.ready
        if _first_order(gy):
            return ready.max_backward(gy, index, ready.kind), None
        return call(ops.max_pool_backward, gy, index, ready.x_shape[2:], *args), None


class EagerMaxPoolWithIndices(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ready: Ready[ops.PoolCall]) -> tuple[Tensor, Tensor]:
        y, index = ready[0].max_with_index["plane"](x)
        ctx.save_for_backward(index)
        ctx.ready = ready
        ctx.mark_non_differentiable(index)
        return y, index

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Any) -> tuple[Any, ...]:
        (index,) = ctx.saved_tensors
        ready, args = ctx.ready
        if _first_order(gy):
            return ready.max_backward(gy, index, "plane"), None
        return call(ops.max_pool_backward, gy, index, ready.x_shape[2:], *args), None


class EagerAveragePool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ready: Ready[ops.PoolCall]) -> Tensor:
        ctx.ready = ready
        return ready[0].average(x)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        ready, args = ctx.ready
        if _first_order(gy):
            return ready.average_backward(gy), None
        return call(ops.average_pool_backward, gy, ready.x_shape[2:], *args), None


class EagerLrn(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ready: Ready[ops.LrnCall]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ready = ready
        return ready[0].forward(x)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        ready, args = ctx.ready
        if _first_order(gy):
            return ready.backward(gy, x), None
        return call(ops.lrn_backward, gy, x, *args), None


eager_conv = _direct_apply(EagerConv)
eager_conv_transpose = _direct_apply(EagerConvTranspose)
eager_max_pool = _direct_apply(EagerMaxPool)
eager_max_pool_with_indices = _direct_apply(EagerMaxPoolWithIndices)
eager_average_pool = _direct_apply(EagerAveragePool)
eager_lrn = _direct_apply(EagerLrn)
