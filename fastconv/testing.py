"""Checks for users: the gradients of every operator and algorithm, or of one's own layers, and a self-test."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastconv import functional
from fastconv.checks import DTYPES
from fastconv.config import PRIMITIVES, algorithms, force_algorithm

__all__ = ["OPERATORS", "CheckResult", "check_gradients", "gradient_suite", "self_test"]


@dataclass(frozen=True)
class CheckResult:
    """One row of a check; it is true if the check passed.

    Attributes:
        name: the operator, or the function or layer that was checked.
        algorithm: the algorithm that ran, "" where there is but one.
        layout: "channels_first" or "channels_last".
        device: as torch names it.
        passed: whether all was well.
        seconds: how long it took.
        message: what was wrong, "" if nothing.
        dtype: as torch names it, without "torch.".
        gradcheck, gradgradcheck: what became of each, None if it was not run.
    """

    name: str
    algorithm: str
    layout: str
    device: str
    passed: bool
    seconds: float
    message: str = ""
    dtype: str = "float64"
    gradcheck: bool | None = None
    gradgradcheck: bool | None = None

    def __bool__(self) -> bool:
        return self.passed


@dataclass(frozen=True)
class _Case:
    """A small call of an operator: shapes of its tensors, and the other arguments."""

    operator: str
    shapes: tuple[tuple[int, ...], ...]
    arguments: dict[str, Any] = field(default_factory=dict)

    def call(self, *tensors: Tensor) -> Tensor:
        """The operator's result; looked up on every call, so that what is checked is what a user would call."""
        result: Tensor = getattr(functional, self.operator)(*tensors, **self.arguments)
        return result

    def reference(self, *tensors: Tensor) -> Tensor:
        """The same by torch, which has no padding per side."""
        arguments = dict(self.arguments)
        padding = arguments.get("padding")
        if isinstance(padding, tuple) and isinstance(padding[0], tuple):
            sides = [amount for pair in reversed(padding) for amount in pair]
            tensors = (torch.nn.functional.pad(tensors[0], sides), *tensors[1:])
            del arguments["padding"]
        result: Tensor = getattr(torch.nn.functional, self.operator)(*tensors, **arguments)
        return result


