"""convert, revert and accelerate: in someone else's model, everything but the arithmetic stays as it was."""

import copy
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

import fastconv
from fastconv import functional, nn


class Block(torch.nn.Module):
    """A residual block as torchvision builds it."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(outputs)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(outputs)
        self.downsample = torch.nn.Sequential(
            torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False), torch.nn.BatchNorm2d(outputs)
        )

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.maxpool = torch.nn.MaxPool2d(3, 2, 1)
        self.layer1 = torch.nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.avgpool = torch.nn.AdaptiveAvgPool2d((1, 1))
        self.fc = torch.nn.Linear(16, 5)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.conv1(x)))
        return self.fc(torch.flatten(self.avgpool(self.layer1(x)), 1))


class Spy:
    """Counts the calls of fastconv's functions."""

    def __init__(self, monkeypatch):
        self.calls = []
        for name in functional.__all__:
            monkeypatch.setattr(functional, name, self.wrap(name, getattr(functional, name)))

    def wrap(self, name, function):
        def call(*args, **kwargs):
            self.calls.append(name)
            return function(*args, **kwargs)

        return call


@pytest.fixture
def spy(monkeypatch):
    return Spy(monkeypatch)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- convert


def test_resnet_agrees_and_runs_on_fastconv(spy):
    model = ResNet()
    x = images(2, 3, 32, 32)
    expected = model(x)
    expected.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    assert fastconv.convert(model) is model
    actual = model(x)
    assert sorted(spy.calls) == ["adaptive_avg_pool2d"] + ["conv2d"] * 7 + ["max_pool2d"]
    assert_close(actual, expected)
    actual.sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_parameters_and_modules_stay_the_same_objects():
    model = ResNet().eval()
    model.layer1[0].conv1.note = "kept"
    before = (list(model.modules()), list(model.named_parameters()), list(model.named_buffers()))
    fastconv.convert(model)
    after = (list(model.modules()), list(model.named_parameters()), list(model.named_buffers()))
    for old, new in zip(before[0], after[0], strict=True):
        assert old is new
    for old, new in zip(before[1] + before[2], after[1] + after[2], strict=True):
        assert old[0] == new[0]
        assert old[1] is new[1]
    assert not any(module.training for module in model.modules())
    assert model.layer1[0].conv1.note == "kept"


def test_revert_undoes_convert():
    model = ResNet()
    x = images(2, 3, 32, 32)
    classes = [type(module) for module in model.modules()]
    expected = model(x)
    fastconv.convert(model)
    assert [type(module) for module in model.modules()] != classes
    assert fastconv.revert(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(x), expected)


def test_every_layer_of_torch_that_fastconv_has_is_converted():
    layers = torch.nn.ModuleList(
        [
            torch.nn.Conv1d(2, 2, 3),
            torch.nn.Conv2d(2, 2, 3),
            torch.nn.ConvTranspose1d(2, 2, 3),
            torch.nn.ConvTranspose2d(2, 2, 3),
            torch.nn.MaxPool1d(2),
            torch.nn.MaxPool2d(2),
            torch.nn.AvgPool1d(2),
            torch.nn.AvgPool2d(2),
            torch.nn.AdaptiveAvgPool1d(2),
            torch.nn.AdaptiveAvgPool2d(2),
            torch.nn.AdaptiveMaxPool1d(2),
            torch.nn.AdaptiveMaxPool2d(2),
            torch.nn.LocalResponseNorm(2),
        ]
    )
    _, report = fastconv.convert(layers, report=True)
    assert len(report.converted) == len(layers) == len(functional.__all__)
    assert not report.kept
    for layer in layers:
        assert type(layer) is getattr(nn, type(layer).__name__)


def test_model_that_is_a_layer_itself():
    layer = torch.nn.Conv2d(3, 4, 3)
    assert fastconv.convert(layer) is layer
    assert type(layer) is nn.Conv2d
    assert type(fastconv.revert(layer)) is torch.nn.Conv2d


def test_shared_layer_is_converted_once():
    conv = torch.nn.Conv2d(3, 3, 3, padding=1)
    model = torch.nn.Sequential(conv, torch.nn.Sequential(conv))
    _, report = fastconv.convert(model, report=True)
    assert model[0] is model[1][0] is conv
    assert [layer.name for layer in report.converted] == ["0"]


def test_converting_twice_changes_nothing():
    model, first = fastconv.convert(ResNet(), report=True)
    assert len(first.converted) == 9
    _, second = fastconv.convert(model, report=True)
    assert second == fastconv.ConversionReport([], [])


