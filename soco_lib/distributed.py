"""This process among the others: rank, device, and collectives that are no-ops when it is alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Process:
    """Where this process stands; `describe()` says it in words."""

    rank: int
    local_rank: int
    local_world: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def describe(self) -> str:
        """E.g. '2 gloo processes on the CPU' or '1 process on NVIDIA H100'."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "the CPU"
        kind = f"{dist.get_backend()} processes" if self.world > 1 else "process"
        return f"{self.world} {kind} on {where}, {torch.get_num_threads()} CPU threads each"


def start() -> Process:
    """Join the group that torchrun describes in the environment (NCCL with CUDA devices, gloo without), or stand alone."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Process(rank, local, int(os.environ.get("LOCAL_WORLD_SIZE", 1)), world, device)


def mean(value: torch.Tensor) -> torch.Tensor:
    """Mean of a detached tensor over all processes, on each of them."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
