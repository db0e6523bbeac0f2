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
from fastconv.nn import PCALighting
from fastconv.train import (
    augment,
    data,
    demo,
    distributed,
    evaluate,
    files,
    loop,
    networks,
    optim,
    recipes,
    report,
    scenes,
    text,
)
from fastconv.train.options import Options

PIL_Image = pytest.importorskip("PIL.Image")
pytest.importorskip("kornia")
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
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Options of a run that takes a fraction of a second an epoch; drawing, which takes longer, is left out."""
    for picture in ("learning_curve", "features"):
        monkeypatch.setattr(report, picture, lambda *_: b"")
    return Options("lenet5_modern", str(write_idx(tmp_path / "stripes")), epochs=4, batch_size=16, threads=1)


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    times = ("seconds", "cpu_seconds", "images_per_second")
    epochs = [{k: v for k, v in record.items() if k not in times} for record in metrics["epochs"]]
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
    for part in ("model", "optimizer", "scheduler", "average", "scaler", "epoch", "arguments"):
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


def test_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "TRAIN", 30)
    monkeypatch.setattr(scenes, "TEST", 20)
    monkeypatch.setattr(scenes, "AT_ONCE", 12)
    loaded = data.load("scenes", data.ImageFormat(3, 64, 48))
    images, masks = loaded.train.read(torch.arange(30))
    assert images.shape == (30, 3, 64, 48)
    assert (masks.shape, masks.dtype, len(loaded.classes)) == ((30, 64, 48), torch.uint8, 11)
    assert set(masks.unique().tolist()) == set(range(11))
    assert 0.4 < (masks == 0).float().mean() < 0.8
    for mask in masks:
        assert 1 <= len(mask.unique()) - 1 <= 4
    grey = images.float().mean(1) / 255
    for image, mask in zip(grey, masks, strict=True):  # there are paper and ink on every slip
        for digit in mask.unique()[1:]:
            slip = image[mask == digit]
            assert slip.max() - slip.min() > 0.4
    again = data.load("scenes", data.ImageFormat(3, 64, 48))
    assert torch.equal(again.test.read(torch.arange(20))[0], loaded.test.read(torch.arange(20))[0])
    assert not torch.equal(images[:20], again.test.read(torch.arange(20))[0])


def test_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a package with ten files of two docstrings, one of them too short."""
    package = tmp_path / "some_package"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    words = [f"word{chr(ord('a') + index)}" for index in range(10)]
    for index, word in enumerate(words):
        long = f"Numpy's {word} is one of the words that follow, twice: {word}."
        (package / f"file{index}.py").write_text(f'def f(x):\n    "{long}"\nclass C:\n    "Short."\n')
    (package / "tests" / "t.py").write_text('def f():\n    "This text, long as it is, must not be among them."\n')
    monkeypatch.syspath_prepend(tmp_path)
    train, test = text.docstrings("some_package")
    assert (len(train), len(test)) == (8, 2)
    found = sorted(words[1] for words in train + test)
    assert found == words, "numpy, which would tell the package, is left out"
    assert train[0][2:6] == ["is", "one", "of", "the"]
    assert text.docstrings("some_package") == (train, test)

    vocabulary = text.vocabulary(train, 5)
    assert vocabulary[:2] == [text.PADDING, text.UNKNOWN]
    assert len(vocabulary) == 5
    assert text.vocabulary([["b", "a", "b"], ["c"]], 10)[2:] == ["b", "a", "c"]
    assert text.numbers([["a", "x", "b"], ["b", "b", "b", "a", "a"]], ["", "?", "b", "a"], 4).tolist() == [
        [3, 1, 2, 0],
        [2, 2, 2, 3],
    ]


