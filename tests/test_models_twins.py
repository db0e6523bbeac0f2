"""Every family in float64 beside its twin of torch's layers: the same outputs, gradients and running statistics."""

import copy

import pytest
import torch
from test_models import outputs
from torch.testing import assert_close

import fastconv
from fastconv import models

SMALL = {"num_classes": 5}
TINY_FCN = {"width": 1 / 32, **SMALL}
CASES = [
    ("lenet5_modern", {}, (3, 1, 32, 32)),
    ("fashion_cnn", {}, (2, 1, 28, 28)),
    ("resnet20", {}, (3, 3, 24, 20)),
    ("resnet18", {**SMALL, "small_input": True}, (2, 3, 16, 16)),
    ("resnet18", SMALL, (2, 3, 64, 48)),
    ("resnext50_32x4d", SMALL, (2, 3, 40, 40)),
    ("vgg11_bn", {**SMALL, "small_input": True}, (2, 3, 32, 32)),
    ("mini_vgg", {}, (2, 3, 32, 32)),
    ("googlenet", {**SMALL, "small_input": True, "transform_input": True}, (2, 3, 20, 20)),
    ("mini_googlenet", {}, (2, 3, 28, 28)),
    ("densenet121", SMALL, (2, 3, 36, 36)),
    ("mini_densenet", {"memory_efficient": True, "dropout": 0.2}, (2, 3, 32, 32)),
    ("fcn32s", {**TINY_FCN, "padding": "same"}, (1, 3, 70, 50)),
    ("fcn16s", TINY_FCN, (1, 3, 40, 30)),
    ("fcn8s", {**TINY_FCN, "padding": "same"}, (2, 3, 45, 70)),
    ("fcn8s", {**TINY_FCN, "padding": "same", "batch_norm": True}, (2, 3, 45, 70)),
    ("fcn_resnet50", {**SMALL, "aux_loss": True}, (2, 3, 33, 40)),
    ("text_cnn", {"vocabulary": 50}, (3, 12)),
    ("cnn1d", {"pooling": 2}, (3, 1, 50)),
]


def run(model, x):
    """Outputs, gradients of a sum of their squares with respect to everything, and the buffers afterwards."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_(x.is_floating_point())
    y = outputs(model(x))
    sum(values.square().sum() for values in y).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    if x.is_floating_point():
        gradients["input"] = x.grad
    return y, gradients, dict(model.named_buffers())


def assert_twins(model, x):
    for parameter in model.parameters():
        if not parameter.any():  # such as scoring layers, which would hide whatever comes before them
            torch.nn.init.normal_(parameter)
    twin = fastconv.revert(copy.deepcopy(model))
    twin.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(twin.state_dict(), strict=True)
    ours, theirs = run(model, x), run(twin, x)
    assert len(ours[0]) == len(theirs[0])
    assert_close(ours[0], theirs[0])
    # Some gradients are zero but for rounding, such as those of biases before a normalisation.
    largest = max(gradient.abs().max().item() for gradient in theirs[1].values())
    assert largest > 0
    assert_close(ours[1], theirs[1], rtol=1e-7, atol=1e-9 * largest)
    assert_close(ours[2], theirs[2])
    with torch.no_grad():
        assert_close(outputs(model.eval()(x)), outputs(twin.eval()(x)))


@pytest.mark.parametrize(("name", "options", "shape"), CASES)
def test_twin(name, options, shape):
    model = models.create_model(name, **options).double()
    if name == "text_cnn":
        x = torch.randint(50, shape)
    else:
        x = torch.randn(shape, dtype=torch.float64)
    assert_twins(model, x)


def test_twin_of_alexnet_2012():
    """Without the linear layers, which are torch's."""
    assert_twins(models.alexnet_2012()[:15].double(), torch.randn(1, 3, 99, 115, dtype=torch.float64))


def test_twin_of_alexnet():
    assert_twins(models.alexnet().features.double(), torch.randn(2, 3, 99, 67, dtype=torch.float64))


def test_twin_of_googlenet_2014():
    """Its auxiliary heads fit 224x224 only; so the modules one by one, on small maps."""
    model = models.googlenet_2014(num_classes=5).double()
    front = torch.nn.Sequential(model.conv1, model.maxpool1, model.norm1, model.conv2, model.conv3, model.norm2)
    assert_twins(front, torch.randn(2, 3, 40, 40, dtype=torch.float64))
    assert_twins(model.inception4a, torch.randn(2, 480, 9, 7, dtype=torch.float64))
    assert_twins(model.aux1, torch.randn(2, 512, 14, 14, dtype=torch.float64))


def test_the_twin_is_torchs():
    model = fastconv.revert(models.resnet18(num_classes=5))
    assert type(model.conv1) is torch.nn.Conv2d
    assert type(model.maxpool) is torch.nn.MaxPool2d
    assert type(model.avgpool) is torch.nn.AdaptiveAvgPool2d
