"""The models by name: every family registers its builders here; `create_model` and `list_models` find them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

__all__ = ["ModelEntry", "create_model", "list_models", "model_entry", "register_model"]

Builder = TypeVar("Builder", bound=Callable[..., torch.nn.Module])

_ENTRIES: dict[str, ModelEntry] = {}


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be created by name.

    Attributes:
        name: what `create_model` takes, the builder's name.
        builder: makes the model; all builders take `num_classes` as a keyword.
        input_shape: one input without the batch dimension, such as (1, 32, 32).
        input_dtype: float32, or int64 for a model of token indices.
        summary: the first line of the builder's documentation.
    """

    name: str
    builder: Callable[..., torch.nn.Module]
    input_shape: tuple[int, ...]
    input_dtype: torch.dtype
    summary: str

    def example_input(self, batch: int = 1) -> torch.Tensor:
        """Zeros that the model accepts: [batch, *input_shape]."""
        return torch.zeros(batch, *self.input_shape, dtype=self.input_dtype)


def register_model(
    *, input_shape: tuple[int, ...], input_dtype: torch.dtype = torch.float32
) -> Callable[[Builder], Builder]:
    """Decorate a builder function, so that its model can be created by the function's name."""

    def register(builder: Builder) -> Builder:
        name = builder.__name__
        if name in _ENTRIES:
            raise ValueError(f"a model named {name} is registered already")
        summary = (builder.__doc__ or "").strip().partition("\n")[0]
        _ENTRIES[name] = ModelEntry(name, builder, input_shape, input_dtype, summary)
        return builder

    return register


def model_entry(name: str) -> ModelEntry:
    """What is registered under `name`; ValueError, with the names nearest to it, if nothing is."""
    entry = _ENTRIES.get(name)
    if entry is None:
        near = difflib.get_close_matches(name.lower(), _ENTRIES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "fastconv.models.list_models() lists them"
        raise ValueError(f"there is no model named {name!r}: {hint}")
    return entry


def create_model(name: str, **kwargs: Any) -> torch.nn.Module:
    """Build the model `name` with `kwargs` (`num_classes=10`, …), which its builder documents.

    Raises ValueError for an unknown name, and names those nearest to it.
    """
    return model_entry(name).builder(**kwargs)


def list_models(pattern: str = "*") -> list[str]:
    """The names of the models that match `pattern`, as for files (`"resnet*"`), in alphabetical order."""
    return sorted(fnmatch.filter(_ENTRIES, pattern))
