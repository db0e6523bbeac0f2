"""The benchmark: that it parses, counts and sums up right, and says where torch is faster. No test judges by a time."""

import argparse
import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastconv.bench import overhead, plots, report
from fastconv.bench.cli import add_arguments, run
from fastconv.bench.engines import ENGINES
from fastconv.bench.layers import OPERATORS, SUITES, Target, parse, select
from fastconv.bench.machine import Ceiling, describe, measure_ceiling
from fastconv.bench.peers import FASTCONV, LAYOUTS, TORCH, FunctionalPeer, inputs
from fastconv.bench.run import Overhead, Report, Result, families, run_pass
from fastconv.bench.timing import Timing, geometric_mean, interleave, quartiles

CASES = list({case.problem: case for suite in SUITES.values() for case in suite.cases}.values())
MORE = [
    "conv_transpose2d:2,8,5,6,4,3x2,stride=2,padding=1x0,output_padding=1,groups=2,dilation=1x2",
    "conv_transpose1d:2,8,5,4,3,stride=2,bias=0",
    "conv1d:2,8,50,4,3,dilation=4,stride=3",
    "max_pool2d:2,3,10,11,3x2,stride=2x3,padding=1,dilation=2,ceil_mode=1",
    "max_pool2d:1,1,5,5,2,stride=3,padding=1,ceil_mode=1",
    "avg_pool1d:2,3,10,3,stride=2,padding=1,count_include_pad=0",
    "adaptive_max_pool1d:2,3,10,4",
    "adaptive_avg_pool2d:2,3,10,9,4x3",
    "local_response_norm:2,7,9,3,alpha=0.1,beta=0.5,k=2",
]


def on_meta(case):
    shapes = [case.shape, *([case.weight_shape] if case.is_convolution else [])]
    if case.is_convolution and case.parameters["bias"]:
        shapes.append((case.out_channels,))
    return [torch.empty(shape, device="meta") for shape in shapes]


@pytest.mark.parametrize("case", CASES + [parse(problem) for problem in MORE], ids=lambda case: case.problem)
def test_case_has_the_shape_and_operations_torch_counts(case):
    with FlopCounterMode(display=False) as counter:
        y = TORCH.operator(case)(*on_meta(case))
    assert tuple(y.shape) == case.output_shape
    if case.is_convolution:
        assert counter.get_total_flops() == case.operations


def test_parse_reads_every_part():
    case = parse("conv2d:8,128,28,30,64,3x5,stride=2,padding=1x2,groups=4,bias=0", "a name")
    assert (case.operator, case.shape, case.out_channels, case.kernel) == ("conv2d", (8, 128, 28, 30), 64, (3, 5))
    assert case.parameters == {"stride": (2, 2), "padding": (1, 2), "dilation": (1, 1), "groups": 4, "bias": False}
    assert case.weight_shape == (64, 32, 3, 5)
    assert case.output_shape == (8, 64, 14, 15)
    assert case.name == "a name"
    assert case.bytes("forward") == 4 * (8 * 128 * 28 * 30 + 64 * 32 * 15 + 8 * 64 * 14 * 15)
    lrn = parse("local_response_norm:2,3,4,4,5")
    assert (lrn.bytes("forward"), lrn.bytes("backward")) == (4 * 2 * 96, 4 * 3 * 96)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("conv3d:1,2,3", "expected OPERATOR:SIZES"),
        ("conv2d", "expected OPERATOR:SIZES"),
        ("conv2d:1,2,3,4,5", "expected conv2d:N,C,H,W,OUT_CHANNELS,KERNEL, got 5 sizes"),
        ("max_pool1d:1,2,3,4,5", "expected max_pool1d:N,C,L,KERNEL"),
        ("local_response_norm:1,2,3", "expected local_response_norm"),
        ("conv2d:1,2,8,8,4,axb", "must be numbers such as 3 or 3x2, got 'axb'"),
        ("conv2d:1,2,8,8,4,3,speed=9", "unknown parameter 'speed'"),
        ("adaptive_avg_pool2d:1,2,8,8,4,stride=1", "adaptive_avg_pool2d has none"),
        ("conv2d:1,2,8x8,8,4,3", "expected single numbers before the kernel"),
        ("conv2d:1,2,8,8,4,3x3x3", "the kernel has 3 sizes, expected 2"),
        ("conv2d:1,3,8,8,4,3,groups=2", "divisible by groups"),
        ("conv2d:1,3,8,8,4,0", "sizes must be positive"),
        ("conv2d:1,3,8,8,4,3,groups=0", "sizes must be positive"),
        ("conv2d:1,3,8,8,4,3,stride=0", "stride and dilation must be positive"),
        ("conv2d:1,3,8,8,4,9", "its output would be [1, 4, 0, 0]"),
        ("local_response_norm:1,2,3,4,5,alpha=x", "expected a number, got 'x'"),
    ],
)
def test_parse_says_what_is_wrong(problem, message):
    with pytest.raises(ValueError) as error:
        parse(problem)
    assert message in str(error.value)


