"""Training by several processes under torchrun: the same losses as one process, and it survives the death of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import write_class_folders, write_idx

from fastconv.train import distributed, files, loop, report
from fastconv.train.options import Options

pytest.importorskip("kornia")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")

# In the third epoch of the first start, process 1 dies as if the machine had taken it.
DYING = """
import os, signal, sys
from pathlib import Path
from fastconv.train import loop, options, report

report.learning_curve = report.features = lambda *_: b""

class Deadly(loop.Run):
    def _epoch(self):
        if self.world.rank == 1 and len(self.history) == 2 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._epoch()

loop.Run = Deadly
loop.train(options.Options(**eval(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for picture in ("learning_curve", "features"):
        monkeypatch.setattr(report, picture, lambda *_: b"")


def torchrun(*arguments: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command, *arguments], capture_output=True, text=True, timeout=300, env=environment
    )


def curve(run: Path) -> list[tuple[float, float, float]]:
    lines = [json.loads(line) for line in (run / loop.LINES).read_text().splitlines()]
    return [(line["train_loss"], line["test_loss"], line["test_accuracy"]) for line in lines]


def options(folder: Path, **changes: Any) -> Options:
    chosen = {"epochs": 3, "batch_size": 20, "threads": 1, "lr": 1e-3} | changes
    return Options("lenet5_modern", str(folder), **chosen)


def flags(chosen: Options) -> list[str]:
    figures = {"--epochs": chosen.epochs, "--batch-size": chosen.batch_size, "--lr": chosen.lr}
    return [chosen.model, "--data", chosen.data, *(str(word) for pair in figures.items() for word in pair)]


def test_two_processes_learn_as_one_does(tmp_path: Path) -> None:
    """Batches of 20, of which the last has 4 images, with augmentation."""
    chosen = options(write_idx(tmp_path / "stripes", 80))
    loop.train(chosen, tmp_path / "one")
    ran = torchrun("-m", "fastconv", "train", *flags(chosen), "--output", str(tmp_path / "two"))
    assert ran.returncode == 0, ran.stderr[-8000:]
    assert ran.stdout.count("epoch 3/3") == 1, "only process 0 prints"
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == 3
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    metrics = json.loads((tmp_path / "two" / loop.METRICS).read_text())
    assert metrics["environment"]["processes"] == 2
    assert metrics["status"] == "finished"
    weights = [files.load_checkpoint(tmp_path / name / loop.CHECKPOINT)["model"] for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-5, atol=1e-6)
    for name in ("one", "two"):  # and one process can go on with what two have begun
        loop.resume(tmp_path / name, {"epochs": 4})
    assert curve(tmp_path / "two")[3] == pytest.approx(curve(tmp_path / "one")[3], rel=1e-5)


def test_a_killed_process_is_started_again_and_the_run_goes_on(tmp_path: Path) -> None:
    """The images come from files, one of which is broken, and the gradients of a step are accumulated."""
    folder = write_class_folders(tmp_path / "images", 40)
    (folder / "class0" / "0.png").write_bytes(b"")
    chosen = options(folder, accumulate=2, batch_size=16, epochs=4, augment=[])
    (tmp_path / "dying.py").write_text(DYING)
    ran = torchrun(str(tmp_path / "dying.py"), repr(vars(chosen)), str(tmp_path / "run"), restarts=1)
    assert ran.returncode == 0, ran.stderr[-8000:]
    assert "exitcode: -9" in ran.stderr, "process 1 has died"
    metrics = json.loads((tmp_path / "run" / loop.METRICS).read_text())
    assert (metrics["status"], list(metrics["skipped_images"])) == ("finished", [str(folder / "class0" / "0.png")])
    loop.train(chosen, tmp_path / "one")
    one, two = curve(tmp_path / "one"), curve(tmp_path / "run")
    assert len(one) == 4
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 20])
def test_shares_are_all_the_items_once_and_even(size: int, count: int) -> None:
    device = torch.device("cpu")
    shares = [torch.arange(count)[distributed.World(device, rank, size).share(count)] for rank in range(size)]
    assert torch.equal(torch.cat(shares), torch.arange(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
