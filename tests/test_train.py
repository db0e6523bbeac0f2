"""Training: data and damaged data, checkpoints and full disks, resuming to the bit, interrupts, plots, accuracy."""

import errno
import gzip
import json
import os
import pickle
import signal
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from fastconv import models
from fastconv.train import augment, data, demo, files, loop, report

PIL_Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

GREY = data.ImageFormat(1, 32, 32)
COLOR = data.ImageFormat(3, 32, 32)


def stripes(count: int, classes: int = 2, size: int = 28, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images, uint8 (count, size, size), with a bright stripe that tells the class, and labels 0, 1, 0, 1, …"""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % classes
    for image, label in zip(images, labels.tolist(), strict=True):
        start = 4 + label * (size - 8) // classes
        image[start : start + 4] = 220
    return images, labels


def idx_bytes(values: torch.Tensor) -> bytes:
    return (
        b"\0\0\x08"
        + bytes([values.dim()])
        + struct.pack(f">{values.dim()}I", *values.shape)
        + values.to(torch.uint8).numpy().tobytes()
    )


def write_idx(folder: Path, count: int = 80, prefix: str = "train", seed: int = 0, compress: bool = False) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    images, labels = stripes(count, seed=seed)
    for name, values in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))
        else:
            (folder / name).write_bytes(idx_bytes(values))
    return folder


def write_class_folders(folder: Path, count: int = 30, size: int = 40) -> Path:
    images, labels = stripes(count, size=size)
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        PIL_Image.fromarray(image.numpy()).convert("RGB").save(folder / f"class{label}" / f"{index}.png")
    return folder


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> loop.Options:
    """Options of a run that takes a fraction of a second an epoch; drawing, which takes longer, is left out."""
    for picture in ("learning_curve", "features"):
        monkeypatch.setattr(report, picture, lambda *_: b"")
    return loop.Options("lenet5_modern", str(write_idx(tmp_path / "stripes")), epochs=4, batch_size=16, threads=1)


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    epochs = [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in metrics["epochs"]
    ]
    return {**metrics, "epochs": epochs}


def assert_same(a: Any, b: Any) -> None:
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def assert_same_run(a: Path, b: Path) -> None:
    ours, theirs = files.load_checkpoint(a / loop.CHECKPOINT), files.load_checkpoint(b / loop.CHECKPOINT)
    for part in ("model", "optimizer", "scheduler", "random", "epoch", "arguments"):
        assert_same(ours[part], theirs[part])
    metrics = [without_times(json.loads((run / loop.METRICS).read_text())) for run in (a, b)]
    assert metrics[0] == metrics[1]


class InterruptAt(loop.Listener):
    """Presses Ctrl-C after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def batch(self, images: int, loss: float, accuracy: float) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


class Notes(loop.Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


# Data sets


def test_digits_are_split_by_class_and_normalised() -> None:
    digits = data.load("digits", GREY)
    assert len(digits.train.labels) + len(digits.test.labels) == 1797
    for digit in range(10):
        train, test = ((part.labels == digit).sum().item() for part in (digits.train, digits.test))
        assert test == round(0.2 * (train + test))
    images, labels = digits.train.read(torch.arange(len(digits.train.labels)))
    assert images.shape == (1797 - len(digits.test.labels), 1, 32, 32)
    assert torch.equal(labels, digits.train.labels)
    normalised = digits.normalize(images)
    assert abs(normalised.mean().item()) < 1e-4
    assert abs(normalised.std().item() - 1) < 1e-4
    again = data.load("digits", GREY)
    assert torch.equal(again.test.read(torch.arange(100))[0], digits.test.read(torch.arange(100))[0])


def test_split_takes_the_same_part_of_every_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 5)
    train, test = data.stratified_split(labels, 0.2, 0)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(65))
    assert labels[test].bincount().tolist() == [10, 2, 1]


