"""Frozen weights: the same bits, prepared once, never stale, gone when the weight goes."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from tensors import normal

import fastconv
from fastconv import frozen
from fastconv import functional as F
from fastconv.frozen import FORMS

ALGORITHMS = ("winograd_f4", "implicit_gemm")
FLAT, LAST = torch.contiguous_format, torch.channels_last


@pytest.fixture(autouse=True)
def _nothing_frozen() -> Iterator[None]:
    frozen.weights.clear()
    yield
    frozen.weights.clear()


def tensor(*shape: int, seed: int, memory_format: torch.memory_format = FLAT) -> torch.Tensor:
    return torch.from_numpy(normal(*shape, seed=seed)).float().contiguous(memory_format=memory_format)


def forms() -> int:
    return sum(len(f.forms) for f in frozen.weights.values())


# ---- the same bits


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", [FLAT, LAST])
@pytest.mark.parametrize("weight_layout", [FLAT, LAST])
@pytest.mark.parametrize(
    ("n", "c", "h", "w", "k", "groups"),
    # more tiles than outputs and the reverse, of one and of several panels, with tails; groups
    [(2, 19, 33, 30, 21, 1), (1, 70, 7, 9, 117, 1), (3, 33, 6, 6, 40, 1), (2, 32, 8, 9, 48, 2), (1, 64, 4, 4, 200, 1)],
)
def test_both_primitives_have_the_same_bits(
    algorithm: str,
    layout: torch.memory_format,
    weight_layout: torch.memory_format,
    n: int,
    c: int,
    h: int,
    w: int,
    k: int,
    groups: int,
) -> None:
    x, gy = tensor(n, c, h, w, seed=1, memory_format=layout), tensor(n, k, h, w, seed=2, memory_format=layout)
    weight, b = tensor(k, c // groups, 3, 3, seed=3, memory_format=weight_layout), tensor(k, seed=4)
    with fastconv.force_algorithm(algorithm):
        y = F.conv2d(x, weight, b, padding=1, groups=groups)
        gx = F.conv_transpose2d(gy, weight, padding=1, groups=groups)
        fastconv.freeze(weight)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for _ in range(2):
                assert torch.equal(F.conv2d(x, weight, b, padding=1, groups=groups), y)
                assert torch.equal(F.conv_transpose2d(gy, weight, padding=1, groups=groups), gx)
    assert forms() == 2  # one a primitive, whatever the threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2, 3, (3, 2)])
def test_implicit_gemm_with_strides(dtype: torch.dtype, stride: int | tuple[int, int]) -> None:
    weight = tensor(24, 10, 3, 4, seed=1).to(dtype)
    images = [tensor(2, 24, h, w, seed=h).to(dtype) for h, w in ((5, 6), (1, 1), (1, 7), (9, 1))]
    inputs = [tensor(2, 10, h, w, seed=h).to(dtype) for h, w in ((17, 16), (6, 4), (3, 20), (8, 8))]
    with fastconv.force_algorithm("implicit_gemm"):
        before = [F.conv_transpose2d(t, weight, stride=stride, padding=1) for t in images if min(t.shape[2:]) > 1]
        before += [F.conv2d(t, weight, stride=stride, padding=1) for t in inputs]
        fastconv.freeze(weight)
        after = [F.conv_transpose2d(t, weight, stride=stride, padding=1) for t in images if min(t.shape[2:]) > 1]
        after += [F.conv2d(t, weight, stride=stride, padding=1) for t in inputs]
    assert all(map(torch.equal, before, after))


def test_outputs_smaller_than_the_stride() -> None:
    """The panels of an input gradient depend on which residues of the stride there are."""
    weight = tensor(24, 10, 4, 4, seed=1)
    images = [tensor(1, 24, 1, w, seed=w) for w in (1, 2)]
    with fastconv.force_algorithm("implicit_gemm"):
        before = [F.conv_transpose2d(t, weight, stride=4, padding=1) for t in images]
        before += [F.conv_transpose2d(t, weight, stride=5, padding=1) for t in images]
        fastconv.freeze(weight)
        after = [F.conv_transpose2d(t, weight, stride=4, padding=1) for t in images]
        after += [F.conv_transpose2d(t, weight, stride=5, padding=1) for t in images]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("dims", [1, 2])
def test_any_batch_and_size_share_a_form(dims: int) -> None:
    conv = (F.conv1d, F.conv2d)[dims - 1]
    weight = tensor(40, 40, *(3,) * dims, seed=1)
    inputs = [tensor(n, 40, *(size,) * dims, seed=n) for n, size in ((1, 6), (2, 6), (3, 11), (9, 20))]
    with fastconv.force_algorithm("implicit_gemm"):
        before = [conv(x, weight, padding=1) for x in inputs]
        fastconv.freeze(weight)
        assert all(torch.equal(conv(x, weight, padding=1), y) for x, y in zip(inputs, before, strict=True))
    assert forms() == 1


def test_an_image_that_is_not_finite_is_as_without() -> None:
    """Winograd's algorithm computes it again, by another one that knows nothing of the transforms."""
    x, weight = tensor(2, 32, 12, 12, seed=1), tensor(32, 32, 3, 3, seed=2)
    x[1, 3, 4, 5] = torch.inf
    with fastconv.force_algorithm("winograd_f4"):
        y = F.conv2d(x, weight, padding=1)
        fastconv.freeze(weight)
        for _ in range(2):
            torch.testing.assert_close(F.conv2d(x, weight, padding=1), y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_not_packed_is_as_ever(dtype: torch.dtype) -> None:
    x, weight, depthwise = tensor(1, 32, 8, 8, seed=1), tensor(32, 32, 3, 3, seed=2), tensor(32, 1, 3, 3, seed=3)
    y = F.conv2d(x.to(dtype), weight.to(dtype), padding=1), F.conv2d(x, depthwise, groups=32)
    half = fastconv.freeze(weight.to(dtype))
    fastconv.freeze(depthwise)
    assert torch.equal(F.conv2d(x.to(dtype), half, padding=1), y[0])
    assert torch.equal(F.conv2d(x, depthwise, groups=32), y[1])
    assert forms() == 0


# ---- once


def test_prepared_once_for_many_calls() -> None:
    model = fastconv.nn.Conv2d(32, 32, 3, padding=1)
    x = tensor(1, 32, 12, 12, seed=1)
    with torch.no_grad():
        model(x)
        assert not frozen.weights  # nothing is kept unasked
        assert fastconv.freeze(model) is model
        assert forms() == 0
        model(x)
        (kept,) = frozen.weights[id(model.weight)].forms.values()
        before = kept.clone()
        model(x)
        assert forms() == 1
        assert next(iter(frozen.weights[id(model.weight)].forms.values())) is kept
        assert torch.equal(kept, before)
        y = model(x)
        kept.zero_()
        assert not torch.equal(model(x), y)  # it is what is read
        assert fastconv.unfreeze(model) is model
        assert not frozen.weights
        assert torch.equal(model(x), y)


def test_forms_of_a_weight_are_bounded() -> None:
    weight = fastconv.freeze(tensor(8, 8, 3, 3, seed=1))
    x = tensor(1, 8, 40, 40, seed=2)
    with fastconv.force_algorithm("implicit_gemm"):
        for padding in range(2 * FORMS):
            expected = F.conv2d(x, weight.clone(), padding=padding)
            assert torch.equal(F.conv2d(x, weight, padding=padding), expected)
    assert forms() == FORMS


# ---- never stale

CHANGES = {
    "copy_": lambda w, new: w.copy_(new),
    "a view": lambda w, new: w[3:5].copy_(new[3:5]),
    "detached": lambda w, new: w.detach().copy_(new),
    "other memory": lambda w, new: setattr(w, "data", new),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_weight_that_changes_is_not_frozen_any_more(change) -> None:
    layer = fastconv.nn.Conv2d(32, 32, 3)
    x, new = tensor(1, 32, 12, 12, seed=1), tensor(32, 32, 3, 3, seed=2)
    with torch.no_grad():
        fastconv.freeze(layer)
        layer(x)
        change(layer.weight, new)
        y = layer(x)
        assert torch.equal(y, F.conv2d(x, layer.weight.clone(), layer.bias))
        assert id(layer.weight) not in frozen.weights
        fastconv.freeze(layer)
        assert torch.equal(layer(x), y)


def test_training_and_loading_are_seen() -> None:
    layer = fastconv.freeze(fastconv.nn.Conv2d(32, 32, 3))
    x = tensor(1, 32, 12, 12, seed=1)
    state = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        first = layer(x)
    layer(x).square().mean().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    with torch.no_grad():
        assert not torch.equal(layer(x), first)
        fastconv.freeze(layer)
        layer(x)
        layer.load_state_dict(state)
        assert torch.equal(layer(x), first)


def test_freezing_again_forgets_what_was_kept() -> None:
    """The way out after a change that torch does not count."""
    weight, x = fastconv.freeze(tensor(32, 32, 3, 3, seed=1)), tensor(1, 32, 12, 12, seed=2)
    F.conv2d(x, weight)
    weight.data.mul_(2)
    fastconv.freeze(weight)
    assert torch.equal(F.conv2d(x, weight), F.conv2d(x, weight.clone()))


def test_gradients_of_a_frozen_model() -> None:
    layer = fastconv.nn.Conv2d(32, 48, 3, padding=1)
    x = tensor(2, 32, 12, 12, seed=1).requires_grad_()
    expected = torch.autograd.grad(layer(x).square().sum(), (x, *layer.parameters()))
    fastconv.freeze(layer)
    for _ in range(2):
        actual = torch.autograd.grad(layer(x).square().sum(), (x, *layer.parameters()))
        assert all(map(torch.equal, actual, expected))


def test_weights_of_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        layer = fastconv.nn.Conv2d(32, 32, 3)
    with pytest.raises(ValueError, match="inference_mode"):
        fastconv.freeze(layer)
    assert not frozen.weights


def test_used_in_inference_mode() -> None:
    layer = fastconv.freeze(fastconv.nn.Conv2d(32, 32, 3))
    x = tensor(1, 32, 12, 12, seed=1)
    with torch.inference_mode():
        assert torch.equal(layer(x), layer(x))
    assert forms() == 1


# ---- how long


def test_what_is_kept_goes_with_the_weight() -> None:
    weight = fastconv.freeze(tensor(32, 32, 3, 3, seed=1))
    F.conv2d(tensor(1, 32, 12, 12, seed=2), weight)
    (form,) = next(iter(frozen.weights.values())).forms.values()
    gone = weakref.ref(form)
    del weight, form
    gc.collect()
    assert gone() is None
    assert not frozen.weights


def test_copies_and_pickles_are_not_frozen() -> None:
    layer = fastconv.freeze(fastconv.nn.Conv2d(32, 32, 3))
    x = tensor(1, 32, 12, 12, seed=1)
    with torch.no_grad():
        y = layer(x)
        twin = copy.deepcopy(layer)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert torch.equal(twin(x), y)
        assert torch.equal(loaded(x), y)
    assert list(frozen.weights) == [id(layer.weight)]


def test_threads_share_a_frozen_weight() -> None:
    layer = fastconv.freeze(fastconv.nn.Conv2d(64, 64, 3))
    x = tensor(1, 64, 12, 12, seed=1)
    expected = F.conv2d(x, layer.weight.detach().clone(), layer.bias.detach())
    wrong: list[int] = []

    def work() -> None:
        with torch.no_grad():
            wrong.extend(i for i in range(20) if not torch.equal(layer(x), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert forms() == 1


def _in_child(layer: torch.nn.Module, x: torch.Tensor, expected: torch.Tensor, queue) -> None:
    with torch.no_grad():
        queue.put((torch.equal(layer(x), expected), forms()))


def test_a_forked_process_goes_on_with_it() -> None:
    layer = fastconv.freeze(fastconv.nn.Conv2d(32, 32, 3))
    x = tensor(1, 32, 12, 12, seed=1)
    with torch.no_grad():
        expected = layer(x)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_in_child, args=(layer, x, expected, queue))
    process.start()
    process.join()
    assert queue.get() == (True, 1)
