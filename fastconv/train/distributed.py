"""Several processes that train one model together: what torchrun started, or this process alone."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """The processes of a run. Process 0 writes the files; without torchrun there is only that one."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Which of `count` items are this process's: parts in a row whose sizes differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, on the device of `values`; the same bits in each of them."""
        if self.size == 1:
            return values
        total = values.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def gather(self, value: Any) -> list[Any]:
        """One value of each process, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        self.sum(torch.zeros(1))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages the gradients of the processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, [self.device] if self.device.type == "cuda" else None)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """While a backward pass is not the last one of a step: its gradients stay in this process."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Take over process 0's running statistics, as DistributedDataParallel does before each forward pass."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


def rank() -> int:
    """This process's number, from torchrun's environment; 0 without it."""
    return int(os.environ.get("RANK", 0))


def restarted(world: World) -> bool:
    """Whether torchrun has started the processes anew, after one of them failed; each machine counts for itself."""
    return any(world.gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0))


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, connected by NCCL for CUDA devices and by gloo else; or this one alone."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun's own store lives on when it restarts the processes, and with it the addresses of those that died
        # (pytorch/pytorch#167288). On several machines the count of restarts differs, and torchrun has to be told.
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        start = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
        dist.init_process_group(backend, store=start, rank=rank(), world_size=size)
    else:
        dist.init_process_group(backend)
    try:
        yield World(device, rank(), size)
    finally:
        dist.destroy_process_group()
