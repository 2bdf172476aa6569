"""Several runs at a time on one machine, each in a process of its own (job.py) with its share of the devices."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from soco_lib import ROOT
from soco_lib.fields import require
from soco_lib.runs import machine
from soco_lib.runs.folder import Run
from soco_lib.runs.launch import visible_devices

#: Seconds between two lines of a run that tell its loss; what else it says, scores too, comes seldom and is passed on
#: whole.
EVERY = 30.0


@dataclass
class Crew:
    """What the threads of a runner share."""

    how: dict  # gpus, nodes, restarts, launcher, partition, minutes, cpus of a run (see job.py)
    results: Path
    slots: queue.Queue  # environment variables, one set for each run at a time
    stopping: threading.Event = field(default_factory=threading.Event)
    children: set = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, line: str) -> None:
        """One whole line at a time."""
        with self.lock:
            print(line, flush=True)

    @contextlib.contextmanager
    def listening(self):
        """Within, SIGTERM and Ctrl-C mean `stop`."""
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self, *_signal) -> None:
        """Tell every run to save and end; none is started from now on."""
        self.stopping.set()
        for child in tuple(self.children):
            child.terminate()


def slots(jobs: int, gpus: int, launcher: str) -> queue.Queue:
    """For each of `jobs` runs at a time its environment: its share of the GPUs that are visible here, or else of the
    cores.

    Raises BookError where there are fewer GPUs than jobs x gpus.
    """
    require(jobs >= 1 and gpus >= 1, f"JOBS={jobs} and GPUS={gpus} must be at least 1")
    made = [{} for _ in range(jobs)]
    if launcher == "local":
        count = visible_devices(gpus, jobs)
        named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        devices = named.split(",") if count else []
        threads = str(max(1, machine.cores() // (jobs * gpus)))
        for i, slot in enumerate(made):
            if devices:
                slot["CUDA_VISIBLE_DEVICES"] = ",".join(devices[i * gpus : (i + 1) * gpus])
            if jobs > 1:
                slot["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", threads)
    filled = queue.Queue()
    for slot in made:
        filled.put(slot)
    return filled


def perform(run: Run, crew: Crew, environment: dict, say: Callable[[str], None]) -> str:
    """Run to its end in a process of its own (job.py); returns the last line it said."""
    options = [word for name, value in crew.how.items() for word in (f"--{name}", str(value)) if value != ""]
    words = [sys.executable, "-u", "-m", "soco_lib.runs.job", str(run.folder), *options]
    # In a session of its own: Ctrl-C is for the runner, which then tells the runs to save.
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                          env={**os.environ, **environment}, start_new_session=True) as child:  # fmt: skip
        crew.children.add(child)
        if crew.stopping.is_set():
            child.terminate()
        last, told = "", -EVERY
        for line in child.stdout:
            last = line.rstrip() or last
            often = line.startswith("step ") and "  loss " in line
            if not often or time.monotonic() - told >= EVERY:
                told = time.monotonic() if often else told
                say(last)
        status = child.wait()
        crew.children.discard(child)
    return last if status >= 0 else f"its process was killed by signal {-status}; the last line was: {last}"
