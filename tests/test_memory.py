"""Large results are backed by huge pages where the system offers them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastconv.functional as F

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def asked_for_huge_pages(tensor):
    """Whether the mapping around the tensor's middle has the flag that madvise(MADV_HUGEPAGE) sets."""
    address = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key = line.split()[0]
        if not key.endswith(":"):
            begin, end = (int(part, 16) for part in key.split("-"))
            inside = begin <= address < end
        elif inside and key == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError("the tensor is in no mapping")


def check(channels_last):
    x = torch.ones(1, 16, 1280, 512).contiguous(
        memory_format=(torch.contiguous_format, torch.channels_last)[channels_last]
    )
    assert not asked_for_huge_pages(x)
    x.requires_grad_()
    w = torch.ones(16, 1, 1, 1)
    for y in (
        F.conv2d(x, w, groups=16),
        F.max_pool2d(x, 1),
        F.avg_pool2d(x, 1),
        F.local_response_norm(x, 3),
    ):
        assert asked_for_huge_pages(y)
        (gx,) = torch.autograd.grad(y, x, torch.ones_like(x))
        assert asked_for_huge_pages(gx)


@pytest.mark.skipif(not SETTING.exists(), reason="this system has no transparent huge pages")
@pytest.mark.parametrize("channels_last", [False, True])
def test_large_results_ask_for_huge_pages(channels_last):
    """In a process of its own: in this one the allocator may give `x` memory that a result had before."""
    code = f"import test_memory; test_memory.check({channels_last})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def per_sample(operator, x, gy):
    """The result and the input's gradient, computed sample by sample."""
    parts = []
    for i in range(len(x)):
        part = x[i : i + 1].detach().requires_grad_()
        y = operator(part)
        parts.append((y.detach(), *torch.autograd.grad(y, part, gy[i : i + 1])))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("width", [64, 61])
def test_large_results_have_the_bits_of_small_ones(form, width):
    """Of at least 8 MiB, in memory that an earlier result had: they are written past the caches, samples are not."""
    x = torch.randn(9, 32, 128, width).contiguous(memory_format=form).requires_grad_()
    w = torch.randn(32, 1, 3, 3)
    for operator in (
        lambda x: F.conv2d(x, w, padding=1, groups=32),
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.local_response_norm(x, 5),
    ):
        gy = torch.randn_like(x)
        want = per_sample(operator, x, gy)
        for _ in range(2):
            y = operator(x)
            (gx,) = torch.autograd.grad(y, x, gy)
            assert torch.equal(y, want[0])
            assert torch.equal(gx, want[1])
            del y, gx
