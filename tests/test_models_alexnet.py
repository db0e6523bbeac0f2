"""AlexNet against the numbers of the 2012 paper, and its two towers against the grouped form."""

import pytest
import torch
from test_models import meta
from torch.testing import assert_close

from fastconv import models, nn


def shapes(table):
    return {row.name: row.output[1:] for row in table}


def test_numbers_of_the_paper():
    model = meta("alexnet_2012").eval()
    assert sum(p.numel() for p in model.parameters()) == 60_965_224
    table = models.summary(model, input_data=torch.empty(1, 3, 227, 227, device="meta"))
    sizes = shapes(table)
    assert sizes["conv1"] == (96, 55, 55)
    assert sizes["pool1"] == (96, 27, 27)
    assert sizes["pool2"] == (256, 13, 13)
    assert sizes["pool5"] == (256, 6, 6)
    # Section 3.5: neurons of the layers (the paper's 253,440 for the first are 55 · 48 · 96).
    neurons = [torch.Size(sizes[f"conv{i}"]).numel() for i in range(1, 6)]
    assert neurons == [55 * 55 * 96, 186_624, 64_896, 64_896, 43_264]
    assert [sizes[name] for name in ("fc6", "fc7", "fc8")] == [(4096,), (4096,), (1000,)]
    # Section 3.5: the kernels' sizes.
    kernels = {name: tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")}
    assert kernels["conv1.weight"] == (96, 3, 11, 11)
    assert kernels["conv2.weight"] == (256, 48, 5, 5)
    assert kernels["conv3.weight"] == (384, 256, 3, 3)
    assert kernels["conv4.weight"] == (384, 192, 3, 3)
    assert kernels["conv5.weight"] == (256, 192, 3, 3)


def test_order_of_the_paper():
    names = [name for name, _ in meta("alexnet_2012").named_children()]
    assert names[:8] == ["conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "norm2", "pool2"]
    assert [name for name in names if name.startswith(("norm", "pool", "drop"))] == [
        *("norm1", "pool1", "norm2", "pool2", "pool5", "drop6", "drop7")
    ]


def test_normalisation_of_the_paper_and_of_others():
    x = torch.rand(1, 7, 2, 2, dtype=torch.float64) * 30
    for options, (k, r, alpha, beta) in (
        ({}, (2.0, 2, 1e-4, 0.75)),
        ({"lrn_k": 1, "lrn_r": 1, "lrn_alpha": 2e-5, "lrn_beta": 0.5}, (1.0, 1, 2e-5, 0.5)),
    ):
        layer = meta("alexnet_2012", **options).norm1
        assert isinstance(layer, nn.LocalResponseNorm)
        for c in range(7):
            window = x[:, max(0, c - r) : c + r + 1]
            assert_close(layer(x)[:, c], x[:, c] / (k + alpha * window.square().sum(1)) ** beta)


def test_initialisation_of_the_paper():
    model = models.alexnet_2012(num_classes=5)
    biases = {name: set(p.tolist()) for name, p in model.named_parameters() if name.endswith("bias")}
    ones = {name for name, values in biases.items() if values == {1.0}}
    assert ones == {"conv2.bias", "conv4.bias", "conv5.bias", "fc6.bias", "fc7.bias"}
    assert all(values == {0.0} for name, values in biases.items() if name not in ones)
    for name, p in model.named_parameters():
        if name.endswith("weight"):
            assert abs(p.std() / 0.01 - 1) < 0.05


@pytest.fixture(scope="module")
def towers():
    """The grouped form with weights that let signals through, and the towers, both on the CPU."""
    torch.manual_seed(0)
    model = models.alexnet_2012(num_classes=7).eval()
    for name, p in model.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(p)
        else:
            torch.nn.init.normal_(p, std=0.1)
    torch.manual_seed(1)  # other weights, were they not taken over
    split = models.alexnet_2012(num_classes=7, devices=("cpu", "cpu")).eval()
    split.load_state_dict(model.state_dict(), strict=True)
    return model, split


def test_towers_hold_half_each(towers):
    model, split = towers
    for tower in split.towers:
        counts = {name: p.shape[0] for name, p in tower.named_parameters() if name.endswith("weight")}
        assert list(counts.values()) == [48, 128, 192, 192, 128, 2048, 2048]
        assert tower.conv2.groups == tower.conv4.groups == 1
    assert sum(p.numel() for p in split.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_towers_give_the_same_bits(towers, dtype):
    model, split = (part.to(dtype) for part in towers)
    x = torch.randn(2, 3, 227, 227, dtype=dtype)
    with torch.no_grad():
        maps = []
        model.pool5.register_forward_hook(lambda module, args, y: maps.append(y))
        for tower in split.towers:
            tower.pool5.register_forward_hook(lambda module, args, y: maps.append(y))
        expected, got = model(x), split(x)
    for module in (model.pool5, *(tower.pool5 for tower in split.towers)):
        module._forward_hooks.clear()
    grouped, left, right = maps
    assert torch.equal(torch.cat([left, right], 1), grouped)
    assert grouped.std() > 0.1
    # Behind them torch's linear layers, which choose their kernels by the number of units.
    assert_close(got, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-6)


def test_towers_have_the_same_gradients(towers):
    model, split = (part.double() for part in towers)
    x = torch.randn(1, 3, 227, 227, dtype=torch.float64)
    for part in (model, split):
        part.zero_grad()
        part(x).square().sum().backward()
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"):
        for name in ("weight", "bias"):
            halves = [getattr(getattr(tower, layer), name).grad for tower in split.towers]
            expected = getattr(getattr(model, layer), name).grad
            assert_close(torch.cat(halves), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
    assert_close(split.fc8.weight.grad, model.fc8.weight.grad)


def test_towers_have_the_grouped_state(towers):
    model, split = towers
    expected, state = model.state_dict(), split.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    meta("alexnet_2012", num_classes=7).load_state_dict(state, strict=True, assign=True)
    wrapped = torch.nn.ModuleDict({"net": split})
    assert [name.removeprefix("net.") for name in wrapped.state_dict()] == list(expected)
    wrapped.load_state_dict(wrapped.state_dict(), strict=True)
    assert all(torch.equal(value, expected[name]) for name, value in split.state_dict().items())


def test_towers_refuse():
    with pytest.raises(ValueError, match="each of the 2 towers"):
        meta("alexnet_2012", devices=("cpu",))
    with pytest.raises(ValueError, match="odd number"):
        meta("alexnet_2012", lrn_r=-1)
    split = meta("alexnet_2012", num_classes=2, devices=("meta", "meta"))
    with pytest.raises(RuntimeError, match=r"conv2\.weight"):
        split.load_state_dict({"conv1.weight": torch.empty(96, 3, 11, 11, device="meta")})
