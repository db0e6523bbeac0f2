"""Putting fastconv into existing PyTorch code: `convert` and `revert` for layers, `accelerate` for functional calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar, overload

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from fastconv import functional, nn
from fastconv.checks import DEVICES, DTYPES

__all__ = ["ConversionReport", "accelerate", "convert", "revert"]

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


# A layer of torch's and the one of fastconv that takes its place.
_FAST: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__ if hasattr(torch.nn, name)
}
_TORCH = {fast: original for original, fast in _FAST.items()}

# What a reader of the report may have expected to be converted.
_FAMILIES: tuple[type[torch.nn.Module], ...] = tuple(
    family
    for source in (torch.nn.modules.conv, torch.nn.modules.pooling)
    for family in vars(source).values()
    if isinstance(family, type) and issubclass(family, torch.nn.Module) and family is not torch.nn.Module
) + (torch.nn.LocalResponseNorm, torch.nn.CrossMapLRN2d)


class ConvertedLayer(NamedTuple):
    """A layer that fastconv runs now: its name in the model ("" for the model itself) and its class."""

    name: str
    layer: str


class KeptLayer(NamedTuple):
    """A convolution, pooling or LRN layer that torch goes on to run, and why."""

    name: str
    layer: str
    reason: str


class ConversionReport(NamedTuple):
    """What `convert` did to a model. `str()` gives a table."""

    converted: list[ConvertedLayer]
    kept: list[KeptLayer]

    def __str__(self) -> str:
        lines = [f"fastconv runs {len(self.converted)} layers; torch keeps {len(self.kept)}"]
        rows = [(*layer, "fastconv") for layer in self.converted]
        rows += [(layer.name, layer.layer, f"torch: {layer.reason}") for layer in self.kept]
        rows = [(name or "(the model)", layer, runs) for name, layer, runs in rows]
        if rows:
            widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
            lines += [f"  {name:{widths[0]}}  {layer:{widths[1]}}  {runs}" for name, layer, runs in rows]
        return "\n".join(lines)


@overload
def convert(model: ModuleT, report: Literal[False] = False) -> ModuleT: ...
@overload
def convert(model: ModuleT, report: Literal[True]) -> tuple[ModuleT, ConversionReport]: ...
def convert(model: ModuleT, report: bool = False) -> ModuleT | tuple[ModuleT, ConversionReport]:
    """Swap torch's convolution, pooling and LRN layers in `model` for fastconv's, in place, and return the model.

    Only the class of a layer changes: the module, its parameters, buffers, hooks and attributes stay the same
    objects, so optimizers, checkpoints and whatever else refers to them keep working. `revert` undoes it.

    What fastconv does not cover stays as it is: other layers (`Conv3d`), subclasses with a forward of their own,
    parameters of a dtype or on a device without kernels. With `report=True` the result is `(model,
    ConversionReport)`, and the report lists the layers converted and those kept, with the reason. Operators called
    inside a `forward` (`F.max_pool2d(x, 2)`) are no layers; `accelerate` reaches those.
    """
    result = ConversionReport([], [])
    for name, module in model.named_modules():
        if not _is_torch_layer(module):
            continue
        layer = parametrize.type_before_parametrizations(module)
        reason = _reason_to_keep(module, layer)
        if reason is None:
            _change_class(module, _FAST[layer])
            result.converted.append(ConvertedLayer(name, layer.__name__))
        else:
            title = module.original_name if isinstance(module, torch.jit.ScriptModule) else layer.__name__
            result.kept.append(KeptLayer(name, title, reason))
    return (model, result) if report else model


def revert(model: ModuleT) -> ModuleT:
    """Swap fastconv's layers in `model` back for torch's, in place, and return the model.

    Undoes `convert`; layers that were built as fastconv's become torch's as well. Those that torch lacks stay: the
    classic papers' layers (`ConnectionTableConv2d`, …), and a convolution with its own number of zeros on every side.
    """
    for module in model.modules():
        original = _TORCH.get(parametrize.type_before_parametrizations(module))
        if original is not None and not _zeros_per_side(module):
            _change_class(module, original)
    return model


def _zeros_per_side(module: torch.nn.Module) -> bool:
    padding = getattr(module, "padding", None)
    return isinstance(padding, tuple) and not isinstance(padding[0], int) and module.padding_mode == "zeros"


def _is_torch_layer(module: torch.nn.Module) -> bool:
    """Whether this is a convolution, pooling or LRN layer that is not fastconv's."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in {family.__name__ for family in _FAMILIES}
    return isinstance(module, _FAMILIES) and not isinstance(module, tuple(_TORCH))


