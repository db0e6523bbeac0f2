"""Bad arguments, by the classes of the CVEs of TensorFlow's and PyTorch's kernels: an exception each, with a message.

Every call runs in one child process a group, so that a crash is a failed test and not the end of the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """if True:
    import sys, torch
    import fastconv
    from fastconv import _C, functional as F
    ops = torch.ops.fastconv
    x1, x2 = torch.randn(2, 4, 9), torch.randn(2, 4, 9, 8)
    w1, w2 = torch.randn(6, 4, 3), torch.randn(6, 4, 3, 3)
    t1, t2 = torch.randn(4, 6, 3), torch.randn(4, 6, 3, 3)
    HUGE = (2**31 - 1, 2**31, 2**62, 2**63 - 1, 2**63, 2**64, 3 * 2**61)
    NOT_INT = (1.5, "2", None, [], (1, 2, 3, 4), torch.ones(2))
    ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)
    failures, count = [], 0

    def refused(call, *what, errors=ERRORS):
        global count
        count += 1
        try:
            call()
        except errors as error:
            if not str(error):
                failures.append(f"no message: {what}")
        except BaseException as error:
            failures.append(f"{type(error).__name__} ({error}): {what}")
        else:
            failures.append(f"accepted: {what}")

    def survives(call, *what):
        '''May be accepted or refused; a bad exception type or a crash is what fails.'''
        global count
        count += 1
        try:
            return call()
        except ERRORS + (MemoryError,):
            return None
        except BaseException as error:
            failures.append(f"{type(error).__name__} ({error}): {what}")
"""
END = """
    assert count > 0
    print(f"{count} calls")
    if failures:
        print("\\n".join(failures))
        sys.exit(1)
