"""The summary of a model: counts by hand, receptive fields by autograd, any torch model; the drawing; the command."""

import copy
import xml.etree.ElementTree as ElementTree

import pytest
import torch
import torch.nn.functional as F
from test_models import meta

from fastconv import cli, models, nn
from fastconv.models import drawing
from fastconv.models.receptive_field import ReceptiveFields


def record(table, name, call=1):
    return next(row for row in table if row.name == name and row.call == call)


def fields(model, size, *names):
    table = models.summary(model, size)
    return [record(table, name).receptive_field for name in names]


def test_by_hand():
    model = torch.nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=2, padding=1, groups=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3, dilation=2, groups=2, bias=False),
        nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 3 * 2, 10),
    )
    table = models.summary(model, (2, 3, 20, 19))
    rows = [(r.name, r.layer, r.output, r.kernel, r.parameters, r.macs, r.receptive_field) for r in table]
    assert rows == [
        ("0", "Conv2d", (2, 8, 10, 9), (3, 5), 8 * 3 * 15 + 8, 2 * 8 * 10 * 9 * 3 * 15, (3, 5)),
        ("1", "ReLU", (2, 8, 10, 9), None, 0, 0, (3, 5)),
        ("2", "Conv2d", (2, 4, 6, 5), (3, 3), 4 * 4 * 9, 2 * 4 * 6 * 5 * 4 * 9, (11, 13)),
        ("3", "MaxPool2d", (2, 4, 3, 2), (2, 2), 0, 0, (13, 15)),
        ("4", "Flatten", (2, 24), None, 0, 0, (21, 19)),
        ("5", "Linear", (2, 10), None, 250, 2 * 240, (21, 19)),
    ]
    assert (table.parameters, table.trainable, table.unused) == (762, 762, 0)
    assert table.macs == sum(row.macs for row in table)
    assert [row.depth for row in table] == [1] * 6


