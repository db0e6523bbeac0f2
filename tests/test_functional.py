"""fastconv.functional against torch.nn.functional: values, gradients, and what bad arguments raise."""

import itertools

import backends
import pytest
import torch
import torch.nn.functional as reference
from torch.testing import assert_close

import fastconv
import fastconv.functional as functional

CONV2D = [
    {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for stride, padding, dilation, groups in itertools.product((1, (2, 1)), (0, (2, 1), "same"), (1, (1, 2)), (1, 2))
    if not (padding == "same" and stride != 1)
]
CONV_TRANSPOSE2D = [
    {"stride": stride, "padding": padding, "output_padding": extra, "groups": groups, "dilation": dilation}
    for stride, padding, extra, dilation, groups in itertools.product(
        (1, (2, 3)), (0, (1, 2)), (0, (1, 0)), (1, (2, 1)), (1, 2)
    )
    if extra == 0 or stride != 1 or dilation != 1
]
POOL2D = [
    {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil}
    for kernel, stride, padding, ceil in itertools.product((2, (3, 2)), (None, 1, (3, 2)), (0, 1), (False, True))
]
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def identifier(value):
    return ",".join(map(str, value.values())).replace(" ", "") if isinstance(value, dict) else str(value)


def integers(*shape, dtype=torch.float32):
    """Small integers: every sum is exact, so results must be equal, whatever the order of summation."""
    return backends.place(torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype))


