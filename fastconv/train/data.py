"""The data sets of training: digits, MNIST's and CIFAR's files, folders of images, digit scenes and docstrings.

Images are brought to the size and channels that the model takes, as uint8, and normalised a batch at a time.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv.extras import require
from fastconv.nn import PCALighting
from fastconv.train import formats, scenes, text
from fastconv.train.formats import DataError

TEST_FRACTION = 0.2
SPLIT_SEED = 0  # a data set without a test part is split in the same way in every run, whatever its seed
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
TEST_FOLDERS = ("test", "val", "validation")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's
LIGHTING_SAMPLE = 2000  # images from which the principal colours are taken


@dataclass(frozen=True)
class ImageFormat:
    """What a model takes: the number of channels (1 or 3), the height and the width in pixels."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class TextFormat:
    """What a model of text takes: the number of words of a text, and of different words at most."""

    length: int
    vocabulary: int


class Examples(Protocol):
    """One part of a data set. `skipped` maps each file that could not be read to the reason."""

    labels: Tensor
    skipped: dict[str, str]

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (n, channels, height, width) and int64 labels (n,), less those that cannot be read.

        Of text, the inputs are int64 words (n, length); of scenes, the labels are uint8 masks (n, height, width).
        """
        ...


@dataclass
class InMemory:
    """Examples held in memory."""

    inputs: Tensor
    labels: Tensor
    skipped: dict[str, str] = field(default_factory=dict)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.labels[indices]


class ImageFiles:
    """Images read from files when they are asked for, cropped in the middle and resized to `image_format`."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, image_format: ImageFormat) -> None:
        self.paths = list(paths)
        self.labels = labels
        self.format = image_format
        self.skipped: dict[str, str] = {}
        self.pool = ThreadPoolExecutor(os.cpu_count())

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, kept = [], []
        paths = [self.paths[index] for index in indices.tolist()]
        for index, path, image in zip(indices.tolist(), paths, self.pool.map(self._decode, paths), strict=True):
            if isinstance(image, str):
                self.skipped[str(path)] = image
            else:
                images.append(image)
                kept.append(index)
        size = (self.format.channels, self.format.height, self.format.width)
        return torch.stack(images) if images else torch.empty((0, *size), dtype=torch.uint8), self.labels[kept]

    def _decode(self, path: Path) -> Tensor | str:
        """One image, or why it cannot be read: decoders raise nearly every type of exception on a damaged file."""
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
                if image.mode.startswith("I;16"):
                    image = image.convert("I").point(lambda value: value / 256)
                image = image.convert("L" if self.format.channels == 1 else "RGB")
                image = ImageOps.fit(image, (self.format.width, self.format.height), Image.Resampling.BICUBIC)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(self.format.height, self.format.width, self.format.channels).permute(2, 0, 1).contiguous()


