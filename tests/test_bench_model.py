"""`fastconv bench --model`: whole models, timed by a clock that the tests set. No test judges by a time."""

import argparse
import dataclasses
import json
import math

import pytest
import torch

from fastconv import fastest, models, nn
from fastconv.bench import model as bench_model
from fastconv.bench import plots, report
from fastconv.bench.cli import add_arguments, run
from fastconv.bench.machine import Ceiling, describe
from fastconv.bench.model import CHOICES, ModelResult, ModelSource, Run, arrange, libraries, peak_memory, run_model
from fastconv.bench.run import Report
from fastconv.bench.timing import Timing
from fastconv.fastest import LayerTime, Seconds

OWN = """
import torch
from fastconv import nn

def model():
    return torch.nn.Sequential(nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), nn.MaxPool2d(2))

def two_outputs():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x, y):
            return {"sum": self.conv(x) + self.conv(y), "index": torch.arange(3)}
    return Two()

built = model()
number = 7
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch):
    """All work is done once and takes a second on torch, half of it on fastconv; a pooling forward, two."""

    def layer_times(work, seconds):
        pooling = work["torch", "forward"]().shape[-1] == 3
        times = {
            ("torch", "forward"): 1.0,
            ("fastconv", "forward"): 2.0 if pooling else 0.5,
            ("torch", "backward"): 2.0,
        }
        return {key: [times.get(key, 0.5)] for key in work}

    def model_times(work, seconds, clock):
        for function in work.values():
            function()
        return {key: [{"torch": 1.0, "fastconv": 0.5, "fastest": 0.4}[key[1]]] for key in work}

    monkeypatch.setattr(fastest, "interleave", layer_times)
    monkeypatch.setattr(bench_model, "interleave", model_times)


def test_sources(own, tmp_path, monkeypatch):
    model, (x,) = ModelSource("lenet5", batch=3).load()
    assert x.shape == (3, *models.model_entry("lenet5").input_shape)
    assert not any(type(module) in (nn.Conv2d, nn.AvgPool2d) for module in model.modules())
    assert type(ModelSource(str(own), ((2, 3, 8, 8),)).load()[0][0]) is torch.nn.Conv2d
    assert type(ModelSource(f"{own}:built", ((2, 3, 8, 8),)).load()[0][0]) is torch.nn.Conv2d
    monkeypatch.chdir(tmp_path)
    _, arguments = ModelSource("own:two_outputs", ((2, 3, 8, 8), (1, 3, 8, 8))).load()
    assert [argument.shape[0] for argument in arguments] == [2, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", "did you mean"),
        ("OWN", "say the sizes of its input, such as --input 8x3x224x224"),
        ("OWN:nothing", "nothing"),
        ("OWN:number", "expected a torch.nn.Module"),
        ("missing.py", "missing.py"),
        ("no_such_module:model", "no_such_module"),
    ],
)
def test_sources_that_are_none(own, name, message):
    inputs = () if name == "OWN" else ((1, 3, 8, 8),)
    with pytest.raises(ValueError, match=message):
        ModelSource(name.replace("OWN", str(own)), inputs).load()


def layers():
    return [
        LayerTime("0", "Conv2d", 1, Seconds(1, 1), Seconds(0.5, 3)),
        LayerTime("2", "MaxPool2d", 1, Seconds(1, 1), Seconds(1.5, 0)),
        LayerTime("3", "MaxPool2d", 1, Seconds(1, 1), Seconds(math.inf, 0), "no such type"),
    ]


def test_who_runs_a_layer():
    assert libraries(layers(), "inference", "fastest") == {"0": "fastconv", "2": "torch", "3": "torch"}
    assert libraries(layers(), "training step", "fastest") == {"0": "torch", "2": "fastconv", "3": "torch"}
    assert set(libraries(layers(), "inference", "torch").values()) == {"torch"}
    assert libraries(layers(), "inference", "fastconv") == {"0": "fastconv", "2": "fastconv"}
    model = torch.nn.Sequential(nn.Conv2d(1, 1, 1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), nn.MaxPool2d(2))
    arrange(model, libraries(layers(), "inference", "fastconv"))
    assert [type(module) for module in model] == [nn.Conv2d, torch.nn.ReLU, nn.MaxPool2d, torch.nn.MaxPool2d]


def test_every_choice_in_every_layout_and_pass(own):
    told = []
    result = run_model(
        ModelSource(str(own), ((2, 3, 8, 8),)), 0, ("channels_first", "channels_last"), progress=told.append
    )
    expected = [
        (pass_, choice, layout)
        for pass_ in ("inference", "training step")
        for layout in ("channels_first", "channels_last")
        for choice in CHOICES
    ]
    assert [(run.pass_, run.choice, run.layout) for run in result.runs] == expected
    assert told == ["layers, channels_first", "layers, channels_last", "inference", "training step"]
    assert result.images == 2
    assert not any(run.wrong for run in result.runs)
    assert result.ratio(result.best("inference", "fastest")) == pytest.approx(2.5)
    assert [(layer.name, layer.fastconv) for layer in result.layers["channels_last"]] == [
        ("0", (0.5, 0.5)),
        ("2", (2.0, 0.5)),
    ]


def test_several_inputs_and_any_output(own):
    result = run_model(ModelSource(f"{own}:two_outputs", ((2, 3, 8, 8), (2, 3, 8, 8))), 0, ("channels_first",))
    assert result.layers["channels_first"][0].calls == 2
    assert len(result.runs) == 6


def test_a_wrong_model_is_noticed(own, monkeypatch):
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, *_: torch.zeros(2, 4, 6, 6))
    result = run_model(ModelSource(str(own), ((2, 3, 8, 8),)), 0, ("channels_first",))
    assert [run.choice for run in result.runs if run.wrong] == ["fastconv", "fastest"]
    assert any("WRONG" in mark for mark in report.model_table(a_report(result), result).marks)


def test_training_steps_train():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten())
    before = model[0].weight.detach().clone()
    bench_model._work(model, (torch.ones(1, 1, 2, 2),), "training step")()
    assert model.training
    assert not torch.equal(model[0].weight, before)


def test_peak_memory_counts_what_a_step_needs(own, monkeypatch):
    source = ModelSource(str(own), ((32, 3, 128, 128),))
    outputs = 32 * 4 * 126 * 126 * 4  # bytes of the convolution's results; their gradients are there at the same time
    assert 2 * outputs < peak_memory(source, "channels_last", {"0": "fastconv"}) < 40 * outputs
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(RuntimeError, match="memory failed"):
        peak_memory(source, "channels_first", {})


def a_report(model):
    return Report(describe(2), Ceiling(1e11, 1e10), [], [], {}, model)


def a_result():
    def row(pass_, choice, layout, seconds, memory=None):
        return Run(pass_, choice, layout, Timing(seconds, seconds, seconds, 3), 0.0, memory)

    runs = [
        row("inference", "torch", "channels_first", 0.2),
        row("inference", "torch", "channels_last", 0.1),
        row("inference", "fastest", "channels_last", 0.05),
        row("training step", "torch", "channels_first", 0.3, 5_000_000),
        row("training step", "fastconv", "channels_first", 0.4, 4_000_000),
        row("training step", "fastest", "channels_first", 0.2),
    ]
    return ModelResult(ModelSource("lenet5", batch=4), 4, {"channels_first": layers()}, runs)


def test_tables_say_who_is_faster():
    measured = a_report(a_result())
    table = report.model_table(measured, measured.model)
    assert [row[3:] for row in table.rows] == [
        ["200 ±0%", "20.0", "0.50", "–"],
        ["100 ±0%", "40.0", "1.00", "–"],
        ["50.0 ±0%", "80.0", "2.00", "–"],
        ["300 ±0%", "13.3", "1.00", "5"],
        ["400 ±0%", "10.0", "0.75", "4"],
        ["200 ±0%", "20.0", "1.50", "–"],
    ]
    assert table.marks == ["", "", "", "", "torch is faster", ""]
    table = report.model_layer_table(measured.model, "channels_first")
    assert [row[-3:] for row in table.rows] == [["2.00", "0.33", "0.57"], ["0.67", "–", "1.33"], ["–", "–", "–"]]
    assert table.marks == ["torch is faster", "", "no such type"]
    summary = report.summary(measured)
    assert (
        summary == "lenet5, inference: 2.00 times as fast as torch; lenet5, training step: 1.50 times as fast as torch."
    )


def test_a_comparison_is_of_ratios_in_the_same_pass_choice_and_layout():
    now, earlier = a_result(), a_result()
    slow = dataclasses.replace(earlier.runs[2], timing=Timing(0.1, 0.1, 0.1, 3))
    heavy = dataclasses.replace(earlier.runs[4], memory=8_000_000)
    earlier = dataclasses.replace(earlier, runs=[*earlier.runs[:2], slow, earlier.runs[3], heavy])
    measured, old = a_report(now), a_report(earlier)
    (table,) = report.comparisons(measured, old)
    assert [row[:3] for row in table.rows] == [
        ["inference", "fastest", "NHWC"],
        ["training step", "fastconv", "NCHW"],  # torch is what the others are compared with; one was not measured
    ]
    assert [row[5:] for row in table.rows] == [["1.00", "2.00", "+100%", "–", "–"], ["0.75", "0.75", "+0%", "8", "4"]]
    assert table.marks == ["faster than before", ""]
    other = dataclasses.replace(earlier, source=ModelSource("lenet5", batch=5))
    assert not report.comparisons(measured, a_report(other))
    assert not report.comparisons(measured, a_report(None))


def test_pictures_of_a_model(tmp_path):
    pytest.importorskip("matplotlib")
    measured = a_report(a_result())
    times, ratios = plots.draw_model(measured, measured.model), plots.draw_layers(measured, measured.model)
    inference, training = times.axes
    assert [text.get_text().strip() for text in inference.texts] == ["200 ms, 0.50", "100 ms, 1.00", "50 ms, 2.00"]
    assert [bar.get_width() for bar in training.patches] == [300, 400, 200]
    assert [text.get_text() for text in ratios.axes[0].texts] == ["0.57", "1.33"]  # the third layer fastconv refuses
    names = {file.name for file in plots.save(measured, tmp_path)}
    assert names == {f"{name}.{suffix}" for name in ("model", "model-layers") for suffix in ("png", "svg")}


def test_json_is_read_back(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(a_report(a_result()).to_json())
    assert Report.load(path).model == a_result()
    data = json.loads(path.read_text())
    del data["model"]
    path.write_text(json.dumps(data))
    assert Report.load(path).model is None


def test_command(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastconv.bench.cli.measure_ceiling", lambda threads: Ceiling(1e11, 1e10))

    def command(*words):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return run(parser.parse_args([str(word) for word in words]))

    lenet = ("--model", "lenet5", "--batch", 2)
    assert command(*lenet, "--json", tmp_path / "a.json", "--plots", tmp_path / "plots") == 0
    assert (tmp_path / "plots" / "model.png").exists()
    shown = capsys.readouterr().out
    assert "The layers of lenet5, NHWC" in shown
    assert "lenet5, batch 2" in shown
    assert "lenet5, training step: 2.50 times as fast as torch." in shown
    assert Report.load(tmp_path / "a.json").model.images == 2
    assert command(*lenet, "--compare", tmp_path / "a.json") == 0
    assert "lenet5. Compared with" in capsys.readouterr().out
    assert command("--model", own, "--input", "1x3x8x8", "--layouts", "channels_last", "--markdown", "-") == 0
    assert "NCHW" not in capsys.readouterr().out
    assert command("--model", "resnet5") == 2
    assert "there is no model named 'resnet5'" in capsys.readouterr().err
    for sizes in ("8x0", "axb", ""):
        with pytest.raises(SystemExit):
            command("--model", own, "--input", sizes)
