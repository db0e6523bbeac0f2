"""Layers: torch's classes with fastconv's kernels, the layers of the classic papers, and classical filters."""

from fastconv.nn import filters, layers
from fastconv.nn.layers import *  # noqa: F403

__all__ = [*layers.__all__, "filters"]
