"""Tuning: what is measured, how the file is kept, and that nothing in a file can break or change more than a choice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastconv
from fastconv import _C, ops, tuning
from fastconv import functional as F
from fastconv.tune import Problem, Tuned, in_both_layouts, measure, tune, used_by

CONV = {"stride": 1, "padding": 1}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """As in a process that has made no call yet."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    tuning._table.cache_clear()
    tuning._warn_of_inapplicable.cache_clear()
    _C.forget()
    ops._conv_calls.clear()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "folder" / "tuning.json"
    monkeypatch.setenv("FASTCONV_TUNING", str(path))
    return path


def image(*shape: int, last: bool = False) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=ops.FORMATS[last])


X, W = (2, 32, 12, 12), (32, 32, 3, 3)


def problems() -> list[Problem]:
    """The three primitives of one convolution."""

    def work() -> None:
        x, w = image(*X).requires_grad_(), image(*W).requires_grad_()
        F.conv2d(x, w, **CONV).sum().backward()

    return used_by(work)


def entries(primitive: str, algorithm: str) -> list[dict[str, Any]]:
    """The entry of a file for a primitive of the convolution, in both layouts."""
    found = []
    for problem in in_both_layouts(problems()):
        if tuning.PRIMITIVES[problem.primitive] == primitive:
            described = tuning.describe(problem.call().problem, primitive)
            found.append(tuning.Choice(primitive, described, algorithm, {algorithm: 1e-3}, 2, 2)._asdict())
    return found


def write(file: Path, choices: Any, **header: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"format": 1, "machine": tuning.machine(), "choices": choices, **header}))
    _forget()


def planned(x: torch.Tensor, w: torch.Tensor) -> str:
    """The algorithm that a forward pass uses."""
    return str(fastconv.algorithms("conv2d", x, w, **CONV)["forward"][0])


def same_as(algorithm: str, x: torch.Tensor, w: torch.Tensor) -> bool:
    y = F.conv2d(x, w, **CONV)
    with fastconv.force_algorithm(forward=algorithm):
        return torch.equal(F.conv2d(x, w, **CONV), y)


# ---- what is measured


def test_the_convolutions_of_a_function_are_found() -> None:
    found = problems()
    assert sorted(problem.primitive for problem in found) == [0, 1, 2]
    assert {problem.arguments[0] for problem in found} == {X}
    assert not used_by(lambda: None)  # nothing is left of those before
    assert [problem.primitive for problem in used_by(lambda: F.conv2d(image(*X), image(*W)))] == [0]


def test_both_layouts_are_measured() -> None:
    layouts = [problem.arguments[-2:] for problem in in_both_layouts(problems()[:1])]
    assert layouts == [(False, False), (True, True)]
    one = used_by(lambda: F.conv1d(torch.randn(2, 16, 40), torch.randn(16, 16, 3)))
    assert in_both_layouts(one) == one
    mixed = used_by(lambda: F.conv2d(image(*X, last=True), image(*W)))
    assert [problem.arguments[-2:] for problem in in_both_layouts(mixed)] == [
        (True, False),
        (False, False),
        (True, True),
    ]


