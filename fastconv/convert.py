"""Putting fastconv into existing PyTorch code: `convert` and `revert` for layers, `accelerate` for functional calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from fastconv import functional
from fastconv.checks import DEVICES, DTYPES
from fastconv.swap import (
    FAST,
    TORCH,
    change_class,
    exchangeable,
    forget_compiled,
    is_torch_layer,
    reason_to_keep,
    zeros_per_side,
)

__all__ = ["ConversionReport", "accelerate", "convert", "revert"]

if TYPE_CHECKING:
    from fastconv.fastest import LayerTime

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def _fastest() -> ModuleType:
    """The module that times layers, imported when it is wanted: it brings the benchmarks' clock with it."""
    return import_module("fastconv.fastest")


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
    """What `convert` did to a model. `str()` gives a table; `measured` is empty unless `fastest_on` was given."""

    converted: list[ConvertedLayer]
    kept: list[KeptLayer]
    measured: Sequence[LayerTime] = ()

    def __str__(self) -> str:
        lines = [f"fastconv runs {len(self.converted)} layers; torch keeps {len(self.kept)}"]
        rows = [(*layer, "fastconv") for layer in self.converted]
        rows += [(layer.name, layer.layer, f"torch: {layer.reason}") for layer in self.kept]
        if self.measured:
            lines += _fastest().describe(self.measured)
            timed = {layer.name for layer in self.measured if not layer.refusal}
            rows = [row for row in rows if row[0] not in timed]
        rows = [(name or "(the model)", layer, runs) for name, layer, runs in rows]
        if rows:
            widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
            lines += [f"  {name:{widths[0]}}  {layer:{widths[1]}}  {runs}" for name, layer, runs in rows]
        return "\n".join(lines)


@overload
def convert(model: ModuleT, report: Literal[False] = False, *, fastest_on: Any = None) -> ModuleT: ...
@overload
def convert(model: ModuleT, report: Literal[True], *, fastest_on: Any = None) -> tuple[ModuleT, ConversionReport]: ...
def convert(
    model: ModuleT, report: bool = False, *, fastest_on: Any = None
) -> ModuleT | tuple[ModuleT, ConversionReport]:
    """Swap torch's convolution, pooling and LRN layers in `model` for fastconv's, in place, and return the model.

    Only the class of a layer changes: the module, its parameters, buffers, hooks and attributes stay the same
    objects, so optimizers, checkpoints and whatever else refers to them keep working. `revert` undoes it.

    What fastconv does not cover stays as it is: other layers (`Conv3d`), subclasses with a forward of their own,
    parameters of a dtype or on a device without kernels. With `report=True` the result is `(model,
    ConversionReport)`, and the report lists the layers converted and those kept, with the reason. Operators called
    inside a `forward` (`F.max_pool2d(x, 2)`) are no layers; `accelerate` reaches those.

    With `fastest_on`, an example of the model's input, every layer goes to whoever runs it faster on this machine, also
    a layer that is fastconv's already, and the report is printed unless it is returned. The example is the model's
    argument, a tuple of positional arguments or a dict of keyword arguments. The model runs once on a copy of it, as it
    is: in training mode or not, and with gradients timed where the model needs them, so inside `torch.no_grad()` or for
    a frozen model the forward passes decide. In each call, torch's layer and fastconv's take turns on the same tensors.
    Random numbers, buffers and gradients are afterwards as before; hooks see that one pass. A layer that the example
    does not reach is torch's. Whatever the model raises is raised, and no layer has changed then; ValueError if the
    model has lazy layers without parameters yet.
    """
    measured = None if fastest_on is None else _fastest().time_layers(model, fastest_on)
    times = {layer.name: layer for layer in measured or ()}
    result = ConversionReport([], [], measured or ())
    for name, module in model.named_modules():
        layer = None if measured is None else exchangeable(module)
        if layer is not None:
            reason = times[name].reason_to_keep if name in times else "the example does not reach it"
        elif is_torch_layer(module):
            layer = parametrize.type_before_parametrizations(module)
            reason = reason_to_keep(module, layer)
        else:
            continue
        if reason is None:
            change_class(module, FAST[layer])
            result.converted.append(ConvertedLayer(name, layer.__name__))
        else:
            if layer in FAST and layer is not parametrize.type_before_parametrizations(module):
                change_class(module, layer)
            title = module.original_name if isinstance(module, torch.jit.ScriptModule) else layer.__name__
            result.kept.append(KeptLayer(name, title, reason))
    forget_compiled()
    if measured is not None and not report:
        print(result)
    return (model, result) if report else model


def revert(model: ModuleT) -> ModuleT:
    """Swap fastconv's layers in `model` back for torch's, in place, and return the model.

    Undoes `convert`; layers that were built as fastconv's become torch's as well. Those that torch lacks stay: the
    classic papers' layers (`ConnectionTableConv2d`, …), and a convolution with its own number of zeros on every side.
    """
    for module in model.modules():
        original = TORCH.get(parametrize.type_before_parametrizations(module))
        if original is not None and not zeros_per_side(module):
            change_class(module, original)
    forget_compiled()
    return model


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
