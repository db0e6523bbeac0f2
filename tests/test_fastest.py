"""convert(model, fastest_on=...): every layer goes to the faster library, told by a clock that the tests set."""

import pytest
import torch
from torch.nn.utils import parametrizations, prune, weight_norm

import fastconv
from fastconv import fastest, nn, swap

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Clock:
    """Stands for `interleave`: runs all work once, notes it, and says that it took the seconds of `times`."""

    def __init__(self):
        self.times = {}
        self.calls = []

    def __call__(self, work, seconds):
        results = {key: function() for key, function in work.items()}
        self.calls.append(results)
        default = {"torch": 2.0, "fastconv": 1.0}
        answer = self.times(results) if callable(self.times) else self.times
        return {key: [answer.get(key, default[key[0]])] for key in work}


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(fastest, "interleave", clock)
    return clock


def small():
    return torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2))


def on_fastconv(model):
    return [type(module) in swap.TORCH for module in model.modules() if not len(list(module.children()))]


def convert(model, example):
    return fastconv.convert(model, report=True, fastest_on=example)


def test_each_layer_goes_to_the_faster_library(clock):
    def times(results):  # torch wins the pooling, whose output has 4 x 4 pixels
        pooling = results["torch", "forward"].shape[-1] == 4
        ours = 1.5 if pooling else 0.5
        return {("torch", "forward"): 1.0, ("fastconv", "forward"): ours, ("torch", "backward"): 1.0}

    clock.times = times
    model = small()
    converted, report = convert(model, X)
    assert converted is model
    assert on_fastconv(model) == [True, False, False]
    assert [tuple(layer) for layer in report.converted] == [("0", "Conv2d")]
    assert tuple(report.kept[0]) == ("2", "MaxPool2d", "1.25 times as fast here")
    assert [layer.fastconv for layer in report.measured] == [(0.5, 1.0), (1.5, 1.0)]
    text = str(report)
    assert "fastconv runs 1 layers; torch keeps 1" in text
    assert "All of these: 4000.00 on torch, 4000.00 on fastconv, 3500.00 each on the faster." in text


def test_forward_and_backward_count_together(clock):
    clock.times = {("fastconv", "backward"): 3.5}  # 4.5 against 4
    model = small()
    _, report = convert(model, X)
    assert on_fastconv(model) == [False, False, False]
    assert report.kept[0].reason == "1.12 times as fast here"
    clock.times = {("fastconv", "backward"): 3.0}  # as fast as torch
    convert(model, X)
    assert on_fastconv(model) == [True, False, True]


def test_without_gradients_the_forward_pass_decides(clock):
    clock.times = {("fastconv", "backward"): 9.0}
    model = small()
    with torch.no_grad():
        _, report = convert(model, X)
    assert on_fastconv(model) == [True, False, True]
    assert all(layer.torch.backward == layer.fastconv.backward == 0 for layer in report.measured)
    frozen = small().requires_grad_(False)
    convert(frozen, X)
    assert on_fastconv(frozen) == [True, False, True]


def test_gradients_are_those_that_the_model_needs(clock):
    convert(small(), X)
    first, second = clock.calls
    weights = [(4, 4, 3, 3), (4,)]
    for library in fastest.LIBRARIES:
        assert [tuple(gradient.shape) for gradient in first[library, "backward"]] == weights
        assert [tuple(gradient.shape) for gradient in second[library, "backward"]] == [tuple(X.shape)]
    convert(small(), X.clone().requires_grad_())
    assert [gradient.shape for gradient in clock.calls[2]["torch", "backward"]] == [X.shape, *map(torch.Size, weights)]


def test_both_libraries_compute_the_same_on_the_tensors_of_the_call(clock):
    x = X.to(memory_format=torch.channels_last)
    convert(small(), x)
    for results in clock.calls:
        torch.testing.assert_close(results["fastconv", "forward"], results["torch", "forward"])
        torch.testing.assert_close(results["fastconv", "backward"], results["torch", "backward"])
        assert results["torch", "forward"].is_contiguous(memory_format=torch.channels_last)


def test_the_printed_report_says_what_was_chosen(clock, capsys):
    model = small()
    assert fastconv.convert(model, fastest_on=X) is model
    shown = capsys.readouterr().out
    assert "fastconv runs 2 layers; torch keeps 0" in shown
    assert shown.count("2000.00") == 4  # forward and backward of two layers on torch
    convert(model, X)
    assert not capsys.readouterr().out


def test_layers_that_are_fastconvs_already_are_judged_too(clock):
    clock.times = {("torch", "forward"): 0.1, ("torch", "backward"): 0.1}
    model = fastconv.convert(small())
    _, report = convert(model, X)
    assert on_fastconv(model) == [False, False, False]
    assert [layer.name for layer in report.kept] == ["0", "2"]


def test_a_layer_called_often_is_judged_by_all_its_calls(clock):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = torch.nn.MaxPool2d(2)
            self.same = self.pool

        def forward(self, x):
            return self.same(self.pool(x))

    def times(results):  # fastconv wins the first call by less than it loses the second
        first = results["torch", "forward"].shape[-1] == 4
        return {("torch", "forward"): 1.0, ("fastconv", "forward"): 0.9 if first else 1.2}

    clock.times = times
    model = Twice()
    _, report = convert(model, X)
    assert type(model.pool) is torch.nn.MaxPool2d
    (layer,) = report.measured
    assert (layer.name, layer.calls, layer.torch.forward) == ("pool", 2, 2.0)
    assert layer.fastconv.forward == pytest.approx(2.1)
    assert "MaxPool2d x2" in str(report)


