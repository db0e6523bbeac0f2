"""The kernels on a GPU as PyTorch uses one: streams, devices, graphs, memory. Values: the tests marked backends."""

from __future__ import annotations

import backends
import cases
import native
import pytest
import torch
from backends import tf32
from tensors import integers

import fastconv
from fastconv import device, models
from fastconv import functional as F
from fastconv.bench import gpu

pytestmark = pytest.mark.skipif(not (device.CUDA and torch.cuda.is_available()), reason="no GPU, or built without CUDA")


def network(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.local_response_norm(F.avg_pool2d(F.max_pool2d(F.conv2d(x, w, b, padding=1), 2), 2), 3)


def operands(where: str = "cuda", dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (8, 16, 24, 24), (32, 16, 3, 3), (32,)
    return [torch.randn(shape, generator=generator).to(where, dtype).requires_grad_() for shape in shapes]


def gradients(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    y = network(*leaves)
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_on_the_cpu(dtype: torch.dtype) -> None:
    with tf32(False):
        got = gradients(operands(dtype=dtype))
    assert all(t.is_cuda for t in got)
    for ours, want in zip(got, gradients(operands("cpu", dtype)), strict=True):
        torch.testing.assert_close(ours.cpu(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("primitive", native.PRIMITIVES)
@pytest.mark.parametrize("case", [case for case in cases.CONV if not backends.is_spared({"backend": "simt", "": case})])
def test_the_same_bits_as_in_the_simulation(case: cases.Conv, primitive: str) -> None:
    """Every algorithm, on fixed small integers."""
    p = native.problem_of(case)
    x, w = integers(case.n, case.c, case.h, case.w, seed=1), integers(case.k, p.c // p.groups, p.r, p.s, seed=2)
    gy, b = integers(p.n, p.k, p.p, p.q, seed=3), integers(p.c if primitive == "input_gradient" else p.k, seed=4)
    arrays = {"forward": (x, w, b), "input_gradient": (gy, w, b), "weight_gradient": (gy, x)}[primitive]
    operands = [torch.from_numpy(a) for a in arrays]
    results: list[dict[str, tuple[torch.Tensor, ...]]] = []
    for backend in ("simt", "cuda"):
        with backends.calls_go_to(backend):
            configs = native.configurations(case, primitive)
            results.append({str(config): native.run_conv(case, config, *operands) for config in configs})
    assert results[0].keys() == results[1].keys()
    for config, tensors in results[0].items():
        assert all(map(torch.equal, tensors, results[1][config])), config


def test_the_same_bits_every_time() -> None:
    leaves = operands()
    want = gradients(leaves)
    for _ in range(5):
        assert all(map(torch.equal, gradients(leaves), want))


def test_calls_wait_for_their_stream_only() -> None:
    """An input that its stream fills late must be seen full."""
    leaves = operands()
    want = gradients(leaves)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(leaves[0])
        torch.cuda._sleep(50_000_000)
        late.copy_(leaves[0].detach())
        got = gradients([late.requires_grad_(), *leaves[1:]])
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, got, want))


def test_graph_capture() -> None:
    leaves = [t.detach() for t in operands()]
    want = network(*leaves)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        network(*leaves)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        y = network(*leaves)
    original = leaves[0].clone()
    leaves[0].zero_()
    graph.replay()
    assert not torch.equal(y, want)
    leaves[0].copy_(original)
    graph.replay()
    assert torch.equal(y, want)


def test_gradients_in_a_graph() -> None:
    leaves = operands()
    want = gradients(leaves)
    replay = gpu.graphed(lambda: lambda: gradients(leaves))
    with torch.no_grad():
        original = leaves[0].clone()
        leaves[0].zero_()
        assert not torch.equal(replay()[0], want[0])
        leaves[0].copy_(original)
    assert all(map(torch.equal, replay(), want))


@torch.no_grad()
def test_a_whole_model_in_a_graph() -> None:
    model = models.create_model("resnet50").cuda().eval()
    x = torch.randn(2, 3, 224, 224, device="cuda").contiguous(memory_format=torch.channels_last)
    for half in (False, True):
        with torch.autocast("cuda", torch.float16, enabled=half):
            want = model(x)
            replay = gpu.graphed(lambda: lambda: model(x))
            original = x.clone()
            x.zero_()
            assert not torch.equal(replay(), want)
            x.copy_(original)
            assert torch.equal(replay(), want)


def test_compile_and_opcheck() -> None:
    x, w, b = operands()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, w, b), network(x, w, b))
    torch.library.opcheck(torch.ops.fastconv.conv_forward.default, (x, w, b, [1, 1], [1, 1, 1, 1], [1, 1], 1))


def test_autocast() -> None:
    x, w, b = operands()
    with torch.autocast("cuda", torch.bfloat16):
        assert F.conv2d(x, w, b).dtype == torch.bfloat16


def test_tensors_on_different_devices_are_refused() -> None:
    x, w, b = operands()
    with pytest.raises(RuntimeError, match="weight device: expected cuda:0, as the input has, got cpu"):
        F.conv2d(x, w.cpu(), b)
    with pytest.raises(RuntimeError, match="bias device: expected cuda:0"):
        F.conv2d(x, w, b.cpu())
    assert F.conv2d(x, w, b).is_cuda


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_gpu_than_the_current_one() -> None:
    here, there = gradients(operands("cuda:0")), gradients(operands("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(t.device.index == 1 for t in there)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(here, there, strict=True))
    with pytest.raises(RuntimeError, match="weight device: expected cuda:0"):
        F.conv2d(operands("cuda:0")[0], operands("cuda:1")[1])


def test_out_of_memory_is_torchs_error_and_the_process_lives_on() -> None:
    x, w, b = operands()
    large = x.detach()[:1].expand(1 << 24, -1, -1, -1)
    with pytest.raises(torch.OutOfMemoryError):
        F.conv2d(large, w, b)
    assert F.conv2d(x, w, b).isfinite().all()


def test_tf32_follows_torch() -> None:
    x, w = torch.full((1, 64, 2, 2), 1 + 2.0**-12, device="cuda"), torch.ones(64, 64, 1, 1, device="cuda")
    for allowed, want in ((False, 64 + 2.0**-6), (True, 64.0)):
        with tf32(allowed):
            assert F.conv2d(x, w).eq(want).all()


def test_no_host_memory_or_synchronisation() -> None:
    """What would break a capture or stall the queue raises in torch's own checking mode."""
    leaves = operands()
    gradients(leaves)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_convert_a_model_on_a_gpu() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2)).cuda()
    x = torch.randn(2, 3, 16, 16, device="cuda")
    want = model(x)
    torch.testing.assert_close(fastconv.convert(model)(x), want, rtol=1e-3, atol=1e-3)
