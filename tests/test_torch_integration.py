"""How the operators sit in PyTorch: tracers, torch.func, autocast, modes, memory formats, threads, fork."""

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as reference
from torch.library import opcheck
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fastconv
import fastconv.functional as functional
from fastconv import ops


def ramp(*shape, dtype=torch.float64):
    """Distinct values in no order, so that max pooling has no ties."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return (order.to(dtype) - count / 2).reshape(shape) / count


CASES = {
    "conv2d": (
        lambda m, x, w, b: m.conv2d(x, w, b, (2, 1), 1, (1, 2), 2),
        (ramp(2, 4, 7, 8), ramp(6, 2, 3, 2), ramp(6)),
    ),
    "conv1d": (lambda m, x, w, b: m.conv1d(x, w, b, 2, 1), (ramp(2, 4, 7), ramp(6, 4, 3), ramp(6))),
    "conv_transpose2d": (
        lambda m, x, w, b: m.conv_transpose2d(x, w, b, (2, 1), 1, (1, 0), 2, (1, 2)),
        (ramp(2, 4, 3, 4), ramp(4, 2, 3, 2), ramp(4)),
    ),
    "conv_transpose1d": (
        lambda m, x, w, b: m.conv_transpose1d(x, w, b, 1, 0, 2, 1, 3),
        (ramp(2, 4, 3), ramp(4, 2, 3), ramp(2)),
    ),
    "max_pool2d": (lambda m, x: m.max_pool2d(x, (3, 2), 2, 1), (ramp(2, 2, 5, 6),)),
    "max_pool1d": (lambda m, x: m.max_pool1d(x, 3, 2, 1), (ramp(2, 2, 6),)),
    "avg_pool2d": (lambda m, x: m.avg_pool2d(x, 2, 2, 1, count_include_pad=False), (ramp(2, 2, 5, 6),)),
    "avg_pool1d": (lambda m, x: m.avg_pool1d(x, 3, 2, 1), (ramp(2, 2, 6),)),
    "adaptive_avg_pool2d": (lambda m, x: m.adaptive_avg_pool2d(x, (3, 2)), (ramp(2, 2, 5, 6),)),
    "adaptive_max_pool2d": (lambda m, x: m.adaptive_max_pool2d(x, (3, 2)), (ramp(2, 2, 5, 6),)),
    "local_response_norm": (lambda m, x: m.local_response_norm(x, 3, 0.5, 0.7, 1.3), (ramp(2, 5, 3, 2),)),
}
every_case = pytest.mark.parametrize(("function", "tensors"), CASES.values(), ids=CASES)
# One case for each operator and rank where what is tested does not depend on the parameters.
one_each = pytest.mark.parametrize(
    "name", ["conv2d", "conv_transpose1d", "max_pool2d", "adaptive_avg_pool2d", "local_response_norm"]
)


def leaves(tensors):
    return tuple(t.clone().requires_grad_() for t in tensors)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


# ---- tracers


@pytest.mark.parametrize("dynamic", [False, True])
@one_each
def test_compile(name, dynamic):
    function, tensors = CASES[name]
    compiled = torch.compile(
        lambda *a: function(functional, *a).sin(), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for batch in (2, 3) if dynamic else (1,):
        ours = leaves((tensors[0].repeat(batch, *(1,) * (tensors[0].dim() - 1)), *tensors[1:]))
        y, expected = compiled(*ours), function(reference, *ours).sin()
        assert_close(y, expected)
        g = torch.cos(expected.detach())
        assert_close(torch.autograd.grad(y, ours, g), torch.autograd.grad(expected, ours, g))


def test_inductor():
    """Only our operators, so that it generates no code of its own: it relies on the strides the fakes promise."""
    function, tensors = CASES["conv2d"]
    compiled = torch.compile(lambda *a: functional.max_pool2d(function(functional, *a), 2), fullgraph=True)
    x = tensors[0].contiguous(memory_format=torch.channels_last)
    assert_close(compiled(x, *tensors[1:]), reference.max_pool2d(function(reference, x, *tensors[1:]), 2))


@pytest.mark.parametrize("strict", [False, True])
@one_each
def test_export(name, strict):
    function, (x, *rest) = CASES[name]

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rest = torch.nn.ParameterList(rest)

        def forward(self, x):
            # Not *self.rest: torch 2.11's strict export cannot unpack a list of parameters.
            return function(functional, x, *(self.rest[i] for i in range(len(rest))))

    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(Module(), (x,), dynamic_shapes=shapes, strict=strict)
    assert "torch.ops.fastconv." in program.graph_module.code
    more = torch.cat([x, x, x])
    assert_close(program.module()(more), function(reference, more, *rest))


@every_case
def test_jit_trace_records_the_operator(function, tensors):
    traced = torch.jit.trace(lambda *a: function(functional, *a), tensors)
    others = tuple(t.flip(0) for t in tensors)
    assert_close(traced(*others), function(reference, *others))


@every_case
def test_fx_symbolic_trace(function, tensors):
    class Module(torch.nn.Module):
        def forward(self, x):
            return function(functional, x, *tensors[1:])

    graph = torch.fx.symbolic_trace(Module())
    assert any(getattr(node.target, "__module__", "") == "fastconv.functional" for node in graph.graph.nodes)
    assert_close(graph(tensors[0]), function(reference, *tensors))


@every_case
def test_meta(function, tensors):
    for layout in (torch.contiguous_format, torch.channels_last)[: tensors[0].dim() - 2]:
        inputs = (tensors[0].contiguous(memory_format=layout), *tensors[1:])
        real, meta = function(functional, *inputs), function(functional, *(t.to("meta") for t in inputs))
        assert (meta.device.type, meta.shape, meta.stride(), meta.dtype) == (
            "meta",
            real.shape,
            real.stride(),
            real.dtype,
        )


CONV = ([2, 1], [1, 1, 1, 1], [1, 2], 2)
WINDOW = ([3, 2], [2, 2], [1, 1, 1, 1])
LAST = torch.channels_last
OPERATORS = {
    "conv_forward": (ramp(2, 4, 7, 8), ramp(6, 2, 3, 2), ramp(6), *CONV),
    "conv_forward, channels_last": (ramp(2, 4, 7, 8).to(memory_format=LAST), ramp(6, 2, 3, 2), None, *CONV),
    "conv_input_gradient": (ramp(2, 6, 4, 8), ramp(6, 2, 3, 2), None, [7, 8], *CONV),
    "conv_weight_gradient": (ramp(2, 6, 4, 8), ramp(2, 4, 7, 8), [3, 2], *CONV, False),
    "conv_weight_gradient, channels_last": (ramp(2, 6, 4, 8), ramp(2, 4, 7, 8), [3, 2], *CONV, True),
    "channel_sum": (ramp(2, 3, 4, 5),),
    "max_pool": (ramp(2, 2, 5, 6), [3, 4], *WINDOW, [1, 1], "window"),
    "max_pool_backward": (ramp(2, 2, 3, 4), torch.full((2, 2, 3, 4), 3).byte(), [5, 6], *WINDOW, [1, 1]),
    "max_pool_gather": (ramp(2, 2, 5, 6), torch.full((2, 2, 3, 4), 3).byte(), *WINDOW, [1, 1]),
    "average_pool": (ramp(2, 2, 5, 6), [3, 4], *WINDOW, True, 0),
    "average_pool, adaptive": (ramp(2, 2, 5, 6), [3, 4], [], [], [], True, 0),
    "average_pool_backward": (ramp(2, 2, 3, 4), [5, 6], *WINDOW, True, 0),
    "lrn": (ramp(2, 5, 3, 2), 3, 0.5, 0.7, 1.3),
    "lrn_backward": (ramp(2, 5, 3, 2), ramp(2, 5, 3, 2).cos(), 3, 0.5, 0.7, 1.3),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name, requires_grad):
    args = tuple(
        a.clone().requires_grad_(requires_grad and a.is_floating_point()) if isinstance(a, torch.Tensor) else a
        for a in OPERATORS[name]
    )
    opcheck(getattr(torch.ops.fastconv, name.split(",")[0]).default, args)


# ---- derivatives


@every_case
def test_gradcheck(function, tensors):
    """First and second derivatives, forward mode, and batched gradients (vmap over backward)."""
    inputs = leaves(tensors)
    torch.autograd.gradcheck(
        lambda *a: function(functional, *a),
        inputs,
        fast_mode=True,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    torch.autograd.gradgradcheck(
        lambda *a: function(functional, *a),
        inputs,
        fast_mode=True,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
    )


@every_case
def test_torch_func(function, tensors):
    """Transforms and their compositions agree with torch's function under the same transforms."""
    count = tuple(range(len(tensors)))
    tangents = tuple(t.cos() for t in tensors)

    def results(module):
        def run(*a):
            return function(module, *a)

        def loss(*a):
            return run(*a).sin().sum()

        first = torch.func.grad(loss, count)
        yield first(*tensors)
        yield torch.func.jvp(run, tensors, tangents)
        yield torch.func.jvp(first, tensors, tangents)
        yield torch.func.jacrev(run, count)(*tensors)
        yield torch.func.vjp(run, *tensors)[1](run(*tensors).cos())
        stacked = tuple(torch.stack([t, t.flip(0), t.sin()]) for t in tensors)
        for mapped in range(1, 2 ** len(tensors)):  # every choice of mapped arguments
            dims = tuple(0 if mapped >> i & 1 else None for i in count)
            inputs = tuple(s if d == 0 else t for s, t, d in zip(stacked, tensors, dims, strict=True))
            yield torch.func.vmap(run, dims)(*inputs)
            yield torch.func.vmap(first, dims)(*inputs)

    for ours, theirs in zip(results(functional), results(reference), strict=True):
        assert_close(ours, theirs)