def test_select_takes_suites_and_problems_once_each():
    problem = SUITES["floor"].cases[0].problem
    chosen = select(["floor", problem, "conv2d:1,1,4,4,1,3"])
    assert len(chosen.cases) == len(SUITES["floor"].cases) + 1
    assert chosen.targets == SUITES["floor"].targets
    everything = {case.problem for case in select(["all"]).cases}
    assert all(case.problem in everything for case in SUITES["resnet50"].cases)
    with pytest.raises(ValueError, match="'resnet5' is no suite"):
        select(["resnet5"])


@pytest.mark.parametrize(
    ("problem", "kind", "family"),
    [
        ("conv2d:8,128,28,28,128,3,padding=1", "dense", "3x3"),
        ("conv2d:8,128,28,28,128,3,stride=2", "dense", "strided"),
        ("conv2d:8,128,28,28,128,3,dilation=2", "dense", "dilated"),
        ("conv2d:8,128,28,28,128,1", "dense", "1x1"),
        ("conv2d:8,3,224,224,64,7,stride=2", "dense", "stem"),
        ("conv2d:8,128,28,28,128,3,groups=128", "depthwise", "depthwise"),
        ("conv2d:8,128,28,28,128,3,groups=32", "grouped", "groups of 2-4"),
        ("conv2d:8,128,28,28,128,3,groups=16", "grouped", "groups of 8"),
        ("conv2d:8,128,28,28,128,3,groups=2", "dense", "3x3"),
        ("conv1d:8,128,99,128,3", "dense", "1-D"),
        ("conv2d:1,1,32,32,6,5", "dense", "tiny"),
        ("max_pool2d:8,64,56,56,2", "pooling", "max pooling"),
        ("adaptive_avg_pool2d:8,64,56,56,1", "pooling", "average pooling"),
        ("local_response_norm:8,64,56,56,5", "normalisation", "LRN"),
    ],
)
def test_families(problem, kind, family):
    case = parse(problem)
    assert (case.kind, case.family) == (kind, family)


def test_statistics():
    assert quartiles([1.0]) == (1, 1, 1)
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2, 3, 4)
    timing = Timing.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (timing.median, timing.samples, timing.spread) == (3, 5, pytest.approx(1 / 3))
    assert geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2)
    assert math.isnan(geometric_mean([]))


def test_interleave_takes_turns_and_divides_by_the_calls_of_a_sample():
    now, calls = 0.0, []

    def work(name, seconds):
        def call():
            nonlocal now
            now += seconds
            calls.append(name)

        return call

    samples = interleave({"a": work("a", 0.25e-3), "b": work("b", 5e-3)}, seconds=0.1, clock=lambda: now)
    assert calls[:4] == ["a", "a", "b", "b"]  # untimed
    assert calls[4:9] == calls[9:14] == ["a"] * 4 + ["b"]  # a sample is about a millisecond
    assert samples["a"] == pytest.approx([0.25e-3] * len(samples["a"]))
    assert len(samples["a"]) == len(samples["b"]) == pytest.approx(0.1 / 6e-3, abs=1)
    assert len(interleave({"a": work("a", 1.0)}, seconds=0.1, clock=lambda: now)["a"]) == 5
    assert len(interleave({"a": work("a", 1.0)}, seconds=0.1, rounds=2, clock=lambda: now)["a"]) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "problem", ["conv2d:2,4,6,6,4,3,groups=2", "max_pool2d:2,4,6,6,2", "local_response_norm:2,4,6,6,3"]
)
def test_work_computes_what_it_is_called_and_keeps_the_layout(problem, layout):
    case = parse(problem)
    x, *weights = [tensor.requires_grad_() for tensor in inputs(case, layout)]
    assert x.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    y = TORCH.operator(case)(x, *weights)
    torch.testing.assert_close(TORCH.prepare(case, "forward", layout)(), y)
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad(y, [x, *weights], gy)
    if case.is_convolution:
        torch.testing.assert_close(TORCH.prepare(case, "input_gradient", layout)(), gradients[:1])
        torch.testing.assert_close(TORCH.prepare(case, "weight_gradient", layout)(), gradients[1:])
    else:
        torch.testing.assert_close(TORCH.prepare(case, "backward", layout)(), gradients)