def test_models_and_data_that_do_not_fit(small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.data = "docstrings"
    with pytest.raises(data.DataError, match="the model does not take docstrings"):
        loop.train(small, tmp_path / "run")
    small.data = "scenes"
    monkeypatch.setattr(scenes, "TRAIN", 16)
    with pytest.raises(files.RunError, match="the images of this data have a class for each pixel"):
        loop.train(small, tmp_path / "run")


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


def write_cifar(folder: Path, classes: int = 10, count: int = 12) -> torch.Tensor:
    """CIFAR's binary files, every part with the same images, which are returned."""
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(count, dtype=torch.uint8)[:, None] * (classes // 10) % classes
    if classes == 100:
        labels = torch.cat([labels // 5, labels], 1)
    content = torch.cat([labels, images.flatten(1)], 1).numpy().tobytes()
    names = [f"data_batch_{index}.bin" for index in range(1, 6)] + ["test_batch.bin"]
    for name in names if classes == 10 else ["train.bin", "test.bin"]:
        (folder / name).write_bytes(content)
    return images


@pytest.mark.parametrize(("classes", "parts"), [(10, 5), (100, 1)])
def test_cifar(tmp_path: Path, classes: int, parts: int) -> None:
    images = write_cifar(tmp_path, classes)
    loaded = data.load(str(tmp_path), COLOR)
    assert (len(loaded.train.labels), len(loaded.test.labels), len(loaded.classes)) == (12 * parts, 12, classes)
    assert loaded.augment == ("crop", "flip")
    found, labels = loaded.test.read(torch.tensor([3, 11]))
    assert torch.equal(found, images[[3, 11]])
    assert labels.tolist() == ([3, 1] if classes == 10 else [30, 10])
    names = [f"name{index}" for index in range(classes)]
    file = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
    (tmp_path / file).write_text("\n".join(names) + "\n\n")
    assert data.load(str(tmp_path), COLOR).classes == names
    grey = data.load(str(tmp_path), GREY).test.read(torch.tensor([0]))[0]
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close(grey[0, 0].float(), (images[0] * weights).sum(0), rtol=0, atol=0.51)


def test_damaged_cifar(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    file = tmp_path / "data_batch_3.bin"
    content = file.read_bytes()
    for wrong, message in (
        (content[:-1], "a multiple of 3073 bytes expected, 36875 found"),
        (b"", "0 found"),
        (b"\x0a" + content[1:], "it has the label 10, and there are 10 classes"),
    ):
        file.write_bytes(wrong)
        with pytest.raises(data.DataError, match=f"{file} is damaged: .*{message}"):
            data.load(str(tmp_path), COLOR)
    file.write_bytes(content)
    (tmp_path / "batches.meta.txt").write_text("cat dog")
    with pytest.raises(data.DataError, match="should hold 10 names, but holds 2"):
        data.load(str(tmp_path), COLOR)
    for file in tmp_path.glob("data_batch_*.bin"):
        file.unlink()
    with pytest.raises(data.DataError, match="holds no training images of CIFAR-10"):
        data.load(str(tmp_path), COLOR)


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
    options = Options("lenet5_modern", str(folder), epochs=2, batch_size=8, threads=1)
    result = loop.train(options, tmp_path / "run", listener=notes)
    assert sorted(result.metrics["skipped_images"]) == [str(cut), str(text)]
    assert sorted(note.split(": ")[0] for note in notes.notes) == [f"Skipped {cut}", f"Skipped {text}"]
    assert (
        json.loads((tmp_path / "run" / loop.METRICS).read_text())["skipped_images"] == result.metrics["skipped_images"]
    )


def test_images_found_corrupt_while_others_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_class_folders(tmp_path / "images")
    (folder / "class0" / "0.png").write_bytes(b"")
    parts = []
    initialise = data.ImageFiles.__init__

    def remembered(self: data.ImageFiles, *args: Any) -> None:
        initialise(self, *args)
        parts.append(self)

    class Slow(loop.Listener):
        """While it names one, the thread that reads ahead comes upon another."""

        def note(self, message: str) -> None:
            for part in parts:
                part.skipped["read meanwhile"] = "corrupt"

    monkeypatch.setattr(data.ImageFiles, "__init__", remembered)
    options = Options("lenet5_modern", str(folder), epochs=1, batch_size=8, threads=1)
    result = loop.train(options, tmp_path / "run", listener=Slow())
    assert sorted(result.metrics["skipped_images"]) == [str(folder / "class0" / "0.png"), "read meanwhile"]


def test_only_corrupt_images(tmp_path: Path) -> None:
    for index in range(10):
        file = tmp_path / "images" / "a" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    with pytest.raises(data.DataError, match="none of the training images"):
        loop.train(Options("lenet5_modern", str(tmp_path / "images")), tmp_path / "run")


@pytest.mark.parametrize("name", augment.NAMES)
def test_augmentation_is_drawn_from_the_seed_for_the_whole_batch(name: str) -> None:
    images = torch.rand(6, 3, 16, 12)
    change = augment.Augmentation([name], (16, 12), PCALighting.imagenet() if name == "lighting" else None)
    state = torch.get_rng_state()
    drawn = [change(images, seed, slice(0, 6), 6) for seed in (1, 1, 2)]
    assert drawn[0].shape == images.shape
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], images)
    assert torch.equal(torch.get_rng_state(), state), "the generator of the process is left as it is"
    part = slice(2, 5)
    shared = change(images[part], 1, part, 6)
    assert torch.equal(shared, drawn[0][part]), "an image is changed in the same way, whichever process has it"
    assert change(images[:0], 1, slice(0, 0), 6).shape == (0, 3, 16, 12)


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


def test_a_run_is_decided_by_its_seed(small: Options, tmp_path: Path) -> None:
    for name in ("a", "b"):
        loop.train(small, tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    small.seed = 1
    loop.train(small, tmp_path / "c")
    weights = [files.load_checkpoint(tmp_path / name / loop.CHECKPOINT)["model"]["c1.weight"] for name in ("a", "c")]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("model", ["lenet5", "lenet5_modern"])
def test_an_interrupted_run_goes_on_with_the_same_bits(small: Options, tmp_path: Path, model: str) -> None:
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


SETTINGS = {
    "sgd": {"optimizer": "sgd", "schedule": "step", "label_smoothing": 0.1},
    "average": {"ema": 0.9, "accumulate": 3, "schedule": "constant", "warm_up": 0.5},
    "bfloat16": {"precision": "bfloat16", "augment": ["crop", "brightness"]},
    "float16": {"precision": "float16"},
    "lighting": {"model_options": {"in_channels": 3}, "augment": ["lighting"]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_resumed_with_the_same_bits_and_learns(small: Options, tmp_path: Path, name: str) -> None:
    for option, value in SETTINGS[name].items():
        setattr(small, option, value)
    small.epochs = 6
    result = loop.train(small, tmp_path / "unbroken")
    assert result.metrics["test_accuracy"] == 1.0, "a stripe above and one below are told apart"
    loop.train(small, tmp_path / "broken", listener=InterruptAt(3 * 4 + 2))
    torch.rand(7)
    loop.resume(tmp_path / "broken")
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_accumulated_gradients_are_those_of_the_whole_step(small: Options, tmp_path: Path) -> None:
    """64 images in batches of 24: the last step has 16."""
    small.batch_size, small.epochs = 24, 2
    whole = loop.train(small, tmp_path / "whole").metrics["epochs"]
    small.accumulate = 3
    parts = loop.train(small, tmp_path / "parts").metrics["epochs"]
    for a, b in zip(whole, parts, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-6)
        assert a["test_loss"] == pytest.approx(b["test_loss"], rel=1e-6)


def test_schedules() -> None:
    def rates(**chosen: Any) -> list[float]:
        rate = optim.schedule(Options(**chosen), 10)
        return [round(rate(step), 3) for step in range(10)]

    assert rates(warm_up=0.2, schedule="constant") == [0.5] + 9 * [1.0]
    assert rates(warm_up=0, schedule="step", decay=0.5) == 5 * [1.0] + 3 * [0.5] + 2 * [0.25]
    assert rates(warm_up=0, schedule="step", milestones=[0.2]) == 2 * [1.0] + 8 * [0.1]
    cosine = rates(warm_up=0.2)
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == 0.5
    assert cosine == cosine[:2] + sorted(cosine[2:], reverse=True)


def test_the_rates_reach_the_optimizer(small: Options, tmp_path: Path) -> None:
    small.optimizer, small.lr, small.schedule, small.warm_up = "sgd", 0.04, "step", 0.0
    run = loop.Run(small, tmp_path, distributed.World(torch.device("cpu")))
    assert isinstance(run.optimizer, torch.optim.SGD)
    assert [run._epoch()["lr"] for _ in range(4)] == pytest.approx([0.04, 0.04, 0.004, 0.0004])


def test_the_moving_average_is_what_is_tested(small: Options, tmp_path: Path) -> None:
    small.ema, small.epochs = 0.5, 1
    loop.train(small, tmp_path / "run")
    saved = files.load_checkpoint(tmp_path / "run" / loop.CHECKPOINT)
    assert not torch.equal(saved["model"]["c1.weight"], saved["average"]["module.c1.weight"])
    trained = evaluate.Trained.load(tmp_path / "run")
    assert torch.equal(trained.model.state_dict()["c1.weight"], saved["average"]["module.c1.weight"])
    found = evaluate.evaluate(tmp_path / "run")
    assert found.loss == pytest.approx(saved["history"][0]["test_loss"], rel=1e-6)


def test_a_second_interrupt_stops_at_once(small: Options, tmp_path: Path) -> None:
    class Impatient(loop.Listener):
        def batch(self, images: int, loss: float, accuracy: float) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop.train(small, tmp_path / "run", listener=Impatient())
    loop.resume(tmp_path / "run")
    loop.train(small, tmp_path / "unbroken")
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


def test_metrics_and_pictures(small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    lines = (output / loop.LINES).read_text().splitlines()
    assert [json.loads(line) for line in lines] == metrics["epochs"]
    assert metrics["epochs"][-1]["train_loss"] < metrics["epochs"][0]["train_loss"]
    for name in (loop.CURVES, loop.FEATURES):
        with PIL_Image.open(output / name) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("L").resize((100, 100)).getcolors()) > 20, "an empty picture"


def test_tensorboard(small: Options, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    small.tensorboard = True
    loop.train(small, tmp_path / "run", listener=InterruptAt(2 * 4 + 1))
    metrics = loop.resume(tmp_path / "run").metrics["epochs"]
    events = accumulator.EventAccumulator(str(tmp_path / "run" / loop.EVENTS))
    events.Reload()
    losses, times = {"loss/train", "loss/test"}, {"seconds", "cpu_seconds", "images_per_second"}
    assert set(events.Tags()["scalars"]) == losses | times | {"lr", "accuracy/train", "accuracy/test"}
    assert [event.step for event in events.Scalars("loss/train")] == [1, 2, 3, 4]
    found = [event.value for event in events.Scalars("accuracy/test")]
    assert found == pytest.approx([record["test_accuracy"] for record in metrics])
    loop.train(small, tmp_path / "run", overwrite=True)
    assert len(list((tmp_path / "run" / loop.EVENTS).iterdir())) == 1


def test_auxiliary_heads_count_less() -> None:
    """GoogLeNet's outputs are a tuple with the heads behind, those of a segmentation network have names."""
    labels = torch.tensor([0, 2])
    heads = main, first, second = torch.randn(3, 2, 3)
    loss = networks.criterion(torch.nn.Identity(), 0.1)
    single = [torch.nn.functional.cross_entropy(scores, labels, label_smoothing=0.1) for scores in heads]
    torch.testing.assert_close(loss(main, labels), single[0])
    torch.testing.assert_close(loss((main, first, second), labels), single[0] + 0.3 * (single[1] + single[2]))
    torch.testing.assert_close(loss((main, None, None), labels), single[0])
    torch.testing.assert_close(loss({"out": main, "aux": first}, labels), single[0] + 0.5 * single[1])
    torch.testing.assert_close(loss({"out": main}, labels), single[0])


def test_confusion() -> None:
    confusion = networks.Confusion(3)
    confusion.add(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 0]))
    confusion.add(torch.eye(3)[[1]], torch.tensor([1]))
    assert confusion.counts.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert confusion.accuracy == 0.75
    assert confusion.recalls[:2] == [0.5, 1.0]
    assert confusion.intersections_over_unions[:2] == pytest.approx([1 / 2, 2 / 3])
    assert confusion.mean_iou == pytest.approx((1 / 2 + 2 / 3) / 2), "a class that does not occur does not count"
    maps = networks.Confusion(2)
    maps.add(torch.eye(2)[torch.tensor([[[0, 1], [1, 1]]])].permute(0, 3, 1, 2), torch.tensor([[[0, 1], [0, 1]]]))
    assert maps.counts.tolist() == [[1, 1], [0, 2]]


def test_evaluate_and_predict(small: Options, tmp_path: Path) -> None:
    result = loop.train(small, tmp_path / "run")
    found = evaluate.evaluate(tmp_path / "run")
    assert (found.accuracy, found.classes) == (1.0, [("0", 8, 1.0), ("1", 8, 1.0)])
    assert found.loss == pytest.approx(result.metrics["epochs"][-1]["test_loss"], rel=1e-6)
    with PIL_Image.open(found.picture) as picture:
        assert found.picture == tmp_path / "run" / evaluate.PICTURE
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20, "an empty picture"

    other = write_class_folders(tmp_path / "images", 10)
    with pytest.raises(files.RunError, match="the model's classes are 0, 1, those of the data class0, class1"):
        evaluate.evaluate(tmp_path / "run", str(other))
    broken = tmp_path / "broken.png"
    broken.write_text("")
    paths = [other / "class0" / "0.png", broken, other / "class1" / "1.png"]
    answers = list(evaluate.predict(tmp_path / "run", paths, top=5))
    assert [path for path, _ in answers] == paths
    assert isinstance(answers[1][1], str)
    for index, label in ((0, "0"), (2, "1")):
        answer = answers[index][1]
        assert answer[0][0] == label
        assert len(answer) == 2
        assert sum(probability for _, probability in answer) == pytest.approx(1)
    with pytest.raises(files.RunError, match="there is no checkpoint"):
        evaluate.Trained.load(tmp_path / "nothing.pt")


def test_confusion_of_many_classes_is_drawn() -> None:
    counts = torch.eye(100, dtype=torch.int64) * 20_000
    assert report.confusion(counts, [f"class {index}" for index in range(100)]).startswith(b"\x89PNG")


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


def test_a_run_is_not_overwritten(small: Options, tmp_path: Path) -> None:
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


def test_a_file_where_the_folder_should_be(small: Options, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(files.RunError, match="exists already"):
        loop.train(small, tmp_path / "file")
    with pytest.raises(files.RunError, match="cannot write to"):
        loop.train(small, tmp_path / "file", overwrite=True)
    with pytest.raises(files.RunError, match="cannot write to"):
        loop.train(small, tmp_path / "file" / "run")


def test_a_full_disk_keeps_the_last_checkpoint(small: Options, tmp_path: Path) -> None:
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


def test_resuming_from_the_checkpoint_before_a_broken_one(small: Options, tmp_path: Path) -> None:
    loop.train(small, tmp_path / "unbroken")
    output = tmp_path / "run"
    loop.train(small, output, listener=InterruptAt(2 * 4 + 1))
    (output / loop.CHECKPOINT).write_bytes(b"broken")
    with pytest.raises(files.RunError, match="previous"):
        loop.resume(output)
    loop.resume(output / loop.PREVIOUS)
    assert_same_run(tmp_path / "unbroken", output)


def test_a_finished_run_can_be_given_more_epochs(small: Options, tmp_path: Path) -> None:
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


def test_a_checkpoint_of_another_model_is_refused(small: Options, tmp_path: Path) -> None:
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
        ({"accumulate": 17}, "accumulate must be at most the batch size, 16, got 17"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd, got 'adam'"),
        ({"precision": "int8"}, "precision must be one of float32, bfloat16, float16"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and less than 1, got 1.0"),
        ({"milestones": [2.0]}, "milestones must be parts of the training between 0 and 1"),
        ({"augment": ["mirror"]}, "augment must be names of affine, .*, got 'mirror'"),
        ({"augment": ["lighting"]}, "lenet5_modern takes grey images"),
        ({"model_options": {"depth": 3}}, "lenet5_modern cannot be made for 2 classes with {'depth': 3}"),
        ({"model_options": {"in_channels": 2}}, "images have 1 or 3 channels, got 2"),
        ({"model": "lenet5", "label_smoothing": 0.1}, "this model has a loss of its own"),
        ({"device": "warp"}, "device 'warp' is not one that torch knows"),
    ],
)
def test_options_that_make_no_sense(small: Options, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    for name, value in change.items():
        setattr(small, name, value)
    with pytest.raises(files.RunError, match=message):
        loop.train(small, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run(small: Options, tmp_path: Path) -> None:
    small.lr = 1e30
    with pytest.raises(files.RunError, match=r"the loss is (nan|inf) in epoch 1: try a lower --lr"):
        loop.train(small, tmp_path / "run")
    assert files.load_checkpoint(tmp_path / "run" / loop.CHECKPOINT)["epoch"] == 0


def test_no_batch_of_one_image(small: Options, tmp_path: Path) -> None:
    seen: list[int] = []

    class Sizes(loop.Listener):
        def batch(self, images: int, loss: float, accuracy: float) -> None:
            seen.append(images)

    small.epochs, small.batch_size = 1, 21  # 64 training images
    loop.train(small, tmp_path / "run", listener=Sizes())
    assert seen == [21, 21, 21]


def test_recipes(
    small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    easy = recipes.Recipe("lenet5_modern", 4, 0.99, small.data, {"batch_size": 16})
    hard = recipes.Recipe("lenet5", 1, 1.01, small.data)
    monkeypatch.setattr(recipes, "RECIPES", (easy, hard))
    docs = tmp_path / "training.md"
    docs.write_text(f"before\n{recipes.BEGIN}old\n{recipes.END}after\n")
    arguments = ["--output", str(tmp_path / "all"), "--threads", "1"]
    assert recipes.main(["lenet5_modern", *arguments, "--docs", str(docs)]) == 0
    written = docs.read_text()
    assert written.startswith(f"before\n{recipes.BEGIN}Seed 0, ")
    assert written.endswith(f" 100.00% | 99% |\n\nNot measured yet: `lenet5`.\n{recipes.END}after\n")
    capsys.readouterr()
    assert recipes.main(arguments) == 1, "lenet5 falls short"
    printed = capsys.readouterr().out
    assert "lenet5_modern on" not in printed, "a finished run is not run again"
    assert "lenet5 on" in printed
    assert printed.count("| `lenet5") == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lenet5", "lenet5_modern"])
def test_digits_are_learned(tmp_path: Path, model: str) -> None:
    result = loop.train(Options(model, epochs=8), tmp_path / "run")
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