def test_per_sample_gradients():
    function, (x, *rest) = CASES["conv2d"]

    def gradients(module):
        loss = torch.func.grad(lambda w, b, sample: function(module, sample[None], w, b).sin().sum(), (0, 1))
        return torch.func.vmap(loss, (None, None, 0))(*rest, x)

    assert_close(gradients(functional), gradients(reference))


def test_weights_alone_or_bias_alone():
    for name in ("conv2d", "conv_transpose2d"):
        function, tensors = CASES[name]
        for i in range(3):
            inputs = tuple(t.clone().requires_grad_(i == j) for j, t in enumerate(tensors))
            got, expected = (
                torch.autograd.grad(function(m, *inputs).sin().sum(), inputs[i]) for m in (functional, reference)
            )
            assert_close(got, expected)


def test_saved_tensors_meet_hooks_and_in_place_changes():
    packed = []
    x = ramp(1, 2, 4, 4).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        functional.max_pool2d(x, 2)
    assert [t.dtype for t in packed] == [torch.uint8]  # one byte a position, where a window has at most 255
    y = functional.local_response_norm(x * 1, 3)
    inner = x * 2
    y = functional.conv2d(inner, ramp(2, 2, 3, 3).requires_grad_())
    inner.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_checkpoint():
    function, tensors = CASES["conv2d"]
    inputs = leaves(tensors)
    y = checkpoint(lambda *a: function(functional, *a).relu(), *inputs, use_reentrant=False)
    expected = function(reference, *inputs).relu()
    assert_close(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(expected.sum(), inputs))


