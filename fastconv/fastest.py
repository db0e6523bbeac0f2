"""Times every layer of a model in the calls that an example makes of it: torch's version beside fastconv's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fastconv.bench.timing import interleave
from fastconv.swap import FAST, change_class, exchangeable

LIBRARIES = ("torch", "fastconv")
SECONDS = 0.25  # for one call of a layer, both libraries, forward and backward together


class Seconds(NamedTuple):
    """Of a layer's calls in one pass through the model; infinite if the library cannot run them."""

    forward: float
    backward: float  # 0 where nothing needs a gradient

    @property
    def total(self) -> float:
        return self.forward + self.backward


class LayerTime(NamedTuple):
    """What one pass of the example spends in a layer, all calls of the layer together."""

    name: str
    layer: str  # torch's name of its class
    calls: int
    torch: Seconds
    fastconv: Seconds
    refusal: str = ""  # why fastconv cannot run it

    @property
    def reason_to_keep(self) -> str | None:
        """Why torch should run this layer, or None if fastconv should."""
        if self.refusal:
            return self.refusal
        if self.torch.total < self.fastconv.total:
            return f"{self.fastconv.total / self.torch.total:.2f} times as fast here"
        return None


def time_layers(model: torch.nn.Module, example: Any, seconds: float = SECONDS) -> list[LayerTime]:
    """Runs `model` once on `example` and times each layer that either library could run, in each of its calls.

    Each call is timed when the model makes it, with its tensors, so under the same autocast and grad mode. Calls that
    differ in nothing that takes time are timed once. The layers come in the order of their first calls.

    `example`: as for `convert`, whose documentation says what the pass leaves behind. Raises what the model raises, and
    ValueError if it is lazy.
    """
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("fastest_on: the model has lazy layers without parameters yet; run it once before")
    known: dict[Any, tuple[dict[str, Seconds], str]] = {}
    found: dict[str, LayerTime] = {}

    def record(name: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = exchangeable(module)
        assert layer is not None
        key = _signature(module, args, kwargs)
        if key not in known:
            known[key] = _time_call(module, layer, args, kwargs, seconds)
        times, refusal = known[key]
        before = found.get(name, LayerTime(name, layer.__name__, 0, Seconds(0, 0), Seconds(0, 0)))
        theirs, ours = (_add(getattr(before, library), times[library]) for library in LIBRARIES)
        found[name] = LayerTime(name, layer.__name__, before.calls + 1, theirs, ours, before.refusal or refusal)

    args, kwargs = arguments(example)
    hooks: list[RemovableHandle] = []
    try:
        for name, module in model.named_modules():
            if exchangeable(module):
                hooks.append(module.register_forward_pre_hook(partial(record, name), with_kwargs=True))
        with _undisturbed(model):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def describe(layers: Sequence[LayerTime]) -> list[str]:
    """The times as a table with a line for the sum of them."""
    header = ("milliseconds", "", "torch: forward", "backward", "fastconv: forward", "backward", "runs on")
    rows: list[tuple[str, ...]] = [header]
    rows += [
        (
            layer.name or "(the model)",
            layer.layer + (f" x{layer.calls}" if layer.calls > 1 else ""),
            *(_milliseconds(time) for time in (*layer.torch, *layer.fastconv)),
            "torch" if layer.reason_to_keep else "fastconv",
        )
        for layer in layers
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  "
        + "  ".join(
            cell.rjust(width) if 2 <= i < 6 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    theirs, ours = (sum(getattr(layer, library).total for layer in layers) for library in LIBRARIES)
    chosen = sum((layer.torch if layer.reason_to_keep else layer.fastconv).total for layer in layers)
    lines.append(
        f"  All of these: {_milliseconds(theirs)} on torch, {_milliseconds(ours)} on fastconv, "
        f"{_milliseconds(chosen)} each on the faster."
    )
    return [line.rstrip() for line in lines]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if 0 < seconds < float("inf") else "-"


def _add(a: Seconds, b: Seconds) -> Seconds:
    return Seconds(a.forward + b.forward, a.backward + b.backward)


def _time_call(
    module: torch.nn.Module, layer: type[torch.nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float
) -> tuple[dict[str, Seconds], str]:
    """The medians of each library, and why fastconv refuses the call if it does."""
    module = _detached(module)
    args, kwargs = tuple(map(_leaf, args)), {name: _leaf(value) for name, value in kwargs.items()}
    wanted = [tensor for tensor in (*args, *kwargs.values(), *_weights(module)) if _needs_gradient(tensor)]
    work: dict[tuple[str, str], Callable[[], Any]] = {}
    refusal = ""
    for library, cls in zip(LIBRARIES, (layer, FAST[layer]), strict=True):
        forward = partial(_as_class(module, cls).forward, *args, **kwargs)
        try:
            result = forward()
        except (RuntimeError, TypeError, ValueError) as error:  # NotImplementedError is a RuntimeError
            refusal = str(error).partition("\n")[0] if library == "fastconv" else refusal
            continue
        work[library, "forward"] = forward
        y = result[0] if isinstance(result, tuple) else result
        if wanted and y.requires_grad:
            work[library, "backward"] = partial(
                torch.autograd.grad, y, wanted, torch.ones_like(y), retain_graph=True, allow_unused=True
            )
    if any(isinstance(tensor, Tensor) and tensor.is_cuda for tensor in (*args, *kwargs.values())):
        work = {key: partial(_finished, function) for key, function in work.items()}
    medians = {key: statistics.median(samples) for key, samples in interleave(work, seconds).items()}
    times = {
        library: Seconds(medians[library, "forward"], medians.get((library, "backward"), 0.0))
        if (library, "forward") in medians
        else Seconds(float("inf"), 0.0)
        for library in LIBRARIES
    }
    return times, refusal


def _finished(function: Callable[[], Any]) -> Any:
    """The result when it is there: a GPU's kernels go on after the call."""
    result = function()
    torch.cuda.synchronize()
    return result


def _detached(module: torch.nn.Module) -> torch.nn.Module:
    """A module of the same class on the same memory, whose gradients concern nobody else, nor any hook."""
    copy = object.__new__(type(module))
    copy.__dict__.update({name: _leaf(value) for name, value in vars(module).items()})
    copy.__dict__["_parameters"] = {name: _leaf(value) for name, value in module._parameters.items()}
    return copy


def _as_class(module: torch.nn.Module, cls: type[torch.nn.Module]) -> torch.nn.Module:
    """A module that shares everything with `module` but its class."""
    copy = object.__new__(type(module))
    copy.__dict__.update(vars(module))
    change_class(copy, cls)
    return copy


def _weights(module: torch.nn.Module) -> Iterable[Tensor]:
    """What the layer computes with; weight_norm and pruning keep a computed weight as a plain attribute."""
    return (*module.parameters(), *(value for value in vars(module).values() if isinstance(value, Tensor)))


def _leaf(value: Any) -> Any:
    """A tensor as the start of a graph of its own, on the same memory; anything else as it is."""
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _needs_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _signature(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All that the time of a call depends on."""
    settings = {name: value for name, value in vars(module).items() if isinstance(value, int | float | str | tuple)}
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")]
    tensors = [_tensor_signature(value) for value in (*args, *kwargs.values(), *_weights(module))]
    return type(module), repr((settings, modes, autocast, list(kwargs), tensors))


def _tensor_signature(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return tuple(value.shape), value.stride(), value.dtype, value.device, value.requires_grad


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model, with tensors of their own."""
    if isinstance(example, dict):
        return (), _copy(example)
    return _copy(example if type(example) is tuple else (example,)), {}


def _copy(value: Any) -> Any:
    """The same with copies of the tensors in it, down through dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copy, value))
    return value


@contextmanager
def _undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Puts random numbers and buffers back to what they were: batch statistics, the iterations of spectral_norm."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    module._buffers[name] = buffer
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