def test_gradients_are_timed_one_at_a_time():
    case = parse("conv2d:2,4,6,6,4,3")
    for pass_, mask in (("input_gradient", [True, False, False]), ("weight_gradient", [False, True, True])):
        work = TORCH.prepare(case, pass_, "channels_first")
        with torch.profiler.profile(record_shapes=True, with_flops=False) as profile:
            work()
        (event,) = [event for event in profile.events() if event.name == "aten::convolution_backward"]
        assert event.concrete_inputs[-1] == mask


def test_ceiling_is_a_roofline():
    ceiling = measure_ceiling(1, seconds=0.02)
    assert ceiling.operations > 1e8
    assert ceiling.bandwidth > 1e8
    assert Ceiling(100.0, 10.0).seconds(operations=1000, bytes_=10) == 10
    assert Ceiling(100.0, 10.0).seconds(operations=10, bytes_=1000) == 100
    assert Ceiling(100.0, 10.0).or_better(Ceiling(50.0, 20.0)) == Ceiling(100.0, 20.0)


def timing(median):
    return Timing(median, median * 0.9, median * 1.1, 9)


def result(torch_times, fastconv_times, problem="conv2d:8,64,28,28,64,3", pass_="forward", error=1e-7):
    case = parse(problem)
    times = {"torch": torch_times, "fastconv": fastconv_times}
    timings = {peer: dict(zip(LAYOUTS, map(timing, values), strict=False)) for peer, values in times.items()}
    numbers = case.operations, case.bytes(pass_)
    return Result(problem, "name", case.family, case.kind, pass_, *numbers, case.bound_by_memory, timings, error)


def a_report(results, calls=(), targets=None):
    return Report(describe(2), Ceiling(1e11, 1e10), list(results), list(calls), targets or {})


def test_ratios_compare_the_better_layouts():
    one = result([4e-3, 2e-3], [1e-3, 3e-3])
    assert one.ratio("channels_first") == pytest.approx(4)
    assert one.ratio("channels_last") == pytest.approx(2 / 3)
    assert one.ratio() == pytest.approx(2)
    assert not one.slower
    assert one.rate() == pytest.approx(one.operations / 1e-3)
    assert one.share(Ceiling(one.operations * 2e3, 1e15)) == pytest.approx(0.5)
    pool = result([4e-3], [1e-3], "max_pool2d:8,64,28,28,2")
    assert pool.rate() == pytest.approx(pool.bytes / 1e-3)
    assert pool.share(Ceiling(1.0, pool.bytes * 4e3)) == pytest.approx(0.25)


def test_table_marks_what_must_not_be_overlooked():
    targets = {"dense": Target(0.6), "pooling": Target(3.0, "channels_first")}
    rows = [
        result([2e-3, 2e-3], [1e-3, 1e-3]),
        result([1e-3, 1e-3], [1.05e-3, 2e-3]),
        result([1e-3, 1e-3], [2e-3, 2e-3]),
        result([2e-3, 9e-3], [1e-3, 1e-3], "max_pool2d:8,64,28,28,2"),
        result([2e-3, 2e-3], [1e-3, 1e-3], error=0.5),
        result([2e-3, 2e-3], [1e-3, 1e-3], error=math.nan),
    ]
    measured = a_report(rows, targets=targets)
    table = report.layer_table(measured)
    assert table.marks == [
        "",
        "torch is faster (within the spread)",
        "misses 0.6; torch is faster",
        "misses 3 in NCHW",
        "WRONG: differs from torch by 0.5",
        "WRONG: differs from torch by nan",
    ]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "| misses 0.6; torch is faster |" in table.markdown()
    assert report.summary(measured) == "fastconv is faster in 4 of 6 rows, torch in 2; 2 miss their target; 2 WRONG."