def test_optimizer_goes_on():
    x, target = images(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])

    def train(convert):
        torch.manual_seed(0)
        model = ResNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses = []
        for step in range(4):
            if step == 2 and convert:
                fastconv.convert(model)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert train(True) == pytest.approx(train(False), rel=1e-3)
    assert train(True)[-1] < train(True)[0]


def test_hooks_are_kept():
    model = ResNet()
    seen = []
    handle = model.conv1.register_forward_hook(lambda module, args, result: seen.append("forward"))
    model.conv1.register_forward_pre_hook(lambda module, args: seen.append("before"))
    model.conv1.register_full_backward_hook(lambda module, gi, go: seen.append("backward"))
    fastconv.convert(model)
    model(images(1, 3, 32, 32).requires_grad_()).sum().backward()
    assert seen == ["before", "forward", "backward"]
    handle.remove()
    seen.clear()
    model(images(1, 3, 32, 32))
    assert seen == ["before"]


def test_state_dict_moves_both_ways():
    converted, plain = fastconv.convert(ResNet()).eval(), ResNet().eval()
    x = images(2, 3, 32, 32)
    plain.load_state_dict(converted.state_dict(), strict=True)
    assert_close(plain(x), converted(x))
    plain = ResNet().eval()
    converted.load_state_dict(plain.state_dict(), strict=True)
    assert_close(plain(x), converted(x))


def test_pickle_and_deepcopy():
    model = fastconv.convert(ResNet()).eval()
    x = images(2, 3, 32, 32)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(twin.conv1) is nn.Conv2d
        assert torch.equal(twin(x), model(x))


def test_channels_last_model():
    model = ResNet().to(memory_format=torch.channels_last).eval()
    x = images(2, 3, 32, 32).to(memory_format=torch.channels_last)
    expected = model(x)
    fastconv.convert(model)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert_close(model(x), expected)
    assert model.layer1(model.conv1(x)[:, :8]).is_contiguous(memory_format=torch.channels_last)


def test_fx_trace():
    model = fastconv.convert(ResNet()).eval()
    traced = torch.fx.symbolic_trace(model)
    x = images(2, 3, 32, 32)
    assert torch.equal(traced(x), model(x))
    assert functional.conv2d in {node.target for node in traced.graph.nodes}
    # A traced model can be converted in its turn.
    plain = torch.fx.symbolic_trace(ResNet().eval())
    _, report = fastconv.convert(plain, report=True)
    assert len(report.converted) == 9


def test_compile():
    model = ResNet().eval()
    x = images(2, 3, 32, 32)
    expected = model(x)
    fastconv.convert(model)
    assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)


def test_convert_after_compile_takes_effect(spy):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    compiled = torch.compile(model, backend="eager")
    x = images(1, 3, 8, 8)
    expected = compiled(x)
    fastconv.convert(compiled)
    assert_close(compiled(x), expected)
    assert spy.calls == ["conv2d"]


# ---- layers that need thought


