"""What torchvision's models consist of, for the tests: `python tests/torchvision_models.py` writes it beside this file.

It needs torchvision, which the tests do not: they compare fastconv's models with the file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_suffix(".json")
NAMES = (
    *("alexnet", "googlenet", "densenet121", "densenet161", "densenet169", "densenet201", "resnet18", "resnet34"),
    *("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "fcn_resnet50"),
)
OPTIONS = {"fcn_resnet50": {"aux_loss": True}}


def describe(model: torch.nn.Module) -> dict[str, Any]:
    """Numbers of parameters, in all and in each child, and a digest of the names, shapes and dtypes of the state."""
    state = model.state_dict()
    lines = [f"{name} {list(value.shape)} {value.dtype}\n" for name, value in state.items()]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "children": {name: sum(p.numel() for p in child.parameters()) for name, child in _parts(model)},
        "tensors": len(state),
        "digest": hashlib.sha256("".join(lines).encode()).hexdigest(),
    }


def _parts(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """Children, and theirs where a child is only a list of them, as far as they have parameters."""
    parts = []
    for name, child in model.named_children():
        inner = child.named_children() if name in ("features", "backbone") else [("", child)]
        parts += [(f"{name}.{part}".rstrip("."), module) for part, module in inner]
    return [(name, part) for name, part in parts if any(True for _ in part.parameters())]


def main() -> None:
    from torchvision import models

    described = {}
    with torch.device("meta"):
        for name in NAMES:
            options = OPTIONS.get(name, {})
            if name == "googlenet":
                options = {"init_weights": False}
            if name == "fcn_resnet50":
                model = models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, **options)
            else:
                model = getattr(models, name)(weights=None, **options)
            described[name] = describe(model)
    entries = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in described.items()]
    FILE.write_text("{\n" + ",\n".join(entries) + "\n}\n")


if __name__ == "__main__":
    main()
