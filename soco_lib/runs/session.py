"""The life of a process that works on a run folder: join the group, take the folder, work, record how it ended."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from soco_lib import BookError
from soco_lib.runs import files, loader, processes
from soco_lib.runs.folder import Run, write_text

#: Exit status of a run that was told to stop and saved a checkpoint: the shell's number for SIGTERM.
STOPPED = 128 + signal.SIGTERM
#: In a run folder, while several processes work on it: why another than the first one, which keeps the record, got no
#: batches.
UNFED = ".unfed"
#: Seconds that the first process gives another to say so.
HEARSAY = 2.0


class Stopped(BookError):
    """A process was told to stop (SIGTERM: an interrupted notebook, a preempted job); a checkpoint is saved."""


@contextlib.contextmanager
def told_to_stop() -> Iterator[list]:
    """Within, SIGTERM ends nothing: it is appended to the list that this yields."""
    told = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started within never hear SIGTERM, which a cluster sends to all of a job's: a loader's have to deliver
    what the last update or an evaluation needs. A SIGTERM to this process waits for the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reason_of_all(run: Run, process: processes.Process, error: BaseException, message: str) -> str:
    """What a process says of its error: the first one only sees the connection break when another process's loader did."""
    path = run.folder / UNFED
    if not process.main and isinstance(error, loader.Unfed):
        message = f"process {process.rank}: {message}"
        write_text(path, message)
    elif process.main and process.world > 1 and not isinstance(error, BookError):
        until = time.monotonic() + HEARSAY
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.05)
        message = path.read_text() if path.exists() else message
    return message


def main(description: str, work: Callable[[Run, processes.Process], dict], arguments: list[str] | None = None, *,
         fixed_sizes: bool) -> int:  # fmt: skip
    """Command line of a module that works on a run folder; returns the exit status: 0, 1 or STOPPED.

    work(run, process) returns the metrics; fixed_sizes: see processes.arithmetic. A BookError becomes one line;
    run.json says done, failed or stopped.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="run folder with run.json (a notebook or Run.start makes it)")
    run = Run.read(parser.parse_args(arguments).folder)
    if run.done:
        print(f"{run.name} is done; nothing to do")
        return 0
    try:
        process, ours = processes.start(), False
    except BookError as error:
        if os.environ.get("RANK", "0") == "0":  # the same for all
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    try:
        computes = processes.arithmetic(fixed_sizes)
        if process.main:
            run.lock()
            (run.folder / UNFED).unlink(missing_ok=True)
            run.begin(processes=process.world, device=str(process.device), threads=torch.get_num_threads(), **computes)
            ours = True
        metrics = work(run, process)
        if process.main:
            run.end("done", metrics)
    except BaseException as raised:
        # torchrun tells this process to stop as soon as another one has ended: how it ended is recorded first.
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        error = loader.reason(raised)
        error = files.unwritable(error) or error
        message = str(error) if isinstance(error, BookError) else f"{type(error).__name__}: {error}"
        message = _reason_of_all(
            run, process, error, message
        )  # before anything is let go of: the connection to the others too
        loader.end_workers()
        traceback.clear_frames(raised.__traceback__)  # lets go of the loader
        if ours:
            try:
                run.end("stopped" if isinstance(error, Stopped) else "failed", error=message)
            except BookError as unrecorded:  # on a full disk the record stays as it was: as of a killed process
                print(f"{unrecorded}; how the run ended is not recorded", file=sys.stderr, flush=True)
        signal.signal(signal.SIGTERM, before)
        if not isinstance(error, BookError):
            raise
        if process.main or isinstance(error, loader.Unfed):  # every process has the same bad input, but its own loader
            print(f"error: {message}", file=sys.stderr, flush=True)
        return STOPPED if isinstance(error, Stopped) else 1
    processes.stop()  # not after an error: the others may be waiting in a collective, and torchrun ends them
    return 0