def test_subclasses_keep_their_own_forward():
    class Doubled(torch.nn.Conv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    class Named(torch.nn.MaxPool2d):
        pass

    model = torch.nn.Sequential(Doubled(3, 4, 3), Named(2))
    x = images(1, 3, 8, 8)
    expected = model(x)
    _, report = fastconv.convert(model, report=True)
    assert not report.converted
    assert [layer.layer for layer in report.kept] == ["Doubled", "Named"]
    assert "subclass of Conv2d" in report.kept[0].reason
    assert torch.equal(model(x), expected)


def test_subclasses_of_fastconvs_layers_are_left_alone():
    class Own(nn.Conv2d):
        pass

    model, report = fastconv.convert(torch.nn.Sequential(Own(3, 4, 3)), report=True)
    assert report == fastconv.ConversionReport([], [])
    assert type(fastconv.revert(model)[0]) is Own


def test_replaced_forward_is_kept():
    layer = torch.nn.MaxPool2d(2)
    layer.forward = lambda input: input + 1
    _, report = fastconv.convert(torch.nn.Sequential(layer), report=True)
    assert type(layer) is torch.nn.MaxPool2d
    assert report.kept[0].reason == "its forward was replaced"


def test_what_fastconv_lacks_is_kept_and_reported():
    model = torch.nn.Sequential(
        torch.nn.Conv3d(1, 1, 1),
        torch.nn.LPPool2d(2.0, 2),
        torch.nn.Conv2d(2, 2, 1, dtype=torch.complex64),
        torch.nn.Linear(2, 2),
        torch.nn.BatchNorm2d(2),
        torch.nn.Conv2d(2, 2, 1),
    )
    classes = [type(module) for module in model]
    _, report = fastconv.convert(model, report=True)
    assert [type(module) for module in model][:-1] == classes[:-1]
    assert [(layer.name, layer.layer) for layer in report.kept] == [("0", "Conv3d"), ("1", "LPPool2d"), ("2", "Conv2d")]
    assert report.kept[0].reason == "fastconv has no Conv3d"
    assert "complex64" in report.kept[2].reason
    assert [tuple(layer) for layer in report.converted] == [("5", "Conv2d")]
    text = str(report)
    assert "fastconv runs 1 layers; torch keeps 3" in text
    assert "torch: fastconv has no Conv3d" in text


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_layers_are_kept():
    layer = torch.ao.nn.quantized.Conv2d(3, 4, 3)
    model, report = fastconv.convert(torch.nn.Sequential(layer), report=True)
    assert type(model[0]) is torch.ao.nn.quantized.Conv2d
    assert not report.converted


def test_scripted_layers_are_kept():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()))
    x = images(1, 3, 8, 8)
    expected = scripted(x)
    _, report = fastconv.convert(scripted, report=True)
    assert [tuple(layer) for layer in report.kept] == [
        ("0", "Conv2d", "TorchScript; convert the model before scripting it")
    ]
    assert torch.equal(scripted(x), expected)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_layers(norm, spy):
    model = torch.nn.Sequential(norm(torch.nn.Conv2d(3, 4, 3)), torch.nn.ReLU()).eval()
    x = images(1, 3, 8, 8)
    expected = model(x)
    _, report = fastconv.convert(model, report=True)
    assert [tuple(layer) for layer in report.converted] == [("0", "Conv2d")]
    assert isinstance(model[0], nn.Conv2d)
    assert_close(model(x), expected)
    assert spy.calls == ["conv2d"]
    twin = copy.deepcopy(model)
    assert_close(twin(x), expected)
    fastconv.revert(twin)
    assert not isinstance(twin[0], nn.Conv2d)
    assert_close(twin(x), expected)
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is nn.Conv2d
    assert_close(model(x), expected)


def test_one_of_two_copies_of_a_parametrized_layer():
    layer = parametrizations.weight_norm(torch.nn.Conv2d(3, 4, 3))
    other = copy.deepcopy(layer)
    fastconv.convert(layer)
    assert isinstance(layer, nn.Conv2d)
    assert not isinstance(other, nn.Conv2d)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_weight_norm_and_pruning(spy):
    conv = torch.nn.Conv2d(3, 4, 3)
    pruned = torch.nn.Conv2d(4, 4, 3)
    torch.nn.utils.weight_norm(conv)
    prune.random_unstructured(pruned, "weight", 0.5)
    model = torch.nn.Sequential(conv, pruned)
    x = images(1, 3, 8, 8)
    expected = model(x)
    fastconv.convert(model)
    assert_close(model(x), expected)
    assert spy.calls == ["conv2d"] * 2
    prune.remove(pruned, "weight")
    torch.nn.utils.remove_weight_norm(conv)
    assert_close(model(x), expected)


def test_lazy_layers(spy):
    model = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3), torch.nn.LazyConv1d(4, 3), torch.nn.LazyConv3d(4, 3))
    _, report = fastconv.convert(model, report=True)
    assert [layer.layer for layer in report.converted] == ["LazyConv2d", "LazyConv1d"]
    model[0](images(1, 3, 8, 8))
    assert type(model[0]) is nn.Conv2d
    assert model[0].weight.shape == (4, 3, 3, 3)
    assert spy.calls == ["conv2d"]
    fastconv.revert(model)
    assert type(model[0]) is torch.nn.Conv2d
    assert type(model[1]) is torch.nn.LazyConv1d
    model[1](images(1, 3, 8))
    assert type(model[1]) is torch.nn.Conv1d


def test_revert_leaves_what_torch_cannot_do():
    model = torch.nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=((1, 0), (2, 0))),
        nn.Conv2d(3, 4, 3, padding=((1, 0), (2, 0)), padding_mode="circular"),
        nn.LocalResponseNorm.as_in_paper(),
        nn.TrainableSubsampling2d(4),
    )
    x = images(1, 3, 8, 8)
    expected = model(x)
    fastconv.revert(model)
    assert [type(module) for module in model] == [
        nn.Conv2d,
        torch.nn.Conv2d,
        torch.nn.LocalResponseNorm,
        nn.TrainableSubsampling2d,
    ]
    assert_close(model(x), expected)