# Small, and each different in several ways at once: what one lacks another has.
_CASES = (
    _Case("conv1d", ((2, 2, 6), (3, 2, 3), (3,)), {"stride": 2, "padding": 1}),
    _Case("conv1d", ((1, 4, 5), (2, 2, 2)), {"padding": ((2, 1),), "dilation": 3, "groups": 2}),
    _Case("conv1d", ((2, 5), (2, 1, 3), (2,)), {"padding": "same", "groups": 2}),
    _Case("conv2d", ((2, 2, 4, 3), (3, 2, 3, 3), (3,)), {"stride": (2, 1), "padding": 1}),
    _Case("conv2d", ((1, 2, 3, 4), (2, 2, 2, 3)), {"padding": ((2, 1), (0, 3)), "dilation": (1, 2)}),
    _Case("conv2d", ((2, 3, 2, 2), (4, 3, 1, 1), (4,))),
    _Case("conv2d", ((1, 4, 3, 3), (4, 2, 2, 2)), {"groups": 2}),
    _Case("conv2d", ((1, 3, 3, 4), (3, 1, 3, 3), (3,)), {"groups": 3, "padding": "same"}),
    _Case("conv2d", ((2, 2, 3), (2, 2, 3, 3), (2,)), {"padding": (3, 1)}),
    _Case("conv_transpose1d", ((2, 2, 3), (2, 3, 3), (3,)), {"stride": 2, "padding": 1, "output_padding": 1}),
    _Case("conv_transpose1d", ((1, 4, 3), (4, 1, 2)), {"groups": 2, "dilation": 2}),
    _Case("conv_transpose2d", ((2, 2, 2, 2), (2, 2, 3, 3), (2,)), {"stride": 2, "padding": 1, "output_padding": 1}),
    _Case("conv_transpose2d", ((1, 4, 2, 2), (4, 1, 2, 2)), {"groups": 2, "dilation": 2}),
    _Case("conv_transpose2d", ((1, 3, 2, 3), (3, 1, 2, 3), (3,)), {"groups": 3, "stride": (1, 2)}),
    _Case("max_pool1d", ((2, 2, 9),), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}),
    _Case("max_pool1d", ((2, 7),), {"kernel_size": 2, "ceil_mode": True}),
    _Case("max_pool2d", ((2, 2, 4, 5),), {"kernel_size": 2}),
    _Case("max_pool2d", ((1, 2, 5, 6),), {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "ceil_mode": True}),
    _Case("avg_pool1d", ((2, 2, 7),), {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    _Case("avg_pool2d", ((2, 2, 4, 5),), {"kernel_size": 2}),
    _Case("avg_pool2d", ((1, 2, 5, 6),), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    _Case("avg_pool2d", ((1, 2, 4, 3),), {"kernel_size": (3, 2), "stride": 1, "divisor_override": 5}),
    _Case("adaptive_avg_pool1d", ((2, 2, 7),), {"output_size": 3}),
    _Case("adaptive_avg_pool2d", ((2, 2, 4, 5),), {"output_size": (3, 2)}),
    _Case("adaptive_max_pool1d", ((2, 2, 7),), {"output_size": 3}),
    _Case("adaptive_max_pool2d", ((2, 2, 4, 5),), {"output_size": (3, 2)}),
    _Case("local_response_norm", ((2, 7, 1, 2),), {"size": 5, "alpha": 0.5, "beta": 0.75, "k": 2.0}),
    _Case("local_response_norm", ((2, 3, 3),), {"size": 4, "alpha": 1.0, "beta": 0.5}),
)

OPERATORS = tuple(dict.fromkeys(case.operator for case in _CASES))

_LAYOUTS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}


def gradient_suite(
    operators: Sequence[str] | None = None, devices: Sequence[str] | None = None
) -> Iterator[CheckResult]:
    """Check the first and second derivatives of every operator with every algorithm, in every layout, in float64.

    Yields a row as soon as it is done: `torch.autograd.gradcheck` and `gradgradcheck` (which compare with difference
    quotients) over several small calls of the operator.

    Args:
        operators: names out of `OPERATORS`; all of them if not given. ValueError for another name.
        devices: as torch names them; all of this machine for which there are kernels if not given.
    """
    for operator in _known(operators):
        for device in _present(devices):
            for layout in _LAYOUTS:
                cases = [case for case in _CASES if case.operator == operator and _has_layout(case, layout)]
                for algorithm, members in _by_algorithm(cases, layout, device).items():
                    yield _check_cases(operator, algorithm, layout, device, members)


def self_test(devices: Sequence[str] | None = None) -> Iterator[CheckResult]:
    """Compare every operator and its gradients with torch on small problems of every dtype and layout. About 2 seconds.

    The problems are small integers, of which most operators compute the exact result. Yields a row as soon as it is
    done.
    """
    for operator in OPERATORS:
        for device in _present(devices):
            for layout in _LAYOUTS:
                cases = [case for case in _CASES if case.operator == operator and _has_layout(case, layout)]
                for dtype in DTYPES if cases else ():
                    start = time.perf_counter()
                    message = _first_failure(lambda case: _compare(case, layout, device, dtype), cases)  # noqa: B023
                    seconds = time.perf_counter() - start
                    name = str(dtype).removeprefix("torch.")
                    yield CheckResult(operator, "", layout, device, not message, seconds, message, name)


def check_gradients(function: Callable[..., Any], *inputs: Any) -> CheckResult:
    """Check the first and second derivatives of a function or layer of your own, in float64.

    Args:
        function: a function of tensors, or a module (checked as a float64 copy, in its parameters too). It must give
        the
            same result every time: no dropout in training mode.
        inputs: what to call it with. Floating-point tensors are taken in float64, in their memory format, and
            differentiated; others are passed on. Small ones: the time grows with the square of their size.

    Returns the row, which is true if both checks passed and otherwise says in `message` what was wrong.
    """
    arguments = [
        value.detach().to(torch.float64).clone().requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for value in inputs
    ]
    name = getattr(function, "__name__", type(function).__name__)
    parameters: dict[str, Tensor] = {}
    call = function
    if isinstance(function, torch.nn.Module):
        module = copy.deepcopy(function).to(torch.float64)
        parameters = {key: value for key, value in module.named_parameters() if value.requires_grad}

        def call(*values: Any) -> Any:
            own = dict(zip(parameters, values[len(arguments) :], strict=True))
            return torch.func.functional_call(module, own, values[: len(arguments)])

    tensors = [value for value in arguments if isinstance(value, Tensor)]
    layout = "channels_last" if any(_is_channels_last(tensor) for tensor in tensors) else "channels_first"
    device = str(tensors[0].device) if tensors else "cpu"
    start = time.perf_counter()
    first, second, message = _check_derivatives(call, (*arguments, *parameters.values()))
    seconds = time.perf_counter() - start
    return CheckResult(
        name, "", layout, device, first and second, seconds, message, gradcheck=first, gradgradcheck=second
    )


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _known(operators: Sequence[str] | None) -> Sequence[str]:
    unknown = [operator for operator in operators or () if operator not in OPERATORS]
    if unknown:
        raise ValueError(f"operators: expected some of {', '.join(OPERATORS)}, got {', '.join(unknown)}")
    return OPERATORS if operators is None else operators


def _present(devices: Sequence[str] | None) -> Sequence[str]:
    return ["cpu"] if devices is None else devices


def _has_layout(case: _Case, layout: str) -> bool:
    """Only batches of images can be channels_last."""
    return layout == "channels_first" or len(case.shapes[0]) == 4


def _random(case: _Case, layout: str, device: str, dtype: torch.dtype, integers: bool) -> list[Tensor]:
    """Inputs of a call, the same every time.

    Small integers, or numbers of which no two are so near each other that a difference quotient could swap a maximum.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for shape in case.shapes:
        count = torch.Size(shape).numel()
        if integers:
            values = torch.randint(-3, 4, (count,), generator=generator).to(dtype)
        else:
            values = (torch.randperm(count, generator=generator).to(dtype) * 2 - count + 1) / count
        tensor = values.reshape(shape).to(device)
        if len(shape) == 4:
            tensor = tensor.contiguous(memory_format=_LAYOUTS[layout])
        tensors.append(tensor.requires_grad_())
    return tensors


def _by_algorithm(cases: Iterable[_Case], layout: str, device: str) -> dict[str, list[tuple[_Case, dict[str, str]]]]:
    """For every algorithm the calls it can take part in, and for which of their primitives."""
    found: dict[str, list[tuple[_Case, dict[str, str]]]] = {}
    for case in cases:
        if not case.operator.startswith("conv"):
            found.setdefault("", []).append((case, {}))
            continue
        inputs = _random(case, layout, device, torch.float64, False)
        applicable = algorithms(case.operator, *inputs, **case.arguments)
        if layout == "channels_last" and not _is_channels_last(inputs[1]):
            # A weight whose strides fit both layouts: some of the second derivatives are computed in the other one.
            others = algorithms(case.operator, *(t.contiguous() for t in inputs), **case.arguments)
            applicable = {key: [name for name in names if name in others[key]] for key, names in applicable.items()}
        for name in dict.fromkeys(name for primitive in PRIMITIVES for name in applicable[primitive]):
            forced = {primitive: name for primitive in PRIMITIVES if name in applicable[primitive]}
            found.setdefault(name, []).append((case, forced))
    return found


def _check_cases(
    operator: str, algorithm: str, layout: str, device: str, members: Iterable[tuple[_Case, dict[str, str]]]
) -> CheckResult:
    first = second = True
    message = ""
    start = time.perf_counter()
    for case, forced in members:
        context: AbstractContextManager[None] = force_algorithm(**forced) if forced else nullcontext()
        with context:
            ok, ok_again, why = _check_derivatives(case.call, _random(case, layout, device, torch.float64, False))
        first, second = first and ok, second and ok_again
        message = message or (f"{_describe(case)}: {why}" if why else "")
    seconds = time.perf_counter() - start
    passed = first and second
    return CheckResult(
        operator, algorithm, layout, device, passed, seconds, message, gradcheck=first, gradgradcheck=second
    )


def _check_derivatives(call: Callable[..., Any], inputs: Sequence[Any]) -> tuple[bool, bool, str]:
    """Whether first and second derivatives are right, and what is wrong. An exception is a failure like another."""
    messages = []
    outcome = []

    def gradcheck() -> None:
        torch.autograd.gradcheck(call, tuple(inputs))

    def gradgradcheck() -> None:
        # The gradients put in have the outputs' strides: an algorithm may be for one layout only.
        outputs = call(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        along = tuple(torch.randn_like(y).requires_grad_() for y in outputs if y.requires_grad)
        torch.autograd.gradgradcheck(call, tuple(inputs), along)

    for check in (gradcheck, gradgradcheck):
        try:
            check()
            outcome.append(True)
        except Exception as error:
            outcome.append(False)
            messages.append(f"{check.__name__}: {_one_line(error)}")
    return outcome[0], outcome[1], "; ".join(messages)


def _compare(case: _Case, layout: str, device: str, dtype: torch.dtype) -> None:
    """AssertionError where result, gradients or memory format differ from torch's."""
    inputs = _random(case, layout, device, dtype, True)
    exact = [tensor.detach().to(torch.float64).requires_grad_() for tensor in inputs]
    result = case.call(*inputs)
    expected = case.reference(*exact)
    _expect_close("result", result, expected.to(dtype))
    if result.dim() == 4 and not result.is_contiguous(memory_format=_LAYOUTS[layout]):
        raise AssertionError(f"result: expected {layout}, got strides {result.stride()}")
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randint(-3, 4, result.shape, generator=generator).to(device, dtype)
    gradients = torch.autograd.grad(result, inputs, gradient)
    references = torch.autograd.grad(expected, exact, gradient.to(torch.float64))
    for name, got, wanted in zip(("input", "weight", "bias"), gradients, references, strict=False):
        _expect_close(f"gradient of the {name}", got, wanted.to(dtype))


def _expect_close(name: str, got: Tensor, wanted: Tensor) -> None:
    """AssertionError beyond the tolerances of torch.testing, whose import takes longer than all else in a self-test.

    What agrees to a rounding error is not brought before it.
    """
    alike = got.shape == wanted.shape and got.dtype == wanted.dtype
    if not (alike and torch.allclose(got, wanted, rtol=torch.finfo(got.dtype).eps, atol=1e-7)):
        torch.testing.assert_close(got, wanted, msg=lambda text: f"{name}: {text}")


def _first_failure(check: Callable[[_Case], None], cases: Iterable[_Case]) -> str:
    for case in cases:
        try:
            check(case)
        except Exception as error:
            return f"{_describe(case)}: {_one_line(error)}"
    return ""


def _describe(case: _Case) -> str:
    shapes = ", ".join(str(list(shape)) for shape in case.shapes)
    return ", ".join([shapes, *(f"{name}={value}" for name, value in case.arguments.items())])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