"""

GROUPS = {
    "convolution sizes": """
    for dims, x, w, t in ((1, x1, w1, t1), (2, x2, w2, t2)):
        conv, transpose = getattr(F, f"conv{dims}d"), getattr(F, f"conv_transpose{dims}d")
        for bad in (0, -1, -2**31, -2**63):
            refused(lambda: conv(x, w, stride=bad), dims, "stride", bad)
            refused(lambda: conv(x, w, dilation=bad), dims, "dilation", bad)
            refused(lambda: conv(x, w, groups=bad), dims, "groups", bad)
            refused(lambda: transpose(x, t, stride=bad), dims, "transposed stride", bad)
            refused(lambda: transpose(x, t, dilation=bad), dims, "transposed dilation", bad)
            refused(lambda: transpose(x, t, groups=bad), dims, "transposed groups", bad)
        for bad in (-1, -2**31, -2**63):
            refused(lambda: conv(x, w, padding=bad), dims, "padding", bad)
            refused(lambda: transpose(x, t, padding=bad), dims, "transposed padding", bad)
            refused(lambda: transpose(x, t, output_padding=bad), dims, "output_padding", bad)
        for huge in HUGE:
            refused(lambda: conv(x, w, dilation=huge), dims, "dilation", huge)
            refused(lambda: conv(x, w, groups=huge), dims, "groups", huge)
            survives(lambda: conv(x, w, stride=huge), dims, "stride", huge)
            survives(lambda: conv(x, w, stride=huge, padding=1), dims, "stride, padding", huge)
            refused(lambda: transpose(x, t, stride=huge), dims, "transposed stride", huge)
            refused(lambda: transpose(x, t, dilation=huge), dims, "transposed dilation", huge)
            refused(lambda: transpose(x, t, padding=huge), dims, "transposed padding", huge)
            refused(lambda: transpose(x, t, output_padding=huge), dims, "output_padding", huge)
            refused(lambda: transpose(x, t, groups=huge), dims, "transposed groups", huge)
            if huge >= 2**61:
                refused(lambda: conv(x, w, padding=huge), dims, "padding", huge)
                refused(lambda: conv(x, w, padding=huge, stride=2**61), dims, "padding, stride", huge)
                refused(lambda: conv(x, w, padding=huge, dilation=huge), dims, "padding, dilation", huge)
        for large in (2**17, 2**31, 2**40, 2**60):
            survives(lambda: conv(x, w, stride=large, padding=large), dims, "stride and padding", large)
            survives(lambda: conv(x, w, dilation=large, padding=large), dims, "dilation and padding", large)
            survives(lambda: conv(x, w, stride=large, dilation=large, padding=large), dims, "all three", large)
        for bad in NOT_INT:
            refused(lambda: conv(x, w, stride=bad), dims, "stride", bad)
            refused(lambda: conv(x, w, dilation=bad), dims, "dilation", bad)
            refused(lambda: conv(x, w, groups=bad), dims, "groups", bad)
            refused(lambda: conv(x, w, padding=bad), dims, "padding", bad)
        for empty in range(x.dim()):
            shape = list(w.shape)
            if empty:
                shape[empty] = 0
                refused(lambda: conv(x, torch.empty(shape)), dims, "empty weight", shape)
    """,
    "convolution tensors": """
    refused(lambda: F.conv2d(x2, torch.randn(6, 3, 3, 3)), "channels")
    refused(lambda: F.conv2d(x2, w2, groups=3), "groups do not divide channels")
    refused(lambda: F.conv2d(x2, torch.randn(5, 2, 3, 3), groups=2), "groups do not divide outputs")
    refused(lambda: F.conv2d(x2, torch.randn(6, 4, 12, 3)), "kernel larger than input")
    refused(lambda: F.conv2d(x2, w2, torch.randn(5)), "bias size")
    refused(lambda: F.conv2d(x2, w2, torch.randn(6, 1)), "bias rank")
    refused(lambda: F.conv2d(x2, w2, torch.randn(())), "bias rank 0")
    refused(lambda: F.conv2d(x2.double(), w2), "dtypes")
    refused(lambda: F.conv2d(x2, w2, torch.randn(6).double()), "bias dtype")
    refused(lambda: F.conv2d(x2.half(), w2.bfloat16()), "half dtypes")
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        refused(lambda: F.conv2d(x2.to(dtype), w2.to(dtype)), dtype)
    refused(lambda: F.conv2d(x2, w2.to("meta")), "device")
    refused(lambda: F.conv2d(x2.to("meta"), w2), "device")
    refused(lambda: F.conv2d(x2.to_sparse(), w2), "sparse")
    refused(lambda: F.conv2d(x1, w1), "rank of the input")
    refused(lambda: F.conv2d(x2, w1), "rank of the weight")
    refused(lambda: F.conv1d(x2, w2), "rank")
    refused(lambda: F.conv2d(torch.randn(9), w2), "rank 1")
    refused(lambda: F.conv2d(torch.randn(()), w2), "rank 0")
    refused(lambda: F.conv2d(torch.randn(1, 2, 4, 9, 8), w2), "rank 5")
    for bad in (None, 3, [[1.0]], "x"):
        refused(lambda: F.conv2d(bad, w2), "input", bad)
        refused(lambda: F.conv2d(x2, bad), "weight", bad)
        if bad is not None:
            refused(lambda: F.conv2d(x2, w2, bad), "bias", bad)
    refused(lambda: F.conv2d(x2, w2, padding="full"), "padding name")
    refused(lambda: F.conv2d(x2, w2, padding="same", stride=2), "same with a stride")
    refused(lambda: F.conv2d(x2, w2, padding=((1, 2), (3,))), "pairs")
    refused(lambda: F.conv2d(x2, w2, padding=((1, 2), (3, -4))), "negative side")
    refused(lambda: F.conv2d(x2, w2, padding=((1, 2), (3, 2**62), (1, 1))), "three pairs")
    refused(lambda: F.conv2d(x2, w2, padding=((1, 2), (2**62, 2**62))), "sides overflow")
    refused(lambda: F.conv_transpose2d(x2, t2, output_padding=1), "output_padding as large as stride and dilation")
    refused(lambda: F.conv_transpose2d(x2, t2, padding=9), "transposed output empty")
    refused(lambda: F.conv_transpose2d(x2, torch.randn(5, 6, 3, 3)), "transposed channels")
    refused(lambda: F.conv_transpose2d(x2, t2, torch.randn(5)), "transposed bias")
    # inputs whose elements overlap in memory are legal, and outputs are fresh
    want = F.conv2d(x2[:1, :1, :1, :1].expand(2, 4, 9, 8).contiguous(), w2)
    if not torch.equal(want, F.conv2d(x2[:1, :1, :1, :1].expand(2, 4, 9, 8), w2)):
        failures.append("overlapping input")
    for shape in ((2**20, 2**20, 2**20, 1), (2**40, 4, 2**20, 2**10)):
        survives(lambda: F.conv2d(torch.empty(1).expand(shape), torch.empty(1).expand(6, shape[1], 1, 1)), shape)
    """,
    "pooling": """
    for dims, x in ((1, x1), (2, x2)):
        for name in (f"max_pool{dims}d", f"avg_pool{dims}d"):
            pool = getattr(F, name)
            for bad in (0, -1, -2**31, -2**63):
                refused(lambda: pool(x, bad), name, "kernel", bad)
                refused(lambda: pool(x, 2, bad), name, "stride", bad)
                if "max" in name:
                    refused(lambda: pool(x, 2, 2, 0, bad), name, "dilation", bad)
            for bad in (-1, 2, -2**31, 2**31, 2**63 - 1, -2**63):
                refused(lambda: pool(x, 2, 2, bad), name, "padding", bad)
            for huge in HUGE:
                refused(lambda: pool(x, huge), name, "kernel", huge)
                survives(lambda: pool(x, huge, padding=min(huge // 2, 2**62)), name, "kernel and padding", huge)
                survives(lambda: pool(x, huge, ceil_mode=True, padding=min(huge // 2, 2**62)), name, "ceil", huge)
                survives(lambda: pool(x, 2, huge), name, "stride", huge)
                survives(lambda: pool(x, 2, huge, 1, ceil_mode=True), name, "stride, ceil", huge)
                if "max" in name:
                    refused(lambda: pool(x, 2, 1, 0, huge), name, "dilation", huge)
                    refused(lambda: pool(x, 3, 1, 1, huge), name, "dilation", huge)
            for bad in NOT_INT:
                refused(lambda: pool(x, bad), name, "kernel", bad)
                if bad is not None and bad != []:
                    refused(lambda: pool(x, 2, bad), name, "stride", bad)
                refused(lambda: pool(x, 2, 2, bad), name, "padding", bad)
            refused(lambda: pool(x, 10), name, "kernel larger than input")
            refused(lambda: pool(torch.randn(3), 1), name, "rank 1")
            refused(lambda: pool(torch.randn(1, 2, 3, 4, 5), 1), name, "rank 5")
            refused(lambda: pool(x[..., :0], 1), name, "empty width")
            refused(lambda: pool(x.to(torch.complex64), 2), name, "complex")
            for bad in (None, 3, "x"):
                refused(lambda: pool(bad, 2), name, "input", bad)
        for name in (f"adaptive_max_pool{dims}d", f"adaptive_avg_pool{dims}d"):
            pool = getattr(F, name)
            for bad in (-1, -2**63, 2**63, 2**64, 1.5, "2"):
                refused(lambda: pool(x, bad), name, bad)
            for huge in (2**62, 2**63 - 1):
                refused(lambda: pool(x, huge), name, huge)
            refused(lambda: pool(x[..., :0], 2), name, "empty width")
            refused(lambda: pool(torch.randn(3), 2), name, "rank 1")
    refused(lambda: F.avg_pool2d(x2, 2, divisor_override=0), "divisor 0")
    refused(lambda: F.avg_pool2d(x2, 2, divisor_override=2**64), "divisor 2^64")
    survives(lambda: F.avg_pool2d(x2, 2, divisor_override=2**63 - 1), "divisor 2^63 - 1")
    survives(lambda: F.avg_pool2d(x2, 2, divisor_override=-2**63), "divisor -2^63")
    """,
    "local response normalisation": """
    for bad in (0, -1, -2**63, 2**63, 2**64, 1.5, "2", None):
        refused(lambda: F.local_response_norm(x2, bad), "size", bad)
    for large in (5, 100, 2**31, 2**62, 2**63 - 1):
        survives(lambda: F.local_response_norm(x2, large), "size", large)
    refused(lambda: F.local_response_norm(torch.randn(4), 3), "rank 1")
    refused(lambda: F.local_response_norm(torch.randn(4, 5), 3), "rank 2")
    refused(lambda: F.local_response_norm(None, 3), "input")
    refused(lambda: F.local_response_norm(x2, 3, "a"), "alpha")
    refused(lambda: F.local_response_norm(x2.to(torch.complex64), 3), "complex")
    """,
}

NATIVE = """
    import itertools
    VALUES = (0, -1, 2**31, 2**63 - 1)

    def conv(**changes):
        problem = _C.ConvProblem()
        fields = dict(n=2, c=4, h=9, w=8, k=6, r=3, s=3, p=7, q=6, stride_h=1, stride_w=1, pad_top=0, pad_bottom=0,
                      pad_left=0, pad_right=0, dilation_h=1, dilation_w=1, groups=1, layout=_C.Layout.channels_first,
                      weight_layout=_C.Layout.channels_first, dtype=_C.Dtype.float32)
        for name, value in {**fields, **changes}.items():
            setattr(problem, name, value)
        return problem

    def pool(**changes):
        problem = _C.PoolProblem()
        fields = dict(n=2, c=4, h=9, w=8, r=3, s=3, p=7, q=6, stride_h=1, stride_w=1, pad_top=0, pad_left=0,
                      pad_bottom=0, pad_right=0, dilation_h=1, dilation_w=1, count_include_pad=True, divisor=0,
                      adaptive=False, layout=_C.Layout.channels_first, dtype=_C.Dtype.float32)
        for name, value in {**fields, **changes}.items():
            setattr(problem, name, value)
        return problem

    def lrn(**changes):
        problem = _C.LrnProblem()
        fields = dict(n=2, c=4, spatial=9, size=5, alpha=1e-4, beta=0.75, k=1.0, layout=_C.Layout.channels_first,
                      dtype=_C.Dtype.float32)
        for name, value in {**fields, **changes}.items():
            setattr(problem, name, value)
        return problem

    def only_value_errors(call, *what):
        global count
        count += 1
        try:
            return call()
        except ValueError as error:
            if len(str(error)) < 10:
                failures.append(f"no message: {what}")
        except BaseException as error:
            failures.append(f"{type(error).__name__} ({error}): {what}")
"""

NATIVE_GROUPS = {
    "convolution structs": """
    sizes = ("n c h w k r s p q stride_h stride_w pad_top pad_bottom pad_left pad_right "
             "dilation_h dilation_w groups").split()
    # consistent, and beyond any memory: a plan may be made, but its workspace's size must not overflow
    large = [dict(n=2**50), dict(c=2**50), dict(k=2**50), dict(n=2**30, c=2**20), dict(c=2**27, k=2**27),
             dict(h=2**50, p=2**50 - 2), dict(h=2**28, p=2**28 - 2, w=2**27, q=2**27 - 2),
             dict(c=2**55, groups=2**55, k=2**55), dict(r=2**40, pad_top=2**40 - 3),
             dict(r=2**27, pad_top=2**27 - 3, s=2**27, pad_left=2**27 - 3)]
    for primitive in ("forward", "input_gradient", "weight_gradient"):
        assert _C.ConvPlan(conv(), primitive, 2).workspace_bytes >= 0
        for (a, b) in itertools.combinations_with_replacement(sizes, 2):
            for x, y in itertools.product(VALUES, VALUES if a != b else (0,)):
                changes = {a: x, b: y} if a != b else {a: x}
                plan = only_value_errors(lambda: _C.ConvPlan(conv(**changes), primitive, 2), primitive, changes)
                if plan is not None and plan.workspace_bytes < 0:
                    failures.append(f"workspace of {plan.workspace_bytes} bytes: {primitive} {changes}")
                if a == b and plan is not None and x < 0 and not a.startswith("pad"):
                    failures.append(f"accepted: {changes}")
        for changes, dtype, layout in itertools.product(large, (0, 1, 2), (0, 1)):
            changes = {**changes, "dtype": _C.Dtype(dtype), "layout": _C.Layout(layout)}
            plan = only_value_errors(lambda: _C.ConvPlan(conv(**changes), primitive, 3), primitive, changes)
            if plan is not None and plan.workspace_bytes < 0:
                failures.append(f"workspace of {plan.workspace_bytes} bytes: {primitive} {changes}")
        for enumeration, field in ((_C.Dtype, "dtype"), (_C.Layout, "layout"), (_C.Layout, "weight_layout")):
            for value in (-1, 4, 77):
                refused(lambda: _C.ConvPlan(conv(**{field: enumeration(value)}), primitive, 2), field, value,
                        errors=ValueError)
        for threads in (0, -1, -2**31):
            refused(lambda: _C.ConvPlan(conv(), primitive, threads), "threads", threads, errors=ValueError)
        for threads in (2**31 - 1, 10**6):
            plan = only_value_errors(lambda: _C.ConvPlan(conv(), primitive, threads), "threads", threads)
            assert plan.workspace_bytes < 2**30, plan.workspace_bytes
        refused(lambda: _C.ConvPlan(conv(), primitive, 2, "fft"), "algorithm", errors=ValueError)
    refused(lambda: _C.ConvPlan(conv(), "backward", 2), "primitive", errors=ValueError)
    refused(lambda: _C.conv_algorithms(conv(c=5, groups=2), "forward"), "groups", errors=ValueError)
    for value in (2**63, 2**64, -2**63 - 1, 1.5, "1", None):
        refused(lambda: conv(n=value), "field", value, errors=TypeError)
    """,
    "pooling and normalisation structs": """
    kinds = {
        pool: "n c h w r s p q stride_h stride_w pad_top pad_left pad_bottom pad_right dilation_h dilation_w divisor",
        lambda **changes: pool(adaptive=True, **changes): "n c h w p q",
        lrn: "n c spatial size",
    }
    for make, fields in kinds.items():
        make().validate()
        for (a, b) in itertools.combinations_with_replacement(fields.split(), 2):
            for x, y in itertools.product(VALUES, VALUES if a != b else (0,)):
                changes = {a: x, b: y} if a != b else {a: x}
                only_value_errors(make(**changes).validate, changes)
        for name in fields.split():
            if name != "divisor":
                refused(make(**{name: -1}).validate, name, errors=ValueError)
        refused(make(dtype=_C.Dtype(9)).validate, "dtype", errors=ValueError)
        refused(make(layout=_C.Layout(9)).validate, "layout", errors=ValueError)
    """,
    "max pooling indices out of range": """
    y, gy = torch.empty(2, 4, 7, 6), torch.ones(2, 4, 7, 6)
    for threads in (1, 2):
        for layout in (_C.Layout.channels_first, _C.Layout.channels_last):
            problem = pool(layout=layout)
            for bad in (-1, 72, 10**6, 2**31, 2**62, -2**63):
                index = torch.zeros(2, 4, 7, 6, dtype=torch.int64)
                index.view(-1)[57] = bad
                gx = torch.empty(2, 4, 9, 8)
                plane = _C.MaxIndex.plane
                ok = survives(lambda: _C.max_pool_backward(problem, plane, gy, index, gx, threads), bad)
                if ok is not False:
                    failures.append(f"backward accepted index {bad}")
                ok = survives(lambda: _C.max_pool_gather(problem, plane, gx, index, y, threads), bad)
                if ok is not False:
                    failures.append(f"gather accepted index {bad}")
    """,
}


@pytest.mark.parametrize("group", NATIVE_GROUPS)
def test_native(group: str) -> None:
    run(NATIVE + NATIVE_GROUPS[group])


@pytest.mark.parametrize("group", GROUPS)
def test_functional(group: str) -> None:
    run(GROUPS[group])


def run(body: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + body + END],
        cwd=Path(__file__).parent,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
