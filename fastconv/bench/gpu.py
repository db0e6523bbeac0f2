"""The benchmark on a GPU: its clocks, its ceilings, input sets that its cache cannot hold, and the peers there.

Beside torch with cuDNN these are torch's own kernels of depthwise convolution, and what one would write oneself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import torch

from fastconv.bench.gpu_loops import PLAIN
from fastconv.bench.layers import Case
from fastconv.bench.machine import Ceiling, describe
from fastconv.bench.peers import FASTCONV, TORCH, Work

DEVICE = "cuda"
MOST_SETS = 8
SIDE = 8192  # of the matrices whose product is timed for the ceiling; half of it for 4-byte types
COPIED = 512 << 20  # bytes of the copy that is
CYCLES = 2e9  # a second: at least what a GPU's clock does


class Clock:
    """Seconds by the GPU's clock: reads it when all that was enqueued is done.

    With a `lead` of so many seconds the GPU waits for that long after each reading, uncounted, while calls queue up:
    what passes until the next reading are kernels, not the calls that enqueue them.
    """

    def __init__(
        self, lead: float = 0.0, event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True)
    ) -> None:
        self._lead, self._event, self._seconds = lead, event, 0.0
        self._last = event()
        self._last.record()

    def __call__(self) -> float:
        now = self._event()
        now.record()
        now.synchronize()
        self._seconds += self._last.elapsed_time(now) * 1e-3  # in float32: only short times are exact
        if self._lead:
            torch.cuda._sleep(int(self._lead * CYCLES))
            now = self._event()
            now.record()
        self._last = now
        return self._seconds


def host_clock() -> float:
    """Seconds by the processor's clock, when the GPU has done all that was enqueued: what calls cost."""
    torch.cuda.synchronize()
    return time.perf_counter()


def graphed(prepare: Callable[[], Work]) -> Work:
    """What `prepare` gives, as a CUDA graph: each call replays what one call of it enqueues, and has its tensors.

    It is prepared on the stream that is captured, since a backward pass runs on the stream of its forward pass.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work = prepare()
        for _ in range(3):  # plans, cuDNN's search, workspace
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = work()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def input_sets(bytes_: int, cache: int) -> int:
    """How many sets of so many bytes to take in turn so that none is left in the cache when its turn comes."""
    return min(MOST_SETS, max(1, -(-3 * cache // bytes_)))


def cache_bytes() -> int:
    """Of the GPU's L2."""
    return int(torch.cuda.get_device_properties().L2_cache_size)


def in_turn(works: Sequence[Work]) -> Work:
    """Each call does the next of them."""
    if len(works) == 1:
        return works[0]
    following = cycle(works)
    return lambda: next(following)()


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """cuDNN searches for its fastest algorithm; float32 is multiplied in float32, "tf32" in TF32, also by matmul."""
    allowed, before = dtype == "tf32", torch.backends.cuda.matmul.allow_tf32
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=allowed):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


def measure_ceiling(dtype: torch.dtype, seconds: float = 1.0) -> Ceiling:
    """The best of many tries: a large product by cuBLAS, and a large copy."""
    side, clock = SIDE // (dtype.itemsize // 2), Clock()
    a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
    source = torch.zeros(COPIED, dtype=torch.uint8, device=DEVICE)
    target = torch.zeros_like(source)

    def rate(amount: float, work: Callable[[], Any]) -> float:
        begin = clock()
        work()
        return amount / (clock() - begin)

    operations = bandwidth = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not bandwidth:
        operations = max(operations, rate(2.0 * side**3, lambda: torch.matmul(a, b)))
        bandwidth = max(bandwidth, rate(2.0 * source.nbytes, lambda: target.copy_(source)))
    return Ceiling(operations, bandwidth)


def described(dtype: str) -> dict[str, Any]:
    """The machine as `machine.describe` tells it, with the GPU in the processor's place."""
    properties = torch.cuda.get_device_properties()
    processors = properties.multi_processor_count
    gpu = {"cpu": properties.name, "cores": processors, "isa": f"sm_{properties.major}{properties.minor}"}
    return describe(processors, dtype) | gpu | {"cuda": torch.version.cuda}


# ---- peers


@dataclass(frozen=True)
class NativePeer:
    """torch with cuDNN switched off, for depthwise convolution, which it has kernels of its own for."""

    name: str = "torch native"
    missing: str = ""

    def does(self, case: Case, pass_: str, layout: str, dtype: torch.dtype) -> bool:
        return case.kind == "depthwise" and TORCH.does(case, pass_, layout, dtype)

    def prepare(self, case: Case, pass_: str, layout: str, dtype: torch.dtype = torch.float32) -> Work:
        off = torch.backends.cudnn.flags

        with off(enabled=False):
            work = replace(TORCH, device=DEVICE).prepare(case, pass_, layout, dtype)

        def without_cudnn() -> Any:
            with off(enabled=False):
                return work()

        return without_cudnn


PEERS = (replace(TORCH, device=DEVICE), replace(FASTCONV, device=DEVICE))
OTHERS = (NativePeer(), *PLAIN)
