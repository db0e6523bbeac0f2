"""Whether fastconv's result is torch's: what is timed must be right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

# Relative to the largest element of torch's result. Far above rounding: it tells a wrong result, not an inexact one.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2, "tf32": 1e-2}


def tensors(result: Any) -> list[Tensor]:
    """The floating-point tensors in what an operator or a model returns."""

    def walk(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                yield value
        elif isinstance(value, dict):
            yield from walk(list(value.values()))
        elif isinstance(value, list | tuple):
            for item in value:
                yield from walk(item)

    return list(walk(result))


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference between elements of two results, relative to the largest element of `theirs`."""
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)
