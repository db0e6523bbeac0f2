"""pytest-benchmark cases: fastconv's kernels on the layers of the quick suite, to watch for regressions.

    pytest benchmarks/test_layers.py --benchmark-autosave
    pytest benchmarks/test_layers.py --benchmark-compare --benchmark-compare-fail=median:10%

`fastconv bench` is the comparison with torch.
"""

import pytest

from fastconv.bench.layers import SUITES
from fastconv.bench.peers import FASTCONV

CASES = [
    pytest.param(case, pass_, layout, id=f"{case.name}-{pass_}-{layout}")
    for case in SUITES["quick"].cases
    for pass_ in case.passes
    for layout in FASTCONV.layouts(case)
]


@pytest.mark.parametrize(("case", "pass_", "layout"), CASES)
def test_layer(benchmark, case, pass_, layout):
    benchmark(FASTCONV.prepare(case, pass_, layout))
