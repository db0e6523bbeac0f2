"""Who is timed: each peer makes of a case, a pass and a layout a function of no arguments that does the work once.

All peers get the same values. A gradient is what torch.autograd.grad does, over a graph recorded once, for those inputs
whose gradient is asked for: no other gradient is computed, and each call gives fresh tensors. A training step is the
forward pass and all gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

import fastconv.functional
from fastconv.bench.layers import ADAPTIVE_POOLINGS, Case

LAYOUTS = ("channels_first", "channels_last")
_FORMATS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}

Work = Callable[[], Any]


class Peer(Protocol):
    """Whoever can do some of the cases."""

    @property
    def name(self) -> str: ...

    def does(self, case: Case, pass_: str, layout: str, dtype: torch.dtype) -> bool:
        """Whether it takes part."""

    def prepare(self, case: Case, pass_: str, layout: str, dtype: torch.dtype = ...) -> Work:
        """The pass as a function of no arguments that gives the result."""


@dataclass(frozen=True)
class FunctionalPeer:
    """A module with the functions of torch.nn.functional."""

    name: str
    functional: Any
    device: str = "cpu"

    def layouts(self, case: Case) -> tuple[str, ...]:
        return LAYOUTS if case.dimensions == 2 else LAYOUTS[:1]

    def does(self, case: Case, pass_: str, layout: str, dtype: torch.dtype) -> bool:
        # torch has no LRN of bfloat16, so there is nothing to compare with.
        lacking = case.operator == "local_response_norm" and dtype is torch.bfloat16
        return layout in self.layouts(case) and not lacking

    def operator(self, case: Case) -> Callable[..., torch.Tensor]:
        """The case's operator with its arguments, as a function of the input, and of weight and bias."""
        arguments = {key: value for key, value in case.parameters.items() if key != "bias"}
        if case.operator == "local_response_norm":
            arguments["size"] = case.kernel[0]
        elif case.operator in ADAPTIVE_POOLINGS:
            arguments["output_size"] = case.kernel
        elif not case.is_convolution:
            arguments["kernel_size"] = case.kernel
        return partial(getattr(self.functional, case.operator), **arguments)

    def prepare(self, case: Case, pass_: str, layout: str, dtype: torch.dtype = torch.float32) -> Work:
        """Once through `pass_`: one of the case's; the weight gradient includes the bias's."""
        operator, tensors = self.operator(case), inputs(case, layout, dtype, self.device)
        if pass_ == "forward":
            return partial(operator, *tensors)
        first, last = {"weight_gradient": (1, None), "training_step": (0, None)}.get(pass_, (0, 1))
        wanted = tensors[first:last]
        for tensor in wanted:
            tensor.requires_grad_()
        y = operator(*tensors)
        gy = torch.empty_like(y).copy_(_values(y.shape, 3, self.device))
        if pass_ == "training_step":
            return lambda: torch.autograd.grad(operator(*tensors), wanted, gy)
        return lambda: torch.autograd.grad(y, wanted, gy, retain_graph=True)


def inputs(case: Case, layout: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[torch.Tensor]:
    """Input, and weight and bias of a convolution, the same values for every peer and layout."""
    shapes: list[tuple[int, ...]] = [case.shape]
    if case.is_convolution:
        shapes += [case.weight_shape] + [(case.out_channels,)] * case.parameters["bias"]
    tensors = []
    for seed, shape in enumerate(shapes):
        tensor = _values(shape, seed, device).to(dtype)
        if len(shape) == 4:
            tensor = tensor.contiguous(memory_format=_FORMATS[layout])
        tensors.append(tensor)
    return tensors


def _values(shape: tuple[int, ...], seed: int, device: str) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


TORCH = FunctionalPeer("torch", torch.nn.functional)
FASTCONV = FunctionalPeer("fastconv", fastconv.functional)
PEERS = (TORCH, FASTCONV)