# ---- accelerate

X1, X2, W1, W2 = images(2, 4, 9), images(2, 4, 8, 9), images(4, 4, 3), images(4, 4, 3, 3)

SPELLINGS = [
    ("conv1d", lambda: F.conv1d(X1, W1, padding="same")),
    ("conv1d", lambda: torch.conv1d(X1, W1, stride=2)),
    ("conv2d", lambda: F.conv2d(X2, W2, padding=1)),
    ("conv2d", lambda: torch.conv2d(input=X2, weight=W2)),
    ("conv2d", lambda: torch.nn.Conv2d(4, 2, 3)(X2).detach() * 0),
    ("conv_transpose1d", lambda: F.conv_transpose1d(X1, W1, stride=2, output_padding=1)),
    ("conv_transpose1d", lambda: torch.conv_transpose1d(X1, W1)),
    ("conv_transpose2d", lambda: F.conv_transpose2d(X2, W2, stride=2, output_padding=1)),
    ("conv_transpose2d", lambda: torch.conv_transpose2d(X2, W2)),
    ("max_pool1d", lambda: F.max_pool1d(X1, 3, 2)),
    ("max_pool1d", lambda: F.max_pool1d(X1, 3, return_indices=True)),
    ("max_pool1d", lambda: F.max_pool1d_with_indices(X1, 3)),
    ("max_pool1d", lambda: torch.max_pool1d(X1, 3, [])),
    ("max_pool1d", lambda: torch.max_pool1d_with_indices(X1, 3)),
    ("max_pool2d", lambda: F.max_pool2d(X2, 2)),
    ("max_pool2d", lambda: F.max_pool2d(X2, 2, return_indices=True)),
    ("max_pool2d", lambda: F.max_pool2d_with_indices(X2, 2)),
    ("max_pool2d", lambda: torch.max_pool2d(X2, kernel_size=2, stride=[], ceil_mode=True)),
    ("max_pool2d", lambda: torch.nn.MaxPool2d(3, 2, 1)(X2)),
    ("avg_pool1d", lambda: F.avg_pool1d(X1, 3, padding=1, count_include_pad=False)),
    ("avg_pool1d", lambda: torch.avg_pool1d(X1, 3)),
    ("avg_pool2d", lambda: F.avg_pool2d(X2, 2, divisor_override=3)),
    ("adaptive_avg_pool1d", lambda: F.adaptive_avg_pool1d(X1, 4)),
    ("adaptive_avg_pool1d", lambda: torch.adaptive_avg_pool1d(X1, 4)),
    ("adaptive_avg_pool2d", lambda: F.adaptive_avg_pool2d(X2, (3, None))),
    ("adaptive_max_pool1d", lambda: F.adaptive_max_pool1d(X1, 4)),
    ("adaptive_max_pool1d", lambda: F.adaptive_max_pool1d(X1, 4, return_indices=True)),
    ("adaptive_max_pool1d", lambda: F.adaptive_max_pool1d_with_indices(X1, 4)),
    ("adaptive_max_pool1d", lambda: torch.adaptive_max_pool1d(X1, 4)),
    ("adaptive_max_pool2d", lambda: F.adaptive_max_pool2d(X2, 4)),
    ("adaptive_max_pool2d", lambda: F.adaptive_max_pool2d(X2, 4, True)),
    ("adaptive_max_pool2d", lambda: F.adaptive_max_pool2d_with_indices(X2, 4)),
    ("local_response_norm", lambda: F.local_response_norm(X2, 3, alpha=0.5)),
]


@pytest.fixture
def spellings(monkeypatch):
    """The operators that `accelerate` sent to fastconv."""
    from fastconv.convert import _SPELLINGS

    seen = []

    def wrap(answer):
        def call(*args, **kwargs):
            result = answer(*args, **kwargs)
            seen.append(answer)
            return result

        return call

    for function, answer in list(_SPELLINGS.items()):
        monkeypatch.setitem(_SPELLINGS, function, wrap(answer))
    return seen


