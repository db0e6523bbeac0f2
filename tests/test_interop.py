"""fastconv.interop: arrays of other libraries go in and come out, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fastconv
from fastconv import functional as F
from fastconv import interop

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 7, 9), dtype=np.float32)
W, B = RNG.standard_normal((6, 4, 3, 3), dtype=np.float32), RNG.standard_normal(6, dtype=np.float32)
X1, W1 = X[:, :, 0].copy(), W[:, :, 0].copy()
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "conv1d": ((X1, W1), {"padding": 1}),
    "conv2d": ((X, W, B, 2), {"padding": 1}),
    "conv_transpose1d": ((X1, W1.transpose(1, 0, 2)), {}),
    "conv_transpose2d": ((X, W.transpose(1, 0, 2, 3)), {"bias": B, "stride": 2}),
    "max_pool1d": ((X1, 3), {}),
    "max_pool2d": ((X, 3, 2), {"return_indices": True}),
    "avg_pool1d": ((X1, 3), {}),
    "avg_pool2d": ((X, 3), {"ceil_mode": True}),
    "adaptive_avg_pool1d": ((X1, 4), {}),
    "adaptive_avg_pool2d": ((X, (3, 2)), {}),
    "adaptive_max_pool1d": ((X1, 4), {"return_indices": True}),
    "adaptive_max_pool2d": ((X, (3, 2)), {}),
    "local_response_norm": ((X, 3), {}),
}


class Array:
    """The least that an array of another library must be: by DLPack and the array API's from_dlpack."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> object:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __array_namespace__(self) -> type[Array]:
        return type(self)

    @classmethod
    def from_dlpack(cls, other: Any) -> Array:
        return cls(torch.from_dlpack(other))


def as_tensors(values: Any) -> Any:
    return tuple(torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values)


def test_every_function_is_there() -> None:
    assert set(CALLS) == set(interop.__all__) == set(F.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_numpy_arrays(name: str) -> None:
    args, options = CALLS[name]
    got = getattr(interop, name)(*args, **options)
    want = getattr(F, name)(*as_tensors(args), **dict(zip(options, as_tensors(options.values()), strict=True)))
    for ours, theirs in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want)), strict=True):
        assert type(ours) is np.ndarray
        assert ours.dtype == theirs.numpy().dtype
        assert np.array_equal(ours, theirs.numpy())


def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.extend((x, x + 1))
        return seen[1]

    y = interop._for_arrays(watched)(X)
    assert seen[0].data_ptr() == X.ctypes.data
    assert seen[1].data_ptr() == y.ctypes.data


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_dtype_and_layout_are_kept(dtype: type) -> None:
    last = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2).astype(dtype, order="K")
    y = interop.max_pool2d(last, 2)
    assert y.dtype == dtype
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous


def test_read_only_arrays(recwarn: pytest.WarningsRecorder) -> None:
    frozen = X.copy()
    frozen.flags.writeable = False
    assert np.array_equal(interop.avg_pool2d(frozen, 2), interop.avg_pool2d(X, 2))
    assert not recwarn.list


def test_any_array_with_dlpack() -> None:
    y = interop.conv2d(Array(torch.from_numpy(X)), Array(torch.from_numpy(W)), padding=1)
    assert type(y) is Array
    assert torch.equal(y.tensor, F.conv2d(torch.from_numpy(X), torch.from_numpy(W), padding=1))


def test_tensors_need_no_gradient() -> None:
    y = interop.avg_pool2d(torch.from_numpy(X).requires_grad_(), 2)
    assert isinstance(y, torch.Tensor)
    assert not y.requires_grad


def test_simulated_too() -> None:
    with fastconv.simulate_cuda():
        y = interop.avg_pool2d(X, 3)
    np.testing.assert_allclose(y, interop.avg_pool2d(X, 3), rtol=1e-5, atol=1e-6)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="conv2d: expected an array that speaks DLPack, got list, list"):
        interop.conv2d([1.0], [2.0])
    with pytest.raises(RuntimeError, match=r"weight dtype: expected torch\.float32"):
        interop.conv2d(X, W.astype(np.float64))
    with pytest.raises(NotImplementedError, match="input: expected one of the dtypes"):
        interop.max_pool2d(X.astype(np.int32), 2)


@pytest.mark.skipif(not (fastconv.device.CUDA and torch.cuda.is_available()), reason="no GPU, or built without CUDA")
def test_cupy_arrays_on_their_stream() -> None:
    cupy = pytest.importorskip("cupy")
    x, w = cupy.asarray(X), cupy.asarray(W)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        y = interop.conv2d(x, w)
        total = y.sum()
    stream.synchronize()
    assert isinstance(y, cupy.ndarray)
    np.testing.assert_allclose(cupy.asnumpy(y), interop.conv2d(X, W), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(float(total), float(cupy.asnumpy(y).sum()), rtol=1e-3)


@pytest.mark.skipif(not (fastconv.device.CUDA and torch.cuda.is_available()), reason="no GPU, or built without CUDA")
def test_numba_device_arrays() -> None:
    cuda = pytest.importorskip("numba.cuda")
    y = interop.avg_pool2d(cuda.to_device(X), 3)
    assert cuda.is_cuda_array(y)
    np.testing.assert_allclose(y.copy_to_host(), interop.avg_pool2d(X, 3), rtol=1e-5, atol=1e-6)
