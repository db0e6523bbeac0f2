"""What a call costs beside its arithmetic: every operator on tensors so small that the arithmetic takes no time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import torch

from fastconv.bench.layers import Case, parse
from fastconv.bench.peers import FASTCONV, TORCH, FunctionalPeer, Work
from fastconv.bench.run import Overhead
from fastconv.bench.timing import Timing, interleave

CASES = tuple(
    parse(problem)
    for problem in (
        "conv1d:1,4,8,4,3,padding=1",
        "conv2d:1,4,8,8,4,3x3,padding=1",
        "conv_transpose1d:1,4,8,4,3,padding=1",
        "conv_transpose2d:1,4,8,8,4,3x3,padding=1",
        "max_pool1d:1,4,8,2",
        "max_pool2d:1,4,8,8,2x2",
        "avg_pool1d:1,4,8,2",
        "avg_pool2d:1,4,8,8,2x2",
        "adaptive_avg_pool1d:1,4,8,2",
        "adaptive_avg_pool2d:1,4,8,8,2x2",
        "adaptive_max_pool1d:1,4,8,2",
        "adaptive_max_pool2d:1,4,8,8,2x2",
        "local_response_norm:1,4,8,8,5",
    )
)


def prepare(peer: FunctionalPeer, case: Case, gradients: bool) -> Work:
    """A call of the operator; with `gradients`, one of it and the backward pass to all its inputs."""
    return peer.prepare(case, "training_step" if gradients else "forward", "channels_first")


def run(
    seconds: float,
    cases: Iterable[Case] = CASES,
    progress: Callable[[Case], None] = lambda case: None,
    peers: Sequence[FunctionalPeer] = (TORCH, FASTCONV),
    clock: Callable[[], float] = time.perf_counter,
) -> list[Overhead]:
    """Times each operator without and with gradients, torch and fastconv interleaved, on one thread.

    With more, torch wakes them for some of its operators even here, which costs it microseconds on an idle machine and
    milliseconds on a busy one: the difference would say more about that than about calls.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(seconds, cases, progress, peers, clock)
    finally:
        torch.set_num_threads(before)


def _run(
    seconds: float,
    cases: Iterable[Case],
    progress: Callable[[Case], None],
    peers: Sequence[FunctionalPeer],
    clock: Callable[[], float],
) -> list[Overhead]:
    rows = []
    for case in cases:
        progress(case)
        for gradients in (False, True):
            work = {peer.name: prepare(peer, case, gradients) for peer in peers}
            samples = interleave(work, seconds, clock=clock)
            theirs, ours = samples[TORCH.name], samples[FASTCONV.name]
            extra = [a - b for a, b in zip(ours, theirs, strict=True)]
            rows.append(Overhead(case.operator, gradients, Timing.of(theirs), Timing.of(ours), Timing.of(extra)))
    return rows