def test_families_are_averaged_per_pass():
    rows = [
        result([2e-3, 2e-3], [1e-3, 1e-3]),
        result([8e-3, 8e-3], [1e-3, 1e-3]),
        result([1e-3, 1e-3], [2e-3, 1e-3], pass_="input_gradient"),
        result([3e-3], [1e-3], "conv1d:8,64,99,64,3"),
    ]
    found = {(family.name, family.pass_): family for family in families(rows)}
    assert list(found) == [("3x3", "forward"), ("3x3", "input_gradient"), ("1-D", "forward")]
    assert found["3x3", "forward"].best == pytest.approx(4)
    assert found["3x3", "forward"].count == 2
    assert found["3x3", "input_gradient"].layouts["channels_first"] == pytest.approx(0.5)
    assert math.isnan(found["1-D", "forward"].layouts["channels_last"])
    assert [row[-1] for row in report.family_table(a_report(rows)).rows] == ["4.00", "1.00", "3.00"]


def test_overhead_is_marked_beyond_its_limit():
    calls = [
        Overhead("conv2d", False, timing(5e-6), timing(4e-6), timing(-1e-6)),
        Overhead("conv2d", True, timing(20e-6), timing(29e-6), timing(9e-6)),
        Overhead("max_pool2d", True, timing(20e-6), timing(31e-6), timing(11e-6)),
    ]
    table = report.overhead_table(a_report([], calls))
    assert table.marks == ["", "torch is faster", "misses 10 µs"]
    assert [row[-2] for row in table.rows] == ["-1.0", "+9.0", "+11.0"]


def test_json_is_read_back(tmp_path):
    calls = [Overhead("conv2d", False, timing(5e-6), timing(4e-6), timing(-1e-6))]
    measured = a_report([result([4e-3, 2e-3], [1e-3, 3e-3])], calls, {"dense": Target(0.6)})
    path = tmp_path / "report.json"
    path.write_text(measured.to_json())
    assert Report.load(path) == measured
    data = json.loads(path.read_text())
    assert data["format"] == 1
    assert {"cpu", "cores", "threads", "isa", "torch", "commit", "date"} <= set(data["machine"])
    for content in ("{}", "[]", "not json", '{"format": 1, "results": 3}', json.dumps({**data, "format": 2})):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"report\.json"):
            Report.load(path)


def test_compare_is_of_ratios_and_says_what_is_missing():
    old = a_report(
        [
            result([4e-3], [1e-3]),
            result([1e-3], [1e-3], pass_="input_gradient"),
            result([1e-3], [1e-3], pass_="weight_gradient"),
        ]
    )
    new = a_report(
        [
            result([2e-3], [1e-3]),
            result([2e-3], [1e-3], pass_="input_gradient"),
            result([1.1e-3], [1e-3], pass_="weight_gradient"),
            result([2e-3], [1e-3], pass_="weight_gradient", problem="conv2d:8,64,28,28,64,5"),
        ]
    )
    new.machine["threads"] = 4
    table = report.compare_table(new, old)
    assert [row[-3:] for row in table.rows] == [
        ["4.00", "2.00", "-50%"],
        ["1.00", "2.00", "+100%"],
        ["1.00", "1.10", "+10%"],
    ]
    assert table.marks == ["slower than before", "faster than before", ""]  # ten percent are within the spread
    assert "2 threads" in table.notes
    assert "1 of 4 rows are not in the earlier run" in table.notes


def test_a_wrong_result_is_noticed():
    def doubled(*args, **kwargs):
        return 2 * torch.conv2d(*args, **kwargs)

    peers = (TORCH, FunctionalPeer("fastconv", SimpleNamespace(conv2d=doubled)))
    case = parse("conv2d:1,2,6,6,3,3")
    for pass_ in case.passes:
        assert run_pass(case, pass_, 0, peers=peers, rounds=1).error == pytest.approx(1)
        assert run_pass(case, pass_, 0, peers=peers, rounds=1).wrong
        same = (TORCH, FunctionalPeer("fastconv", torch.nn.functional))
        assert not run_pass(case, pass_, 0, peers=same, rounds=1).wrong


