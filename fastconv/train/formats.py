"""Readers of the binary files in which classic data sets come: MNIST's IDX, and CIFAR's."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor


class DataError(Exception):
    """A data set cannot be read; the message names the file or folder and what is wrong with it."""


def idx_files(folder: Path) -> list[Path]:
    """The IDX files of images in a folder; of a file that is there plain and compressed, the plain one."""
    found = sorted(file for file in folder.iterdir() if "images" in file.name and "idx" in file.name and file.is_file())
    return [file for file in found if file.suffix != ".gz" or file.with_suffix("") not in found]


def read_idx_pair(images_file: Path) -> tuple[Tensor, Tensor]:
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


CIFAR_PIXELS = 3 * 32 * 32


def is_cifar(folder: Path) -> bool:
    """Whether the folder holds CIFAR's binary files."""
    return (folder / "test_batch.bin").is_file() or (folder / "test.bin").is_file()


def read_cifar(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str]]:
    """The training and the test part of CIFAR-10, or of CIFAR-100 with its fine labels, and the classes' names.

    A part is uint8 images (n, 3, 32, 32) and int64 labels (n,). The files are those of the "binary version":
    data_batch_1.bin … and test_batch.bin, or train.bin and test.bin.
    """
    if (folder / "test_batch.bin").is_file():
        train_files, test_file = sorted(folder.glob("data_batch_*.bin")), folder / "test_batch.bin"
        names_file, classes, label_bytes = folder / "batches.meta.txt", 10, 1
    else:
        train_files, test_file = [folder / "train.bin"], folder / "test.bin"
        names_file, classes, label_bytes = folder / "fine_label_names.txt", 100, 2
    if not train_files:
        raise DataError(f"{folder} holds no training images of CIFAR-10 (data_batch_1.bin and others)")
    names = [str(label) for label in range(classes)]
    if names_file.is_file():
        names = names_file.read_text(errors="replace").split()
        if len(names) != classes:
            raise DataError(f"{names_file} should hold {classes} names, but holds {len(names)}")
    parts = [_read_cifar_file(file, label_bytes, classes) for file in train_files]
    train = torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
    return train, _read_cifar_file(test_file, label_bytes, classes), names


def _read_cifar_file(path: Path, label_bytes: int, classes: int) -> tuple[Tensor, Tensor]:
    """Records of the labels, of which the last one counts, and three planes of pixels."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    record = label_bytes + CIFAR_PIXELS
    if not content or len(content) % record:
        raise DataError(f"{path} is damaged: a multiple of {record} bytes expected, {len(content)} found")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record)
    labels = records[:, label_bytes - 1].long()
    if int(labels.max()) >= classes:
        raise DataError(f"{path} is damaged: it has the label {int(labels.max())}, and there are {classes} classes")
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), labels
