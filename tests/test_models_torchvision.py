"""Where torchvision has the model: the same names, shapes and numbers of parameters, and the same initialisation.

What torchvision has was written down from its own modules by tests/torchvision_models.py.
"""

import json
import math

import pytest
import torch
import torchvision_models
from test_models import meta

from fastconv import models

EXPECTED = json.loads(torchvision_models.FILE.read_text())


def test_nothing_is_left_out():
    assert set(EXPECTED) == set(torchvision_models.NAMES)
    assert set(EXPECTED) <= set(models.list_models())


@pytest.mark.parametrize("name", torchvision_models.NAMES)
def test_state(name):
    """The same names, shapes and dtypes in the same order: so each loads the other's state with strict=True."""
    described = torchvision_models.describe(meta(name, **torchvision_models.OPTIONS.get(name, {})))
    expected = EXPECTED[name]
    assert described["children"] == expected["children"]
    assert described["parameters"] == expected["parameters"]
    assert described["tensors"] == expected["tensors"]
    assert described["digest"] == expected["digest"]


def test_the_digest_sees_a_name_a_shape_and_a_dtype():
    digests = {
        torchvision_models.describe(model)["digest"]
        for model in (
            torch.nn.Sequential(torch.nn.Linear(2, 3)),
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 3)),
            torch.nn.Sequential(torch.nn.Linear(3, 2)),
            torch.nn.Sequential(torch.nn.Linear(2, 3).double()),
        )
    }
    assert len(digests) == 4


def test_published_densenets_load():
    """The published files have `norm.1` for `norm1`."""
    model = models.mini_densenet()
    state = {}
    for name, value in model.state_dict().items():
        for layer in ("norm1", "norm2", "conv1", "conv2"):
            name = name.replace(f".{layer}.", f".{layer[:-1]}.{layer[-1]}.")
        state[name] = value.clone()
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    other = models.mini_densenet()
    other.load_state_dict(state, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


# ---- initialisation: (mean, standard deviation) by torchvision's rules


def fan_in(weight):
    return weight[0].numel()


def fan_out(weight):
    return weight.shape[0] * weight[0, 0].numel()


def drawn(tensor, std):
    """Whether these may be values of mean 0 and this deviation: five standard errors are allowed."""
    count = tensor.numel()
    assert abs(tensor.mean()) < 5 * std / math.sqrt(count)
    assert abs(tensor.std() / std - 1) < 5 / math.sqrt(count)


def test_resnet_initialisation():
    model = models.resnet18(num_classes=10)
    drawn(model.conv1.weight, math.sqrt(2 / fan_out(model.conv1.weight)))
    drawn(model.layer2[0].downsample[0].weight, math.sqrt(2 / 128))
    drawn(model.fc.weight, 1 / math.sqrt(3 * 512))
    assert model.layer1[0].bn2.weight.eq(1).all()
    assert models.resnet18(num_classes=10, zero_init_residual=True).layer1[0].bn2.weight.eq(0).all()
    assert models.resnet18(num_classes=10, zero_init_residual=True).layer1[0].bn1.weight.eq(1).all()


def test_vgg_initialisation():
    model = models.vgg11(small_input=True)
    drawn(model.features[3].weight, math.sqrt(2 / fan_out(model.features[3].weight)))
    drawn(model.classifier[-1].weight, 0.01)
    assert model.features[3].bias.eq(0).all()
    assert model.classifier[-1].bias.eq(0).all()


def test_googlenet_initialisation():
    model = models.googlenet(num_classes=10)
    drawn(model.conv3.conv.weight, 0.01)
    drawn(model.fc.weight, 0.01)
    assert model.fc.bias.abs().max() > 0


def test_densenet_initialisation():
    model = models.densenet121(num_classes=10)
    layer = model.features.denseblock2.denselayer3
    drawn(layer.conv2.weight, math.sqrt(2 / fan_in(layer.conv2.weight)))
    drawn(model.classifier.weight, 1 / math.sqrt(3 * 1024))
    assert model.classifier.bias.eq(0).all()


def test_alexnet_initialisation():
    model = models.AlexNet(10)
    drawn(model.features[3].weight, 1 / math.sqrt(3 * fan_in(model.features[3].weight)))
