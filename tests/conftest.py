"""Makes every test repeatable, by fixed seeds and thread count, and runs the operators' tests on every backend."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["FASTCONV_TUNING"] = "off"  # the tests are of the plan, not of what this machine's user has measured

import backends
import pytest
import torch


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = getattr(request, "param", "cpu")
    if name == "cpu":
        yield name
        return
    with backends.calls_go_to(name):
        yield name


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "backends: runs on the CPU, on the simulated GPU and, where there is one, on a GPU"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("backends"):
        metafunc.parametrize("backend", backends.NAMES, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not backends.is_spared(getattr(item, "callspec", _Unparametrized).params)]


class _Unparametrized:
    params: dict[str, object] = {}  # noqa: RUF012