def compare(name, tensors, *args, exact=True, **kwargs):
    """Values and gradients of fastconv's function and torch's, on the same tensors."""
    results = []
    for module in (functional, reference):
        leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
        out = getattr(module, name)(*leaves, *args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        weights = (torch.arange(first.numel()) % 5 - 2).reshape(first.shape).to(first)
        gradients = torch.autograd.grad(first, [leaf for leaf in leaves if leaf is not None], weights)
        results.append((out, gradients, first.stride()))
    tolerance = {"rtol": 0, "atol": 0} if exact else {}
    assert_close(results[0][0], results[1][0], **tolerance)
    assert_close(results[0][1], results[1][1], **tolerance)
    return results


@pytest.mark.backends
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parameters", CONV2D, ids=identifier)
def test_conv2d(parameters, layout):
    x = integers(2, 4, 7, 9).contiguous(memory_format=layout)
    w, b = integers(6, 4 // parameters["groups"], 3, 2).contiguous(memory_format=layout), integers(6)
    ours, theirs = compare("conv2d", (x, w, b), **parameters)
    assert ours[2] == theirs[2]  # strides


@pytest.mark.backends
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parameters", CONV_TRANSPOSE2D, ids=identifier)
def test_conv_transpose2d(parameters, layout):
    x = integers(2, 4, 5, 4).contiguous(memory_format=layout)
    groups = parameters["groups"]
    ours, theirs = compare("conv_transpose2d", (x, integers(4, 3, 3, 2), integers(3 * groups)), **parameters)
    assert ours[2] == theirs[2]


@pytest.mark.backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"])
def test_convolution_dtypes(name, dtype):
    shape = (4, 5) if "1d" in name else (4, 5, 3)
    tensors = [integers(2, *shape), integers(4, 4, *(shape[2:] and (3, 2)) or (3,)), integers(4)]
    tensors = [t.sign().to(dtype) for t in tensors]  # -1, 0, 1: exact in bfloat16 too
    ours = getattr(functional, name)(*tensors, padding=1)
    assert ours.dtype == dtype
    assert_close(ours, getattr(reference, name)(*(t.double() for t in tensors), padding=1).to(dtype), rtol=0, atol=0)


@pytest.mark.backends
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [0, (2,), "same", "valid"])
def test_conv1d(padding, groups):
    x, w = integers(2, 4, 9), integers(6, 4 // groups, 3)
    compare("conv1d", (x, w, integers(6)), padding=padding, groups=groups)
    compare("conv1d", (x[0], w, None), padding=padding, groups=groups)


@pytest.mark.backends
@pytest.mark.parametrize(("stride", "extra", "dilation"), [(1, 0, 1), (2, 1, 1), (3, 2, 2), (1, 2, 3)])
def test_conv_transpose1d(stride, extra, dilation):
    tensors = integers(2, 4, 5), integers(4, 3, 3), integers(3)
    compare("conv_transpose1d", tensors, stride=stride, padding=1, output_padding=extra, dilation=dilation)


@pytest.mark.backends
def test_padding_per_side_equals_explicit_padding():
    x, w = integers(2, 3, 5, 6), integers(4, 3, 3, 2)
    expected = reference.conv2d(reference.pad(x, (3, 0, 1, 2)), w, stride=2)
    assert torch.equal(functional.conv2d(x, w, stride=2, padding=((1, 2), (3, 0))), expected)
    x, w = x[:, :, 0], w[:, :, 0]
    expected = reference.conv1d(reference.pad(x, (3, 0)), w)
    assert torch.equal(functional.conv1d(x, w, padding=((3, 0),)), expected)


@pytest.mark.backends
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parameters", POOL2D, ids=identifier)
def test_pooling_2d(parameters, layout):
    x = integers(2, 3, 7, 8, dtype=torch.float64).contiguous(memory_format=layout)
    for indices, dilation in itertools.product((False, True), (1, 2)):
        ours, theirs = compare("max_pool2d", (x,), **parameters, dilation=dilation, return_indices=indices)
        assert ours[2] == theirs[2]
    for count, divisor in itertools.product((False, True), (None, 3)):
        options = {"count_include_pad": count, "divisor_override": divisor}
        ours, theirs = compare("avg_pool2d", (x,), exact=False, **parameters, **options)
        assert ours[2] == theirs[2]


@pytest.mark.backends
@pytest.mark.parametrize("size", [(3, 2), 5, (None, 1), (9, 9)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adaptive_pooling_2d(size, layout):
    x = integers(2, 3, 7, 8, dtype=torch.float64).contiguous(memory_format=layout)
    compare("adaptive_avg_pool2d", (x,), size, exact=False)
    compare("adaptive_max_pool2d", (x,), size)
    compare("adaptive_max_pool2d", (x[0],), size, return_indices=True)


@pytest.mark.backends
def test_pooling_1d():
    x = integers(2, 3, 9, dtype=torch.float64)
    for ceil, padding in itertools.product((False, True), (0, 1)):
        compare("max_pool1d", (x,), 3, 2, padding, 2 - padding, ceil, return_indices=True)
        compare("avg_pool1d", (x[0],), 3, 2, padding, ceil, False, exact=False)
    compare("adaptive_avg_pool1d", (x,), 4, exact=False)
    compare("adaptive_max_pool1d", (x,), 4, return_indices=True)


@pytest.mark.backends
@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 3, 4), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_local_response_norm(shape, size):
    compare("local_response_norm", (integers(*shape, dtype=torch.float64),), size, 0.5, 0.7, 2.0, exact=False)


@pytest.mark.backends
def test_max_pooling_propagates_nan():
    x = integers(1, 1, 4, 4)
    x[0, 0, 1, 2] = torch.nan
    assert_close(functional.max_pool2d(x, 2), reference.max_pool2d(x, 2), equal_nan=True)


@pytest.mark.backends
@pytest.mark.parametrize("make", [lambda t: t.transpose(2, 3), lambda t: t.flip(0)[:, ::2], lambda t: t[..., ::2]])
def test_any_strides(make):
    x = make(integers(2, 4, 6, 6))
    w = integers(2, 3, 3, x.shape[1]).permute(0, 3, 1, 2)[:, :, :, ::2]
    compare("conv2d", (x, w, integers(4)[::2]), padding=1)
    compare("max_pool2d", (x,), 2, 1)
    compare("avg_pool2d", (x,), 2, 1, exact=False)
    compare("local_response_norm", (x,), 3, exact=False)


@pytest.mark.backends
def test_overlapping_input():
    x = integers(6).as_strided((1, 2, 3, 3), (0, 0, 1, 1))
    assert torch.equal(functional.conv2d(x, integers(2, 2, 2, 2)), reference.conv2d(x, integers(2, 2, 2, 2)))


@pytest.mark.backends
def test_negated_view():
    x = torch._neg_view(integers(1, 2, 5, 5))
    w = integers(3, 2, 3, 3)
    assert torch.equal(functional.conv2d(x, w), reference.conv2d(x, w))
    assert torch.equal(functional.max_pool2d(x, 2), reference.max_pool2d(x, 2))


@pytest.mark.backends
def test_empty_batches_and_channels():
    x, w, b = integers(0, 4, 6, 7), integers(8, 4, 3, 3), integers(8)
    compare("conv2d", (x, w, b))
    compare("conv_transpose2d", (x, integers(4, 8, 3, 3), b))
    for name, args in (
        ("max_pool2d", (2,)),
        ("avg_pool2d", (2,)),
        ("adaptive_avg_pool2d", (2,)),
        ("local_response_norm", (2,)),
    ):
        compare(name, (x,), *args)
    # No input channels: the bias alone (torch returns a tensor of the wrong shape).
    y = functional.conv2d(integers(2, 0, 6, 7), integers(8, 0, 3, 3), b)
    assert torch.equal(y, b.reshape(1, 8, 1, 1).expand(2, 8, 4, 5))
    empty = integers(2, 0, 6, 7)
    assert functional.adaptive_avg_pool2d(empty, 2).shape == (2, 0, 2, 2)


@pytest.mark.backends
def test_double_backward_matches_torch():
    for layout in LAYOUTS:
        seconds = []
        for module in (functional, reference):
            x = integers(2, 4, 5, 6).contiguous(memory_format=layout).requires_grad_()
            w, b = integers(6, 2, 3, 3).requires_grad_(), integers(6).requires_grad_()
            y = module.conv2d(x, w, b, 2, 1, 1, 2)
            first = torch.autograd.grad((y * y).sum(), (x, w, b), create_graph=True)
            seconds.append(torch.autograd.grad(sum((g * g).sum() for g in first), (x, w, b)))
        assert_close(*seconds, rtol=0, atol=0)


# ---- bad arguments

X, W = torch.ones(2, 4, 6, 7), torch.ones(8, 4, 3, 3)
BIG = 2**62

SAME_AS_TORCH = [
    # what CVEs of convolutions and poolings were about: each must raise, and what torch raises
    ("conv2d", (X, W), {"stride": 0}),
    ("conv2d", (X, W), {"stride": -1}),
    ("conv2d", (X, W), {"stride": (1, 2, 3)}),
    ("conv2d", (X, W), {"stride": 2.0}),
    ("conv2d", (X, W), {"stride": True}),
    ("conv2d", (X, W), {"stride": "a"}),
    ("conv2d", (X, W), {"stride": 2**63}),
    ("conv2d", (X, W), {"padding": -1}),
    ("conv2d", (X, W), {"padding": "other"}),
    ("conv2d", (X, W), {"padding": "same", "stride": 2}),
    ("conv2d", (X, W), {"padding": BIG}),
    ("conv2d", (X, W), {"padding": 2**63}),
    ("conv2d", (X, W), {"dilation": 0}),
    ("conv2d", (X, W), {"dilation": BIG}),
    ("conv2d", (X, W), {"groups": 0}),
    ("conv2d", (X, W), {"groups": -1}),
    ("conv2d", (X, W), {"groups": 3}),
    ("conv2d", (X, W), {"groups": 2}),
    ("conv2d", (X, W), {"groups": 2.0}),
    ("conv2d", (X, W, torch.ones(7)), {}),
    ("conv2d", (X, W, torch.ones(8, 1)), {}),
    ("conv2d", (X, W, [1.0]), {}),
    ("conv2d", (X, W.double()), {}),
    ("conv2d", (X, W, torch.ones(8).double()), {}),
    ("conv2d", ([1], W), {}),
    ("conv2d", (X, torch.ones(8, 4, 7, 3)), {}),
    ("conv2d", (X, torch.ones(8, 4, 0, 3)), {}),
    ("conv2d", (X, torch.ones(0, 4, 3, 3)), {}),
    ("conv2d", (X, torch.ones(8, 4, 3)), {}),
    ("conv2d", (X[0, 0], W), {}),
    ("conv2d", (X[None], W), {}),
    ("conv2d", (X[:, :, :0], W), {"padding": 2}),
    ("conv_transpose2d", (X, torch.ones(5, 8, 3, 3)), {}),
    ("conv_transpose2d", (X, torch.ones(4, 8, 3, 3)), {"output_padding": 1}),
    ("conv_transpose2d", (X, torch.ones(4, 8, 3, 3)), {"output_padding": -1}),
    ("conv_transpose2d", (X, torch.ones(4, 8, 3, 3)), {"padding": 9}),
    ("conv_transpose2d", (X, torch.ones(4, 8, 3, 3)), {"padding": -1}),
    ("conv_transpose2d", (X, torch.ones(4, 8, 3, 3)), {"padding": "same"}),
    ("conv_transpose2d", (X, torch.ones(4, 8, 3, 3)), {"groups": 0}),
    ("conv_transpose2d", (X, torch.ones(4, 8, 3, 3), torch.ones(7)), {}),
    ("max_pool2d", (X, 0), {}),
    ("max_pool2d", (X, -1), {}),
    ("max_pool2d", (X, 2, 0), {}),
    ("max_pool2d", (X, 2, -1), {}),
    ("max_pool2d", (X, 2), {"padding": 2}),
    ("max_pool2d", (X, 2), {"padding": -1}),
    ("max_pool2d", (X, 2), {"dilation": 0}),
    ("max_pool2d", (X, 9), {}),
    ("max_pool2d", (X, BIG), {}),
    ("max_pool2d", (X, 3), {"dilation": BIG}),
    ("max_pool2d", (X, (2, 2, 2)), {}),
    ("max_pool2d", (X, []), {}),
    ("max_pool2d", (X, 2.0), {}),
    ("max_pool2d", (X, None), {}),
    ("max_pool2d", (X, 2), {"ceil_mode": 1}),
    ("max_pool2d", (X[:, :0], 2), {}),
    ("max_pool2d", (X[:, :, :0], 2), {}),
    ("max_pool2d", (X[0, 0], 2), {}),
    ("max_pool2d", ([1], 2), {}),
    ("max_pool1d", (X[0], 2), {"padding": 2}),
    ("max_pool1d", (X, 2), {}),
    ("avg_pool2d", (X, 0), {}),
    ("avg_pool2d", (X, 2, 0), {}),
    ("avg_pool2d", (X, 2), {"padding": 2}),
    ("avg_pool2d", (X, 9), {}),
    ("avg_pool2d", (X, BIG), {}),
    ("avg_pool2d", (X, 2), {"divisor_override": 0}),
    ("avg_pool2d", (X, 2), {"divisor_override": 2.0}),
    ("avg_pool2d", (X[:, :, :0], 2), {}),
    ("avg_pool1d", (X, 2), {}),
    ("adaptive_avg_pool2d", (X, None), {}),
    ("adaptive_avg_pool2d", (X, -1), {}),
    ("adaptive_avg_pool2d", (X, (1, 2, 3)), {}),
    ("adaptive_avg_pool2d", (X, 2.0), {}),
    ("adaptive_avg_pool2d", (X, BIG), {}),
    ("adaptive_avg_pool2d", (X[:, :, :0], 2), {}),
    ("adaptive_avg_pool2d", (X[0, 0], (2, 2)), {}),
    ("adaptive_max_pool2d", (X, None), {}),
    ("adaptive_max_pool2d", (X, -1), {}),
    ("adaptive_max_pool2d", (X[:, :0], 2), {}),
    ("adaptive_max_pool1d", (X[0], (None,)), {}),
    ("local_response_norm", (X, 0), {}),
    ("local_response_norm", (X, -1), {}),
    ("local_response_norm", (X, 2.0), {}),
    ("local_response_norm", (X, 2, "a"), {}),
    ("local_response_norm", (X[0, 0], 2), {}),
    ("local_response_norm", (X, BIG), {}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), SAME_AS_TORCH)
def test_bad_arguments_raise_what_torch_raises(name, args, kwargs):
    with pytest.raises(Exception) as theirs:
        getattr(reference, name)(*args, **kwargs)
    with pytest.raises(theirs.type) as ours:
        getattr(functional, name)(*args, **kwargs)
    assert "expected" in str(ours.value)
    assert "got" in str(ours.value)


ONLY_HERE = [
    # torch accepts these, wraps around, or computes what fastconv does not
    ("max_pool1d", (X[0], 3), {"dilation": 3 * 2**61}, RuntimeError),
    ("conv2d", (X, W), {"stride": BIG + 2**61}, RuntimeError),
    ("conv2d", (X, W.to("meta")), {}, RuntimeError),
    ("conv2d", (X.long(), W.long()), {}, NotImplementedError),
    ("conv2d", (X.to(torch.complex64), W.to(torch.complex64)), {}, NotImplementedError),
    ("max_pool2d", (X.long(), 2), {}, NotImplementedError),
    ("conv2d", (X.to_sparse(), W), {}, RuntimeError),
    ("conv_transpose2d", (X, torch.ones(4, 8, 3, 3)), {"padding": 4}, RuntimeError),  # an empty output
    ("conv2d", (X, W), {"padding": ((1, 2, 3), (1, 1))}, RuntimeError),
    ("conv2d", (X, W), {"padding": ((1, -1), (1, 1))}, RuntimeError),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "error"), ONLY_HERE)
def test_what_fastconv_refuses(name, args, kwargs, error):
    with pytest.raises(error, match="expected"):
        getattr(functional, name)(*args, **kwargs)


def test_a_bad_argument_is_refused_after_an_equal_good_one():
    functional.max_pool2d(X, 2, 1, 0)
    for bad in ((2.0, 1, 0), (2, True, 0), (2, 1, False)):
        with pytest.raises(TypeError):
            functional.max_pool2d(X, *bad)
    functional.conv2d(X, W, stride=(1, 1), padding=(1, 1))
    for stride, padding in (((1.0, 1.0), (1, 1)), ((1, 1), [1, 1.0])):
        with pytest.raises(TypeError):
            functional.conv2d(X, W, stride=stride, padding=padding)


OPS = torch.ops.fastconv
ONE_D = ([1, 1], [0, 0, 0, 0], [1, 1])
WINDOW = ([2, 2], [2, 2], [0, 0, 0, 0], [1, 1])


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        ("conv_input_gradient", (torch.ones(2, 8, 4, 4), W, None, [6, 7], *ONE_D, 1)),
        ("conv_input_gradient", (torch.ones(2, 7, 4, 5), W, None, [6, 7], *ONE_D, 1)),
        ("conv_weight_gradient", (torch.ones(2, 8, 4, 4), X, [3, 3], *ONE_D, 1, False)),
        ("conv_weight_gradient", (torch.ones(3, 8, 4, 5), X, [3, 3], *ONE_D, 1, False)),
        ("max_pool_backward", (torch.ones(2, 4, 3, 2), torch.zeros(2, 4, 3, 3).byte(), [6, 7], *WINDOW)),
        ("lrn_backward", (torch.ones(2, 4, 6, 6), X, 3, 1.0, 1.0, 1.0)),
    ],
)
def test_a_gradient_of_the_wrong_shape_is_named(operator, args):
    with pytest.raises(RuntimeError, match=r"^gy.*expected.*got"):
        getattr(OPS, operator)(*args)


