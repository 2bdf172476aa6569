"""From a run folder to running processes: one for one device, torchrun (one node or several) for more, SLURM for a
cluster.

    python -m soco_lib.runs.launch join RUN_FOLDER --gpus 8 --nodes 2 --rendezvous HOST:PORT

runs one node's processes of a run that was started elsewhere: `make pretrain NODES=2 …` or `make transfer NODES=2 …` on
the first node, `join` on the others. Which module works on a run follows from its kind, which its record tells.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from soco_lib import ROOT, BookError, one_line_errors
from soco_lib.fields import one_of, require
from soco_lib.runs import machine, slurm
from soco_lib.runs.folder import Run

LAUNCHERS = ("local", "slurm")
#: Seconds until what a SLURM job wrote last must be seen here: a file system may be slow.
PATIENCE = 60.0
#: A run's kind -> the module that works on such a run, in one process or in each of torchrun's.
MODULES = {"pretrain": "soco_lib.train", "transfer": "soco_lib.transfer", "predict": "soco_lib.transfer.predict"}


def module_of(run: Run) -> str:
    """The module that works on a run. Raises BookError for a record of another kind, such as a notebook's own."""
    kind = run.record.get("kind")
    require(
        kind in MODULES, f"{run.folder} is of kind {kind!r}: give the folder of a run of kind {' or '.join(MODULES)}"
    )
    return MODULES[kind]


def command(
    module: str, folder: Path, gpus: int = 1, nodes: int = 1, rendezvous: str = "", restarts: int = 0
) -> list[str]:
    """The command of one node: plain Python for one process, else torchrun with `gpus` processes a node.

    rendezvous: host:port that all nodes reach, needed when nodes > 1. restarts: how often torchrun starts all processes
    anew after one died; they go on from the newest checkpoint. Raises BookError for a missing or impossible value.
    """
    require(gpus >= 1 and nodes >= 1, f"GPUS={gpus} and NODES={nodes} must be at least 1")
    require(restarts >= 0, f"RESTARTS={restarts} must not be negative")
    if gpus == nodes == 1 and not restarts:
        return [sys.executable, "-u", "-m", module, str(folder)]
    require(nodes == 1 or bool(rendezvous), f"NODES={nodes} needs RENDEZVOUS=host:port, the same on every node")
    if nodes > 1:
        where = ["--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous}", f"--rdzv-id={folder.name}"]
    else:  # with an address: processes look for each other by the host's name, for minutes where that has none
        where = ["--standalone", "--local-addr=127.0.0.1"]
    counts = [f"--nnodes={nodes}", f"--nproc-per-node={gpus}", f"--max-restarts={restarts}"]
    return [sys.executable, "-u", "-m", "torch.distributed.run", *counts, *where, "-m", module, str(folder)]