@pytest.mark.parametrize("compress", [False, True])
def test_idx_folder(tmp_path: Path, compress: bool) -> None:
    write_idx(tmp_path, 30, compress=compress)
    write_idx(tmp_path, 10, "t10k", seed=1, compress=compress)
    loaded = data.load(str(tmp_path), GREY)
    assert len(loaded.train.labels) == 30
    assert len(loaded.test.labels) == 10
    images, labels = loaded.test.read(torch.tensor([3, 1]))
    expected, expected_labels = stripes(10, seed=1)
    assert torch.equal(images[0, 0, 2:30, 2:30], expected[3])
    assert images[0, 0, 0].max() == 0
    assert torch.equal(labels, expected_labels[[3, 1]])


def test_idx_file_is_split(tmp_path: Path) -> None:
    write_idx(tmp_path, 30)
    loaded = data.load(str(tmp_path / "train-images-idx3-ubyte"), COLOR)
    assert (len(loaded.train.labels), len(loaded.test.labels)) == (24, 6)
    assert loaded.train.read(torch.tensor([0]))[0].shape == (1, 3, 32, 32)


def test_large_images_are_resized(tmp_path: Path) -> None:
    write_idx(tmp_path, 10)
    assert data.load(str(tmp_path), data.ImageFormat(1, 16, 20)).train.read(torch.tensor([0]))[0].shape == (
        1,
        1,
        16,
        20,
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "is damaged: 23520 bytes of data expected, 23519 found"),
        (lambda content: content[:9], "its header is cut short"),
        (lambda content: b"", "is not an IDX file"),
        (lambda content: b"\x89PNG" + content, "is not an IDX file .* starts with 89 50 4e 47"),
        (lambda content: content[:2] + b"\x0d" + content[3:], "is not an IDX file of bytes"),
        (lambda content: idx_bytes(torch.zeros(4, 28, 28)), "should hold n images and n labels"),
        (lambda content: idx_bytes(torch.zeros(0, 28, 28)), "should hold n images and n labels"),
    ],
)
def test_damaged_idx(tmp_path: Path, damage: Any, message: str) -> None:
    file = write_idx(tmp_path, 30) / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(data.DataError, match=message) as raised:
        data.load(str(tmp_path), GREY)
    assert str(file) in str(raised.value)


