"""This process among the others: rank, device, and collectives that do nothing when it is alone.

Torch's own group, NCCL where there are GPUs, is for what the devices compute. What processes agree on and wait for goes
through gloo groups on the CPU: no GPU has to answer, and NCCL's watchdog sees no wait for the work of one process.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from soco_lib.fields import require

#: Environment variable: why this process has as many CPU threads as it has, in words.
THREADS = "SOCO_THREADS"
#: Time in one collective after which a run counts as hung; NCCL's own 10 minutes are short for a slow disk.
TIMEOUT = timedelta(hours=1)
#: The first process may work alone for so long (LVIS's evaluation, a probe) while the others wait in `wait`.
LONE_WORK = timedelta(days=1)
#: Groups on the CPU, of several processes: to agree (None: torch's own group) and to wait.
_agreeing: dist.ProcessGroup | None = None
_waiting: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class Process:
    """This process's numbers and device."""

    rank: int
    local_rank: int
    local_world: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def synchronised(self) -> bool:
        """Whether batch norm sees all processes' shares: on GPUs only, because SyncBatchNorm takes no CPU tensors."""
        return self.world > 1 and self.device.type == "cuda"

    @property
    def ahead(self) -> bool:
        """Whether the host may run ahead of its device, whose answers then come late."""
        return self.device.type == "cuda"

    def describe(self) -> str:
        """E.g. '1 process on the CPU, 2 CPU threads each (2.0 of 2 cores were free)'."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "the CPU"
        count, why = torch.get_num_threads(), os.environ.get(THREADS)
        kind = f"{dist.get_backend()} processes" if self.world > 1 else "process"
        return f"{self.world} {kind} on {where}, {count} CPU thread{'s' * (count > 1)} each{f' ({why})' if why else ''}"


def own_device() -> torch.device:
    """The GPU of a process that is alone, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def start(share_gpus: bool = False) -> Process:
    """Join the group that torchrun describes in the environment (NCCL with CUDA devices, gloo without), or stand alone.

    share_gpus: allow more processes than GPUs, through gloo (a check on a machine with one). Raises BookError, in every
    process, when this node has fewer GPUs than processes.
    """
    global _agreeing, _waiting
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus, device = torch.cuda.device_count(), torch.device("cpu")
    visible = f"{gpus} GPU{'s are' if gpus > 1 else ' is'} visible: GPUS={gpus}"
    fits = not gpus or share_gpus or local_world <= gpus
    require(fits, f"{local_world} processes were started on this node and {visible}")
    if gpus:
        device = torch.device("cuda", local % gpus)
        torch.cuda.set_device(device)
    if world > 1:
        nccl = device.type == "cuda" and not share_gpus
        dist.init_process_group("nccl" if nccl else "gloo", timeout=TIMEOUT, device_id=device if nccl else None)
        _agreeing = dist.new_group(backend="gloo", timeout=TIMEOUT) if nccl else None
        _waiting = dist.new_group(backend="gloo", timeout=LONE_WORK)
    return Process(rank, local, local_world, world, device)


def arithmetic(fixed_sizes: bool) -> dict:
    """Set how this process's GPU computes, and return it for the run's record; {} without a GPU.

    float32 is float32: cuDNN's convolutions would use TF32, 10 bits of mantissa in place of 23. fixed_sizes: images
    keep their sizes, as in a pretraining, so that cuDNN's trials of algorithms pay.
    """
    if not torch.cuda.is_available():
        return {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = fixed_sizes
    return {"tf32": False, "cudnn_benchmark": fixed_sizes}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a network computes at config.PRECISIONS' `precision`; of fp32 one that changes nothing."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def require_compiler(process: Process) -> None:
    """Raise BookError where torch.compile would find no compiler for what it generates, and for several processes."""
    several = "compile=true has never run with several processes: compile=false, or GPUS=1"
    require(process.world == 1, several)
    cuda = process.device.type == "cuda"
    needed = ("gcc", "cc", "clang") if cuda else ("g++", "c++", "clang++")
    found = any(shutil.which(name) for name in (os.environ.get("CC" if cuda else "CXX"), *needed) if name)
    said = f"compile=true needs a compiler and none of {', '.join(needed)} was found"
    require(found, f"{said}: install one, or compile=false")


def send(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Moves CPU tensors to `device`; a GPU's copy starts from pinned memory, so that the host need not wait."""
    if device.type == "cuda":
        return lambda x: x.pin_memory().to(device, non_blocking=True)
    return lambda x: x.to(device)


def own_buffers() -> dict[str, bool]:
    """The argument, by this torch's name, that makes DistributedDataParallel leave buffers alone: batch norms are
    synchronised or each process's own.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def mean(value: torch.Tensor) -> torch.Tensor:
    """Mean of a detached tensor over all processes, on each of them."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def anyone(flag: bool) -> bool:
    """Whether the flag is set in any process; asks no GPU."""
    return anyones([flag])[0]


def anyones(flags: Sequence[bool]) -> list[bool]:
    """`anyone` of each flag, as many in every process."""
    if not dist.is_initialized():
        return list(flags)
    shared = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(shared, dist.ReduceOp.MAX, group=_agreeing)
    return [bool(flag) for flag in shared]


def from_first(value: Any) -> Any:
    """The first process's value, in every process; a file system may show them different files."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_agreeing)
    return values[0]


def wait() -> None:
    """Wait for all processes, up to LONE_WORK."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1), group=_waiting)  # a barrier would ask the GPU that the group is bound to


class Later:
    """Numbers that a device still computes, copied to the host without waiting for what is queued after them."""

    def __init__(self, values: torch.Tensor):
        self._values, self._event = values.to("cpu", non_blocking=True), None  # to pinned memory
        if values.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> torch.Tensor:
        """The values on the CPU, once the device has computed them."""
        if self._event:
            self._event.synchronize()
        return self._values


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
