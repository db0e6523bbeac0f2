"""Files of a training run: written whole or not at all, and checked before they are used."""

import io
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

CHECKPOINT_FORMAT = 2


class RunError(Exception):
    """A training run cannot start or go on; the message says why and what to do."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file by one with this content. Whatever happens, either the old or the new content is there.

    Raises RunError if the disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, has to reach the disk
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; the one that was there stays beside it as `checkpoint.previous.pt`."""
    buffer = io.BytesIO()  # torch.save into a file aborts the process when the disk is full
    torch.save({"format": CHECKPOINT_FORMAT, **content}, buffer)
    if path.exists():
        spare = path.with_name(f".{path.name}.old")
        with suppress(OSError):  # some file systems have no links
            spare.unlink(missing_ok=True)
            os.link(path, spare)
            os.replace(spare, previous(path))
    write_atomically(path, buffer.getvalue())


def previous(path: Path) -> Path:
    """Where the checkpoint before the newest is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, checking every byte of it against its checksum. Raises RunError if it is missing or broken."""
    if not path.exists():
        raise RunError(f"there is no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself takes changed numbers for good ones
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
            raise ValueError("it was not written by this version of fastconv train")
    except Exception as error:  # a damaged archive raises nearly anything
        spare = previous(path)
        hint = f"; the one before it is kept: --resume {spare}" if spare.exists() and spare != path else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"the checkpoint {path} is broken ({reason}){hint}") from error
    return content
