"""Which layer of fastconv stands for which of torch, and the change from one to the other, in place."""

from __future__ import annotations

import sys

import torch
from torch.nn.utils import parametrize

from fastconv import nn
from fastconv.checks import DEVICES, DTYPES

# A layer of torch's and the one of fastconv that takes its place.
FAST: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__ if hasattr(torch.nn, name)
}
TORCH = {fast: original for original, fast in FAST.items()}

# What a reader of the report may have expected to be converted.
_FAMILIES: tuple[type[torch.nn.Module], ...] = tuple(
    family
    for source in (torch.nn.modules.conv, torch.nn.modules.pooling)
    for family in vars(source).values()
    if isinstance(family, type) and issubclass(family, torch.nn.Module) and family is not torch.nn.Module
) + (torch.nn.LocalResponseNorm, torch.nn.CrossMapLRN2d)


def exchangeable(module: torch.nn.Module) -> type[torch.nn.Module] | None:
    """torch's class of a layer that either library can run, whichever runs it now; None for any other module."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    layer = parametrize.type_before_parametrizations(module)
    original = TORCH.get(layer, layer)
    if original not in FAST or zeros_per_side(module) or reason_to_keep(module, original) is not None:
        return None
    return original


def zeros_per_side(module: torch.nn.Module) -> bool:
    """Whether this is a convolution with its own number of zeros on every side, which torch's layer cannot be."""
    padding = getattr(module, "padding", None)
    return isinstance(padding, tuple) and not isinstance(padding[0], int) and module.padding_mode == "zeros"


def is_torch_layer(module: torch.nn.Module) -> bool:
    """Whether this is a convolution, pooling or LRN layer that is not fastconv's."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in {family.__name__ for family in _FAMILIES}
    return isinstance(module, _FAMILIES) and not isinstance(module, tuple(TORCH))


def reason_to_keep(module: torch.nn.Module, layer: type[torch.nn.Module]) -> str | None:
    """Why torch keeps this layer, or None if it does not."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript; convert the model before scripting it"
    if layer not in FAST:
        original = next((base for base in layer.__mro__ if base in FAST), None)
        if original is None:
            return f"fastconv has no {layer.__name__}"
        return f"a subclass of {original.__name__}, perhaps with a forward of its own"
    if "forward" in vars(module):
        return "its forward was replaced"
    for name, parameter in module.named_parameters():
        if parameter.dtype not in DTYPES:
            return f"{name} is {_plain(parameter.dtype)}; fastconv covers {', '.join(map(_plain, DTYPES))}"
        if parameter.device.type not in DEVICES:
            return f"{name} is on {parameter.device}; fastconv covers {', '.join(DEVICES)}"
    return None


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def change_class(module: torch.nn.Module, cls: type[torch.nn.Module]) -> None:
    """Make `module` a `cls`.

    torch gives a parametrized module (weight_norm, spectral_norm, …) a class derived from its layer's, with
    properties that compute the parameters; such a class is derived again, from `cls`.
    """
    if parametrize.is_parametrized(module):
        members = {
            name: member for name, member in vars(type(module)).items() if name not in ("__dict__", "__weakref__")
        }
        cls = type(type(module).__name__, (cls,), members)
    module.__class__ = cls


def forget_compiled() -> None:
    """To be called when classes have changed: torch 2.11 goes on running what it compiled without looking at them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