@dataclass
class DataSet:
    """A training and a test part.

    Attributes:
        classes: their names, in the order of the labels.
        mean, std: of each channel, of images scaled to 0 … 1.
        task: "images" with a class each, "scenes" with a class for each pixel, or "text".
        augment: the names of `train.augment` that suit the images.
        vocabulary: of text, the word for each number.
    """

    train: Examples
    test: Examples
    classes: list[str]
    mean: Tensor = field(default_factory=lambda: torch.zeros(1))
    std: Tensor = field(default_factory=lambda: torch.ones(1))
    task: Literal["images", "scenes", "text"] = "images"
    augment: tuple[str, ...] = ()
    vocabulary: list[str] = field(default_factory=list)

    def normalize(self, inputs: Tensor) -> Tensor:
        """Images, uint8 or scaled to 0 … 1, as float32 with zero mean and unit variance; words as they are."""
        return inputs if self.task == "text" else normalize(inputs, self.mean, self.std)

    def batches(self, examples: Examples, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels for each list of indices; the next ones are read while these are worked on."""
        with ThreadPoolExecutor(1) as reader:
            ahead: Future[tuple[Tensor, Tensor]] | None = reader.submit(examples.read, batches[0]) if batches else None
            for following in [*batches[1:], None]:
                if ahead is None:
                    return
                inputs, labels = ahead.result()
                ahead = None if following is None else reader.submit(examples.read, following)
                yield inputs, labels

    def lighting(self) -> PCALighting:
        """AlexNet's lighting with the principal colours of the training images, or with ImageNet's for files."""
        if isinstance(self.train, InMemory):
            return PCALighting.from_images(self.train.inputs[:LIGHTING_SAMPLE].float() / 255)
        return PCALighting.imagenet()

    @property
    def skipped(self) -> dict[str, str]:
        return self.train.skipped | self.test.skipped


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images (n, channels, height, width), uint8 or scaled to 0 … 1, less the mean and divided by the deviation."""
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    mean, std = (values.to(images.device).view(1, -1, 1, 1) for values in (mean, std))
    return (scaled - mean) / std


def load(source: str, image_format: ImageFormat | TextFormat) -> DataSet:
    """The data set that `--data` names, in the form that a model takes.

    "digits" are scikit-learn's, "scenes" those of `train.scenes`, "docstrings" the texts of `train.text`. Else it is a
    folder: of class folders of images (or of folders `train` and `test` with such in them), of MNIST's IDX files (or
    one such file), or of CIFAR's binary files. Where there is no test part, a fixed fifth of every class becomes one.

    Raises DataError if there is no such data or it is damaged.
    """
    if isinstance(image_format, TextFormat) != (source == "docstrings"):
        raise DataError(f"the model does not take {source}: 'docstrings' are for models of text, all else is images")
    if isinstance(image_format, TextFormat):
        return _docstrings(image_format)
    if source == "digits":
        return _digits(image_format)
    if source == "scenes":
        return _scenes(image_format)
    path = Path(source)
    if not path.exists():
        raise DataError(
            f"no data at {source}: expected digits, scenes, a folder of class folders, or MNIST's or CIFAR's files"
        )
    folder = path if path.is_dir() else path.parent
    if path.is_file() or formats.idx_files(folder):
        return _idx(path, image_format)
    if formats.is_cifar(folder):
        train, test, classes = formats.read_cifar(folder)
        return _in_memory(*train, test, classes, image_format, ("crop", "flip"))
    return _class_folders(path, image_format)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a larger and a smaller part, in ascending order; the smaller one has `fraction` of each class."""
    generator = torch.Generator().manual_seed(seed)
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        chosen = torch.randperm(len(members), generator=generator)[: round(fraction * len(members))]
        in_test[members[chosen]] = True
    return (~in_test).nonzero().flatten(), in_test.nonzero().flatten()


def _digits(image_format: ImageFormat) -> DataSet:
    """1,797 handwritten digits of 8x8 pixels: the test part of UCI's optical recognition data (Alpaydin 1998)."""
    images, labels = _read_digits()
    size = [round(extent * 7 / 8) for extent in (image_format.height, image_format.width)]  # a border, as MNIST's
    images = F.interpolate(images, size, mode="bicubic", align_corners=False)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return _in_memory(pixels, labels, None, [str(digit) for digit in range(10)], image_format, ("affine",))


def _read_digits() -> tuple[Tensor, Tensor]:
    """(n, 1, 8, 8), 0 … 1, ink 1, and the digits."""
    digits = require("sklearn.datasets", "--data digits").load_digits()
    return torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target).long()


def _scenes(image_format: ImageFormat) -> DataSet:
    """Scenes whose training and test part show different digits: those of the parts of `_digits`."""
    digits, labels = _read_digits()
    size = image_format.height, image_format.width
    parts = stratified_split(labels, TEST_FRACTION, SPLIT_SEED)
    train, test = (
        scenes.make(digits[part], labels[part], count, size, image_format.channels, seed)
        for seed, (part, count) in enumerate(zip(parts, (scenes.TRAIN, scenes.TEST), strict=True))
    )
    std, mean = torch.std_mean(train[0].float() / 255, dim=(0, 2, 3))
    return DataSet(InMemory(*train), InMemory(*test), scenes.CLASSES, mean, std, task="scenes")


def _docstrings(text_format: TextFormat) -> DataSet:
    """Docstrings of four packages that are installed, to be told apart."""
    for module in text.PACKAGES.values():
        require(module, "--data docstrings")
    parts = [text.docstrings(module) for module in text.PACKAGES.values()]
    vocabulary = text.vocabulary([words for train, _ in parts for words in train], text_format.vocabulary)
    train, test = (
        InMemory(
            text.numbers([words for part in parts for words in part[index]], vocabulary, text_format.length),
            torch.cat([torch.full((len(part[index]),), label) for label, part in enumerate(parts)]),
        )
        for index in range(2)
    )
    return DataSet(train, test, list(text.PACKAGES), task="text", vocabulary=vocabulary)


