"""The pooling and LRN kernels of fastconv._C, called directly on torch tensors, against torch."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastconv import _C

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
KINDS = {"window": _C.MaxIndex.window, "plane": _C.MaxIndex.plane}
INDEX_DTYPES = {"none": None, "window": torch.uint8, "plane": torch.int64}
GUARD = 64  # elements around every output that must keep their value


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


class Guarded:
    """A dense tensor with canaries before and after it, which `check` compares with what they were."""

    def __init__(self, shape, dtype, layout):
        count = math.prod(shape)
        self.buffer = torch.full((count + 2 * GUARD,), 77, dtype=dtype)
        dense = self.buffer[GUARD : GUARD + count]
        if layout == torch.channels_last:
            n, c, h, w = shape
            self.tensor = dense.view(n, h, w, c).permute(0, 3, 1, 2)
        else:
            self.tensor = dense.view(shape)

    def check(self):
        assert (self.buffer[:GUARD] == 77).all()
        assert (self.buffer[-GUARD:] == 77).all()
        return self.tensor


def pool_problem(x, out, *, kernel=1, stride=1, padding=0, dilation=1, include=True, divisor=0, adaptive=False, layout):
    problem = _C.PoolProblem()
    problem.n, problem.c, problem.h, problem.w = x.shape
    problem.p, problem.q = out
    problem.r, problem.s = pair(kernel)
    problem.stride_h, problem.stride_w = pair(stride)
    problem.pad_top, problem.pad_left = problem.pad_bottom, problem.pad_right = pair(padding)
    problem.dilation_h, problem.dilation_w = pair(dilation)
    problem.count_include_pad, problem.divisor, problem.adaptive = include, divisor, adaptive
    problem.layout = _C.Layout.channels_last if layout == torch.channels_last else _C.Layout.channels_first
    problem.dtype = getattr(_C.Dtype, name_of(x.dtype))
    problem.validate()
    return problem


def max_forward(problem, x, kind, layout, threads=1):
    shape = (problem.n, problem.c, problem.p, problem.q)
    y = Guarded(shape, x.dtype, layout)
    if kind == "none":
        _C.max_pool_forward(problem, x, y.tensor, threads)
        return y.check(), None
    index = Guarded(shape, INDEX_DTYPES[kind], layout)
    _C.max_pool_forward_with_index(problem, KINDS[kind], x, y.tensor, index.tensor, threads)
    return y.check(), index.check()


def max_backward(problem, gy, index, kind, layout, threads=1):
    gx = Guarded((problem.n, problem.c, problem.h, problem.w), gy.dtype, layout)
    valid = _C.max_pool_backward(problem, KINDS[kind], gy, index, gx.tensor, threads)
    return valid, gx.check()


def max_gather(problem, v, index, kind, layout, threads=1):
    y = Guarded((problem.n, problem.c, problem.p, problem.q), v.dtype, layout)
    valid = _C.max_pool_gather(problem, KINDS[kind], v, index, y.tensor, threads)
    return valid, y.check()


def average_forward(problem, x, layout, threads=1):
    y = Guarded((problem.n, problem.c, problem.p, problem.q), x.dtype, layout)
    _C.average_pool_forward(problem, x, y.tensor, threads)
    return y.check()


def average_backward(problem, gy, layout, threads=1):
    gx = Guarded((problem.n, problem.c, problem.h, problem.w), gy.dtype, layout)
    _C.average_pool_backward(problem, gy, gx.tensor, threads)
    return gx.check()


def integers(shape, dtype, layout, seed=0, low=-8, high=9):
    """Small integers: many ties, and every sum is exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(low, high, shape, generator=generator).to(dtype)
    return values.contiguous(memory_format=layout)