def test_equal_calls_are_timed_once(clock):
    convolutions = [torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]
    model = torch.nn.Sequential(*convolutions, torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    _, report = convert(model, X)
    assert len(report.measured) == 4
    assert len(clock.calls) == 3  # without an input gradient, with one, and circular


def test_what_the_example_does_not_reach_is_torchs(clock):
    class Half(torch.nn.Sequential):
        def forward(self, x):
            return self[0](x)

    model = Half(torch.nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    _, report = convert(model, X)
    assert on_fastconv(model) == [True, False]
    assert tuple(report.kept[0]) == ("1", "Conv2d", "the example does not reach it")


def test_what_fastconv_refuses_stays_torchs(clock):
    model = torch.nn.Sequential(torch.nn.MaxPool2d(2))
    _, report = convert(model, torch.arange(16).view(1, 1, 4, 4))
    assert type(model[0]) is torch.nn.MaxPool2d
    assert "int64" in report.kept[0].reason
    assert "torch: " in str(report)


def test_layers_without_a_counterpart_are_reported_as_ever(clock):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 4, 1), torch.nn.LPPool2d(2.0, 2), nn.Conv2d(4, 1, 1, padding=((0, 1), (1, 0)))
    )
    _, report = convert(model, X)
    assert [layer.name for layer in report.converted] == ["0"]
    assert [layer.reason for layer in report.kept] == ["fastconv has no LPPool2d"]
    assert type(model[2]) is nn.Conv2d


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_changes(clock, training):
    model = torch.nn.Sequential(*small(), torch.nn.BatchNorm2d(4), torch.nn.Dropout(), torch.nn.ReLU(inplace=True))
    model.train(training)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    gradients = []
    model[0].weight.register_hook(gradients.append)
    x = X.clone()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objects = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    random = torch.random.get_rng_state()
    convert(model, x)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == objects
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[1 + 0].training == training
    assert not gradients
    assert not model[0]._forward_pre_hooks
    assert x.grad is None
    assert torch.equal(x, X)


def test_an_example_that_the_model_overwrites_is_not_overwritten(clock):
    x = X.clone()
    convert(torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(2)), x)
    assert torch.equal(x, X)


class TwoInputs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3)

    def forward(self, x, others, scale=1.0):
        return scale * self.conv(x) + self.conv(others["y"][0])


@pytest.mark.parametrize("example", [(X, {"y": [X]}), {"x": X, "others": {"y": (X,)}, "scale": 2.0}])
def test_examples_may_be_tuples_and_dicts(clock, example):
    model = TwoInputs()
    _, report = convert(model, example)
    assert type(model.conv) is nn.Conv2d
    assert report.measured[0].calls == 2


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm, None])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_normalised_and_pruned_weights(clock, norm):
    layer = torch.nn.Conv2d(4, 4, 3)
    layer = norm(layer) if norm else prune.l1_unstructured(layer, "weight", amount=0.5)
    model = torch.nn.Sequential(layer, torch.nn.ReLU())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model.eval()(X)
    convert(model.train(), X)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model[0], nn.Conv2d)
    assert [gradient is None for gradient in clock.calls[0]["torch", "backward"]].count(False) >= 2
    torch.testing.assert_close(model.eval()(X), expected)
    fastconv.revert(model)
    assert not isinstance(model[0], nn.Conv2d)


def test_layers_are_timed_under_the_models_autocast(clock):
    with torch.autocast("cpu", torch.bfloat16):
        convert(small(), X)
    assert clock.calls[0]["fastconv", "forward"].dtype == torch.bfloat16


def test_a_model_that_fails_is_not_converted(clock):
    class Failing(torch.nn.Sequential):
        def forward(self, x):
            super().forward(x)
            raise KeyError("no such thing")

    model = Failing(*small(), torch.nn.BatchNorm2d(4))
    with pytest.raises(KeyError, match="no such thing"):
        fastconv.convert(model, fastest_on=X)
    assert not any(on_fastconv(model))
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model[3].running_mean, torch.zeros(4))
    with pytest.raises(RuntimeError, match="channels"):
        fastconv.convert(small(), fastest_on=X[:, :3])


def test_lazy_layers_need_a_pass_before(clock):
    model = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3))
    with pytest.raises(ValueError, match="lazy"):
        fastconv.convert(model, fastest_on=X)
    model(X)
    fastconv.convert(model, fastest_on=X)
    assert type(model[0]) is nn.Conv2d


def test_a_gpu_is_waited_for(monkeypatch):
    order = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("waited"))
    assert fastest._finished(lambda: order.append("called") or 3) == 3
    assert order == ["called", "waited"]


def test_measured_in_earnest():
    layers = fastest.time_layers(small(), X, seconds=0.001)
    assert [(layer.name, layer.calls) for layer in layers] == [("0", 1), ("2", 1)]
    assert all(0 < time < 1 for layer in layers for times in (layer.torch, layer.fastconv) for time in times)
