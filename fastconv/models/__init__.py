"""The classic convolutional networks on fastconv's layers, by name (`create_model`) or by builder (`lenet5`)."""

from fastconv.models.lenet import LeNet5, lenet5, lenet5_modern
from fastconv.models.registry import ModelEntry, create_model, list_models, model_entry, register_model

__all__ = [
    "LeNet5",
    "ModelEntry",
    "create_model",
    "lenet5",
    "lenet5_modern",
    "list_models",
    "model_entry",
    "register_model",
]
