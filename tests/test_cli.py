"""The command line: what it prints, its exit status, its errors in one line, an interrupt, a full disk; the README."""

import json
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import write_class_folders, write_idx

from fastconv import cli, extras, testing
from fastconv.train import files, loop
from fastconv.train.options import Options

ROOT = Path(__file__).parent.parent
FASTCONV = [sys.executable, "-m", "fastconv"]


def fastconv(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FASTCONV, *arguments], capture_output=True, text=True, timeout=300, **options)


def assert_one_line(error: str, *parts: str) -> None:
    assert len(error.splitlines()) == 1, error
    for part in parts:
        assert part in error


def test_importing_the_package_is_light() -> None:
    heavy = ("matplotlib", "sklearn", "rich", "PIL", "fastconv.train", "fastconv.bench", "fastconv.testing")
    program = f"import sys, fastconv, fastconv.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_the_module_is_the_command() -> None:
    shown = fastconv("info")
    assert shown.returncode == 0, shown.stderr
    assert torch.__version__ in shown.stdout
    assert re.search(r"instruction set: +(avx512|avx2|baseline)", shown.stdout)


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    assert "command" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "check", "models", "train", "predict", "evaluate", "bench", "tune"])
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: fastconv {command}" in capsys.readouterr().out


def test_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["models"]) == 0
    assert re.search(r"^lenet5 +60,000 +1x32x32 +LeNet-5 as published", capsys.readouterr().out, re.MULTILINE)
    assert cli.main(["models", "lenet5", "--draw", str(tmp_path / "lenet5.svg")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^c3 +ConnectionTableConv2d +1x16x10x10 +5x5 +1,516 +150,000 +14x14$", printed, re.MULTILINE)
    assert "LeNet5: 60,000 parameters" in printed
    assert (tmp_path / "lenet5.svg").read_text().startswith("<svg")
    assert cli.main(["models", "--draw", "x.svg"]) == 2


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "lenet6"]) == 2
    assert_one_line(capsys.readouterr().err, "fastconv models: error: ", "lenet6", "lenet5")
    with pytest.raises(ValueError, match="lenet6"):
        cli.main(["--traceback", "models", "lenet6"])


