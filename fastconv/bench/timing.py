"""Times several callables side by side, and sums up samples."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

MIN_ROUNDS, MAX_ROUNDS = 5, 200
SAMPLE_SECONDS = 1e-3  # a sample of anything faster than this is a loop of calls
SLOW = 0.2  # seconds: what takes longer is warm after one call


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles of the samples."""

    median: float
    lower: float
    upper: float
    samples: int

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a part of the median."""
        return (self.upper - self.lower) / 2 / self.median

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        lower, median, upper = quartiles(samples)
        return cls(median, lower, upper, len(samples))


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, interpolated between samples."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return lower, median, upper


def geometric_mean(ratios: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def interleave(
    candidates: Mapping[Key, Callable[[], object]],
    seconds: float,
    rounds: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, list[float]]:
    """Seconds a call of each candidate, sampled in rounds: A B C A B C ...

    Whatever disturbs the machine disturbs all of them. Rounds go on for about `seconds` in all, or are exactly
    `rounds`. Each candidate is first called twice untimed (plans, packed weights, page tables); once if it is slow.
    """
    calls: dict[Key, int] = {}
    for key, function in candidates.items():
        start = clock()
        function()
        if clock() - start < SLOW:
            start = clock()
            function()
        calls[key] = max(1, round(SAMPLE_SECONDS / max(clock() - start, 1e-7)))

    samples: dict[Key, list[float]] = {key: [] for key in candidates}
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = clock()
        done = 0
        while done < (rounds or MIN_ROUNDS) or (rounds is None and done < MAX_ROUNDS and clock() - begin < seconds):
            for key, function in candidates.items():
                repeat = range(calls[key])
                start = clock()
                for _ in repeat:
                    function()
                samples[key].append((clock() - start) / calls[key])
            done += 1
    finally:
        if collecting:
            gc.enable()
    return samples
