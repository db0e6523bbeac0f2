"""The backends that the operators' tests run on, from the same functions: the CPU, the simulated GPU, a GPU.

A test marked `backends` runs on each of them, as the parameter `backend`; the autouse fixture of that name, in
conftest.py, puts calls there, and `place` puts tensors where the backend has them. FASTCONV_BACKENDS chooses some of
"cpu", "simt", "cuda"; without it, those that are present.

The simulation runs a hundred million multiply-adds a second, those of a tile's padding included: `is_spared` leaves out
what would take it more than about half a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import ceil, prod
from typing import Any

import cases
import torch
from oracle import conv_size
from tensors import every_other

import fastconv
from fastconv import device

NAMES = tuple(
    os.environ["FASTCONV_BACKENDS"].split(",")
    if "FASTCONV_BACKENDS" in os.environ
    else ("cpu", "simt", *(("cuda",) if device.CUDA and torch.cuda.is_available() else ()))
)
current = "cpu"


def tf32(allowed: bool) -> AbstractContextManager[None]:
    """torch's switch, set as is still allowed when its own tests have been imported."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=allowed)


@contextmanager
def calls_go_to(name: str) -> Iterator[None]:
    """Calls inside the context run on a backend, with float32 strictly in float32."""
    global current
    current = name
    try:
        with tf32(False), fastconv.simulate_cuda() if name == "simt" else nullcontext():
            yield
    finally:
        current = "cpu"


def place(t: torch.Tensor) -> torch.Tensor:
    return t.cuda() if current == "cuda" else t


def native() -> Any:
    """The current backend's native functions, by the names and arguments of fastconv._C."""
    return device.target_of(place(torch.empty(0))).native


# ---- what the simulation is spared

MOST_PADDED_PRODUCTS = 40_000_000
MOST_POOLED = 20_000
GRADIENTS = ("conv2d", "conv_transpose1d", "conv_transpose2d")  # their difference quotients take thousands of calls
TILE, DEPTH = 64, 16


def _tiles(size: int, tile: int = TILE) -> int:
    return ceil(size / tile) * tile


def padded_products(n: int, c: int, k: int, groups: int, taps: int, inputs: int, outputs: int) -> int:
    """Multiply-adds of a matrix product in tiles of 64 x 64 x 16, by group and tap, of a convolution and its gradients.

    `inputs` and `outputs` are positions of an image. Those of the weight gradient take thrice the time.
    """
    c, k = c // groups, k // groups
    forward = _tiles(n * outputs) * _tiles(k) * _tiles(c, DEPTH)
    input_gradient = _tiles(n * inputs) * _tiles(c) * _tiles(k, DEPTH)
    weight_gradient = _tiles(n * outputs, DEPTH) * _tiles(k) * _tiles(c)
    return groups * taps * (forward + input_gradient + 3 * weight_gradient)


def _cost(case: object) -> float:
    """As a part of what is allowed."""
    if isinstance(case, cases.Conv):
        sizes = zip((case.h, case.w), (case.r, case.s), case.stride, case.padding, case.dilation, strict=True)
        outputs = prod(conv_size(*axis) for axis in sizes)
        taps = case.r * case.s
        products = padded_products(case.n, case.c, case.k, case.groups, taps, case.h * case.w, outputs)
        return products / MOST_PADDED_PRODUCTS
    if isinstance(case, cases.Transposed):
        outputs, taps = case.h * case.w, case.r * case.s
        inputs = outputs * prod(case.stride)
        return padded_products(case.n, case.k, case.c, case.groups, taps, inputs, outputs) / MOST_PADDED_PRODUCTS
    if isinstance(case, (cases.Pool, cases.Adaptive)):
        return case.n * case.c * case.h * case.w / MOST_POOLED
    if isinstance(case, cases.Lrn):
        return prod(case.shape) / MOST_POOLED
    return getattr(case, "simulated_cost", 0.0)


def is_spared(parameters: dict[str, Any]) -> bool:
    """Whether a test with these parameters is not to run: too large, or the same as another on this backend."""
    backend = parameters.get("backend", "cpu")
    if backend == "cpu":
        return False
    if parameters.get("threads", 1) != 1:
        return True
    return backend == "simt" and (
        parameters.get("arrange") is every_other
        or parameters.get("operator") in GRADIENTS
        or any(_cost(value) > 1 for value in parameters.values())
    )