def command(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


PROBLEMS = ["conv2d:1,2,6,6,3,3x3", "conv1d:1,2,8,2,3", "avg_pool2d:1,2,6,6,2", "local_response_norm:1,6,4,4,3"]


def test_command_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastconv.bench.cli.measure_ceiling", lambda threads: Ceiling(1e11, 1e10))
    threads = torch.get_num_threads()
    files = ("--json", tmp_path / "new" / "a.json", "--markdown", tmp_path / "a.md", "--plots", tmp_path / "plots")
    assert command(*PROBLEMS, "--seconds", 0.001, "--threads", 1, *files) == 0
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr().out
    assert "weight gradient" in shown
    assert "fastconv is faster in" in shown
    measured = Report.load(tmp_path / "new" / "a.json")
    assert [(row.problem, row.pass_) for row in measured.results] == [
        (problem, pass_) for problem in PROBLEMS for pass_ in parse(problem).passes
    ]
    assert measured.machine["threads"] == 1
    assert set(measured.results[0].timings["fastconv"]) == set(LAYOUTS)
    assert "| avg_pool2d:1,2,6,6,2 | backward |" in (tmp_path / "a.md").read_text()
    assert {file.name for file in (tmp_path / "plots").iterdir()} == {
        f"{name}.{suffix}" for name in ("ratios", "roofline") for suffix in ("png", "svg")
    }

    again = (PROBLEMS[0], "--seconds", 0.001, "--passes", "forward", "--layouts", "channels_last")
    assert command(*again, "--compare", tmp_path / "new" / "a.json", "--markdown", "-") == 0
    shown = capsys.readouterr().out
    assert "Compared with" in shown
    assert "weight gradient" not in shown


def test_command_refuses_what_it_does_not_know(tmp_path, capsys):
    assert command("nonsense") == 2
    assert "'nonsense' is no suite" in capsys.readouterr().err
    assert command("--compare", tmp_path / "missing.json") == 2
    (tmp_path / "bad.json").write_text("{}")
    assert command("--compare", tmp_path / "bad.json") == 2
    assert "is not a result of" in capsys.readouterr().err
    for words in (["--passes", "sideways"], ["--threads", "0"], ["--seconds", "-1"], ["--seconds", "soon"]):
        with pytest.raises(SystemExit):
            command(*words)


def test_list_prints_problems_that_parse(capsys):
    assert command("floor", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [parse(line.split()[0]).problem for line in lines] == [case.problem for case in SUITES["floor"].cases]


def test_overhead_covers_every_operator():
    assert sorted(case.operator for case in overhead.CASES) == sorted(OPERATORS)
    rows = overhead.run(0.001, [parse("conv2d:1,1,4,4,1,3")])
    assert [(row.operator, row.gradients) for row in rows] == [("conv2d", False), ("conv2d", True)]
    work = overhead.prepare(TORCH, parse("conv2d:1,1,4,4,1,3"), gradients=True)
    assert [tuple(gradient.shape) for gradient in work()] == [(1, 1, 4, 4), (1, 1, 3, 3), (1,)]


def test_overhead_is_measured_on_one_thread():
    threads, case = [], parse("max_pool2d:1,1,4,4,2x2")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        overhead.run(0.001, [case], progress=lambda _: threads.append(torch.get_num_threads()))
        assert (threads, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


# ---- other peers

ENGINE_PROBLEMS = [
    "conv2d:2,4,9,8,6,3x2,stride=2x1,padding=1,dilation=1x2,groups=2",
    "conv2d:1,3,7,7,4,3,padding=2,stride=3,bias=0",
    "conv1d:2,4,20,6,3,stride=2,padding=2,dilation=2",
    "conv_transpose2d:2,4,5,6,4,3x2,stride=2,padding=1x0,output_padding=1,groups=2,dilation=1x2",
    "max_pool2d:2,3,10,11,3x2,stride=2x3,padding=1,ceil_mode=1",
    "max_pool2d:1,2,12,12,3,stride=2,ceil_mode=1",
    "max_pool1d:2,3,10,3,stride=2,padding=1",
    "avg_pool2d:2,3,10,11,3x2,stride=2,padding=1,count_include_pad=0",
    "avg_pool2d:2,3,10,11,3,stride=2,padding=1",
    "avg_pool1d:2,3,10,3,stride=2",
    "adaptive_avg_pool2d:2,3,4,5,1",
    "adaptive_max_pool2d:2,3,4,5,1",
    "local_response_norm:2,7,4,5,5,alpha=0.1,beta=0.5,k=2",
    "local_response_norm:2,7,4,5,4,alpha=0.1",
]


@pytest.mark.parametrize("problem", ENGINE_PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_engines_compute_the_case(engine, problem):
    if engine.missing:
        pytest.skip(f"{engine.missing} is not installed")
    case = parse(problem)
    if not engine.does(case, "forward", "channels_first", torch.float32):
        assert case.is_transposed or "adaptive" in problem or "ceil_mode" in problem or case.kernel == (4,)
        return
    expected = TORCH.prepare(case, "forward", "channels_first")()
    torch.testing.assert_close(engine.prepare(case, "forward", "channels_first")(), expected, rtol=1e-4, atol=1e-5)


def test_engines_take_part_where_they_can():
    case = parse(PROBLEMS[0])
    numba = ENGINES[2]
    both = run_pass(case, "forward", 0, peers=(TORCH, FASTCONV, numba), rounds=1)
    assert {peer: set(layouts) for peer, layouts in both.timings.items()} == {
        "torch": set(LAYOUTS),
        "fastconv": set(LAYOUTS),
        "numba": {"channels_first"},
    }
    assert "numba" not in run_pass(case, "training_step", 0, peers=(TORCH, FASTCONV, numba), rounds=1).timings
    assert not numba.does(case, "forward", "channels_first", torch.bfloat16)
    table = report.layer_table(a_report([both, result([2e-3], [1e-3])]))
    column = table.columns.index("numba\nms")
    assert table.rows[0][column] != table.rows[1][column] == "–"


def test_command_says_which_engines_are_missing(capsys, monkeypatch):
    monkeypatch.setattr("fastconv.bench.cli.measure_ceiling", lambda threads: Ceiling(1e11, 1e10))
    monkeypatch.setattr("fastconv.bench.engines.find_spec", lambda name: None)
    assert command(PROBLEMS[0], "--seconds", 0.001, "--passes", "forward", "--peers", "all") == 0
    said = capsys.readouterr().err
    assert "onnxruntime is not installed, so no onnxruntime" in said
    assert "numba is not installed, so no numba" in said


# ---- bfloat16 and training steps


def test_bfloat16(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastconv.bench.cli.measure_ceiling", lambda threads: Ceiling(1e11, 1e10))
    path = tmp_path / "a.json"
    assert command(*PROBLEMS, "--seconds", 0.001, "--dtype", "bfloat16", "--json", path) == 0
    assert "bfloat16" in capsys.readouterr().out
    measured = Report.load(path)
    assert {row.dtype for row in measured.results} == {measured.machine["dtype"]} == {"bfloat16"}
    assert {row.problem for row in measured.results} == set(PROBLEMS[:3])  # torch has no LRN of this type
    case = parse(PROBLEMS[0])
    assert measured.results[0].bytes == 2 * case.bytes("forward") // 4
    assert TORCH.prepare(case, "forward", "channels_last", torch.bfloat16)().dtype == torch.bfloat16
    old = a_report([result([1e-3], [1e-3], problem=PROBLEMS[0])])
    assert not report.compare_table(measured, old).rows  # of another type


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_training_step_is_all_passes(problem):
    case = parse(problem)
    x, *weights = [tensor.requires_grad_() for tensor in inputs(case, "channels_first")]
    y = TORCH.operator(case)(x, *weights)
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    expected = torch.autograd.grad(y, [x, *weights], gy)
    for peer in (TORCH, FASTCONV):
        torch.testing.assert_close(peer.prepare(case, "training_step", "channels_first")(), expected)
    parts = case.passes[:-1]
    assert case.operations_of("training_step") == len(parts) * case.operations_of("forward")
    assert case.bytes("training_step") == sum(map(case.bytes, parts))


def test_numbers_of_the_roofline_do_not_cover_each_other():
    Text = pytest.importorskip("matplotlib.text").Text
    rows = []
    for place, case in enumerate(SUITES["resnet50"].cases):
        one = result([3e-3 + 1e-4 * place], [2e-3], case.problem)
        rows.append(dataclasses.replace(one, name=str(place)))
    figure = plots.draw_roofline(a_report(rows))
    (axis,) = figure.axes
    numbers = [text for text in axis.texts if text.get_text().isdigit()]
    assert [number.get_text() for number in numbers] == [str(place + 1) for place in range(len(rows))]
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(number) for number in numbers]  # without the line to the point
    covered = [
        (a, b) for a, one in enumerate(boxes) for b, other in enumerate(boxes[:a]) if one.padded(-2).overlaps(other)
    ]
    assert not covered