# kernel, stride, padding, dilation, ceil_mode
WINDOWS = [
    ((2, 2), (2, 2), (0, 0), (1, 1), False),
    ((3, 3), (2, 2), (0, 0), (1, 1), False),
    ((3, 3), (2, 2), (1, 1), (1, 1), False),
    ((3, 3), (2, 2), (1, 1), (1, 1), True),
    ((3, 3), (2, 2), (0, 0), (1, 1), True),
    ((3, 3), (1, 1), (1, 1), (1, 1), False),
    ((2, 2), (1, 1), (0, 0), (1, 1), False),
    ((2, 3), (1, 2), (1, 0), (1, 1), False),
    ((3, 2), (2, 1), (0, 1), (1, 1), True),
    ((5, 5), (3, 3), (2, 2), (1, 1), False),
    ((3, 3), (2, 2), (1, 1), (2, 2), False),
    ((3, 2), (1, 1), (1, 1), (2, 3), False),
    ((3, 3), (1, 2), (1, 1), (2, 1), True),
    ((2, 2), (3, 3), (1, 1), (1, 1), True),
    ((4, 4), (4, 4), (0, 0), (1, 1), True),
    ((1, 7), (1, 3), (0, 3), (1, 1), False),
    ((1, 1), (2, 2), (0, 0), (1, 1), False),
    ((6, 9), (1, 1), (3, 4), (1, 1), False),
]
# Around the lane counts of every instruction set; the float32 ones go beyond a tile of columns in some windows.
SIZES = [(1, 1, 9, 7), (1, 67, 10, 16), (2, 3, 11, 37)]
FLOAT_SIZES = SIZES + [(2, 3, 12, 15), (2, 8, 11, 17), (1, 2, 9, 33), (1, 17, 7, 64), (1, 1, 8, 5001)]


def sizes(dtype):
    return FLOAT_SIZES if dtype == torch.float32 else SIZES


def torch_max(x, kernel, stride, padding, dilation, ceil):
    return F.max_pool2d(x, kernel, stride, padding, dilation, ceil, return_indices=True)


def assert_same(ours, theirs):
    assert ours.dtype == theirs.dtype
    assert ((ours == theirs) | (ours.isnan() & theirs.isnan())).all()


def check_max(x, window, layout, kind, threads=1):
    """Values, positions, derivative and its adjoint of one max pooling equal torch's."""
    kernel, stride, padding, dilation, ceil = window
    leaf = x.double().requires_grad_()  # values are exact in double, and torch's backward sums in it
    theirs, positions = torch_max(leaf, kernel, stride, padding, dilation, ceil)
    problem = pool_problem(
        x, theirs.shape[2:], kernel=kernel, stride=stride, padding=padding, dilation=dilation, layout=layout
    )
    y, index = max_forward(problem, x, kind, layout, threads)
    assert_same(y.double(), theirs.detach())
    if kind == "none":
        return
    if kind == "plane":
        assert torch.equal(index, positions)
    gy = integers(theirs.shape, x.dtype, layout, seed=1)
    (expected,) = torch.autograd.grad(theirs, leaf, gy.double())
    valid, gx = max_backward(problem, gy, index, kind, layout, threads)
    assert valid
    assert_same(gx.double(), expected)
    v = integers(x.shape, x.dtype, layout, seed=2, low=-100, high=100)
    valid, taken = max_gather(problem, v, index, kind, layout, threads)
    assert valid
    assert_same(taken, v.flatten(2).gather(2, positions.flatten(2)).view_as(positions))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", ["none", *KINDS])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_max(window, dtype, kind, layout):
    for size in sizes(dtype):
        check_max(integers(size, dtype, layout), window, layout, kind)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_max_of_special_values(window, dtype, layout):
    """NaN (the last one counts), infinities, windows of nothing but -inf."""
    generator = torch.Generator().manual_seed(3)
    special = torch.tensor([math.nan, math.inf, -math.inf, -math.inf, -math.inf, 0.0, -0.0, 1.0], dtype=dtype)
    for share in (8, 6):
        drawn = special[torch.randint(8 - share, 8, (1, 9, 11, 37), generator=generator)]
        drawn[0, 0] = -math.inf
        drawn[0, 1] = math.nan
        for kind in ("none", *KINDS):
            check_max(drawn.contiguous(memory_format=layout), window, layout, kind)


def test_max_window_in_padding():
    """With dilation a window can miss the input: -inf, no gradient, a zero derivative."""
    for layout in LAYOUTS:
        x = integers((1, 2, 3, 9), torch.float32, layout)
        problem = pool_problem(x, (1, 7), kernel=(2, 3), padding=(1, 0), dilation=(4, 1), layout=layout)
        for kind in ("window", "plane"):
            y, index = max_forward(problem, x, kind, layout)
            assert (y == -math.inf).all()
            valid, gx = max_backward(problem, torch.ones_like(y), index, kind, layout)
            assert valid
            assert (gx == 0).all()
            valid, taken = max_gather(problem, x, index, kind, layout)
            assert valid
            assert (taken == 0).all()