def environment(gpus: int) -> dict[str, str]:
    """The child's environment: the cores shared out among the processes of this node, and what torchrun reads."""
    threads = max(1, machine.cores() // gpus)
    ours = {
        "OMP_NUM_THREADS": str(threads),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "90",  # seconds to save in when told to stop; 30 otherwise
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # torch 2.14's shared store gives restarted processes the dead ones' addresses
    }
    # Waiting threads spin briefly: spinning on starves busy cores (up to ten times slower), not spinning halves free
    # ones.
    ours["GOMP_SPINCOUNT"] = "10000"
    return {**ours, **os.environ, "PYTHONUNBUFFERED": "1"}


def visible_devices(gpus: int, jobs: int = 1) -> int:
    """The number of CUDA devices that are visible here, of which `jobs` runs of `gpus` processes take one a process.

    Raises BookError where there are some and too few. Without any, processes are gloo's on the CPU, as many as one
    likes.
    """
    import torch  # here, because a command line should not wait for it before it has read its words

    count = torch.cuda.device_count()  # by NVML, where it can: CUDA stays untouched in this process
    runs = f"JOBS={jobs} runs of GPUS={gpus} need {jobs * gpus} devices"
    asked = runs if jobs > 1 else f"GPUS={gpus} needs a device a process"
    remedy = f"{count} {'is' if count == 1 else 'are'} visible: lower {'JOBS or ' * (jobs > 1)}GPUS"
    require(not count or jobs * gpus <= count, f"{asked}, {remedy}")
    return count


def join(folder: Path, gpus: int = 1, **torchrun) -> None:
    """Become this node's part of a run; its output is appended to <run>/output.txt, as all nodes' is. Does not return.

    Raises BookError when the folder is no run's that processes work on, and for fewer devices than processes.
    """
    run = Run.read(folder)
    folder = run.folder.resolve()
    words = command(module_of(run), folder, gpus, **torchrun)
    with open(folder / "output.txt", "a") as output:
        try:
            visible_devices(gpus)
        except BookError as error:
            output.write(f"error: {error}\n")  # who launched the job reads this file alone
            raise
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.chdir(ROOT)
    os.execvpe(words[0], words, environment(gpus))


def follow(path: Path, begin: int, alive: Callable[[], bool]) -> Iterator[str]:
    """Yield the lines that appear in `path` after byte `begin`, until `alive()` is false."""
    with open(path, errors="replace") as file:
        file.seek(begin)
        text, going = "", True
        while going:
            going = alive()
            while piece := file.readline():
                text += piece
                if text.endswith("\n"):
                    yield text.rstrip()
                    text = ""
            if going:
                time.sleep(0.1)
        if text:
            yield text


def _tells_an_end(run: Run, before: Run) -> bool:
    """Whether the run's record says how it ended, and not only how it did when it was the record `before`."""
    return run.done or (run.record["status"] in ("failed", "stopped") and run.record != before.record)


def _going(child, before: Run, patience: float) -> Callable[[], bool]:
    """For `follow`: true while `child` goes on, and for at most `patience` seconds more until the run's record tells
    its end: what another machine wrote may come late.
    """
    over = None

    def going() -> bool:
        nonlocal over
        if child.poll() is None:
            return True
        over = over or time.monotonic()
        if time.monotonic() - over >= patience:
            return False
        try:
            return not _tells_an_end(Run.read(before.folder), before)
        except (BookError, OSError):  # replaced on the other machine while it was read
            return True

    return going


def _end_with_parent() -> None:
    """In a child, before it becomes a run's process: have the kernel send it SIGTERM, upon which it saves, when its
    parent dies.
    """
    machine.end_with_parent(signal.SIGTERM)


def stream(
    run: Run,
    gpus: int = 1,
    *,
    nodes: int = 1,
    rendezvous: str = "",
    restarts: int = 0,
    launcher: str = "local",
    partition: str = "",
    minutes: int = 240,
    cpus: int = 0,
) -> Iterator[str]:
    """Start a run's processes and yield their lines of output as they come; the output is kept in <run>/output.txt.

    launcher: "local" starts this node's processes here, "slurm" submits a job for all nodes (partition, minutes, cpus:
    see slurm.submit). Whoever leaves the iteration stops the processes or cancels the job; the run can go on later. A
    caller that is killed takes this node's processes along: they save and end (on Linux). The record of a job that has
    left the queue is looked at for PATIENCE seconds until it tells an end. Raises BookError for a bad value, and with
    the run's own error when it fails.
    """
    one_of("LAUNCHER", launcher, LAUNCHERS)
    module, output, folder = module_of(run), run.folder / "output.txt", run.folder.resolve()
    output.touch()
    begin, patience, before = output.stat().st_size, 0.0, Run.read(folder)
    if launcher == "slurm":
        rendezvous, patience = slurm.RENDEZVOUS, PATIENCE
        counts = ["--gpus", str(gpus), "--nodes", str(nodes), "--rendezvous", rendezvous, "--restarts", str(restarts)]
        command(module, folder, gpus, nodes, rendezvous, restarts)  # raises here what would be raised in the job
        words = [sys.executable, "-m", "soco_lib.runs.launch", "join", str(folder), *counts]
        child = slurm.start(words, folder, gpus=gpus, nodes=nodes, partition=partition, minutes=minutes, cpus=cpus)
    else:
        words = command(module, folder, gpus, nodes, rendezvous, restarts)
        visible_devices(gpus)
        with open(
            output, "a"
        ) as file:  # a file and no pipe: with several nodes the process that speaks may be another's
            child = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(gpus),
                                     preexec_fn=_end_with_parent)  # fmt: skip
    last = ""
    try:
        for text in follow(output, begin, _going(child, before, patience)):
            last = text or last
            yield text
    except BaseException:
        child.terminate()
        raise
    finally:
        status = child.wait()
    run = Run.read(run.folder)
    if status or not run.done:
        told = _tells_an_end(run, before)
        waited = f", by what its record tells {patience:.0f} seconds later" if patience and not told else ""
        failed = f"failed (exit {status})" if status else f"ended before it was done{waited}"
        how = "was stopped" if told and run.record["status"] == "stopped" else failed
        reason = (
            (run.record["sessions"] or [{}])[-1].get("error") if told else ""
        )  # else it may be an earlier session's
        raise BookError(f"{run.name} {how}: {reason or last or 'it said nothing'}; all output is in {output}")


def launch(run: Run, gpus: int = 1, say: Callable[[str], None] = print, **how) -> dict:
    """Run to the end, `say`-ing each line; returns the metrics. A finished run is returned at once. `how`: see
    `stream`.
    """
    if not run.done:
        for text in stream(run, gpus, **how):
            say(text)
    return Run.read(run.folder).metrics


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["join"])
    parser.add_argument("folder", type=Path, help="run folder, the same on every node")
    parser.add_argument("--gpus", type=int, default=1, help="processes on this node, as many as on the others")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--rendezvous", default="", help="host:port, the same on every node")
    parser.add_argument("--restarts", type=int, default=0)
    given = parser.parse_args(arguments)
    join(given.folder, given.gpus, nodes=given.nodes, rendezvous=given.rendezvous, restarts=given.restarts)


if __name__ == "__main__":
    sys.exit(main())
