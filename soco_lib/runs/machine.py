"""What this process has of its machine, on Linux and on macOS: cores, memory, a parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Collection
from pathlib import Path

#: A container's quota of CPU time and the period that it is for, in microseconds.
QUOTA = Path("/sys/fs/cgroup/cpu.max")
#: What Linux says of this process, line by line.
STATUS = Path("/proc/self/status")
#: prctl(2), which Linux alone has; looked up here, because a forked child should not load libraries.
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)
_SET_PARENT_DEATH_SIGNAL = 1
#: mallopt(3), which glibc alone has, and the size from which it gives each block pages of its own.
_MALLOPT = getattr(ctypes.CDLL(None), "mallopt", None)
_MMAP_THRESHOLD, _LARGE = -3, 4 << 20


def _bound_to() -> Collection[int]:
    """Numbers of the cores that this process is bound to; all where the system has no such thing (macOS)."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def cores() -> int:
    """Cores that this process may use: those that it is bound to, and no more than its container's quota pays for."""
    count = len(_bound_to())
    with contextlib.suppress(OSError, ValueError):  # no cgroup of version 2, or no limit: "max"
        quota, period = map(int, QUOTA.read_text().split())
        count = min(count, max(1, round(quota / period)))
    return count


def free_cores(seconds: float = 0.5) -> float:
    """Of `cores`, what nobody used within the last `seconds`, which it waits for; a virtual machine's host counts."""
    import psutil  # here, because much that asks for the cores needs none

    bound = _bound_to()
    used = psutil.cpu_percent(seconds, percpu=True)
    return min(cores(), sum(1 - share / 100 for core, share in enumerate(used) if core in bound))


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


def give_back_freed() -> None:
    """From now on a freed tensor of 4 MiB or more is the system's again at once, as far as the C library can do this:
    else, of tensors of changing sizes, a tenth of a training's memory is held free between others.
    """
    if _MALLOPT:
        _MALLOPT(_MMAP_THRESHOLD, _LARGE)


def end_with_parent(number: int) -> None:
    """In a child process: it gets the signal `number` when its parent dies, even if the parent was killed.

    Linux's kernel sends it, also after an exec and when the thread that started the child ends. Elsewhere a thread of
    this process sends it.
    """
    if _PRCTL:
        _PRCTL(_SET_PARENT_DEATH_SIGNAL, number)
    else:
        threading.Thread(target=_signal_when_orphaned, args=(os.getppid(), number), daemon=True).start()


def _signal_when_orphaned(parent: int, number: int, poll: float = 1.0) -> None:
    while os.getppid() == parent:
        time.sleep(poll)
    os.kill(os.getpid(), number)


def import_quietly() -> None:
    """At the beginning of `python -m soco_lib.…`: Ctrl-C within the imports ends it without their traceback."""
    if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin_command() -> None:
    """The imports are over. Below make, whose shells die of SIGTERM and tell nobody, this process gets one then."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "MAKELEVEL" in os.environ:
        end_with_parent(signal.SIGTERM)


def have_home() -> None:
    """A user without an entry in passwd and without HOME, as containers have, gets a folder for the caches that
    libraries keep at home.
    """
    try:
        Path.home()
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"soco-home-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        ours = folder.stat().st_uid == os.getuid() and not folder.is_symlink()
        os.environ["HOME"] = str(folder) if ours else tempfile.mkdtemp(prefix="soco-home-")
