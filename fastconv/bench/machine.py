"""What the machine is, and what it can do at most: its multiply-add rate and its copy bandwidth."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastconv import _C
from fastconv.tuning import cpu_name


@dataclass(frozen=True)
class Ceiling:
    """Measured rates with the benchmark's number of threads."""

    operations: float  # float32 operations a second with the instruction set in use, a multiply-add counted as 2
    bandwidth: float  # bytes a second, read and written, copying between large tensors that are in memory already

    def seconds(self, operations: int, bytes_: int) -> float:
        """The time in which something cannot be done faster: the roofline."""
        return max(operations / self.operations, bytes_ / self.bandwidth)

    def or_better(self, other: Ceiling) -> Ceiling:
        """The higher of two measurements of one machine."""
        return Ceiling(max(self.operations, other.operations), max(self.bandwidth, other.bandwidth))


def measure_ceiling(threads: int, seconds: float = 0.5) -> Ceiling:
    """The best of many short tries, since others may be using the machine."""
    steps = 200_000
    operations = bandwidth = 0.0
    source = torch.zeros(16 << 20)
    target = torch.zeros_like(source)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not bandwidth:
        start = time.perf_counter()
        done = _C.multiply_add_ceiling(steps, threads)
        operations = max(operations, done / (time.perf_counter() - start))
        start = time.perf_counter()
        target.copy_(source)
        bandwidth = max(bandwidth, 2 * source.nbytes / (time.perf_counter() - start))
    return Ceiling(operations, bandwidth)


def describe(threads: int, dtype: str = "float32") -> dict[str, Any]:
    """The machine, the software and the moment."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "dtype": dtype,
        "isa": _C.isa(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "load": round(os.getloadavg()[0], 1),  # of others, if much above 0: this program has not begun
    }


def commit() -> str:
    """Of the checkout this package is imported from; empty for an installed one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