@pytest.mark.parametrize("index", [-1, 42, 10**6, -(2**63)])
def test_a_max_pooling_index_out_of_range_is_refused(index):
    indices = torch.zeros(2, 4, 3, 3, dtype=torch.int64)
    indices[1, 2, 2, 1] = index
    with pytest.raises(RuntimeError, match="index: expected"):
        OPS.max_pool_backward(torch.ones(2, 4, 3, 3), indices, [6, 7], *WINDOW)
    with pytest.raises(RuntimeError, match="index: expected"):
        OPS.max_pool_gather(X, indices, *WINDOW)
    with pytest.raises(RuntimeError, match="index: expected"):
        OPS.max_pool_backward(torch.ones(2, 4, 3, 3), torch.full((2, 4, 3, 3), 4).byte(), [6, 7], *WINDOW)


# ---- algorithms


def test_every_algorithm_can_be_forced_and_gives_the_same():
    x, w = integers(2, 4, 7, 9), integers(6, 2, 3, 2)
    expected = reference.conv2d(x, w, None, 2, 1, 1, 2)
    names = fastconv.algorithms("conv2d", x, w, stride=2, padding=1, groups=2)
    assert set(names) == {"forward", "input_gradient", "weight_gradient"}
    assert all(names.values())
    for name in names["forward"]:
        with fastconv.force_algorithm(forward=name):
            assert torch.equal(functional.conv2d(x, w, None, 2, 1, 1, 2), expected)
    transposed = fastconv.algorithms("conv_transpose1d", torch.ones(2, 4, 5), torch.ones(4, 3, 3), stride=2)
    for name in transposed["input_gradient"]:
        with fastconv.force_algorithm(input_gradient=name):
            compare("conv_transpose1d", (integers(2, 4, 5), integers(4, 3, 3)), stride=2)


