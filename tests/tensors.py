"""Tensors for the tests: the same values in every memory arrangement that torch users have."""

from __future__ import annotations

import numpy as np
import torch

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def integers(*shape: int, seed: int) -> np.ndarray:
    """Small integers other than zero."""
    return np.random.default_rng(seed).choice([-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0], shape)


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def contiguous(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous()


def channels_last(values: torch.Tensor) -> torch.Tensor:
    """Channels innermost; for other than four dimensions, the last two dimensions transposed in memory."""
    if values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    return values.transpose(-1, -2).contiguous().transpose(-1, -2)


def misaligned(values: torch.Tensor) -> torch.Tensor:
    """Contiguous, but beginning one element into its storage, so at an address no vector load likes."""
    memory = values.new_full((values.numel() + 2,), torch.nan)
    memory[1:-1] = values.flatten()
    return memory[1:-1].view(values.shape)


def every_other(values: torch.Tensor) -> torch.Tensor:
    """Every other element of a tensor whose rest is NaN."""
    memory = values.new_full((*values.shape, 2), torch.nan)
    memory[..., 0] = values
    return memory[..., 0]


ARRANGEMENTS = (contiguous, channels_last, misaligned, every_other)