class Seen(torch.nn.Module):
    """Layers whose receptive field autograd can tell: no value is 0 or cut off."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = torch.nn.Sequential(*layers)
        for layer in self.layers:
            if hasattr(layer, "weight"):
                torch.nn.init.uniform_(layer.weight, 0.5, 1)

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("library", [torch.nn, nn])
@pytest.mark.parametrize(
    "layers",
    [
        lambda n: [n.Conv2d(1, 1, 3), n.Conv2d(1, 1, 3, stride=2), n.AvgPool2d(3, 2), n.Conv2d(1, 1, 2, dilation=3)],
        lambda n: [n.Conv2d(1, 1, 5, stride=3), n.ConvTranspose2d(1, 1, 4, stride=2), n.Conv2d(1, 1, 3)],
        lambda n: [n.ConvTranspose2d(1, 1, 3, dilation=2), n.AvgPool2d(2)],
        lambda n: [n.Conv2d(1, 1, (3, 1)), n.Conv2d(1, 1, (1, 7), stride=(1, 2)), n.AvgPool2d((1, 3), (2, 1))],
        lambda n: [n.Conv2d(1, 1, 4, stride=2), n.AdaptiveAvgPool2d(1)],
        lambda n: [n.AdaptiveAvgPool2d(7), n.Conv2d(1, 1, 3)],
        lambda n: [n.Conv2d(1, 1, 3, padding="same"), n.Conv2d(1, 1, 2, padding="same", padding_mode="reflect")],
        lambda n: [n.AvgPool2d(2), torch.nn.Upsample(scale_factor=2), n.Conv2d(1, 1, 3)],
    ],
)
def test_receptive_field_is_what_autograd_sees(layers, library):
    model = Seen(*layers(library))
    x = torch.ones(1, 1, 42, 42, requires_grad=True)
    y = model(x)
    reached = []
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            (gradient,) = torch.autograd.grad(y[0, 0, row, column], x, retain_graph=True)
            places = gradient[0, 0].nonzero()
            reached.append((places.amax(0) - places.amin(0) + 1).tolist())
    largest = tuple(max(extents) for extents in zip(*reached, strict=True))
    assert fields(model, (1, 1, 42, 42), f"layers.{len(model.layers) - 1}") == [largest]


def test_receptive_field_of_branches_is_the_largest():
    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.three, self.last = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 5, padding=2), nn.Conv2d(4, 1, 3)

        def forward(self, x):
            y = self.three(x)
            return self.last(torch.cat([self.one(x) + x, F.relu(y, inplace=True)], 1))

    assert fields(Branches(), (1, 2, 9, 9), "one", "three", "last") == [(1, 1), (5, 5), (7, 7)]


def test_receptive_field_in_one_dimension_and_of_words():
    model = torch.nn.Sequential(nn.Conv1d(2, 3, 5, stride=2), nn.MaxPool1d(3, 2), torch.nn.Conv1d(3, 3, 2))
    assert fields(model, (4, 2, 40), "0", "1", "2") == [(5,), (9,), (13,)]
    table = models.summary(models.text_cnn(vocabulary=9), (2, 20), dtype=torch.int64)
    assert [record(table, f"convolutions.{i}").receptive_field for i in range(3)] == [(3,), (4,), (5,)]
    assert table[-1].receptive_field == (20,)


def test_receptive_field_is_unknown_after_what_is_not_followed():
    class Sorted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.after = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)

        def forward(self, x):
            y = self.conv(x)
            return self.after(y.transpose(0, 2).reshape(1, 1, 1, -1).expand(1, 1, 4, -1)[..., :5])

    assert fields(Sorted(), (2, 1, 9, 9), "conv", "after") == [(3, 3), None]
    x = torch.zeros(2, 3)
    assert ReceptiveFields([x]).of(x) is None
    assert ReceptiveFields([]).of(x) is None


# ---- numbers that are published


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        # Araujo, Norris, Sim 2019, table of architectures, and Dumoulin and Visin's counting.
        ("alexnet_2012", "pool5", 195),
        ("vgg16", "features.30", 212),
        ("vgg19", "features.36", 268),
    ],
)
def test_published_receptive_fields(name, layer, size):
    assert fields(meta(name), (1, 3, 227, 227), layer) == [(size, size)]


def test_meta_and_real_models_have_the_same_summary():
    with torch.device("meta"):
        expected = models.summary(models.mini_googlenet().eval(), (2, 3, 28, 28))
    assert list(models.summary(models.mini_googlenet().eval(), (2, 3, 28, 28))) == list(expected)


# ---- any torch model


def test_it_leaves_the_model_as_it_was():
    model = torch.nn.Sequential(nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Dropout(), torch.nn.ReLU())
    model[2].eval()
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    buffers = list(model.buffers())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model[2].train()
    modes[3] = True
    table = models.summary(model, (2, 1, 8, 8))
    assert len(table) == 4
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(before is after for before, after in zip(buffers, model.buffers(), strict=True))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_cleans_up_after_an_error():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3))
    with pytest.raises(RuntimeError):
        models.summary(model, (2, 1, 2, 2))
    assert not model[0]._forward_hooks
    assert model[0].num_batches_tracked == 0
    assert model(torch.zeros(2, 1, 4, 4)).shape == (2, 2, 2, 2)


def test_shared_layers_count_once():
    layer = torch.nn.Linear(4, 4)
    table = models.summary(torch.nn.Sequential(layer, torch.nn.ReLU(), layer), (1, 4))
    assert [(row.name, row.parameters, row.macs, row.call) for row in table if row.layer == "Linear"] == [
        ("0", 20, 16, 1),
        ("0", 0, 16, 2),
    ]
    assert table.parameters == 20


def test_tied_weights_count_once():
    model = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    table = models.summary(model, (1, 5), dtype=torch.int64)
    assert [row.parameters for row in table] == [28, 0]
    assert (table.parameters, table.unused) == (28, 0)


def test_frozen_and_unused_parameters():
    model = models.googlenet(num_classes=3, small_input=True).eval()
    model.fc.requires_grad_(False)
    table = models.summary(model, (1, 3, 32, 32))
    heads = sum(p.numel() for head in (model.aux1, model.aux2) for p in head.parameters())
    assert table.unused == heads
    assert table.parameters - table.trainable == 1024 * 3 + 3
    assert f"{heads:,} parameters belong to layers that were not called" in str(table)
    assert models.summary(model.train(), (2, 3, 32, 32)).unused == 0


def test_several_inputs_and_outputs():
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = torch.nn.Linear(3, 2), torch.nn.Linear(4, 2)

        def forward(self, a, b, scale=1.0):
            return {"sum": self.left(a) + self.right(b) * scale, "parts": [self.left(a), self.right(b)]}

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()
            self.pair.extra = torch.nn.Parameter(torch.zeros(3))

        def forward(self, a, b):
            return self.pair(a, b)["sum"]

    table = models.summary(Outer(), ((5, 3), (5, 4)))
    assert record(table, "pair").outputs == ((5, 2), (5, 2), (5, 2))
    assert record(table, "pair").parameters == 3
    assert record(table, "pair.left", call=2).parameters == 0
    keywords = models.summary(Pair(), input_data={"a": torch.zeros(1, 3), "b": torch.zeros(1, 4), "scale": 2.0})
    assert keywords.macs == 2 * (3 * 2 + 4 * 2)
    assert models.summary(Pair(), input_data=(torch.zeros(1, 3), torch.zeros(1, 4))).macs == keywords.macs


def test_functions_in_a_forward_have_rows():
    class Functional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 4, 3)
            self.weight = torch.nn.Parameter(torch.zeros(5, 4 * 9))

        def forward(self, x):
            return F.linear(F.max_pool2d(self.conv(x), 2).flatten(1), self.weight)

    table = models.summary(Functional(), (2, 1, 8, 8))
    rows = [(row.name, row.layer, row.output, row.kernel, row.macs) for row in table]
    assert ("", "max_pool2d", (2, 4, 3, 3), (2, 2), 0) in rows
    assert ("", "mm", (2, 5), None, 2 * 36 * 5) in rows
    assert table.macs == 2 * 4 * 36 * 9 + 2 * 36 * 5
    assert table.parameters == sum(row.parameters for row in table)


@pytest.mark.parametrize("training", [False, True])
def test_transformers(training):
    """2 · 6 tokens of 8: four projections, two products with 6 keys, two layers of 16 units."""
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train(training)
    table = models.summary(layer, (2, 6, 8))
    assert table.macs == 12 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 12 * 6 * 8
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("family", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_layers(family):
    layer = family(8, 4, num_layers=2, batch_first=True)
    weights = sum(value.numel() for name, value in layer.named_parameters() if name.startswith("weight"))
    table = models.summary(layer, (3, 5, 8))
    assert table.macs == 15 * weights
    assert table[0].outputs[0] == (3, 5, 4)


def test_parametrized_and_quirky_models():
    normed = torch.nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)))
    u = normed[0].parametrizations.weight[0]._u.clone()
    table = models.summary(normed, (1, 2, 5, 5))
    assert table.parameters == 2 * 3 * 9 + 3
    assert torch.equal(normed[0].parametrizations.weight[0]._u, u)
    assert models.summary(torch.nn.ReLU(), (2, 3))[0].output == (2, 3)
    with pytest.raises(ValueError, match="lazy"):
        models.summary(torch.nn.LazyLinear(3), (2, 3))
    with pytest.raises(ValueError, match="either"):
        models.summary(normed)
    with pytest.raises(ValueError, match="either"):
        models.summary(normed, (1, 2, 5, 5), input_data=torch.zeros(1, 2, 5, 5))


@pytest.mark.parametrize("name", models.list_models())
def test_every_model_has_a_summary_and_a_drawing(name):
    entry = models.model_entry(name)
    with torch.device("meta"):
        model = entry.builder()
        table = models.summary(model.eval(), input_data=entry.example_input())
    assert table.parameters == sum(p.numel() for p in model.parameters())
    assert table.parameters == table.unused + sum(row.parameters for row in table)
    assert table[-1].receptive_field is not None
    picture = ElementTree.fromstring(models.draw(table, name))
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert texts[0].startswith(f"{name}: {table.parameters:,} parameters")
    assert "input" in texts


def test_drawing():
    with torch.device("meta"):
        table = models.summary(models.resnet50().eval(), (1, 3, 224, 224))
    texts = [element.text for element in ElementTree.fromstring(models.draw(table)).iter()]
    for shape in ("3 × 224 × 224", "64 × 112 × 112", "64 × 56 × 56", "256 × 56 × 56", "1024 × 14 × 14", "1000"):
        assert shape in texts
    assert "layer3.0 – 5" in texts
    assert "6 × Bottleneck" in texts


def texts_of(name):
    entry = models.model_entry(name)
    with torch.device("meta"):
        table = models.summary(entry.builder().eval(), input_data=entry.example_input())
    return [element.text for element in ElementTree.fromstring(models.draw(table)).iter()]


def test_drawing_of_what_is_no_image():
    texts = texts_of("text_cnn")
    assert "300 × 64" in texts  # an embedding like everything else: channels first
    assert "100 × 62" in texts


def test_drawing_leaves_out_what_changes_nothing():
    assert "avgpool" not in texts_of("vgg16")  # from 7x7 to 7x7
    assert "21 × 224 × 224" in texts_of("fcn8s")  # what is left of the last map


class Branches(torch.nn.Module):
    """a feeds b and, through layers that are not drawn, c; d takes both; the input comes in again at e."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.d, self.e = nn.Conv2d(4, 1, 1), nn.Conv2d(2, 3, 1)
        self.activation = torch.nn.ReLU()
        self.chain = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.ReLU(inplace=True))

    def forward(self, x):
        a = self.a(x)
        both = torch.cat([self.activation(self.b(a)), self.c(self.chain(a))], 1)
        return self.e(torch.cat([self.d(both), x[:, :1]], 1))


