"""What holds for every model: its example input, its options, its state, and that its layers are fastconv's."""

import inspect

import pytest
import torch

import fastconv
from fastconv import models, nn


def outputs(y):
    """The tensors in what a model gives: one, a tuple or a dict."""
    if isinstance(y, torch.Tensor):
        return [y]
    return list(y.values()) if isinstance(y, dict) else list(y)


def meta(name, **options):
    with torch.device("meta"):
        return models.create_model(name, **options)


@pytest.mark.parametrize("name", models.list_models())
def test_every_model_takes_its_example(name):
    entry = models.model_entry(name)
    assert entry.summary
    with torch.device("meta"):
        x = entry.example_input(2)
        for model in (meta(name, num_classes=3).eval(), meta(name, num_classes=3).train()):
            for y in outputs(model(x)):
                assert y.shape[:2] == (2, 3)
    assert name in models.__all__


@pytest.mark.parametrize("name", models.list_models())
def test_channels(name):
    if "in_channels" not in inspect.signature(models.model_entry(name).builder).parameters:
        pytest.skip("not images or signals")
    _, *size = models.model_entry(name).input_shape
    assert meta(name, in_channels=2).eval()(torch.empty(1, 2, *size, device="meta")) is not None


@pytest.mark.parametrize("name", models.list_models())
def test_built_of_fastconv(name):
    """No convolution, pooling or normalisation layer is left to torch; `revert` leaves none to fastconv."""
    model, report = fastconv.convert(meta(name), report=True)
    assert report.converted == []
    assert report.kept == []
    layers = tuple(getattr(nn, layer) for layer in nn.__all__ if hasattr(torch.nn, layer))
    assert not any(isinstance(module, layers) for module in fastconv.revert(model).modules())
