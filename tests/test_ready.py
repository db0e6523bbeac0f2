"""Calls made ready: when they are found again, when not; and the native functions that take tensors."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import fastconv
import fastconv.functional as F
from fastconv import _C, autograd, device, ops

READY = object()


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    _C.forget()
    yield
    _C.forget()


def image(*shape: int, **options: object) -> Tensor:
    return torch.ones(shape or (2, 3, 4, 5), **options)


# ---- what finds what


def test_a_call_is_found_by_what_its_arguments_say() -> None:
    _C.keep(READY, "pool", 2, image(), None, (2, (1, 1)), [3], 0.5, True, "same")
    assert _C.kept() == 1
    assert _C.find("pool", 2, image(), None, (2, (1, 1)), [3], 0.5, True, "same") is READY
    assert _C.find("pool", 2, torch.nn.Parameter(image()), None, (2, (1, 1)), [3], 0.5, True, "same") is READY


OTHERS = {
    "operator": ("conv", image(), 1),
    "longer operator of the same beginning": ("pool_with_indices", image(), 1),
    "True for 1": ("pool", image(), True),
    "1.0 for 1": ("pool", image(), 1.0),
    "a tuple for a number": ("pool", image(), (1,)),
    "None": ("pool", image(), None),
    "another number": ("pool", image(), 2),
    "more arguments": ("pool", image(), 1, 1),
    "fewer arguments": ("pool", image()),
    "shape": ("pool", image(2, 3, 5, 4), 1),
    "dimensions": ("pool", image(2, 3, 20), 1),
    "dtype": ("pool", image(dtype=torch.float64), 1),
    "dtype of the same width": ("pool", image(dtype=torch.int32), 1),
    "strides": ("pool", image().to(memory_format=torch.channels_last), 1),
}


@pytest.mark.parametrize("arguments", OTHERS.values(), ids=OTHERS)
def test_other_arguments_do_not_find_it(arguments: tuple[object, ...]) -> None:
    _C.keep(READY, "pool", image(), 1)
    assert _C.find("pool", image(), 1) is READY
    assert _C.find(*arguments) is None


def test_sequences_are_told_apart_and_may_change() -> None:
    sizes = [2, 2]
    _C.keep(READY, image(), sizes)
    assert _C.find(image(), (2, 2)) is None
    sizes[0] = 3
    assert _C.find(image(), sizes) is None
    assert _C.find(image(), [2, 2]) is READY
    _C.keep(READY, image(), (2, (3, 4)))
    assert _C.find(image(), (2, 3, 4)) is None
    assert _C.find(image(), ((2, 3), 4)) is None


UNFIT = {
    "no tensor": lambda: (1, 2),
    "an object": lambda: (image(), object()),
    "a number beyond 64 bits": lambda: (image(), 1 << 64),
    "too much": lambda: (image(), tuple(range(1000))),
    "a list in itself": lambda: (image(), endless()),
    "a subclass of Tensor": lambda: (image().as_subclass(type("Mine", (Tensor,), {})), 1),
    "a negative view": lambda: (torch._neg_view(image()), 1),
    "a sparse tensor": lambda: (image().to_sparse(), 1),
    "a nested tensor": lambda: (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), 1),
    "an MKL-DNN tensor": lambda: (image().to_mkldnn(), 1),
    "a meta tensor": lambda: (image(device="meta"), 1),
    "a surrogate": lambda: (image(), "\ud800"),
}


def endless() -> list[object]:
    values: list[object] = []
    values.append(values)
    return values


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("arguments", UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_compared_is_not_kept(arguments: Callable[[], tuple[object, ...]]) -> None:
    _C.keep(READY, *arguments())
    assert _C.find(*arguments()) is None
    assert _C.kept() == 0


def test_settings_are_part_of_it() -> None:
    _C.keep(READY, image(), 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert _C.find(image(), 1) is None
    finally:
        torch.set_num_threads(threads)
    with fastconv.allow_winograd(False):
        assert _C.find(image(), 1) is None
    with fastconv.simulate_cuda():
        assert _C.find(image(), 1) is None
    assert _C.find(image(), 1) is READY


def test_a_target_that_is_gone_is_not_taken_for_another() -> None:
    """Its address may be used again, so what is kept keeps it."""
    for _ in range(100):
        token = device.current.set(device.Target(_C, device.workspace, device.Algorithms()))
        try:
            assert _C.find(image(), 1) is None
            _C.keep(READY, image(), 1)
        finally:
            device.current.reset(token)


def test_the_table_is_bounded() -> None:
    x = image()
    for i in range(5000):
        _C.keep(READY, x, i)
        assert _C.kept() <= 4096
    assert _C.find(x, 4999) is READY


# ---- who watches


class Watcher(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


WATCHERS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "a dispatch mode": Watcher,
    "fake tensors": FakeTensorMode,
    "forward mode": forward_ad.dual_level,
}


@pytest.mark.parametrize("keys_tell", [True, False], ids=["by dispatch keys", "by Python"])
@pytest.mark.parametrize("watcher", WATCHERS.values(), ids=WATCHERS)
def test_nothing_is_found_while_something_watches(
    watcher: Callable[[], AbstractContextManager[object]], keys_tell: bool, connected: Callable[[bool], None]
) -> None:
    connected(keys_tell)
    x = image()
    _C.keep(READY, x, 1)
    with watcher():
        assert _C.find(x, 1) is None
        with torch.no_grad():
            assert not _C.first_order(x)
    assert _C.find(x, 1) is READY
    with torch.no_grad():
        assert _C.first_order(x)
    assert not _C.first_order(x)


@pytest.fixture
def connected() -> Iterator[Callable[[bool], None]]:
    yield autograd.connect
    autograd.connect(True)


def test_transforms_and_tracers_watch() -> None:
    seen: list[object] = []

    def look(x: Tensor) -> Tensor:
        seen.append(_C.find(x, 1))
        return x * 2

    x = image()
    for run in (torch.func.vmap(look), torch.func.grad(lambda x: look(x).sum()), lambda x: torch.jit.trace(look, x)):
        run(x)
    torch.func.jvp(look, (x,), (x,))
    assert len(seen) >= 4
    assert all(found is None for found in seen)


def test_dispatch_keys_are_seen_on_this_torch() -> None:
    """Else every call asks Python, which is right but takes microseconds."""
    assert autograd._dispatch_keys_tell()
    assert _C.dispatch_keys() == (0, 0)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")])
def test_harmless_states_do_not_hide_it(context: Callable[[], AbstractContextManager[object]]) -> None:
    x = image()
    _C.keep(READY, x, 1)
    with context():
        assert _C.find(x, 1) is READY


def test_each_thread_has_its_own_state() -> None:
    x, found = image(), []
    _C.keep(READY, x, 1)
    with Watcher():
        thread = threading.Thread(target=lambda: found.append(_C.find(x, 1)))
        thread.start()
        thread.join()
        assert _C.find(x, 1) is None
    assert found == [READY]


# ---- kernels that are called with tensors


def kernel(function: object, inputs: int = 1, outputs: int = 1) -> _C.Kernel:
    x = image()
    like = (tuple(x.shape), x.stride(), x.dtype)
    return _C.Kernel(function, ("p",), (x.stride(),) * inputs, (like,) * outputs, 7, torch.contiguous_format, ops.blank)


def test_a_kernel_gets_parameters_inputs_outputs_and_threads() -> None:
    calls: list[tuple[object, ...]] = []
    x, z = image(), image()
    y, index = kernel(lambda *args: calls.append(args), 2, 2)(x, z)
    ((parameter, *tensors, threads),) = calls
    assert (parameter, threads) == ("p", 7)
    assert [a is b for a, b in zip(tensors, (x, z, y, index), strict=True)] == [True] * 4
    assert y.shape == x.shape
    assert y.stride() == x.stride()
    assert y.untyped_storage().nbytes() == x.untyped_storage().nbytes()


def test_other_strides_are_copied() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    y = kernel(lambda p, x, y, threads: seen.append(x))(x)
    assert torch.equal(seen[0], x)
    assert seen[0].is_contiguous()
    assert y.is_contiguous()


def test_a_kernel_that_says_no_returns_none() -> None:
    assert kernel(lambda *_: False)(image()) is None
    assert kernel(None)(image()).shape == image().shape


@pytest.mark.parametrize("arguments", [(), (image(), image()), (3,), (None,), (image(device="meta"),)])
def test_a_kernel_refuses_other_arguments(arguments: tuple[object, ...]) -> None:
    with pytest.raises(TypeError, match="expected"):
        kernel(lambda *_: None)(*arguments)


def test_errors_of_a_kernel_pass_through() -> None:
    def fails(*_: object) -> None:
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        kernel(fails)(image())


@pytest.mark.parametrize(
    "changes",
    [{"inputs": ()}, {"inputs": (3,)}, {"inputs": (("a",),)}, {"outputs": ((1, 2),)}, {"parameters": (1, 2, 3)}],
)
def test_a_kernel_is_made_of_what_it_needs(changes: dict[str, object]) -> None:
    sound = {
        "function": None, "parameters": (), "inputs": ((1,),), "outputs": (((2,), (1,), torch.float32),), "threads": 1,
        "format": torch.contiguous_format, "blank": ops.blank,
    }  # fmt: skip
    _C.Kernel(**sound)
    with pytest.raises(ValueError, match="kernel: expected"):
        _C.Kernel(**{**sound, **changes})


@pytest.mark.parametrize(
    "memory", [3.5, "x", [1], image(device="meta"), object()], ids=["float", "str", "list", "meta tensor", "object"]
)
def test_memory_is_a_tensor_an_address_or_none(memory: object) -> None:
    x = image(1, 1, 4, 4)
    problem = ops.average_pool_call(x, (2, 2), (2, 2), (2, 2), (0, 0, 0, 0), True, 0).problem
    y = torch.zeros(1, 1, 2, 2)
    _C.average_pool_forward(problem, x, y, 1)
    assert y.sum() == 4
    doubled = 2 * x
    _C.average_pool_forward(problem, doubled.data_ptr(), y.data_ptr(), 1)
    assert y.sum() == 8
    with pytest.raises(TypeError):
        _C.average_pool_forward(problem, memory, y, 1)
    with pytest.raises(TypeError):
        _C.average_pool_forward(memory, x, y, 1)


def test_a_view_begins_where_it_begins() -> None:
    x = torch.arange(32.0).view(2, 1, 4, 4)
    assert torch.equal(F.avg_pool2d(x[1:], 4), torch.full((1, 1, 1, 1), 23.5))
    assert F.max_pool2d(x[1:], 4).item() == 31