def links(table):
    stages = drawing._stages(table)
    return {(stages[source].name, stage.name) for stage in stages for source in stage.sources}


def test_drawing_shows_what_takes_what():
    table = models.summary(Branches().eval(), (1, 1, 5, 5))
    assert links(table) == {(*pair,) for pair in ("ab", "ac", "bd", "cd", "de")} | {("input", "a"), ("input", "e")}
    picture = ElementTree.fromstring(models.draw(table))
    assert sum(element.tag.endswith("line") for element in picture.iter()) == 4
    assert sum(element.tag.endswith("path") for element in picture.iter()) == 3


def test_drawing_of_skips():
    with torch.device("meta"):
        table = models.summary(models.fcn8s().eval(), (1, 3, 64, 64))
        chain = models.summary(models.resnet50().eval(), (1, 3, 64, 64))
    assert {("features.16", "skips.from8"), ("skips.from8", "upsampling"), ("upsamplings.to8", "upsampling")} <= links(
        table
    )
    assert ("upsamplings.to8", "skips.from8") not in links(table)
    assert [stage.sources for stage in drawing._stages(chain)] == [(), *((i,) for i in range(len(links(chain))))]


def test_drawing_escapes_names():
    class Odd(torch.nn.Sequential):
        pass

    Odd.__name__ = "A<B>&C"
    table = models.summary(torch.nn.Sequential(Odd(nn.Conv2d(1, 2, 1))), (1, 1, 3, 3))
    assert ElementTree.fromstring(models.draw(table, "<&>")) is not None


# ---- the command


def test_command(capsys, tmp_path, monkeypatch):
    file = tmp_path / "net.svg"
    assert cli.main(["models", "resnet50", "--draw", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "25,557,032 parameters, 4,089,184,256 MACs" in printed
    assert file.read_text(encoding="utf-8").startswith("<svg")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.main(["models", "mlp"]) == 0
    assert "23,860 parameters" in capsys.readouterr().out
    assert cli.main(["models", "mlp", "--draw", str(tmp_path / "missing" / "net.svg")]) == 2
    assert "net.svg" in capsys.readouterr().err
