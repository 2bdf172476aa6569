"""What this process has of its machine, on Linux and on macOS: cores, memory, a parent."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

#: What Linux says of this process, line by line.
STATUS = Path("/proc/self/status")
#: prctl(2), which Linux alone has; looked up here, because a forked child should not load libraries.
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)
_SET_PARENT_DEATH_SIGNAL = 1


def cores() -> int:
    """Cores that this process may use: those that it is bound to where the system has that (macOS has not), else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory(cuda: bool = False) -> int:
    """Largest resident bytes of this process so far; with `cuda` the most that torch had allocated on its GPU.

    Not getrusage's on Linux, where a child inherits its parent's peak.
    """
    if cuda:
        import torch  # here, because much that asks for the cores needs no torch

        return torch.cuda.max_memory_allocated()
    for line in STATUS.read_text().splitlines() if STATUS.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def end_with_parent(number: int) -> None:
    """In a child: have the kernel send it the signal `number` when its parent dies, on Linux."""
    if _PRCTL:
        _PRCTL(_SET_PARENT_DEATH_SIGNAL, number)