@pytest.mark.parametrize(("operator", "call"), SPELLINGS)
def test_every_spelling_goes_to_fastconv(operator, call, spellings):
    expected = call()
    assert not spellings
    with fastconv.accelerate():
        actual = call()
    assert len(spellings) == 1
    answer = spellings[0]
    assert operator in (getattr(answer, "__name__", ""), *(c.cell_contents.__name__ for c in answer.__closure__ or ()))
    assert type(actual) is type(expected)
    assert_close(actual, expected)
    call()
    assert len(spellings) == 1


def test_accelerate_covers_every_operator():
    assert {operator for operator, _ in SPELLINGS} == set(functional.__all__)


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.conv2d(X2.to(torch.complex64), W2.to(torch.complex64)),
        lambda: F.max_pool2d(X2.to(torch.int32), 2),
        lambda: F.conv3d(X2[None], torch.ones(2, 2, 1, 1, 1)),
        lambda: F.avg_pool2d(X2.to_mkldnn(), 2).to_dense(),
    ],
)
def test_accelerate_leaves_the_rest_to_torch(call, spellings):
    expected = call()
    with fastconv.accelerate():
        assert torch.equal(call(), expected)
    assert not spellings


def test_accelerate_leaves_tensor_subclasses_to_themselves():
    class Labelled(torch.Tensor):
        pass

    x = X2.as_subclass(Labelled)
    with fastconv.accelerate():
        assert type(F.max_pool2d(x, 2)) is Labelled


def test_accelerate_out_argument(spellings):
    out = torch.empty(2, 4, 4, 4)
    with fastconv.accelerate():
        torch._C._nn.avg_pool2d(X2, 2, out=out)
    assert not spellings
    assert_close(out, F.avg_pool2d(X2, 2))


def test_accelerate_trains_a_model(spellings):
    model = ResNet()
    x = images(2, 3, 32, 32)
    model(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with fastconv.accelerate():
        loss = model(x).square().sum()
        loss.backward()
    assert len(spellings) == 9
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)


def test_accelerate_nested_and_after_an_error(spellings):
    with fastconv.accelerate():
        with fastconv.accelerate():
            assert_close(F.conv2d(X2, W2), torch.ops.aten.conv2d.default(X2, W2))
        F.max_pool2d(X2, 2)
        with pytest.raises(RuntimeError), fastconv.accelerate():
            F.conv2d(X2, W1)
        F.max_pool2d(X2, 2)
    assert len(spellings) == 3
    F.max_pool2d(X2, 2)
    assert len(spellings) == 3


def test_accelerate_may_be_entered_again():
    mode = fastconv.accelerate()
    for _ in range(2):
        with mode, mode:
            F.max_pool2d(X2, 2)


def test_accelerate_is_the_threads_own(spellings):
    inside, outside = threading.Barrier(2), threading.Barrier(2)
    failures = []

    def other():
        try:
            inside.wait(10)
            F.max_pool2d(X2, 2)
            if spellings:
                failures.append("another thread's calls were taken")
            with fastconv.accelerate():
                F.max_pool2d(X2, 2)
            outside.wait(10)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    with fastconv.accelerate():
        inside.wait(10)
        outside.wait(10)
        F.max_pool2d(X2, 2)
    thread.join(10)
    assert not failures
    assert len(spellings) == 2


def test_accelerate_and_convert_together(spellings, spy):
    model = fastconv.convert(torch.nn.Sequential(torch.nn.Conv2d(4, 2, 3)))
    expected = model(X2)
    with fastconv.accelerate():
        assert torch.equal(model(X2), expected)


def test_accelerate_under_autocast_and_vmap():
    def function(x):
        return F.max_pool2d(F.conv2d(x, W2), 2)

    with fastconv.accelerate():
        with torch.autocast("cpu", torch.bfloat16):
            assert function(X2).dtype == torch.bfloat16
        mapped = torch.func.vmap(function)(X2)
    assert_close(mapped, function(X2))


def test_accelerate_inside_a_compiled_function():
    def function(x):
        with fastconv.accelerate():
            return F.max_pool2d(F.conv2d(x, W2), 2)

    targets = []

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    assert_close(torch.compile(function, backend=backend, fullgraph=True)(X2), function(X2))
    assert {"fastconv.conv_forward.default", "fastconv.max_pool.default"} <= set(targets)


def test_accelerate_around_a_compiled_function():
    def function(x):
        return F.max_pool2d(F.conv2d(x, W2), 2)

    expected = function(X2)
    with fastconv.accelerate():
        assert_close(torch.compile(function, backend="aot_eager")(X2), expected)
