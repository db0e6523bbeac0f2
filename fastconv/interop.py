"""The operators for arrays of other libraries: NumPy, CuPy, numba's device arrays, anything that speaks DLPack.

Each function of `fastconv.functional` under the same name and with the same parameters, for arrays in the place of
tensors. Nothing is copied on the way in or out (arrays that the kernels must have densely: one copy, as with tensors).
The results are arrays of the first one's kind, on its device; CuPy's are computed on CuPy's current stream. There are
no gradients. Beyond what the functions raise: TypeError if there is no array among the arguments, or for one that
cannot be shared.

    y = fastconv.interop.conv2d(numpy_images, numpy_weights, padding=1)
"""

import functools
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastconv import functional

__all__ = list(functional.__all__)


def _library(array: Any) -> Any:
    """The module of an array's library."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def _is_array(value: Any) -> bool:
    return hasattr(value, "__dlpack__") or hasattr(value, "__cuda_array_interface__")


def _tensor(array: Any) -> Tensor:
    """The array's memory as a tensor."""
    if isinstance(array, Tensor):
        return array.detach()
    if not hasattr(array, "__dlpack__"):
        return torch.as_tensor(array, device="cuda")
    if getattr(getattr(array, "flags", None), "writeable", True):
        return torch.from_dlpack(array)
    with warnings.catch_warnings():  # of writes to memory that is only to be read: the operators do not write to inputs
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _array(tensor: Tensor, like: Any) -> Any:
    """The tensor's memory as an array of the kind of `like`."""
    if isinstance(like, Tensor):
        return tensor
    if not hasattr(like, "__dlpack__"):
        return _library(like).cuda.as_cuda_array(tensor)
    namespace = like.__array_namespace__() if hasattr(like, "__array_namespace__") else _library(like)
    return namespace.from_dlpack(tensor)


def _stream_of(array: Any) -> AbstractContextManager[Any]:
    """Makes the stream that the array's library has current the one that torch has current."""
    library = _library(array)
    if library.__name__ != "cupy":
        return nullcontext()
    with array.device:
        stream = library.cuda.get_current_stream()
    return torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr, device=array.device.id))


def _for_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        first = next((value for value in (*args, *kwargs.values()) if _is_array(value)), None)
        if first is None:
            kinds = ", ".join(type(value).__name__ for value in args)
            raise TypeError(f"{function.__name__}: expected an array that speaks DLPack, got {kinds}")
        with _stream_of(first), torch.no_grad():
            tensors = [_tensor(value) if _is_array(value) else value for value in args]
            named = {name: _tensor(value) if _is_array(value) else value for name, value in kwargs.items()}
            out = function(*tensors, **named)
            return tuple(_array(t, first) for t in out) if isinstance(out, tuple) else _array(out, first)

    return call


for _name in __all__:
    globals()[_name] = _for_arrays(getattr(functional, _name))