def test_damaged_compressed_idx(tmp_path: Path) -> None:
    file = write_idx(tmp_path, 30, compress=True) / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(data.DataError, match="cannot be read"):
        data.load(str(tmp_path), GREY)


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="no data at"):
        data.load(str(tmp_path / "none"), GREY)
    with pytest.raises(data.DataError, match="neither class folders"):
        data.load(str(tmp_path), GREY)
    (tmp_path / "cats").mkdir()
    with pytest.raises(data.DataError, match="cats holds no images"):
        data.load(str(tmp_path), GREY)
    (write_idx(tmp_path / "idx") / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(data.DataError, match="no labels beside it"):
        data.load(str(tmp_path / "idx"), GREY)


@pytest.mark.parametrize("image_format", [GREY, COLOR])
def test_class_folders(tmp_path: Path, image_format: data.ImageFormat) -> None:
    loaded = data.load(str(write_class_folders(tmp_path)), image_format)
    assert loaded.classes == ["class0", "class1"]
    assert (len(loaded.train.labels), len(loaded.test.labels)) == (24, 6)
    images, labels = loaded.train.read(torch.arange(24))
    assert images.shape == (24, image_format.channels, 32, 32)
    brightest = images[:, 0].float().mean(2).argmax(1) > 16  # the stripe is in the upper or in the lower half
    assert torch.equal(brightest.long(), labels)


def test_class_folders_with_a_test_part(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", 12)
    write_class_folders(tmp_path / "val", 1)  # only class0
    loaded = data.load(str(tmp_path), GREY)
    assert (len(loaded.train.labels), loaded.test.labels.tolist()) == (12, [0])
    (tmp_path / "val" / "class0").rename(tmp_path / "val" / "other")
    with pytest.raises(data.DataError, match="lacks: other"):
        data.load(str(tmp_path), GREY)


def test_corrupt_images_are_named_skipped_and_counted(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "images")
    cut, text = folder / "class0" / "0.png", folder / "class1" / "1.png"
    cut.write_bytes(cut.read_bytes()[:200])
    text.write_text("no image")
    notes = Notes()
    options = loop.Options("lenet5_modern", str(folder), epochs=2, batch_size=8, threads=1)
    result = loop.train(options, tmp_path / "run", listener=notes)
    assert sorted(result.metrics["skipped_images"]) == [str(cut), str(text)]
    assert sorted(note.split(": ")[0] for note in notes.notes) == [f"Skipped {cut}", f"Skipped {text}"]
    assert (
        json.loads((tmp_path / "run" / loop.METRICS).read_text())["skipped_images"] == result.metrics["skipped_images"]
    )


def test_only_corrupt_images(tmp_path: Path) -> None:
    for index in range(10):
        file = tmp_path / "images" / "a" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    with pytest.raises(data.DataError, match="none of the training images"):
        loop.train(loop.Options("lenet5_modern", str(tmp_path / "images")), tmp_path / "run")


def test_affine_keeps_size_and_is_drawn_from_the_generator() -> None:
    images = torch.rand(5, 3, 16, 12)
    drawn = [augment.random_affine(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert drawn[0].shape == images.shape
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    still = augment.random_affine(images, torch.Generator(), degrees=0, scale=0, shift=0)
    torch.testing.assert_close(still, images)


# Files


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    files.write_atomically(file, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(files.RunError, match=r"cannot write .*file: No space left on device"):
        files.write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    for epoch in range(3):
        files.save_checkpoint(file, {"epoch": epoch})
    assert files.load_checkpoint(file)["epoch"] == 2
    assert files.load_checkpoint(files.previous(file))["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip a bit", "cut", "empty", "text"])
def test_broken_checkpoint(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "checkpoint.pt"
    for _ in range(2):
        files.save_checkpoint(file, {"model": torch.arange(1000.0)})
    content = bytearray(file.read_bytes())
    position = content.index(torch.tensor([500.0, 501.0]).numpy().tobytes())
    content[position] ^= 1
    broken = {"flip a bit": bytes(content), "cut": bytes(content[:-100]), "empty": b"", "text": b"not a checkpoint"}
    file.unlink()
    file.write_bytes(broken[damage])
    with pytest.raises(
        files.RunError, match=r"checkpoint\.pt is broken .*the one before it is kept: --resume .*previous"
    ):
        files.load_checkpoint(file)
    assert torch.equal(files.load_checkpoint(files.previous(file))["model"], torch.arange(1000.0))


def test_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    file = tmp_path / "checkpoint.pt"
    torch.save({"format": files.CHECKPOINT_FORMAT, "model": Attack()}, file)
    with pytest.raises(files.RunError, match="is broken"):
        files.load_checkpoint(file)
    file.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(files.RunError, match="is broken"):
        files.load_checkpoint(file)
    assert not (tmp_path / "attacked").exists()


# Runs


def test_a_run_is_decided_by_its_seed(small: loop.Options, tmp_path: Path) -> None:
    for name in ("a", "b"):
        loop.train(small, tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    small.seed = 1
    loop.train(small, tmp_path / "c")
    weights = [files.load_checkpoint(tmp_path / name / loop.CHECKPOINT)["model"]["c1.weight"] for name in ("a", "c")]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("model", ["lenet5", "lenet5_modern"])
def test_an_interrupted_run_goes_on_with_the_same_bits(small: loop.Options, tmp_path: Path, model: str) -> None:
    small.model = model
    loop.train(small, tmp_path / "unbroken")
    broken = tmp_path / "broken"
    handler = signal.getsignal(signal.SIGINT)  # a process started in the background ignores it
    result = loop.train(small, broken, listener=InterruptAt(2 * 4 + 2))  # in the third epoch
    assert result.stopped_by == signal.SIGINT
    metrics = json.loads((broken / loop.METRICS).read_text())
    assert (metrics["status"], len(metrics["epochs"])) == ("interrupted", 2)
    assert signal.getsignal(signal.SIGINT) is handler
    torch.rand(7)  # the generators of the process are not where they were
    result = loop.resume(broken, listener=InterruptAt(1))  # and once more, before an epoch is over
    assert len(result.metrics["epochs"]) == 2
    result = loop.resume(broken)
    assert (result.stopped_by, result.metrics["status"]) == (None, "finished")
    assert_same_run(tmp_path / "unbroken", broken)


def test_a_second_interrupt_stops_at_once(small: loop.Options, tmp_path: Path) -> None:
    class Impatient(loop.Listener):
        def batch(self, images: int, loss: float, accuracy: float) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop.train(small, tmp_path / "run", listener=Impatient())
    loop.resume(tmp_path / "run")
    loop.train(small, tmp_path / "unbroken")
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


def test_metrics_and_pictures(small: loop.Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    output = tmp_path / "run"
    result = loop.train(small, output)
    metrics = json.loads((output / loop.METRICS).read_text())
    assert metrics == result.metrics
    assert [record["epoch"] for record in metrics["epochs"]] == [1, 2, 3, 4]
    for record in metrics["epochs"]:
        assert {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"} <= record.keys()
        assert 0 <= record["test_accuracy"] <= 1
    assert metrics["test_accuracy"] == metrics["epochs"][-1]["test_accuracy"]
    assert metrics["test_accuracy"] == 1.0, "a stripe above and one below are told apart"
    assert metrics["epochs"][-1]["train_loss"] < metrics["epochs"][0]["train_loss"]
    for name in (loop.CURVES, loop.FEATURES):
        with PIL_Image.open(output / name) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("L").resize((100, 100)).getcolors()) > 20, "an empty picture"


def test_pictures_of_a_colour_model_and_of_one_epoch(tmp_path: Path) -> None:
    loaded = data.load(str(write_class_folders(tmp_path)), COLOR)
    model = models.create_model("lenet5_modern", num_classes=2, in_channels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert report.features(model, loaded, torch.device("cpu")).startswith(b"\x89PNG")
        record = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 0.9, "test_accuracy": 0.6}
        arguments = {"model": "m", "data": "d"}
        curve = report.learning_curve({"epochs": [record], "test_accuracy": 0.6, "arguments": arguments})
    assert curve.startswith(b"\x89PNG")


def test_a_run_is_not_overwritten(small: loop.Options, tmp_path: Path) -> None:
    output = tmp_path / "run"
    small.epochs = 1
    loop.train(small, output)
    (output / "notes.txt").write_text("mine")
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    with pytest.raises(files.RunError, match="exists already"):
        loop.train(small, output)
    small.data = str(tmp_path / "missing")
    with pytest.raises(data.DataError):
        loop.train(small, output, overwrite=True)
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    small.data, small.seed = str(tmp_path / "stripes"), 1
    loop.train(small, output, overwrite=True)
    assert (output / "notes.txt").read_text() == "mine"
    assert files.load_checkpoint(output / loop.CHECKPOINT)["arguments"]["seed"] == 1
    assert files.load_checkpoint(output / loop.PREVIOUS)["arguments"]["seed"] == 1


def test_a_file_where_the_folder_should_be(small: loop.Options, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(files.RunError, match="exists already"):
        loop.train(small, tmp_path / "file")
    with pytest.raises(files.RunError, match="cannot write to"):
        loop.train(small, tmp_path / "file", overwrite=True)
    with pytest.raises(files.RunError, match="cannot write to"):
        loop.train(small, tmp_path / "file" / "run")


def test_a_full_disk_keeps_the_last_checkpoint(small: loop.Options, tmp_path: Path) -> None:
    loop.train(small, tmp_path / "unbroken")
    output = tmp_path / "run"

    class Full(loop.Listener):
        def epoch(self, record: dict[str, Any]) -> None:
            if record["epoch"] == 2:
                disk.setattr(os, "fsync", self.fail)

        def fail(self, _: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.MonkeyPatch.context() as disk,
        pytest.raises(files.RunError, match=r"No space left on device; the last checkpoint is intact.*--resume"),
    ):
        loop.train(small, output, listener=Full())
    assert files.load_checkpoint(output / loop.CHECKPOINT)["epoch"] == 2
    loop.resume(output)
    assert_same_run(tmp_path / "unbroken", output)


def test_resuming_from_the_checkpoint_before_a_broken_one(small: loop.Options, tmp_path: Path) -> None:
    loop.train(small, tmp_path / "unbroken")
    output = tmp_path / "run"
    loop.train(small, output, listener=InterruptAt(2 * 4 + 1))
    (output / loop.CHECKPOINT).write_bytes(b"broken")
    with pytest.raises(files.RunError, match="previous"):
        loop.resume(output)
    loop.resume(output / loop.PREVIOUS)
    assert_same_run(tmp_path / "unbroken", output)


def test_a_finished_run_can_be_given_more_epochs(small: loop.Options, tmp_path: Path) -> None:
    small.epochs = 1
    loop.train(small, tmp_path / "run")
    assert len(loop.resume(tmp_path / "run").metrics["epochs"]) == 1
    assert len(loop.resume(tmp_path / "run", {"epochs": 3}).metrics["epochs"]) == 3
    with pytest.raises(files.RunError, match=r"lr of a resumed run cannot change: it is 0\.002, got 0\.1"):
        loop.resume(tmp_path / "run", {"lr": 0.1})
    with pytest.raises(files.RunError, match="there is no checkpoint"):
        loop.resume(tmp_path / "nothing" / loop.CHECKPOINT)
    with pytest.raises(files.RunError, match="expected the folder of a run"):
        loop.resume(tmp_path / "nothing")


def test_a_checkpoint_of_another_model_is_refused(small: loop.Options, tmp_path: Path) -> None:
    small.epochs = 1
    loop.train(small, tmp_path / "run")
    saved = files.load_checkpoint(tmp_path / "run" / loop.CHECKPOINT)
    saved["arguments"]["model"] = "lenet5"
    files.save_checkpoint(tmp_path / "run" / loop.CHECKPOINT, saved)
    with pytest.raises(files.RunError, match="does not fit"):
        loop.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"lr": float("nan")}, "lr must be a positive number, got nan"),
        ({"lr": -1.0}, "lr must be a positive number"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"device": "warp"}, "device 'warp' is not one that torch knows"),
    ],
)
def test_options_that_make_no_sense(small: loop.Options, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    for name, value in change.items():
        setattr(small, name, value)
    with pytest.raises(files.RunError, match=message):
        loop.train(small, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run(small: loop.Options, tmp_path: Path) -> None:
    small.lr = 1e30
    with pytest.raises(files.RunError, match=r"the loss is (nan|inf) in epoch 1: try a lower --lr"):
        loop.train(small, tmp_path / "run")
    assert files.load_checkpoint(tmp_path / "run" / loop.CHECKPOINT)["epoch"] == 0


def test_no_batch_of_one_image(small: loop.Options, tmp_path: Path) -> None:
    seen: list[int] = []

    class Sizes(loop.Listener):
        def batch(self, images: int, loss: float, accuracy: float) -> None:
            seen.append(images)

    small.epochs, small.batch_size = 1, 21  # 64 training images
    loop.train(small, tmp_path / "run", listener=Sizes())
    assert seen == [21, 21, 21]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lenet5", "lenet5_modern"])
def test_digits_are_learned(tmp_path: Path, model: str) -> None:
    result = loop.train(loop.Options(model, epochs=8), tmp_path / "run")
    assert result.metrics["test_accuracy"] >= 0.965


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SECONDS_A_LAYER", 0.01)
    assert demo.main(["--epochs", "1", "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "Test accuracy" in printed
    assert "9 layers converted, 0 kept" in printed
    assert printed.count("Conv2d") == 5
    assert (tmp_path / "run" / loop.FEATURES).exists()


def test_demo_takes_a_new_folder_each_time(tmp_path: Path) -> None:
    assert demo.unused_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert demo.unused_folder(tmp_path / "demo") == tmp_path / "demo-3"


def test_demo_marks_where_torch_is_faster() -> None:
    assert demo.timings({"fastconv": [2e-6], "torch": [1e-6]}) == ["2", "1", "0.50", "torch"]
    assert demo.timings({"fastconv": [1e-6], "torch": [2e-6]}) == ["1", "2", "2.00", "fastconv"]
    assert demo.timings({"fastconv": [1.00e-6], "torch": [1.02e-6]})[-1] == "neither"
