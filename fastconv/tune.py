"""Measures which algorithms are the fastest on this machine for given convolutions, and keeps the result for later."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv import _C, device, ops, tuning
from fastconv.convert import convert
from fastconv.device import Algorithms, Target
from fastconv.tuning import PRIMITIVES, Choice

SECONDS = 0.2  # for one primitive of one problem, all its algorithms together
CLEARLY = 1.03  # how much faster than the plan's algorithm another must be: less is within the noise


class Problem(NamedTuple):
    """A primitive of a convolution: the arguments of `ops.ConvCall` up to the channels_last of its weight."""

    primitive: int
    arguments: tuple[Any, ...]

    def call(self, algorithm: str = "") -> ops.ConvCall:
        forced: dict[str, Any] = {PRIMITIVES[self.primitive]: algorithm}
        target = Target(_C, device.workspace, Algorithms(**forced))
        call: Callable[..., ops.ConvCall] = ops.ConvCall
        return call(*self.arguments, torch.get_num_threads(), target)


class Tuned(NamedTuple):
    """What was found for one primitive of one problem."""

    choice: Choice
    planned: str  # what the plan takes

    @property
    def gain(self) -> float:
        return self.choice.seconds[self.planned] / self.choice.seconds[self.choice.algorithm]


class TuningReport(NamedTuple):
    """What `tune` measured, and the file that holds it. `str()` gives a table of what will be faster."""

    tuned: list[Tuned]
    file: Path

    def __str__(self) -> str:
        better = [tuned for tuned in self.tuned if tuned.choice.algorithm != tuned.planned]
        lines = [f"{len(self.tuned)} choices measured; in {len(better)} another algorithm is faster than the plan's"]
        for tuned in better:
            choice, problem = tuned.choice, tuned.choice.problem
            size = "{c}x{h}x{w} to {k}, {r}x{s}".format(**problem)
            lines.append(
                f"  {choice.primitive:<15} {size:<28} {problem['layout']:<14} {problem['dtype']:<8} "
                f"{tuned.planned} {1e3 * choice.seconds[tuned.planned]:.3g} ms, "
                f"{choice.algorithm} {1e3 * choice.seconds[choice.algorithm]:.3g} ms: {tuned.gain:.2f} times as fast"
            )
        return "\n".join([*lines, f"Processes that start from now on use {self.file}"])


def tune(
    model: torch.nn.Module | Callable[[], Any],
    example: Any = None,
    *,
    seconds: float = SECONDS,
    file: str | Path | None = None,
    progress: Callable[[int, int, str], None] = lambda done, count, what: None,
) -> TuningReport:
    """Measure which algorithm is the fastest for each convolution of a model on the CPU, and keep the result in a file.

    fastconv chooses algorithms by fixed rules. `tune` times every algorithm that applies, in NCHW and in channels_last,
    for the forward pass and, where the model needs gradients, for both backward ones; processes that start later read
    the file and choose what was fastest. This process goes on as it began, so that it gives the same bits all the time.
    Choices hold for any number of threads and, but for weight gradients, of images, as one image's bits depend on
    neither. It takes about `seconds` for each choice; other work on the machine disturbs it.

    Args:
        model: a module, of which a copy runs once on `example`, its layers by fastconv; or a function of no arguments
            that calls fastconv.
        example: the model's argument, a tuple of positional arguments or a dict of keyword arguments.
        seconds: for one primitive of one problem in one layout.
        file: to add the choices to; else the one that this machine's processes read, in $XDG_CACHE_HOME/fastconv (or
            ~/.cache/fastconv), or what FASTCONV_TUNING says.
        progress: called before each choice with its index, their number and what it is.

    Raises:
        ValueError: FASTCONV_TUNING is "off" and no file is given. OSError: the file cannot be written. And whatever the
            model raises.
    """
    target = tuning.path() if file is None else Path(file)
    if target is None:
        raise ValueError("FASTCONV_TUNING=off: there is no file to keep the result in")
    problems = in_both_layouts(used_by(partial(_step, model, example) if isinstance(model, torch.nn.Module) else model))
    tuned = []
    for i, problem in enumerate(problems):
        progress(i, len(problems), PRIMITIVES[problem.primitive])
        result = measure(problem, seconds)
        if result:
            tuned.append(result)
    tuning.save(target, [result.choice for result in tuned])
    return TuningReport(tuned, target)


def _step(model: torch.nn.Module, example: Any) -> None:
    """Forward and, if it makes gradients, backward, of a copy."""
    arguments = import_module("fastconv.fastest").arguments
    args, kwargs = arguments(example)
    with torch.random.fork_rng():
        results = convert(copy.deepcopy(model))(*args, **kwargs)
        loss = [t.float().sum() for t in _tensors(results) if t.requires_grad]
        if loss:
            torch.stack(loss).sum().backward()


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def used_by(work: Callable[[], Any]) -> list[Problem]:
    """The convolutions that `work` computes on the CPU."""
    mine = Target(_C, device.workspace, device.current.get().algorithms)  # by which its calls are known
    token = device.current.set(mine)
    try:
        work()
    finally:
        device.current.reset(token)
    found = [
        Problem(primitive, key[:-2])
        for key, call in ops._conv_calls.items()
        if call.target is mine
        for primitive in range(3)
        if call._plans[primitive]
    ]
    _C.forget()
    ops._conv_calls.clear()
    return found


def in_both_layouts(problems: Iterable[Problem]) -> list[Problem]:
    """The same, once each, and with all tensors in NCHW and, with two dimensions, in channels_last."""
    both: dict[Problem, None] = {}
    for problem in problems:
        both[problem] = None
        *rest, _, _ = problem.arguments
        for last in (False, True) if len(problem.arguments[0]) == 4 else (False,):
            both[Problem(problem.primitive, (*rest, last, last))] = None
    return list(both)


def measure(problem: Problem, seconds: float) -> Tuned | None:
    """Times the algorithms side by side; None if there is only one."""
    interleave = import_module("fastconv.bench.timing").interleave
    call, primitive = problem.call(), PRIMITIVES[problem.primitive]
    names = _C.conv_algorithms(call.problem, primitive)
    if len(names) == 1:
        return None
    samples = interleave({name: problem_work(problem, name) for name in names}, seconds)
    times = {name: statistics.median(samples[name]) for name in names}
    planned, fastest = names[0], min(names, key=times.__getitem__)
    chosen = fastest if times[planned] > CLEARLY * times[fastest] else planned
    described = tuning.describe(call.problem, primitive)
    return Tuned(Choice(primitive, described, chosen, times, call.threads, call.problem.n), planned)


def problem_work(problem: Problem, algorithm: str) -> Callable[[], Any]:
    """The primitive by an algorithm, as a function of no arguments."""
    call = problem.call(algorithm)

    def image(shape: tuple[int, ...], last: bool) -> Tensor:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[1]))
        return values.to(dtype).contiguous(memory_format=ops.FORMATS[last])

    *_, dtype, last, w_last = problem.arguments
    x, w, y = image(call.x_shape, last), image(call.w_shape, w_last), image(call.y_shape, last)
    return (
        partial(call.forward, x, w, None),
        partial(call.input_gradient, y, w, None),
        partial(call.weight_gradient, y, x, False),
    )[problem.primitive]
