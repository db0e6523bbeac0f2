"""The model registry and LeNet-5, against the numbers of the 1998 paper."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import fastconv
from fastconv import models, nn
from fastconv.models import lenet, registry


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ---- the registry


def test_create_and_list():
    assert {"lenet5", "lenet5_modern"} <= set(models.list_models())
    assert models.list_models() == sorted(models.list_models())
    assert models.list_models("lenet5_*") == ["lenet5_modern"]
    assert models.list_models("no such*") == []
    assert models.create_model("lenet5_modern", num_classes=7).output.out_features == 7


@pytest.mark.parametrize("name", ["lenet", "LeNet5", "lenet5modern"])
def test_unknown_name_gets_the_nearest(name):
    with pytest.raises(ValueError, match=f"no model named '{name}': did you mean .*lenet5"):
        models.create_model(name)


def test_unknown_name_like_nothing():
    with pytest.raises(ValueError, match="list_models"):
        models.create_model("qqqq")


def test_builder_is_registered_once(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", {})

    @models.register_model(input_shape=(7,), input_dtype=torch.int64)
    def tiny(num_classes=2):
        """A model for the test.

        More about it.
        """
        return torch.nn.Embedding(num_classes, 3)

    entry = models.model_entry("tiny")
    assert (entry.name, entry.summary, entry.builder) == ("tiny", "A model for the test.", tiny)
    assert models.create_model("tiny", num_classes=4)(entry.example_input(5)).shape == (5, 7, 3)
    with pytest.raises(ValueError, match="registered already"):
        models.register_model(input_shape=(7,))(tiny)


# ---- LeNet-5 as published


def test_parameters_of_the_paper():
    model = models.lenet5()
    counts = {name: parameters(child) for name, child in model.named_children() if parameters(child)}
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164}
    assert parameters(model) == 60000


def test_connections_of_the_paper():
    """Section II.B: 122,304 connections in C1, 5,880 in S2, 151,600 in C3, 2,000 in S4, 48,120 in C5."""
    model = models.lenet5()
    sizes = {}
    for name, child in model.named_children():
        child.register_forward_hook(lambda module, args, y, name=name: sizes.update({name: tuple(y.shape[1:])}))
    model(torch.zeros(1, 1, 32, 32))
    shapes = {name: sizes[name] for name in ("c1", "s2", "c3", "s4", "c5", "f6", "output")}
    assert shapes == {
        "c1": (6, 28, 28),
        "s2": (6, 14, 14),
        "c3": (16, 10, 10),
        "s4": (16, 5, 5),
        "c5": (120, 1, 1),
        "f6": (84,),
        "output": (10,),
    }
    assert parameters(model.c1) * 28 * 28 == 122304
    assert 6 * 14 * 14 * (4 + 1) == 5880
    assert parameters(model.c3) * 10 * 10 == 151600
    assert parameters(model.c5) == 48120


def test_connection_table_of_the_paper():
    table = lenet.C3_TABLE
    assert sum(map(len, table)) == 60
    assert [len(row) for row in table] == [3] * 6 + [4] * 9 + [6]

    def neighbours(row):
        return any({(first + i) % 6 for i in range(len(row))} == set(row) for first in range(6))

    assert all(neighbours(row) for row in table[:12])
    assert not any(neighbours(row) for row in table[12:15])
    assert len(set(table)) == 16
    assert models.lenet5().c3.table == table
    # Table I column by column: each map of S2 feeds ten maps of C3.
    assert [sum(i in row for row in table) for i in range(6)] == [10] * 6


def test_forward_is_the_papers_formula():
    """The whole model written out in torch, with the sum of the window that the paper has in its subsampling."""
    torch.manual_seed(1)
    model = models.lenet5().double()
    x = torch.randn(3, 1, 32, 32, dtype=torch.float64)

    def squash(a):
        return 1.7159 * torch.tanh(2 / 3 * a)

    def subsample(a, layer):
        total = a[..., ::2, ::2] + a[..., 1::2, ::2] + a[..., ::2, 1::2] + a[..., 1::2, 1::2]
        return total * (layer.weight / 4)[:, None, None] + layer.bias[:, None, None]

    y = squash(F.conv2d(x, model.c1.weight, model.c1.bias))
    y = squash(subsample(y, model.s2))
    y = squash(F.conv2d(y, model.c3.dense_weight(), model.c3.bias))
    y = squash(subsample(y, model.s4))
    y = squash(F.conv2d(y, model.c5.weight, model.c5.bias)).flatten(1)
    y = squash(F.linear(y, model.f6.weight, model.f6.bias))
    distances = torch.stack([(y - code).square().sum(1) for code in lenet.digit_codes().double()], 1)
    assert_close(model.distances(x), distances)
    assert_close(model(x), -distances)
    assert torch.equal(model(x).argmax(1), distances.argmin(1))


def test_initialisation_of_the_paper():
    model = models.lenet5()
    fan_ins = {"c1": 25, "c5": 400, "f6": 120}
    for name, fan_in in fan_ins.items():
        for parameter in getattr(model, name).parameters():
            assert parameter.abs().max() <= 2.4 / fan_in
        assert getattr(model, name).weight.abs().max() > 0.8 * 2.4 / fan_in
    row = 0
    for inputs, bias in zip(lenet.C3_TABLE, model.c3.bias, strict=True):
        bound = 2.4 / (25 * len(inputs))
        own = model.c3.weight[row : row + len(inputs)]
        assert 0.8 * bound < own.abs().max() <= bound
        assert bias.abs() <= bound
        row += len(inputs)
    assert model.s4.weight.abs().max() <= 2.4
    assert model.s4.bias.abs().max() <= 0.6


def test_squashing_function():
    squash = lenet.ScaledTanh()
    # Appendix A: f(1) = 1 and f(-1) = -1 to the digits of 1.7159.
    assert_close(squash(torch.tensor([-1.0, 0.0, 1.0])), torch.tensor([-1.0, 0.0, 1.0]), atol=1e-4, rtol=0)


def test_digit_codes():
    codes = lenet.digit_codes()
    assert codes.shape == (10, 84)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    distances = torch.cdist(codes, codes).square()
    distances.fill_diagonal_(torch.inf)
    # Any two differ in at least ten pixels; similar digits have similar codes.
    assert distances.min() >= 4 * 10
    assert distances[3].argmin() in (8, 9)
    drawing = codes[1].reshape(12, 7)
    assert drawing[-1].tolist() == [1, 1, 1, 1, 1, 1, -1]


def test_criterion_of_the_paper():
    scores = -torch.tensor([[1.0, 4.0, 9.0], [2.0, 0.5, 3.0]])
    target = torch.tensor([0, 2])
    y = -scores.double()
    expected = torch.stack(
        [
            y[n, t] + torch.log(torch.exp(torch.tensor(-0.7)).double() + torch.exp(-y[n]).sum())
            for n, t in enumerate(target)
        ]
    ).mean()
    assert_close(models.LeNet5.loss(scores, target, j=0.7).double(), expected, rtol=1e-5, atol=1e-6)
    assert_close(models.LeNet5.loss(scores, target, j=1e4), F.cross_entropy(scores, target))
    far = torch.full((1, 3), -1e4)
    assert torch.isfinite(models.LeNet5.loss(far, torch.tensor([1])))


def test_codes_of_ones_own():
    codes = torch.ones(26, 84)
    assert models.lenet5(num_classes=26, codes=codes)(torch.zeros(2, 1, 32, 32)).shape == (2, 26)
    assert models.lenet5(num_classes=4)(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    assert models.lenet5(in_channels=3)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="codes of your own"):
        models.lenet5(num_classes=11)
    with pytest.raises(ValueError, match=r"expected shape \[10, 84\]"):
        models.lenet5(codes=codes)


def test_codes_are_saved_but_not_trained():
    model = models.lenet5()
    assert "output.codes" in model.state_dict()
    assert not any(name.startswith("output") for name, _ in model.named_parameters())


# ---- the modern form


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_modern(activation, pooling):
    model = models.lenet5_modern(num_classes=7, in_channels=3, activation=activation, pooling=pooling)
    assert type(model.s2) is {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[pooling]
    assert type(model.act1) is {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[activation]
    x = torch.randn(2, 3, 32, 32)
    reference = fastconv.revert(copy.deepcopy(model))
    assert type(reference.c1) is torch.nn.Conv2d
    assert_close(model(x), reference(x))


def test_modern_parameters():
    assert parameters(models.lenet5_modern()) == 156 + 2416 + 48120 + 10164 + 850


def test_modern_refuses():
    with pytest.raises(ValueError, match="activation: expected one of relu, tanh"):
        models.lenet5_modern(activation="sigmoid")
    with pytest.raises(ValueError, match="pooling: expected one of max, avg"):
        models.lenet5_modern(pooling="min")


# ---- both


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_model_behaves(name):
    model = models.create_model(name)
    x = torch.randn(2, 1, 32, 32)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
    other = models.create_model(name)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(x), model(x))
    assert_close(model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), other(x))
    assert_close(model[:1](x) if name == "lenet5_modern" else model.c1(x), other.c1(x))


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_model_without_memory(name):
    with torch.device("meta"):
        model = models.create_model(name)
        assert model(torch.empty(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_model_compiles(name):
    model = models.create_model(name)
    x = torch.randn(2, 1, 32, 32)
    assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_model_learns(name):
    """Ten random images are learned by heart, with cross entropy, in a few steps."""
    torch.set_num_threads(1)  # the tensors are too small for more
    model = models.create_model(name)
    images, labels = torch.randn(10, 1, 32, 32), torch.arange(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert (model(images).argmax(1) == labels).all()