def test_an_unknown_algorithm_names_the_choices():
    choices = fastconv.algorithms("conv2d", X, W)["forward"]
    with fastconv.force_algorithm("fastest"), pytest.raises(ValueError, match=choices[0]):
        functional.conv2d(X, W)
    functional.conv2d(X, W)
    with pytest.raises(ValueError, match="conv_transpose1d"):
        fastconv.algorithms("max_pool2d", X, 2)


def test_show_config():
    text = fastconv.show_config()
    assert fastconv.__version__ in text
    assert fastconv._C.isa() in text


# ---- calls made ready: found again by arguments that are equal, and equally valid


@pytest.mark.parametrize(
    ("good", "bad"),
    [(1, True), (1, 1.0), ((1, 1), (1, True)), ([1, 1], [1.0, 1]), ((1, 1), [1, 1.0])],
)
def test_equal_arguments_of_another_type_are_checked_again(good, bad):
    x, w = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    calls = [
        lambda value: functional.max_pool2d(x, value),
        lambda value: functional.avg_pool2d(x, 2, value),
        lambda value: functional.adaptive_avg_pool2d(x, value),
        lambda value: functional.conv2d(x, w, None, value),
        lambda value: functional.conv_transpose2d(x, w, None, value),
    ]
    for call in calls:
        expected = call(good)
        for _ in range(2):
            with pytest.raises(TypeError):
                call(bad)
            assert torch.equal(call(good), expected)


def test_a_list_that_changes_is_read_anew():
    x, window = torch.arange(16.0).reshape(1, 1, 4, 4), [1, 1]
    assert torch.equal(functional.max_pool2d(x, window), x)
    window[:] = [2, 2]
    assert functional.max_pool2d(x, window).shape == (1, 1, 2, 2)
    window[:] = [1.0, 1.0]
    with pytest.raises(TypeError):
        functional.max_pool2d(x, window)


def test_what_is_made_ready_in_inference_mode_serves_training():
    """The shape is used nowhere else: the call is made ready here."""
    x = torch.randn(1, 3, 5, 7)
    with torch.inference_mode():
        expected = functional.avg_pool2d(x, 2), functional.max_pool2d(x, 2)
    x.requires_grad_()
    for y, other in zip((functional.avg_pool2d(x, 2), functional.max_pool2d(x, 2)), expected, strict=True):
        assert torch.equal(y, other)
        assert not y.is_inference()
        (gx,) = torch.autograd.grad(y.sum(), x)
        gx += 1  # a tensor like any other
