"""From a parameter file to running processes: `python -m soco_lib.launch pretrain --config F --run-name N`.

One process for one device, torchrun (one node or several) for more; nothing home-made below that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from soco_lib import ROOT, BookError
from soco_lib.config import require
from soco_lib.results import Run


def command(module: str, folder: Path, gpus: int = 1, nodes: int = 1, rendezvous: str = "", restarts: int = 0) -> list[str]:
    """The command of one node: plain Python for one process, else torchrun with `gpus` processes a node.

    rendezvous: host:port that all nodes reach, needed when nodes > 1. Raises BookError when it is missing.
    """
    require(gpus >= 1 and nodes >= 1, f"GPUS={gpus} and NODES={nodes} must be at least 1")
    if gpus == nodes == 1:
        return [sys.executable, "-u", "-m", module, str(folder)]
    require(nodes == 1 or bool(rendezvous), f"NODES={nodes} needs RENDEZVOUS=host:port, the same on every node")
    where = ["--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous}", f"--rdzv-id={folder.name}"] if nodes > 1 else ["--standalone"]
    counts = [f"--nnodes={nodes}", f"--nproc-per-node={gpus}", f"--max-restarts={restarts}"]
    return [sys.executable, "-u", "-m", "torch.distributed.run", *counts, *where, "-m", module, str(folder)]


def environment(gpus: int) -> dict[str, str]:
    """The child's environment: the cores shared out among the processes of this node."""
    threads = max(1, (os.cpu_count() or 1) // gpus)
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), "PYTHONUNBUFFERED": "1"}


def stream(module: str, run: Run, gpus: int = 1, **torchrun) -> Iterator[str]:
    """Run `module` on the run folder and yield its lines of output as they come; the output is kept in <run>/output.txt.

    Raises BookError with the run's own error when it fails.
    """
    with open(run.folder / "output.txt", "a") as copy:
        child = subprocess.Popen(
            command(module, run.folder, gpus, **torchrun),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment(gpus),
        )
        try:
            last = ""
            for text in child.stdout:
                copy.write(text)
                copy.flush()
                text = text.rstrip()
                last = text or last
                yield text
        finally:
            if child.poll() is None and sys.exc_info()[0] is not None:
                child.terminate()
            status = child.wait()
    if status:
        record = Run.read(run.folder).record
        reason = record["sessions"][-1].get("error") if record["sessions"] else ""
        raise BookError(f"{run.name} failed (exit {status}): {reason or last}; all output is in {run.folder / 'output.txt'}")


def launch(module: str, run: Run, gpus: int = 1, say: Callable[[str], None] = print, **torchrun) -> dict:
    """Run to the end, `say`-ing each line; returns the metrics. A finished run is returned at once."""
    if not run.done:
        for text in stream(module, run, gpus, **torchrun):
            say(text)
    return Run.read(run.folder).metrics
