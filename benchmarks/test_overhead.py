"""pytest-benchmark cases: what a call on a tiny tensor costs. `pytest benchmarks` shows the peers side by side.

They assert nothing about time; --benchmark-save and --benchmark-compare watch for regressions.
"""

import pytest

from fastconv.bench.overhead import CASES, prepare
from fastconv.bench.peers import PEERS


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operator)
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_call(benchmark, peer, case, gradients):
    benchmark.group = f"{case.operator}, {'forward + backward' if gradients else 'forward'}"
    benchmark(prepare(peer, case, gradients))