def _in_memory(
    images: Tensor,
    labels: Tensor,
    test: tuple[Tensor, Tensor] | None,
    classes: list[str],
    image_format: ImageFormat,
    augment: tuple[str, ...],
) -> DataSet:
    """A data set of uint8 images, split if it has no test part; the statistics are the training part's."""
    if test is None:
        train_part, test_part = stratified_split(labels, TEST_FRACTION, SPLIT_SEED)
        images, labels, test = images[train_part], labels[train_part], (images[test_part], labels[test_part])
    images = _fit(images, image_format)
    std, mean = torch.std_mean(images.double() / 255, dim=(0, 2, 3))
    train = InMemory(images, labels)
    test_images = InMemory(_fit(test[0], image_format), test[1])
    return DataSet(train, test_images, classes, mean.float(), std.clamp(min=1e-3).float(), augment=augment)


def _fit(images: Tensor, image_format: ImageFormat) -> Tensor:
    """Bring uint8 images to the size and channels of the model: a black border if they are smaller, else resized."""
    height, width = images.shape[-2:]
    if height > image_format.height or width > image_format.width:
        size = (image_format.height, image_format.width)
        images = F.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        images = images.round().clamp(0, 255).to(torch.uint8)
    else:
        top, left = (image_format.height - height) // 2, (image_format.width - width) // 2
        images = F.pad(images, (left, image_format.width - width - left, top, image_format.height - height - top))
    if images.shape[1] == 3 and image_format.channels == 1:
        weights = torch.tensor(LUMINANCE).view(1, 3, 1, 1)
        return (images * weights).sum(1, keepdim=True).round().to(torch.uint8)
    return images.expand(-1, image_format.channels, -1, -1)


def _idx(path: Path, image_format: ImageFormat) -> DataSet:
    """A folder of MNIST's files (`train-images…`, `train-labels…`, `t10k-…` or `test-…`), or one file of images."""
    if path.is_dir():
        files = formats.idx_files(path)
        test_file = next((file for file in files if "t10k" in file.name or "test" in file.name), None)
        train_file = next((file for file in files if file != test_file), None)
        if train_file is None:
            raise DataError(f"{path} holds no training images in MNIST's format (such as train-images-idx3-ubyte.gz)")
    else:
        train_file, test_file = path, None
    images, labels = formats.read_idx_pair(train_file)
    test = None if test_file is None else formats.read_idx_pair(test_file)
    known = labels if test is None else torch.cat([labels, test[1]])
    classes = [str(label) for label in range(int(known.max()) + 1)]
    return _in_memory(images, labels, test, classes, image_format, ("affine",))


def _class_folders(folder: Path, image_format: ImageFormat) -> DataSet:
    """A folder with one folder of images for each class, or such folders inside `train` and `test` (or `val`)."""
    require("PIL.Image", "reading images")
    test_folder = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and test_folder is not None:
        classes, paths, labels = _list_images(folder / "train")
        test_classes, test_paths, test_labels = _list_images(test_folder)
        unknown = sorted(set(test_classes) - set(classes))
        if unknown:
            raise DataError(f"{test_folder} has classes that {folder / 'train'} lacks: {', '.join(unknown)}")
        to_train = torch.tensor([classes.index(name) for name in test_classes])
        train = ImageFiles(paths, labels, image_format)
        test = ImageFiles(test_paths, to_train[test_labels], image_format)
    else:
        classes, paths, labels = _list_images(folder)
        train_part, test_part = stratified_split(labels, TEST_FRACTION, SPLIT_SEED)
        if len(test_part) == 0:
            raise DataError(f"{folder} has too few images for a test part: at least three of a class are needed")
        train, test = (
            ImageFiles([paths[index] for index in part.tolist()], labels[part], image_format)
            for part in (train_part, test_part)
        )
    if image_format.channels == 3:
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    else:
        mean, std = torch.tensor([0.5]), torch.tensor([0.25])
    return DataSet(train, test, classes, mean, std, augment=("affine",))


def _list_images(folder: Path) -> tuple[list[str], list[Path], Tensor]:
    """The class names, which are the sorted names of the folders, and the paths and labels of the images in them."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(file for file in (folder / name).rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise DataError(f"{folder / name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        paths += images
        labels += [label] * len(images)
    if not classes:
        raise DataError(f"{folder} holds neither class folders of images nor MNIST-format (IDX) files")
    return classes, paths, torch.tensor(labels)
