"""Runs cases: what was measured, and what follows from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastconv.bench import gpu
from fastconv.bench.agreement import TOLERANCE, difference
from fastconv.bench.layers import Case, Suite, Target
from fastconv.bench.machine import Ceiling
from fastconv.bench.model import ModelResult
from fastconv.bench.peers import FASTCONV, LAYOUTS, PEERS, TORCH, Peer
from fastconv.bench.timing import Timing, geometric_mean, interleave

FORMAT = 1
PASSES = ("forward", "input_gradient", "weight_gradient", "backward", "training_step")
DTYPES = tuple(TOLERANCE)
ON_GPUS = ("float16", "tf32")  # what only a GPU is measured with; TF32 is a way to multiply float32


@dataclass(frozen=True)
class Result:
    """One pass of one case, timed for every peer and layout."""

    problem: str
    name: str
    family: str
    kind: str
    pass_: str
    operations: int
    bytes: int
    bound_by_memory: bool
    timings: dict[str, dict[str, Timing]]  # by peer, by layout
    error: float  # largest difference between fastconv's result and torch's, relative to torch's largest element
    dtype: str = "float32"

    @property
    def wrong(self) -> bool:
        return not self.error <= TOLERANCE[self.dtype]

    def best(self, peer: str) -> Timing:
        return min(self.timings[peer].values(), key=lambda timing: timing.median)

    def ratio(self, layout: str = "best", peer: str = "torch") -> float:
        """The peer's time divided by fastconv's: in one layout, or each in its best one."""
        if layout == "best":
            return self.best(peer).median / self.best("fastconv").median
        return self.timings[peer][layout].median / self.timings["fastconv"][layout].median

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Between which the best ratio lies as far as the quartiles tell."""
        ours, theirs = self.best("fastconv"), self.best("torch")
        return theirs.lower / ours.upper, theirs.upper / ours.lower

    @property
    def slower(self) -> bool:
        return self.ratio() < 1

    @property
    def undecided(self) -> bool:
        """Whether the quartiles of the two best timings overlap."""
        low, high = self.ratio_range
        return low <= 1 <= high

    def rate(self, peer: str = "fastconv") -> float:
        """Operations a second, or bytes a second of what is bound by memory."""
        return (self.bytes if self.bound_by_memory else self.operations) / self.best(peer).median

    def share(self, ceiling: Ceiling, peer: str = "fastconv") -> float:
        """The share of the roofline that the peer's best layout reaches."""
        if self.bound_by_memory:
            return self.rate(peer) / ceiling.bandwidth
        return ceiling.seconds(self.operations, self.bytes) / self.best(peer).median

    def misses(self, targets: dict[str, Target]) -> Target | None:
        """The target of this kind of case, if the result misses it."""
        target = targets.get(self.kind)
        return target if target and self.ratio(target.layout) < target.ratio else None


@dataclass(frozen=True)
class Overhead:
    """Seconds of a call on a tiny tensor."""

    operator: str
    gradients: bool  # forward and backward, or forward alone
    torch: Timing
    fastconv: Timing
    extra: Timing  # what fastconv takes more than torch, of samples taken side by side