def test_check() -> None:
    checked = fastconv("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for operator in testing.OPERATORS:
        assert operator in checked.stdout
    assert re.search(r"All \d+ checks passed", checked.stdout)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_failed_check_is_shown_and_told_by_the_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, gradients: bool
) -> None:
    def rows() -> Iterator[testing.CheckResult]:
        second = {"gradcheck": True, "gradgradcheck": False} if gradients else {}
        first = {"gradcheck": True, "gradgradcheck": True} if gradients else {}
        yield testing.CheckResult("conv2d", "direct", "channels_last", "cpu", True, 0.5, **first)
        yield testing.CheckResult("avg_pool2d", "", "channels_last", "cpu", False, 0.5, "numbers differ", **second)

    monkeypatch.setattr(testing, "gradient_suite" if gradients else "self_test", rows)
    assert cli.main(["check", *(["--gradients"] if gradients else [])]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAILED" not in lines[1]
    assert "passed" in lines[1]
    assert "FAILED" in lines[2]
    assert lines[3].strip() == "numbers differ"
    assert lines[4].startswith("1 of 2 checks failed")


def test_gradient_checks_are_rows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    suite = testing.gradient_suite
    monkeypatch.setattr(testing, "gradient_suite", lambda: suite(["avg_pool1d"]))
    assert cli.main(["check", "--gradients"]) == 0
    assert re.search(r"^avg_pool1d .* passed +passed", capsys.readouterr().out, re.MULTILINE)


def test_table() -> None:
    assert cli.table(["a", "number"], [["x", "7"], ["longer", "10"]]).splitlines() == [
        "a       number",
        "------  ------",
        "x            7",
        "longer      10",
    ]


@pytest.mark.parametrize("module", ["rich", "matplotlib", "sklearn", "kornia"])
def test_a_missing_dependency_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    for name in list(sys.modules):
        if name == module or name.startswith(f"{module}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["train", "--output", str(tmp_path / "run")]) == 2
    name = extras.DISTRIBUTIONS.get(module, module)
    assert_one_line(capsys.readouterr().err, f"needs {name}, which is not installed: pip install 'fastconv[all]'")


def test_train_refuses_resumes_and_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = str(write_idx(tmp_path / "stripes")), str(tmp_path / "run")
    arguments = ["train", "lenet5_modern", "--data", data, "--epochs", "1", "--threads", "1", "--output", run]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"epoch 1/1  train +[\d.]+% \(loss [\d.]+\)  test +[\d.]+% \(loss [\d.]+\)  [\d,]+ images/s", printed
    )
    assert re.search(r"^Test accuracy [\d.]+%", printed, re.MULTILINE)
    for name in (loop.METRICS, loop.CHECKPOINT, loop.CURVES, loop.FEATURES):
        assert str(tmp_path / "run" / name) in printed
        assert (tmp_path / "run" / name).stat().st_size > 0

    assert cli.main(arguments) == 2
    assert_one_line(capsys.readouterr().err, run, "exists already", "--resume", "--overwrite", "--output")
    assert cli.main(["train", "--resume", "--overwrite", "--output", run]) == 2
    assert_one_line(capsys.readouterr().err, "give one of them")
    assert cli.main(["train", "--resume", run, "--lr", "1"]) == 2
    assert_one_line(capsys.readouterr().err, "lr of a resumed run cannot change")
    assert cli.main(["train", "--output", run, "--epochs", "2", "--resume"]) == 0
    assert "epoch 2/2" in capsys.readouterr().out
    assert cli.main([*arguments, "--overwrite", "--seed", "3", "--batch-size", "8"]) == 0
    metrics = json.loads((tmp_path / "run" / loop.METRICS).read_text())
    assert metrics["arguments"] | {"epochs": 1, "seed": 3, "threads": 1, "batch_size": 8} == metrics["arguments"]
    assert len(metrics["epochs"]) == 1


def test_predict_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    folder = write_class_folders(tmp_path / "images", 30)
    options = ["--model-option", "activation=tanh", "--augment", "none", "--epochs", "5", "--threads", "1"]
    assert cli.main(["train", "lenet5_modern", "--data", str(folder), "--output", run, *options]) == 0
    metrics = json.loads((tmp_path / "run" / loop.METRICS).read_text())
    assert metrics["arguments"]["model_options"] == {"activation": "tanh"}
    assert metrics["arguments"]["augment"] == []
    capsys.readouterr()
    images = [str(folder / "class0" / "0.png"), str(folder / "class1" / "1.png")]
    assert cli.main(["predict", run, *images, "--top", "1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{images[0]}: class0 [\d.]+%", first)
    assert re.fullmatch(rf"{images[1]}: class1 [\d.]+%", second)
    (tmp_path / "text.png").write_text("no image")
    assert cli.main(["predict", run, str(tmp_path / "text.png")]) == 1
    assert_one_line(capsys.readouterr().err, "text.png: cannot be read")
    assert cli.main(["evaluate", run, "--output", str(tmp_path / "matrix.png")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^class1 +3 +100.00%$", printed, re.MULTILINE)
    assert "Accuracy 100.00%, loss 0." in printed
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_default_output() -> None:
    assert loop.default_output(Options()) == Path("runs/lenet5-digits")
    assert loop.default_output(Options("lenet5_modern", "/data/mnist/")) == Path("runs/lenet5_modern-mnist")


def test_bad_arguments_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, message in (
        (["nosuchmodel"], "nosuchmodel"),
        (["--data", "/no/such/folder"], "no data at /no/such/folder"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--resume", str(tmp_path / "none" / loop.CHECKPOINT)], "there is no checkpoint"),
    ):
        assert cli.main(["train", *wrong, "--output", str(tmp_path / "run")]) == 2
        assert_one_line(capsys.readouterr().err, "fastconv train: error: ", message)
    assert not (tmp_path / "run").exists()


def test_a_broken_checkpoint_names_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    files.save_checkpoint(run / loop.CHECKPOINT, {"epoch": 0})
    files.save_checkpoint(run / loop.CHECKPOINT, {"epoch": 1})
    (run / loop.CHECKPOINT).write_bytes(b"")
    assert cli.main(["train", "--resume", str(run)]) == 2
    assert_one_line(capsys.readouterr().err, "is broken", f"--resume {run / loop.PREVIOUS}")


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    data, run = str(write_idx(tmp_path / "stripes")), str(tmp_path / "run")
    command = [
        *FASTCONV,
        "train",
        "lenet5_modern",
        "--data",
        data,
        "--epochs",
        "100000",
        "--threads",
        "1",
        "--output",
        run,
    ]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    assert first.startswith("epoch      1/100000")
    assert process.returncode == 130, errors
    assert errors == ""
    metrics = json.loads((tmp_path / "run" / loop.METRICS).read_text())
    assert metrics["status"] == "interrupted"
    done = len(metrics["epochs"])
    assert done >= 1
    assert f"Interrupted: {done} of 100000 epochs are done and kept" in printed
    assert f"fastconv train --resume {run}" in printed
    assert files.load_checkpoint(tmp_path / "run" / loop.CHECKPOINT)["epoch"] == done
    resumed = fastconv("train", "--resume", run, "--epochs", str(done + 1))
    assert resumed.returncode == 0, resumed.stderr
    assert f"epoch {done + 1}/{done + 1}" in resumed.stdout


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the checkpoint of epoch 0 fits, that of epoch 1 does not."""
    data, run = str(write_idx(tmp_path / "stripes")), tmp_path / "run"
    arguments = ["train", "lenet5_modern", "--data", data, "--epochs", "2", "--threads", "1", "--output", str(run)]
    limited = fastconv(*arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)))
    assert limited.returncode == 2
    assert_one_line(limited.stderr, "cannot write", loop.CHECKPOINT, "the last checkpoint is intact", f"--resume {run}")
    assert files.load_checkpoint(run / loop.CHECKPOINT)["epoch"] == 0
    assert not [file for file in run.iterdir() if file.name.startswith(".")]
    assert fastconv("train", "--resume", str(run)).returncode == 0
    assert files.load_checkpoint(run / loop.CHECKPOINT)["epoch"] == 2


def test_a_closed_pipe_is_no_error() -> None:
    process = subprocess.Popen([*FASTCONV, "check"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=120) == 0


def test_bench_runs() -> None:
    listed = fastconv("bench", "--list")
    assert listed.returncode == 0, listed.stderr
    assert "conv2d:" in listed.stdout


def test_the_example_in_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(example, {})
    assert "fastconv runs 4 layers" in capsys.readouterr().out


def test_the_table_in_the_readme_is_the_measured_one() -> None:
    write = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))["with_section"]
    readme = (ROOT / "README.md").read_text()
    assert write(readme) == readme, "run python benchmarks/readme.py"
