"""The gradient-check suite: every operator passes it, and it catches a wrong gradient."""

import backends
import pytest
import torch

from fastconv import functional, nn, testing
from fastconv.checks import DTYPES

CONVOLUTIONS = [name for name in testing.OPERATORS if name.startswith("conv")]


class WrongGradient(torch.autograd.Function):
    """The identity, with a derivative that is 1 % too large."""

    @staticmethod
    def forward(ctx, input):
        return input.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.01


class WrongSecondDerivative(torch.autograd.Function):
    """x², of which the first derivative is right and does not know that it depends on x."""

    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        return input.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0].detach() * gradient


def plant(monkeypatch, name, function):
    """Let `function` spoil what an operator gives."""
    operator = getattr(functional, name)
    monkeypatch.setattr(functional, name, lambda *args, **kwargs: function(operator(*args, **kwargs)))


# ---- the suite


@pytest.mark.backends
@pytest.mark.parametrize("operator", testing.OPERATORS)
def test_gradients(operator):
    rows = list(testing.gradient_suite([operator], devices=[backends.place(torch.empty(0)).device.type]))
    failed = [f"{row.algorithm} {row.layout}: {row.message}" for row in rows if not row]
    assert not failed, "\n".join(failed)
    assert all(row.gradcheck and row.gradgradcheck and not row.message for row in rows)
    assert {row.name for row in rows} == {operator}
    layouts = {"channels_first"} if operator.endswith("1d") else {"channels_first", "channels_last"}
    assert {row.layout for row in rows} == layouts
    assert all(bool(row.algorithm) == (operator in CONVOLUTIONS) for row in rows)


def test_suite_covers_every_operator():
    assert set(testing.OPERATORS) == set(functional.__all__)


def test_suite_runs_every_algorithm_that_applies(monkeypatch):
    """What `algorithms` names is forced, for the primitives it applies to."""
    forced = []
    monkeypatch.setattr(testing, "_check_derivatives", lambda call, inputs: (True, True, ""))
    force = testing.force_algorithm
    monkeypatch.setattr(testing, "force_algorithm", lambda **names: forced.append(names) or force(**names))
    listed = {"forward": ["fast", "plain"], "input_gradient": ["plain"], "weight_gradient": ["plain", "other"]}
    monkeypatch.setattr(testing, "algorithms", lambda *args, **kwargs: listed)
    rows = list(testing.gradient_suite(["conv1d"]))
    assert [row.algorithm for row in rows] == ["fast", "plain", "other"]
    for names in (
        {"forward": "fast"},
        {"forward": "plain", "input_gradient": "plain", "weight_gradient": "plain"},
        {"weight_gradient": "other"},
    ):
        assert names in forced


@pytest.mark.parametrize("operator", ["conv1d", "max_pool1d", "local_response_norm"])
def test_suite_catches_a_wrong_gradient(operator, monkeypatch):
    plant(monkeypatch, operator, WrongGradient.apply)
    rows = list(testing.gradient_suite([operator]))
    assert rows
    for row in rows:
        assert not row.passed
        assert row.gradcheck is False
        assert "gradcheck: Jacobian mismatch" in row.message


def test_suite_catches_a_wrong_second_derivative(monkeypatch):
    plant(monkeypatch, "adaptive_avg_pool1d", WrongSecondDerivative.apply)
    (row,) = testing.gradient_suite(["adaptive_avg_pool1d"])
    assert row.gradcheck is True
    assert row.gradgradcheck is False
    assert not row


def test_suite_reports_an_exception_as_a_failure(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(functional, "avg_pool1d", broken)
    (row,) = testing.gradient_suite(["avg_pool1d"])
    assert not row
    assert "no such kernel" in row.message


def test_suite_refuses_unknown_operators():
    with pytest.raises(ValueError, match="conv9d"):
        list(testing.gradient_suite(["conv9d"]))


# ---- the self-test


def test_self_test_passes():
    rows = list(testing.self_test())
    failed = [f"{row.name} {row.dtype} {row.layout}: {row.message}" for row in rows if not row]
    assert not failed, "\n".join(failed)
    images = [name for name in testing.OPERATORS if not name.endswith("1d")]
    assert len(rows) == len(DTYPES) * (len(testing.OPERATORS) + len(images))
    assert {row.dtype for row in rows} == {"float32", "float64", "float16", "bfloat16"}


@pytest.mark.parametrize("operator", ["conv2d", "max_pool2d"])
def test_self_test_catches_a_wrong_result(operator, monkeypatch):
    plant(monkeypatch, operator, lambda result: result + 1)
    failed = {row.name: row.message for row in testing.self_test() if not row}
    assert set(failed) == {operator}
    assert "result: Tensor-likes are not" in failed[operator]


def test_self_test_catches_a_wrong_gradient(monkeypatch):
    plant(monkeypatch, "conv1d", lambda result: result.detach() + 2 * (result - result.detach()))
    failed = {row.name: row.message for row in testing.self_test() if not row}
    assert set(failed) == {"conv1d"}
    assert "gradient of the input" in failed["conv1d"]


def test_self_test_catches_a_lost_layout(monkeypatch):
    plant(monkeypatch, "avg_pool2d", lambda result: result.contiguous())
    failed = [row for row in testing.self_test() if not row]
    assert {(row.name, row.layout) for row in failed} == {("avg_pool2d", "channels_last")}


# ---- one's own layers


def test_own_function():
    result = testing.check_gradients(
        lambda x, w: functional.conv1d(x, w).tanh(), torch.randn(1, 2, 5), torch.randn(2, 2, 3)
    )
    assert result
    assert result.gradcheck
    assert result.gradgradcheck
    assert result.dtype == "float64"


def test_own_layer_in_its_parameters():
    class Scaled(torch.nn.Module):
        def __init__(self, function):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(2))
            self.function = function

        def forward(self, x):
            return x * self.function(self.scale)[:, None]

    x = torch.randn(2, 3)
    layer = Scaled(torch.sin)
    assert testing.check_gradients(layer, x)
    assert layer.scale.dtype == torch.float32
    assert layer.scale.grad is None
    wrong = testing.check_gradients(Scaled(WrongGradient.apply), x)
    assert not wrong
    assert wrong.name == "Scaled"
    assert "Jacobian mismatch" in wrong.message


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConnectionTableConv2d(3, [[0, 1], [2], [1, 2]], 2), (1, 3, 3, 3)),
        (nn.TrainableSubsampling2d(2), (2, 2, 4, 4)),
        (nn.RBFOutput(torch.ones(3, 4)), (2, 4)),
        (nn.Conv2d(2, 2, 2, padding=((1, 0), (0, 2)), padding_mode="reflect"), (1, 2, 3, 4)),
    ],
)
def test_layers_that_torch_lacks(layer, shape):
    result = testing.check_gradients(layer, torch.randn(shape))
    assert result, result.message


def test_own_function_keeps_layout_and_other_arguments():
    x = torch.randn(1, 2, 4, 4).to(memory_format=torch.channels_last)
    seen = []

    def pool(images, size):
        seen.append((images.is_contiguous(memory_format=torch.channels_last), size))
        return functional.avg_pool2d(images, size)

    result = testing.check_gradients(pool, x, 2)
    assert result
    assert (result.name, result.layout) == ("pool", "channels_last")
    assert set(seen) == {(True, 2)}