# ---- modes and subclasses


def test_flops():
    x, w = torch.ones(2, 4, 7, 8, requires_grad=True), torch.ones(6, 2, 3, 2, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = functional.conv2d(x, w, None, 2, 1, 1, 2)
        one = 2 * y.numel() * w[0].numel()
        assert counter.get_total_flops() == one
        y.sum().backward()
    assert counter.get_total_flops() == 3 * one
    with FlopCounterMode(display=False) as counter:
        functional.conv_transpose1d(torch.ones(2, 4, 5), torch.ones(4, 3, 3), stride=2)
    assert counter.get_total_flops() == 2 * 2 * 4 * 5 * 3 * 3


def test_dispatch_mode_sees_the_operators():
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        functional.max_pool2d(ramp(1, 1, 4, 4).requires_grad_(), 2).sum().backward()
    assert {ops.max_pool, ops.max_pool_backward} <= set(seen)


@pytest.mark.parametrize("name", functional.__all__)
def test_torch_function_overrides(name):
    tensors = {"conv": (ramp(2, 4, 6, 6), ramp(4, 2, 3, 3)), "other": (ramp(2, 4, 6, 6),)}
    tensors = tensors["conv" if "conv" in name else "other"]
    if "1d" in name:
        tensors = tuple(t[..., 0] for t in tensors)
    args = (*tensors, *(() if "conv" in name else (2,)))
    kwargs = {"groups": 2} if "conv" in name else {}
    function = getattr(functional, name)
    calls = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    class Subclass(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            calls.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    with Mode():
        y = function(*args, **kwargs)
    assert calls[0] is function
    calls.clear()
    wrapped = function(args[0].as_subclass(Subclass), *args[1:], **kwargs)
    assert calls[0] is function
    assert type(wrapped) is Subclass
    assert_close(wrapped.as_subclass(torch.Tensor), y)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv_transpose2d"])
def test_autocast_as_torch(name):
    function, tensors = CASES[name]
    tensors = tuple(t.float() for t in tensors)
    for dtype in (torch.bfloat16, torch.float16):
        ours, theirs = leaves(tensors), leaves(tensors)
        with torch.autocast("cpu", dtype=dtype):
            y, expected = function(functional, *ours), function(reference, *theirs)
            assert y.dtype == expected.dtype == dtype
            assert function(functional, *(t.double() for t in tensors)).dtype == torch.float64
        assert_close(y, expected, rtol=0.05, atol=0.01)
        y.float().sum().backward()
        assert all(t.grad.dtype == torch.float32 for t in ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = torch.compile(lambda *a: function(functional, *a), fullgraph=True, backend="aot_eager")
        assert compiled(*tensors).dtype == torch.bfloat16
        assert functional.max_pool1d(ramp(1, 2, 4).float(), 2).dtype == torch.float32
        assert functional.local_response_norm(ramp(1, 2, 4).float(), 2).dtype == torch.float32


# ---- memory formats

SHAPES = [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (1, 1, 4, 4), (2, 3, 1, 5), (1, 1, 1, 1)]
FORMATS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "permuted": lambda t: t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "expanded": lambda t: t[:, :1].expand(t.shape),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMATS)
def test_strides_follow_torch(shape, form):
    x = FORMATS[form](torch.ones(shape))
    for weight_format in (torch.contiguous_format, torch.channels_last):
        w = torch.ones(2, shape[1], 1, 1).contiguous(memory_format=weight_format)
        w3 = torch.ones(2, shape[1], 3, 3).contiguous(memory_format=weight_format)
        for args in ((x, w), (x, w3, None, 1, 1)):
            assert functional.conv2d(*args).stride() == reference.conv2d(*args).stride()
        wt = w.transpose(0, 1)
        assert functional.conv_transpose2d(x, wt).stride() == reference.conv_transpose2d(x, wt).stride()
    for name, args in (("max_pool2d", (1,)), ("avg_pool2d", (1,)), ("adaptive_avg_pool2d", (2,))):
        assert getattr(functional, name)(x, *args).stride() == getattr(reference, name)(x, *args).stride(), name


def test_gradients_keep_the_memory_format():
    x = ramp(2, 4, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    w = ramp(3, 4, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    functional.conv2d(x, w).sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    assert w.grad.is_contiguous(memory_format=torch.channels_last)
    x.grad = None
    functional.adaptive_avg_pool2d(x, 1).sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


# ---- processes and threads


def small_network(x, w, b):
    y = functional.local_response_norm(functional.conv2d(x, w, b, padding=1), 3)
    return functional.avg_pool2d(functional.max_pool2d(y, 2), 2)


def network_gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(s, generator=generator) for s in ((2, 4, 16 + seed, 16), (8, 4, 3, 3), (8,))]
    inputs = [t.requires_grad_() for t in inputs]
    return torch.autograd.grad(small_network(*inputs).square().sum(), inputs)


def test_python_threads_at_once():
    expected = [network_gradients(seed) for seed in range(4)]
    failures = []

    def work(seed):
        for _ in range(10):
            if not all(map(torch.equal, network_gradients(seed), expected[seed])):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_forced_algorithms_are_local_to_a_thread():
    seen = []
    with fastconv.force_algorithm("unknown"):
        thread = threading.Thread(
            target=lambda: seen.append(functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)))
        )
        thread.start()
        thread.join()
    assert len(seen) == 1


def fork_and_compare() -> None:
    expected = network_gradients(0)
    child = os.fork()
    if child == 0:
        same = all(map(torch.equal, network_gradients(0), expected))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_after_fork():
    """In a process of its own: where autograd has threads already, as with GPUs, torch refuses gradients in a child."""
    subprocess.run(
        [sys.executable, "-c", f"import {__name__} as tests; tests.fork_and_compare()"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=True,
    )


class Pooled(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return functional.max_pool2d(ramp(3, 8, 8) + i, 2)


def test_in_data_loader_workers():
    functional.max_pool2d(ramp(64, 16, 32, 32), 2)  # the parent's thread pool exists before the fork
    loader = torch.utils.data.DataLoader(Pooled(), batch_size=2, num_workers=2, multiprocessing_context="fork")
    got = torch.cat(list(loader))
    assert torch.equal(got, torch.stack([reference.max_pool2d(ramp(3, 8, 8) + i, 2) for i in range(4)]))


def test_the_number_of_threads_changes_no_bit():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(network_gradients(3))
            gy = ramp(3, 5, 41, 67, dtype=torch.float32)
            results[-1] += (
                torch.ops.fastconv.channel_sum(gy),
                torch.ops.fastconv.channel_sum(gy.to(memory_format=LAST)),
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    assert_close(results[0][-1], gy.sum((0, 2, 3)))


def test_caches_are_bounded(monkeypatch):
    monkeypatch.setattr(ops, "CACHE_SIZE", 8)
    for width in range(3, 30):
        functional.conv2d(torch.ones(1, 1, 3, width), torch.ones(1, 1, 3, 3))
        functional.max_pool2d(torch.ones(1, 1, 3, width), 2)
    assert len(ops._conv_calls) <= 8
    assert len(ops._pool_calls) <= 8
