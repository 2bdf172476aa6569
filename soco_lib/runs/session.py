"""The life of a process that works on a run folder: join the group, take the folder, work, record how it ended."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from soco_lib import BookError
from soco_lib.runs import files, loader, processes, stop
from soco_lib.runs.folder import Run, write_text
from soco_lib.runs.reasons import one_line
from soco_lib.runs.stop import STOPPED, Stopped

#: File in the folder of a run of several processes: why the loader of another process than the first one failed.
LOADER_ERROR = ".loader-error"
#: Seconds that the first process, which keeps the record, waits for that file.
LOADER_ERROR_WAIT = 2.0


#: What a run says that was stopped while it opened and looked at its data.
BEFORE = "told to stop while it started: run again to go on"
#: What a collective says once another process has gone.
_CONNECTION = re.compile(r"gloo|nccl|connection|peer|process group|store", re.IGNORECASE)


class Diverged(BookError):
    """The loss became NaN or infinite at `step`; that is a result, not a failure of the run."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def _shared_reason(run: Run, process: processes.Process, error: BaseException, message: str) -> str:
    """The message for a process's error. Where another process failed, in its loader or unforeseen, the first one sees
    no more than a broken connection, and takes the reason from that process.
    """
    path = run.folder / LOADER_ERROR
    foreseen = isinstance(error, BookError) or _CONNECTION.search(str(error))
    alone = isinstance(error, loader.LoaderError) or not foreseen
    if not process.main and alone:
        message = f"process {process.rank}: {message}"
        write_text(path, message)
    elif process.main and process.world > 1 and not isinstance(error, BookError):
        until = time.monotonic() + LOADER_ERROR_WAIT
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.05)
        message = path.read_text() if path.exists() else message
    return message


def main(description: str, work: Callable[[Run, processes.Process, Sequence], dict],
         arguments: list[str] | None = None, *, fixed_sizes: bool) -> int:  # fmt: skip
    """Command line of a module that works on a run folder; returns the exit status: 0, 1 or STOPPED.

    work(run, process, stop_requests) returns the metrics, or raises Stopped once stop_requests is not empty; until it
    calls stop.keep(stop_requests) a request ends it at once. fixed_sizes: see processes.arithmetic. A BookError is
    printed as one line; run.json says done, failed or stopped.
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
        if os.environ.get("RANK", "0") == "0":  # the same in all processes
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    try:
        computes = processes.arithmetic(fixed_sizes)
        if process.main:
            run.lock()
            (run.folder / LOADER_ERROR).unlink(missing_ok=True)
            run.begin(processes=process.world, device=str(process.device), threads=torch.get_num_threads(), **computes)
            ours = True
        with stop.requests(urgent=True) as stop_requests:
            with stop.harmless(stop_requests, BEFORE):
                metrics = work(run, process, stop_requests)
            if process.main:
                run.end("done", metrics)
    except BaseException as raised:
        # torchrun sends SIGTERM as soon as another process has ended: how this one ended is recorded first.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in stop.SIGNALS}
        error = loader.reason(raised)
        error = files.unwritable(error) or error
        if isinstance(error, KeyboardInterrupt):
            error = Stopped(str(error) or "stopped at once: run again to go on from the last checkpoint")
        message = one_line(error)
        message = _shared_reason(run, process, error, message)  # while the connection to the others still stands
        loader.end_workers()
        traceback.clear_frames(raised.__traceback__)  # releases the loader
        if ours:
            diverged = {"diverged_at": error.step} if isinstance(error, Diverged) else {}
            try:
                run.end("stopped" if isinstance(error, Stopped) else "failed", error=message, **diverged)
            except BookError as unrecorded:  # on a full disk the record stays as it was: as of a killed process
                print(f"{unrecorded}; how the run ended is not recorded", file=sys.stderr, flush=True)
        for number, handler in before.items():
            signal.signal(number, handler)
        if not isinstance(error, Exception):
            raise
        if not isinstance(error, BookError):
            traceback.print_exception(raised)
            print(f"error: {message}", file=sys.stderr, flush=True)
            return 1
        # Bad input is the same in every process, but each has a loader of its own.
        if process.main or isinstance(error, loader.LoaderError):
            said = message if isinstance(error, Stopped) else f"error: {message}"
            print(said, file=sys.stderr, flush=True)
        return STOPPED if isinstance(error, Stopped) else 1
    processes.stop()  # not after an error: others may wait in a collective, and torchrun ends them
    return 0