@pytest.mark.parametrize("primitive", range(3))
def test_every_algorithm_is_timed(primitive: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = next(problem for problem in problems() if problem.primitive == primitive)
    names = fastconv._C.conv_algorithms(problem.call().problem, tuning.PRIMITIVES[primitive])
    assert len(names) > 1

    def interleave(work: dict[str, Any], seconds: float) -> dict[str, list[float]]:
        assert seconds == 0.5
        for function in work.values():
            function()
        return {name: [1.0, times[name], 9.0] for name in work}

    monkeypatch.setattr("fastconv.bench.timing.interleave", interleave)
    times = dict.fromkeys(names, 2.0) | {names[-1]: 1.5}
    found = measure(problem, 0.5)
    assert found is not None
    assert found.choice.algorithm == names[-1]
    assert found.choice.seconds == times
    assert (found.planned, found.gain) == (names[0], 2 / 1.5)
    times[names[-1]] = 1.99  # no more than noise
    found = measure(problem, 0.5)
    assert found is not None
    assert found.choice.algorithm == names[0]


def test_a_single_algorithm_needs_no_choice() -> None:
    (problem,) = used_by(lambda: F.conv2d(torch.randn(1, 64, 5, 5), torch.randn(64, 64, 2, 2), stride=2))
    assert len(fastconv._C.conv_algorithms(problem.call().problem, "forward")) == 1
    assert measure(problem, 0) is None


def test_a_model_is_tuned_and_left_alone(file: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.Conv2d(16, 16, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps: list[tuple[int, int, str]] = []
    x, state = torch.randn(2, 3, 12, 12), torch.get_rng_state()
    found = tune(model, x, seconds=0, progress=lambda *step: steps.append(step))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model[0]) is torch.nn.Conv2d
    assert all(parameter.grad is None for parameter in model.parameters())
    # two layouts of: two forward passes, two weight gradients, one input gradient
    assert [step[:2] for step in steps] == [(i, 10) for i in range(10)]
    assert found.file == file
    assert tuning.load(file) == ([tuned.choice for tuned in found.tuned], 0)
    assert str(file) in str(found)


def test_a_report_says_what_will_be_faster() -> None:
    described = tuning.describe(problems()[0].call().problem, "forward")
    choice = tuning.Choice("forward", described, "b", {"a": 3e-3, "b": 2e-3}, 2, 2)
    same = choice._replace(algorithm="a")
    text = str(fastconv.TuningReport([Tuned(choice, "a"), Tuned(same, "a")], Path("f")))
    lines = text.splitlines()
    assert lines[0] == "2 choices measured; in 1 another algorithm is faster than the plan's"
    assert "32x12x12 to 32, 3x3" in lines[1]
    assert lines[1].endswith("a 3 ms, b 2 ms: 1.50 times as fast")
    assert len(lines) == 3


# ---- what a file does


@pytest.mark.parametrize("last", [False, True])
def test_a_choice_is_followed(file: Path, last: bool) -> None:
    x, w = image(*X, last=last), image(*W, last=last)
    assert planned(x, w) == "winograd_f4"
    write(file, entries("forward", "implicit_gemm"))
    assert planned(x, w) == "implicit_gemm"
    assert same_as("implicit_gemm", x, w)
    assert not same_as("winograd_f4", x, w)  # the bits differ, so the test can tell
    assert "2 choices" in fastconv.show_config()
    with fastconv.force_algorithm(forward="winograd_f4"):
        assert not torch.equal(F.conv2d(x, w, **CONV), _by("implicit_gemm", x, w))


def _by(algorithm: str, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    with fastconv.force_algorithm(algorithm):
        return F.conv2d(x, w, **CONV)


def test_a_choice_holds_for_every_batch_and_number_of_threads(file: Path) -> None:
    """A sample's bits depend on neither."""
    x, w = image(5, *X[1:]), image(*W)
    write(file, entries("forward", "implicit_gemm"))
    expected = F.conv2d(x, w, **CONV)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for i in range(5):
            assert torch.equal(F.conv2d(x[i : i + 1], w, **CONV)[0], expected[i])
    assert same_as("implicit_gemm", x[:1], w)


def test_a_choice_is_of_one_problem_and_primitive(file: Path) -> None:
    write(file, entries("input_gradient", "implicit_gemm"))
    x, w = image(*X), image(*W)
    assert planned(x, w) == "winograd_f4"
    assert fastconv.algorithms("conv2d", x, w, **CONV)["input_gradient"][0] == "implicit_gemm"
    other = image(2, 32, 13, 12)
    assert fastconv.algorithms("conv2d", other, w, **CONV)["input_gradient"][0] == "winograd_f4"


def test_the_file_is_read_once(file: Path) -> None:
    x, w = image(*X), image(*W)
    F.conv2d(x, w, **CONV)
    file.parent.mkdir()
    file.write_text(json.dumps({"format": 1, "machine": tuning.machine(), "choices": entries("forward", "direct")}))
    ops._conv_calls.clear()
    assert planned(x, w) == "winograd_f4"


def test_winograd_is_not_used_where_it_is_not_allowed(file: Path) -> None:
    write(file, entries("forward", "winograd_f4"))
    x, w = image(*X), image(*W)
    with warnings.catch_warnings(), fastconv.allow_winograd(False):
        warnings.simplefilter("error")
        assert same_as("implicit_gemm", x, w)


def test_the_simulated_gpu_is_not_tuned(file: Path) -> None:
    write(file, entries("forward", "implicit_gemm"))
    with fastconv.simulate_cuda():
        first = fastconv.algorithms("conv2d", image(*X), image(*W), **CONV)["forward"]
    write(file, [])
    with fastconv.simulate_cuda():
        assert fastconv.algorithms("conv2d", image(*X), image(*W), **CONV)["forward"] == first


# ---- what is wrong with a file

BROKEN = {
    "empty": b"",
    "cut short": b'{"format": 1, "mach',
    "no object": b"[1, 2]",
    "null": b"null",
    "binary": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "no choices": b'{"format": 1}',
    "another format": b'{"format": 2, "machine": {}, "choices": []}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_corrupt_file_is_ignored_with_one_warning(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    x, w = image(*X), image(*W)
    with pytest.warns(UserWarning, match=r"tuning\.json"):
        F.conv2d(x, w, **CONV)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert planned(x, w) == "winograd_f4"
        F.conv2d(image(2, 32, 9, 9), w, **CONV)
    tuning.save(file, [])
    assert tuning.load(file) == ([], 0)


@pytest.mark.parametrize("field", ["cpu", "isa", "fastconv"])
def test_a_file_of_another_machine_is_ignored(file: Path, field: str) -> None:
    write(file, entries("forward", "implicit_gemm"), machine=tuning.machine() | {field: "other"})
    with pytest.warns(UserWarning, match="for another machine"):
        assert planned(image(*X), image(*W)) == "winograd_f4"


def test_a_folder_in_its_place_is_ignored(file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert planned(image(*X), image(*W)) == "winograd_f4"


def _without(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}


MISTAKES = {
    "no object": lambda entry: 3,
    "no primitive": lambda entry: _without(entry, "primitive"),
    "unknown primitive": lambda entry: entry | {"primitive": "backward"},
    "unhashable primitive": lambda entry: entry | {"primitive": ["forward"]},
    "no problem": lambda entry: entry | {"problem": None},
    "a size is missing": lambda entry: entry | {"problem": _without(entry["problem"], "h")},
    "a size is text": lambda entry: entry | {"problem": entry["problem"] | {"h": "12"}},
    "a size is true": lambda entry: entry | {"problem": entry["problem"] | {"groups": True}},
    "a size is a list": lambda entry: entry | {"problem": entry["problem"] | {"h": [12]}},
    "unknown layout": lambda entry: entry | {"problem": entry["problem"] | {"layout": "NCHW"}},
    "a layout is a number": lambda entry: entry | {"problem": entry["problem"] | {"layout": 0}},
    "algorithm is a number": lambda entry: entry | {"algorithm": 1},
    "algorithm is a list": lambda entry: entry | {"algorithm": ["direct"]},
    "no seconds": lambda entry: entry | {"seconds": 1},
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_bad_entry_is_ignored_and_the_others_hold(file: Path, mistake: Any) -> None:
    first, second = entries("forward", "implicit_gemm")
    write(file, [mistake(first), second])
    with pytest.warns(UserWarning, match=r"tuning\.json: 1 entries are not understood"):
        F.conv2d(image(*X), image(*W), **CONV)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert planned(image(*X), image(*W)) == "winograd_f4"
        assert planned(image(*X, last=True), image(*W, last=True)) == "implicit_gemm"


@pytest.mark.parametrize("name", ["depthwise", "fft", ""])
def test_an_algorithm_that_does_not_apply_is_ignored_with_one_warning(file: Path, name: str) -> None:
    write(file, entries("forward", name))
    x, w = image(*X), image(*W)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert planned(x, w) == "winograd_f4"
        assert same_as("winograd_f4", x, w)
    assert [str(file) in str(warning.message) for warning in caught] == [True] * bool(name)


# ---- where it is


def test_the_place_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTCONV_TUNING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tuning.path()
    assert path is not None
    assert path.parent == tmp_path / "fastconv"
    assert path.name.endswith(f"-{fastconv._C.isa()}-{fastconv.__version__}.json")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tuning.path()).startswith(f"{tmp_path}/.cache/fastconv/")
    monkeypatch.setenv("FASTCONV_TUNING", "off")
    assert tuning.path() is None
    assert "off (FASTCONV_TUNING)" in fastconv.show_config()
    with pytest.raises(ValueError, match="FASTCONV_TUNING=off"):
        tune(lambda: None)


def test_saving_adds_and_replaces(file: Path) -> None:
    first, second = (tuning.Choice(**entry) for entry in entries("forward", "implicit_gemm"))
    tuning.save(file, [first])
    tuning.save(file, [second])
    tuning.save(file, [first._replace(algorithm="direct")])
    assert tuning.load(file)[0] == [first._replace(algorithm="direct"), second]
    assert [path.name for path in file.parent.iterdir()] == ["tuning.json"]


def test_a_write_that_fails_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.save(file, [])
    before = file.read_bytes()

    def broken(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        tuning.save(file, [tuning.Choice(**entry) for entry in entries("forward", "direct")])
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["tuning.json"]


# ---- the command


def command(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastconv", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_the_command_tunes_and_the_next_process_follows(tmp_path: Path) -> None:
    home = {"XDG_CACHE_HOME": str(tmp_path), "FASTCONV_TUNING": ""}
    done = command("tune", "conv2d:1,16,8,8,16,3x3,padding=1", "--seconds", 0.001, **home)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "fastconv").iterdir()
    assert str(file) in done.stdout
    data = json.loads(file.read_text())
    assert {choice["primitive"] for choice in data["choices"]} == set(tuning.PRIMITIVES)
    for choice in data["choices"]:
        assert choice["algorithm"] in choice["seconds"]
    assert f"{len(data['choices'])} choices of {file}" in command("info", **home).stdout


def test_the_command_takes_a_model_or_problems(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    done = command("tune", "--model", "lenet5", "--batch", 1, "--seconds", 0.001, "--file", file)
    assert done.returncode == 0, done.stderr
    assert tuning.load(file)[0]
    for words, error in (
        ((), "give suites or problems, or a --model"),
        (("quick", "--model", "lenet5"), "give suites or problems, or a --model"),
        (("nothing",), "is no suite"),
        (("--model", "lenet6"), "lenet6"),
        (("quick",), "FASTCONV_TUNING=off"),
    ):
        done = command("tune", *words, FASTCONV_TUNING="off")
        assert done.returncode == 2
        assert error in done.stderr