ADAPTIVE = [(1, 1), (2, 3), (5, 7), (12, 15), (7, 1), (1, 4), (6, 6), (15, 20)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("out", ADAPTIVE, ids=str)
def test_adaptive_max(out, dtype, layout):
    for size in [(2, 3, 12, 15), (1, 9, 13, 20), (1, 2, 7, 70)]:
        x = integers(size, dtype, layout)
        leaf = x.double().requires_grad_()
        theirs, positions = F.adaptive_max_pool2d(leaf, out, return_indices=True)
        gy = integers(theirs.shape, dtype, layout, seed=1)
        (expected,) = torch.autograd.grad(theirs, leaf, gy.double())
        problem = pool_problem(x, out, adaptive=True, layout=layout)
        for kind in KINDS:
            if kind == "window" and not problem.fits_window_index:
                continue
            y, index = max_forward(problem, x, kind, layout)
            assert_same(y.double(), theirs.detach())
            if kind == "plane":
                assert torch.equal(index, positions)
            if kind != "none":
                valid, gx = max_backward(problem, gy, index, kind, layout)
                assert valid
                assert_same(gx.double(), expected)
                valid, taken = max_gather(problem, x, index, kind, layout)
                assert valid
                assert_same(taken, y)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
def test_max_backward_follows_any_index_in_the_plane(layout):
    """Indices need not be this pooling's own: each gradient goes where its index says."""
    x = integers((2, 19, 9, 11), torch.float32, layout)
    problem = pool_problem(x, (4, 5), kernel=3, stride=2, layout=layout)
    index = integers((2, 19, 4, 5), torch.int64, layout, low=0, high=99)
    gy = integers((2, 19, 4, 5), torch.float32, layout, seed=1)
    expected = torch.zeros(2, 19, 99).scatter_add_(2, index.flatten(2), gy.flatten(2)).view_as(x)
    for threads in (1, 2, 5):
        valid, gx = max_backward(problem, gy, index, "plane", layout, threads)
        assert valid
        assert_same(gx, expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("window", [((3, 3), (2, 2)), ((2, 2), (2, 2)), ((3, 3), (1, 1)), ((4, 4), (3, 3))], ids=str)
def test_index_out_of_range_is_refused(window, layout):
    kernel, stride = window
    x = integers((2, 3, 20, 24), torch.float32, layout)
    out = [(size - k) // step + 1 for size, k, step in zip(x.shape[2:], kernel, stride, strict=True)]
    problem = pool_problem(x, out, kernel=kernel, stride=stride, layout=layout)
    bad = {"plane": [-1, 480, 10**6, -(2**63), 2**63 - 1], "window": [math.prod(kernel), 255]}
    for kind, values in bad.items():
        y, good = max_forward(problem, x, kind, layout)
        for value in values:
            for where in [(0, 0, 0, 0), (1, 2, out[0] - 1, out[1] - 1), (0, 1, 3, 4)]:
                index = good.clone(memory_format=layout)
                index[where] = value
                assert not max_backward(problem, y, index, kind, layout)[0]
                assert not max_gather(problem, x, index, kind, layout)[0]
                assert not max_backward(problem, y, index, kind, layout, threads=2)[0]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("window", [w for w in WINDOWS if w[3] == (1, 1)], ids=str)
def test_average(window, dtype, layout):
    kernel, stride, padding, _, ceil = window
    for size in sizes(dtype):
        for include, divisor in [(True, None), (False, None), (True, 3), (False, -2)]:
            x = integers(size, dtype, layout)
            leaf = x.double().requires_grad_()
            theirs = F.avg_pool2d(leaf, kernel, stride, padding, ceil, include, divisor)
            gy = integers(theirs.shape, dtype, layout, seed=1)
            (expected,) = torch.autograd.grad(theirs, leaf, gy.double())
            problem = pool_problem(
                x,
                theirs.shape[2:],
                kernel=kernel,
                stride=stride,
                padding=padding,
                include=include,
                divisor=divisor or 0,
                layout=layout,
            )
            # The sum of integers is exact: one rounding by the division, one to the storage type.
            close(average_forward(problem, x, layout), theirs.detach(), 2)
            close(average_backward(problem, gy, layout), expected, 2 * math.prod(kernel), scale=8)


def close(ours, expected, roundings, scale=0.0):
    eps = torch.finfo(ours.dtype).eps / 2
    compute = torch.finfo(torch.float64 if ours.dtype == torch.float64 else torch.float32).eps / 2
    allowed = (eps * 1.01 + roundings * compute) * expected.abs() + roundings * compute * scale
    assert ((ours.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("out", ADAPTIVE, ids=str)
def test_adaptive_average(out, dtype, layout):
    for size in [(2, 3, 12, 15), (1, 9, 13, 20), (1, 2, 7, 70)]:
        x = integers(size, dtype, layout)
        leaf = x.double().requires_grad_()
        theirs = F.adaptive_avg_pool2d(leaf, out)
        gy = integers(theirs.shape, dtype, layout, seed=1)
        (expected,) = torch.autograd.grad(theirs, leaf, gy.double())
        problem = pool_problem(x, out, adaptive=True, layout=layout)
        close(average_forward(problem, x, layout), theirs.detach(), 4)
        close(average_backward(problem, gy, layout), expected, 12, scale=8)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
def test_average_of_exact_quotients_is_exact(layout):
    """No reciprocal: 49 times the reciprocal of 49 is not 1."""
    for kernel in [(3, 3), (7, 7), (7, 14)]:
        for dtype in (torch.float32, torch.float64):
            x = torch.full((1, 9, 14, 14), 1.0, dtype=dtype).contiguous(memory_format=layout)
            out = (14 // kernel[0], 14 // kernel[1])
            problem = pool_problem(x, out, kernel=kernel, stride=kernel, layout=layout)
            y = average_forward(problem, x, layout)
            assert (y == 1).all()
            gy = torch.full_like(y, float(math.prod(kernel))).contiguous(memory_format=layout)
            gx = average_backward(problem, gy, layout)
            assert (gx[..., : out[0] * kernel[0], : out[1] * kernel[1]] == 1).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
def test_average_of_long_windows(layout):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 3, 113, 131, generator=generator).contiguous(memory_format=layout)
    problem = pool_problem(x, (1, 1), adaptive=True, layout=layout)
    expected = x.double().mean((2, 3), keepdim=True)
    torch.testing.assert_close(average_forward(problem, x, layout).double(), expected, rtol=0, atol=1e-7)


def lrn_problem(x, size, alpha, beta, k, layout):
    problem = _C.LrnProblem()
    problem.n, problem.c = x.shape[:2]
    problem.spatial = math.prod(x.shape[2:])
    problem.size, problem.alpha, problem.beta, problem.k = size, alpha / size, beta, k
    problem.layout = _C.Layout.channels_last if layout == torch.channels_last else _C.Layout.channels_first
    problem.dtype = getattr(_C.Dtype, name_of(x.dtype))
    problem.validate()
    return problem


def lrn(problem, x, gy, layout, threads=1):
    y, gx = Guarded(x.shape, x.dtype, layout), Guarded(x.shape, x.dtype, layout)
    _C.lrn_forward(problem, x, y.tensor, threads)
    _C.lrn_backward(problem, gy, x, gx.tensor, threads)
    return y.check(), gx.check()


LRN_SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 16, 4, 4),
    (1, 17, 3, 11),
    (2, 64, 2, 3),
    (1, 100, 1, 5),
    (1, 4, 30, 41),
    (1, 37, 16, 16),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.6, 2.0, 0.0, -0.3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 40])
def test_lrn(size, beta, dtype, layout):
    generator = torch.Generator().manual_seed(7)
    for shape in LRN_SHAPES:
        x = (
            (torch.randn(shape, generator=generator, dtype=torch.float64) * 3)
            .to(dtype)
            .contiguous(memory_format=layout)
        )
        gy = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).contiguous(memory_format=layout)
        leaf = x.double().requires_grad_()
        theirs = F.local_response_norm(leaf, size, alpha=0.9, beta=beta, k=1.5)
        (expected,) = torch.autograd.grad(theirs, leaf, gy.double())
        y, gx = lrn(lrn_problem(x, size, 0.9, beta, 1.5, layout), x, gy, layout)
        compute = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        stored = torch.finfo(dtype).eps / 2 if dtype in (torch.float16, torch.bfloat16) else 0
        tolerance = 3 * min(size, shape[1]) * compute + 4 * compute + stored * 1.01
        tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        torch.testing.assert_close(y.double(), theirs.detach(), rtol=tolerance, atol=tiny)
        # The gradient is a difference: its error is relative to the two terms.
        scale = float(expected.abs().max() + gy.double().abs().max())
        torch.testing.assert_close(gx.double(), expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.6])
