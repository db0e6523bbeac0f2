"""Weights that no longer change: what kernels make of them before a convolution is kept from call to call.

Nothing is kept unless `freeze` asks for it. torch counts most changes of a tensor, but none by way of `.data`,
`.numpy()` or another process, and training loops are full of those (averaged weights, initialisers): results of weights
as they were would go unnoticed.
"""

import weakref
from collections.abc import Hashable, Iterator
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["freeze", "unfreeze"]

ModelT = TypeVar("ModelT", bound="torch.nn.Module | Tensor")

FORMS = 8  # kept of one weight, one for each layout and algorithm: more than a program meets


class Frozen:
    """A weight as it was when frozen, and the forms that kernels have made of it since."""

    __slots__ = ("address", "forms", "version", "weight")

    def __init__(self, weight: Tensor) -> None:
        key = id(weight)
        self.weight = weakref.ref(weight, lambda _: weights.pop(key, None))
        self.address, self.version = weight.data_ptr(), weight._version
        self.forms: dict[Hashable, Tensor] = {}


weights: dict[int, Frozen] = {}  # by the identity of the weight, while it lives


def packed(w: Tensor, packing: tuple[Hashable, Any], scratch: Tensor | None) -> Tensor | None:
    """What a plan makes of `w`, if that is frozen. `packing`: a key, the same where the result is, and the plan."""
    key, plan = packing
    frozen = weights.get(id(w))
    if frozen is None or frozen.weight() is not w:
        return None
    address = w.data_ptr()
    if w._version != frozen.version or address != frozen.address:
        weights.pop(id(w), None)
        return None
    form = frozen.forms.get(key)
    if form is None:  # in two threads at once perhaps: then one of the two equal forms stays
        if len(frozen.forms) >= FORMS:
            return None
        form = torch.empty(plan.packed_bytes, dtype=torch.uint8, device="cpu")
        plan.pack(w, form, scratch)
        frozen.forms[key] = form
    return form


def _weights(model: torch.nn.Module | Tensor) -> Iterator[Tensor]:
    """Those that could be a convolution's, on the CPU."""
    tensors = (model,) if isinstance(model, Tensor) else chain(model.parameters(), model.buffers())
    for t in tensors:
        if t.dim() in (3, 4) and t.device.type == "cpu" and type(t) in (Tensor, torch.nn.Parameter):
            yield t


def freeze(model: ModelT) -> ModelT:
    """Promise that the weights of `model` stay as they are, so that calls need not prepare them again; returns it.

    Convolutions on the CPU bring their weights into another order or, for Winograd's algorithm, transform them, before
    they compute. For a frozen weight this is done once, in the first call that needs it. Results have the same bits as
    without. It matters where a weight is large and the image small: batches of one, late layers. What is kept takes as
    much memory as the weight (for Winograd's algorithm four times as much) and goes when the weight goes.

    A weight that an optimizer, `load_state_dict`, `copy_` or any other operation changes is not frozen from then on;
    freeze the model again after such a change. Not noticed are changes that torch does not count: through
    `weight.data`, `weight.numpy()`, or memory shared with another process. Call `unfreeze` before those.

    Freezing belongs to the tensors, not to the modules: a copy of a model is not frozen, nor is a pickled one or one
    whose weights are computed in each call (weight_norm). Gradients go on to work.

    Args:
        model: a module, all of whose parameters and buffers are frozen, or one tensor.

    Raises:
        ValueError: a weight was made in `torch.inference_mode`: torch counts no changes of it.
    """
    chosen = list(_weights(model))
    if any(weight.is_inference() for weight in chosen):
        raise ValueError("freeze: torch counts no changes of weights made in inference_mode; make them outside of it")
    weights.update((id(weight), Frozen(weight)) for weight in chosen)
    return model


def unfreeze(model: ModelT) -> ModelT:
    """Undo `freeze`, and free what was kept for it; returns `model`."""
    for weight in _weights(model):
        weights.pop(id(weight), None)
    return model
