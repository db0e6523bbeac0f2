"""Image data sets for training: scikit-learn's digits, folders of class folders, and files in MNIST's IDX format.

Every data set is brought to the size and channels that the model takes, as uint8, and normalised a batch at a time.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv.extras import require

TEST_FRACTION = 0.2
SPLIT_SEED = (
    0  # the split of a data set that comes without one is the same in every run, whatever the seed of the training
)
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
TEST_FOLDERS = ("test", "val", "validation")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DataError(Exception):
    """A data set cannot be read; the message names the file or folder and what is wrong with it."""


@dataclass(frozen=True)
class ImageFormat:
    """What a model takes: the number of channels (1 or 3), the height and the width in pixels."""

    channels: int
    height: int
    width: int


class Images(Protocol):
    """One split of a data set. `skipped` maps each file that could not be read to the reason."""

    labels: Tensor
    skipped: dict[str, str]

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (n, channels, height, width) and int64 labels (n,), less those that cannot be read."""
        ...


@dataclass
class ImageArray:
    """Images held in memory: uint8 (n, channels, height, width), with int64 labels (n,)."""

    images: Tensor
    labels: Tensor
    skipped: dict[str, str] = field(default_factory=dict)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


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
    """A training and a test split, the classes' names, and the mean and standard deviation of each channel (0 … 1)."""

    train: Images
    test: Images
    classes: list[str]
    mean: Tensor
    std: Tensor

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images (n, channels, height, width) as float32 with zero mean and unit variance."""
        shape = (1, -1, 1, 1)
        return (images.float() / 255 - self.mean.view(shape)) / self.std.view(shape)

    def batches(self, images: Images, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images and their labels in the given order; the next batch is read while this one is worked on."""
        chunks = list(order.split(batch_size))
        with ThreadPoolExecutor(1) as reader:
            ahead: Future[tuple[Tensor, Tensor]] | None = reader.submit(images.read, chunks[0]) if chunks else None
            for following in [*chunks[1:], None]:
                assert ahead is not None
                pixels, labels = ahead.result()
                if following is not None:
                    ahead = reader.submit(images.read, following)
                if len(labels):
                    yield self.normalize(pixels), labels

    @property
    def skipped(self) -> dict[str, str]:
        return self.train.skipped | self.test.skipped


def load(source: str, image_format: ImageFormat) -> DataSet:
    """The data set that `--data` names: "digits", a folder of class folders, or a folder or file in MNIST's IDX format.

    A folder may hold `train` and `test` folders of class folders, and IDX files a training and a test pair; where there
    is no test part, a fixed fifth of every class becomes one.

    Raises DataError if there is no such data or it is damaged.
    """
    if source == "digits":
        return _digits(image_format)
    path = Path(source)
    if not path.exists():
        raise DataError(
            f"no data at {source}: expected 'digits', a folder of class folders, or MNIST-format (IDX) files"
        )
    folder = path if path.is_dir() else path.parent
    if path.is_file() or _idx_files(folder):
        return _idx(path, image_format)
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
    digits = require("sklearn.datasets", "--data digits").load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    size = tuple(
        round(extent * 7 / 8) for extent in (image_format.height, image_format.width)
    )  # a border, as MNIST's in LeNet
    images = F.interpolate(images, size, mode="bicubic", align_corners=False)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return _in_memory(
        pixels, torch.from_numpy(digits.target).long(), None, [str(digit) for digit in range(10)], image_format
    )


def _in_memory(
    images: Tensor, labels: Tensor, test: tuple[Tensor, Tensor] | None, classes: list[str], image_format: ImageFormat
) -> DataSet:
    """A data set of uint8 images, split if it has no test part; the statistics are the training part's."""
    if test is None:
        train_part, test_part = stratified_split(labels, TEST_FRACTION, SPLIT_SEED)
        images, labels, test = images[train_part], labels[train_part], (images[test_part], labels[test_part])
    images = _fit(images, image_format)
    std, mean = torch.std_mean(images.double() / 255, dim=(0, 2, 3))
    train = ImageArray(images, labels)
    test_images = ImageArray(_fit(test[0], image_format), test[1])
    return DataSet(train, test_images, classes, mean.float(), std.clamp(min=1e-3).float())


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
    return images.expand(-1, image_format.channels, -1, -1)


def _idx(path: Path, image_format: ImageFormat) -> DataSet:
    """A folder of MNIST's files (`train-images…`, `train-labels…`, `t10k-…` or `test-…`), or one file of images."""
    if path.is_dir():
        files = _idx_files(path)
        test_file = next((file for file in files if "t10k" in file.name or "test" in file.name), None)
        train_file = next((file for file in files if file != test_file), None)
        if train_file is None:
            raise DataError(f"{path} holds no training images in MNIST's format (such as train-images-idx3-ubyte.gz)")
    else:
        train_file, test_file = path, None
    images, labels = _idx_pair(train_file)
    test = None if test_file is None else _idx_pair(test_file)
    known = labels if test is None else torch.cat([labels, test[1]])
    classes = [str(label) for label in range(int(known.max()) + 1)]
    return _in_memory(images, labels, test, classes, image_format)


def _idx_files(folder: Path) -> list[Path]:
    """The IDX files of images in a folder; of a file that is there plain and compressed, the plain one."""
    found = sorted(file for file in folder.iterdir() if "images" in file.name and "idx" in file.name and file.is_file())
    return [file for file in found if file.suffix != ".gz" or file.with_suffix("") not in found]


def _idx_pair(images_file: Path) -> tuple[Tensor, Tensor]:
    """uint8 images (n, 1, height, width) and int64 labels (n,) from a file of images and the labels beside it."""
    stem = images_file.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = [images_file.with_name(stem), images_file.with_name(stem + ".gz")]
    labels_file = next((file for file in candidates if file != images_file and file.exists()), None)
    if labels_file is None:
        raise DataError(f"{images_file} has no labels beside it: expected {candidates[0]} or {candidates[1].name}")
    images, labels = _read_idx(images_file), _read_idx(labels_file)
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise DataError(
            f"{images_file} and {labels_file.name} should hold n images and n labels, but have the shapes {shapes}"
        )
    if images.numel() == 0:
        raise DataError(f"{images_file} holds no images")
    return images.unsqueeze(1), labels.long()


def _read_idx(path: Path) -> Tensor:
    """The uint8 tensor in an IDX file: two zero bytes, the type (8), the number of dimensions, the sizes, the data."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(
            f"{path} is not an IDX file of bytes: it should start with 00 00 08, but starts with {content[:4].hex(' ')}"
        )
    dimensions = content[3]
    header = 4 + 4 * dimensions
    if dimensions == 0 or len(content) < header:
        raise DataError(f"{path} is damaged: its header is cut short")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        raise DataError(f"{path} is damaged: {math.prod(sizes)} bytes of data expected, {len(content) - header} found")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].view(sizes)


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
    return DataSet(train, test, classes, mean, std)


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