def test_lrn_where_the_base_is_not_positive(beta, dtype, layout):
    """Zeros, infinities, NaN and negative bases give torch's inf and NaN."""
    x = integers((2, 33, 3, 5), dtype, layout, low=0, high=2)
    x[0, :, 0, 0] = 0
    x[0, 3, 1, 1] = math.inf
    x[0, 9, 1, 2] = math.nan
    for k, alpha in [(0.0, 1.0), (-0.5, 1.0), (1.0, -4.0), (0.0, 0.0)]:
        theirs = F.local_response_norm(x, 3, alpha, beta, k)
        y, _ = lrn(lrn_problem(x, 3, alpha, beta, k, layout), x, x, layout)
        torch.testing.assert_close(y, theirs, rtol=20 * torch.finfo(dtype).eps, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
def test_same_bits_for_any_threads_and_in_any_batch(layout):
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(3, 21, 17, 35, generator=generator).contiguous(memory_format=layout)

    def results(part, threads):
        out = []
        for window in WINDOWS[:6] + WINDOWS[9:10]:
            kernel, stride, padding, dilation, ceil = window
            y, _ = torch_max(part, kernel, stride, padding, dilation, ceil)
            problem = pool_problem(part, y.shape[2:], kernel=kernel, stride=stride, padding=padding, layout=layout)
            for kind in ("window", "plane"):
                y, index = max_forward(problem, part, kind, layout, threads)
                out += [y, index, max_backward(problem, y, index, kind, layout, threads)[1]]
            y = average_forward(problem, part, layout, threads)
            out += [y, average_backward(problem, y, layout, threads)]
        for size in [(1, 1), (5, 6)]:
            problem = pool_problem(part, size, adaptive=True, layout=layout)
            y = average_forward(problem, part, layout, threads)
            out += [y, average_backward(problem, y, layout, threads)]
        out += lrn(lrn_problem(part, 5, 1.0, 0.75, 1.0, layout), part, part, layout, threads)
        out += lrn(lrn_problem(part, 4, 1.0, 0.6, 1.0, layout), part, part, layout, threads)
        return out

    whole = results(x, 1)
    for threads in (2, 3, 7):
        for ours, expected in zip(results(x, threads), whole, strict=True):
            assert torch.equal(ours, expected)
    for i in range(3):
        part = x[i : i + 1].clone(memory_format=layout)
        for ours, expected in zip(results(part, 2), whole, strict=True):
            assert torch.equal(ours, expected[i : i + 1])


def valid_pool_problem():
    x = torch.empty(2, 3, 8, 8)
    return pool_problem(x, (4, 4), kernel=2, stride=2, layout=torch.contiguous_format)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "kernel size"),
        ({"s": -1}, "kernel size"),
        ({"stride_h": 0}, "stride"),
        ({"dilation_w": 0}, "dilation"),
        ({"pad_top": -1}, "padding"),
        ({"n": -1}, "at least 0"),
        ({"p": 9}, "lies outside"),
        ({"stride_w": 2**62}, "64 bits"),
        ({"s": 2, "dilation_w": 2**63 - 1}, "64 bits"),
        ({"r": 2**32, "s": 2**32}, "64 bits"),
        ({"n": 2**40, "c": 2**40}, "64 bits"),
        ({"adaptive": True, "h": 0, "w": 0}, "at least 1"),
        ({"adaptive": True, "n": 1, "c": 1, "h": 2**30, "w": 1, "p": 2**40, "q": 1}, "64 bits"),
    ],
    ids=str,
)
def test_invalid_pool_problem_is_refused(changes, message):
    problem = valid_pool_problem()
    for name, value in changes.items():
        setattr(problem, name, value)
    with pytest.raises(ValueError, match=message):
        problem.validate()


def test_invalid_lrn_problem_is_refused():
    x = torch.empty(2, 3, 4, 4)
    problem = lrn_problem(x, 1, 1.0, 0.75, 1.0, torch.contiguous_format)
    problem.size = 0
    with pytest.raises(ValueError, match="size: expected at least 1, got 0"):
        problem.validate()
    problem.size, problem.spatial = 1, 2**62
    with pytest.raises(ValueError, match="64 bits"):
        problem.validate()


def test_window_index_needs_a_small_window():
    x = torch.zeros(1, 1, 40, 40)
    assert pool_problem(x, (25, 25), kernel=16, layout=torch.contiguous_format).fits_window_index is False
    assert pool_problem(x, (26, 24), kernel=(15, 17), layout=torch.contiguous_format).fits_window_index is True
    problem = pool_problem(x, (25, 25), kernel=16, layout=torch.contiguous_format)
    with pytest.raises(ValueError, match="at most 255 positions"):
        _C.max_pool_forward_with_index(problem, _C.MaxIndex.window, x, x, x, 1)
