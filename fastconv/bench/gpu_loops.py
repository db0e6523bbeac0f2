"""What one would write oneself for a GPU: conv2d, one thread an output, for CuPy and for numba."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from fastconv.bench.layers import Case
from fastconv.bench.peers import Work, inputs


@dataclass(frozen=True)
class PlainPeer:
    """A kernel as one would write it oneself: conv2d in float32, forward, channels_first."""

    name: str
    needs: str
    build: Callable[[Case, list[torch.Tensor]], Work]
    device: str = "cuda"

    @property
    def missing(self) -> str:
        """The package, if it is not installed."""
        return "" if find_spec(self.needs) else self.needs

    def does(self, case: Case, pass_: str, layout: str, dtype: torch.dtype) -> bool:
        here = (pass_, layout, dtype) == ("forward", "channels_first", torch.float32)
        return here and case.operator == "conv2d"

    def prepare(self, case: Case, pass_: str, layout: str, dtype: torch.dtype = torch.float32) -> Work:
        x, weight, *bias = inputs(case, layout, dtype, self.device)
        return self.build(case, [x, weight, bias[0] if bias else torch.zeros(case.out_channels, device=self.device)])


THREADS = 256
CUPY_SOURCE = r"""
extern "C" __global__ void convolution(const float* x, const float* w, const float* b, float* y, int n, int c, int h,
                                       int width, int k, int r, int s, int p, int q, int stride_h, int stride_w,
                                       int pad_h, int pad_w, int dilation_h, int dilation_w, int groups) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= (long long)n * k * p * q) return;
  const int column = i % q, row = i / q % p, output = i / q / p % k, image = i / q / p / k, per_group = c / groups;
  float sum = b[output];
  for (int channel = 0; channel < per_group; ++channel)
    for (int dy = 0; dy < r; ++dy)
      for (int dx = 0; dx < s; ++dx) {
        const int from_row = row * stride_h - pad_h + dy * dilation_h;
        const int from_column = column * stride_w - pad_w + dx * dilation_w;
        if (from_row < 0 || from_row >= h || from_column < 0 || from_column >= width) continue;
        const int from_channel = output / (k / groups) * per_group + channel;
        sum += x[(((long long)image * c + from_channel) * h + from_row) * width + from_column] *
               w[((output * per_group + channel) * r + dy) * s + dx];
      }
  y[i] = sum;
}
"""


def sizes(case: Case) -> tuple[int, ...]:
    """What the plain kernels are told: n c h w, k r s, p q, stride, padding, dilation, groups."""
    spatial = (*case.spatial("stride"), *case.spatial("padding"), *case.spatial("dilation"))
    return (*case.shape, case.out_channels, *case.kernel, *case.output_shape[2:], *spatial, case.parameters["groups"])


def _cupy(case: Case, tensors: list[torch.Tensor]) -> Work:
    cupy = import_module("cupy")
    kernel = cupy.RawKernel(CUPY_SOURCE, "convolution")
    arrays, numbers = [cupy.from_dlpack(t) for t in tensors], [cupy.int32(size) for size in sizes(case)]

    def work() -> torch.Tensor:
        y = torch.empty(case.output_shape, device=tensors[0].device)
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            kernel((-(-y.numel() // THREADS),), (THREADS,), (*arrays, cupy.from_dlpack(y), *numbers))
        return y

    return work


cuda: Any = None  # numba's, by a name that its simulator can exchange


@cache
def numba_kernel() -> Any:
    """convolution[blocks, threads](x, w, b, y, stride, padding, dilation, groups), of arrays of four dimensions."""
    global cuda
    cuda = import_module("numba.cuda")

    @cuda.jit
    def convolution(x, w, b, y, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
        i = cuda.grid(1)
        if i >= y.size:
            return
        column = i % y.shape[3]
        row = i // y.shape[3] % y.shape[2]
        output = i // y.shape[3] // y.shape[2] % y.shape[1]
        image = i // y.shape[3] // y.shape[2] // y.shape[1]
        first = output // (y.shape[1] // groups) * w.shape[1]
        total = b[output]
        for channel in range(w.shape[1]):
            for dy in range(w.shape[2]):
                from_row = row * stride[0] - padding[0] + dy * dilation[0]
                if from_row < 0 or from_row >= x.shape[2]:
                    continue
                for dx in range(w.shape[3]):
                    from_column = column * stride[1] - padding[1] + dx * dilation[1]
                    if from_column >= 0 and from_column < x.shape[3]:
                        total += x[image, first + channel, from_row, from_column] * w[output, channel, dy, dx]
        y[image, output, row, column] = total

    return convolution


def _numba(case: Case, tensors: list[torch.Tensor]) -> Work:
    kernel = numba_kernel()
    arrays = [cuda.as_cuda_array(t) for t in tensors]
    arguments = (case.spatial("stride"), case.spatial("padding"), case.spatial("dilation"), case.parameters["groups"])

    def work() -> torch.Tensor:
        y = torch.empty(case.output_shape, device=tensors[0].device)
        stream = cuda.external_stream(torch.cuda.current_stream().cuda_stream)
        kernel[-(-y.numel() // THREADS), THREADS, stream](*arrays, cuda.as_cuda_array(y), *arguments)
        return y

    return work


PLAIN = (PlainPeer("cupy", "cupy", _cupy), PlainPeer("numba", "numba", _numba))