@dataclass(frozen=True)
class Report:
    """One run of the benchmark: all that its JSON file holds."""

    machine: dict[str, Any]
    ceiling: Ceiling
    results: list[Result]
    overhead: list[Overhead]
    targets: dict[str, Target]
    model: ModelResult | None = None

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Reads what to_json wrote. Raises ValueError for anything else."""
        try:
            data = json.loads(Path(path).read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"{path}: expected format {FORMAT}, got {data['format']}")
            for result in data["results"]:
                result["timings"] = {
                    peer: {layout: Timing(**timing) for layout, timing in layouts.items()}
                    for peer, layouts in result["timings"].items()
                }
            for row in data["overhead"]:
                row.update({key: Timing(**row[key]) for key in ("torch", "fastconv", "extra")})
            return cls(
                data["machine"],
                Ceiling(**data["ceiling"]),
                [Result(**result) for result in data["results"]],
                [Overhead(**row) for row in data["overhead"]],
                {kind: Target(**target) for kind, target in data["targets"].items()},
                ModelResult.from_json(data["model"]) if data.get("model") else None,
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a result of `fastconv bench --json`: {error!r}") from error


@dataclass(frozen=True)
class Family:
    """The geometric means over one family."""

    name: str
    pass_: str
    count: int
    best: float
    layouts: dict[str, float]  # per layout; NaN where no case has it


def families(results: Iterable[Result]) -> list[Family]:
    """Families in order of first appearance, passes in theirs."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.family, result.pass_), []).append(result)
    order = list(dict.fromkeys(name for name, _ in groups))
    ranked = sorted(groups.items(), key=lambda item: (order.index(item[0][0]), PASSES.index(item[0][1])))
    return [
        Family(
            name,
            pass_,
            len(group),
            geometric_mean(result.ratio() for result in group),
            {
                layout: geometric_mean(result.ratio(layout) for result in group if layout in result.timings["torch"])
                for layout in LAYOUTS
            },
        )
        for (name, pass_), group in ranked
    ]


def torch_type(dtype: str) -> torch.dtype:
    """Of the tensors."""
    return torch.float32 if dtype == "tf32" else getattr(torch, dtype)


def run_pass(
    case: Case,
    pass_: str,
    seconds: float,
    layouts: Sequence[str] = LAYOUTS,
    peers: Sequence[Peer] = PEERS,
    rounds: int | None = None,
    dtype: str = "float32",
    clock: Callable[[], float] = time.perf_counter,
    cache: int = 0,
) -> Result:
    """Times one pass of `case`: every peer in every layout, interleaved.

    With a `cache` of so many bytes each of them works on as many sets of tensors in turn as it cannot hold.
    """
    type_ = torch_type(dtype)
    sets = gpu.input_sets(case.bytes(pass_, type_.itemsize), cache)
    work = {
        (peer.name, layout): gpu.in_turn([peer.prepare(case, pass_, layout, type_) for _ in range(sets)])
        for layout in layouts
        for peer in peers
        if peer.does(case, pass_, layout, type_)
    }
    reference = work[TORCH.name, layouts[0]]()
    error = max((difference(work[key](), reference) for key in work if key[0] == FASTCONV.name), default=0.0)
    timings: dict[str, dict[str, Timing]] = {}
    for (peer, layout), samples in interleave(work, seconds, rounds, clock).items():
        timings.setdefault(peer, {})[layout] = Timing.of(samples)
    return Result(
        case.problem,
        case.name,
        case.family,
        case.kind,
        pass_,
        case.operations_of(pass_),
        case.bytes(pass_, type_.itemsize),
        case.bound_by_memory,
        timings,
        error,
        dtype,
    )


def run_suite(
    suite: Suite,
    seconds: float,
    layouts: Sequence[str] = LAYOUTS,
    passes: Sequence[str] = PASSES,
    rounds: int | None = None,
    progress: Callable[[Case, str], None] = lambda case, pass_: None,
    peers: Sequence[Peer] = PEERS,
    dtype: str = "float32",
    clock: Callable[[], float] = time.perf_counter,
    cache: int = 0,
) -> list[Result]:
    """Times every pass of every case; tells `progress` before each."""
    results = []
    for case, pass_ in jobs(suite, layouts, passes, dtype):
        progress(case, pass_)
        chosen = [layout for layout in layouts if layout in TORCH.layouts(case)]
        results.append(run_pass(case, pass_, seconds, chosen, peers, rounds, dtype, clock, cache))
    return results


def jobs(
    suite: Suite, layouts: Sequence[str] = LAYOUTS, passes: Sequence[str] = PASSES, dtype: str = "float32"
) -> list[tuple[Case, str]]:
    """The cases that torch has in one of `layouts`, with each of their passes that is asked for."""
    return [
        (case, pass_)
        for case in suite.cases
        for pass_ in case.passes
        if pass_ in passes and any(TORCH.does(case, pass_, layout, torch_type(dtype)) for layout in layouts)
    ]