def _reason_to_keep(module: torch.nn.Module, layer: type[torch.nn.Module]) -> str | None:
    """Why torch keeps this layer, or None if it does not."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript; convert the model before scripting it"
    if layer not in _FAST:
        original = next((base for base in layer.__mro__ if base in _FAST), None)
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


def _change_class(module: torch.nn.Module, cls: type[torch.nn.Module]) -> None:
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


def _with_indices(operator: Callable[..., Any]) -> Callable[..., Any]:
    """`operator` for the spellings that give indices whether asked or not."""

    def call(*args: Any, return_indices: bool = True, **kwargs: Any) -> Any:
        return operator(*args, **kwargs, return_indices=True)

    return call


_SAME_EVERYWHERE = (
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "avg_pool1d",
    "avg_pool2d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "local_response_norm",
)


def _spellings() -> dict[Any, Callable[..., Any]]:
    """The functions by which torch may be asked for an operator, and what answers instead.

    torch.nn.functional has some of these as they are in `torch` or `torch._C._nn`, wraps others, and splits max
    pooling into functions with and without indices behind one name; a mode sees whichever was called.
    """
    table: dict[Any, Callable[..., Any]] = {}

    def add(names: Iterable[str], answer: Callable[..., Any]) -> None:
        for source in (torch.nn.functional, torch, torch._C._nn):
            for name in names:
                if hasattr(source, name):
                    table[getattr(source, name)] = answer

    for name in _SAME_EVERYWHERE:
        add([name], getattr(functional, name))
    for name in ("max_pool1d", "max_pool2d"):
        operator = getattr(functional, name)
        add([name, f"_{name}"], operator)
        add([f"{name}_with_indices"], _with_indices(operator))
    for name in ("adaptive_max_pool1d", "adaptive_max_pool2d"):
        operator = getattr(functional, name)
        # Outside torch.nn.functional, the plain name gives indices too.
        add([name, f"{name}_with_indices"], _with_indices(operator))
        for spelling in (name, f"_{name}"):
            table[getattr(torch.nn.functional, spelling)] = operator
    return table


_SPELLINGS = _spellings()


def _covered(types: Iterable[type], values: Iterable[Any]) -> bool:
    """Whether fastconv computes with these arguments, whose classes with a say in torch functions are `types`."""
    return all(kind is Tensor for kind in types) and all(
        value.dtype in DTYPES and value.device.type in DEVICES and value.layout is torch.strided
        for value in values
        if isinstance(value, Tensor)
    )


class accelerate(TorchFunctionMode):
    """`with fastconv.accelerate():` sends functional calls (`F.conv2d(...)`, also in a library's module) to fastconv.

    Every spelling is seen (`torch.nn.functional.max_pool2d`, `torch.max_pool2d`, …), and so are torch's own layers,
    which call these functions. A call that fastconv does not cover (a dtype, a device, a sparse or wrapped tensor,
    `out=`) goes to torch.

    It may be nested, and holds for the thread that entered it only. A backward pass differentiates what the forward
    pass ran, inside or outside of the block; activation checkpointing computes again during the backward pass, where
    torch suspends such modes: use `convert` for a model that does this.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        answer = _SPELLINGS.get(func)
        if answer is not None and "out" not in kwargs and _covered(types, (*args, *kwargs.values())):
            return answer(*args, **kwargs)
        return func(*args, **kwargs)
