"""Loading batches for a run: how many its workers may keep ready in shared memory, and waiting for them so that a
request to stop, a dead worker and a stalled disk are noticed.

A worker hands a batch over in shared memory (/dev/shm, of which a container often has 64 MB).
"""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.queues
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from soco_lib import BookError
from soco_lib.config import Plan, Pretrain
from soco_lib.fields import require
from soco_lib.runs.machine import end_with_parent
from soco_lib.runs.reasons import one_line

SHM = Path("/dev/shm")  # of Linux; elsewhere nothing is checked
PAGE, MB = 4096, 1e6
#: Bytes that a worker, and the process itself, needs there beside its batches, for the semaphores of its queue.
SPARE = 5 * PAGE
#: Seconds between two looks at whether to go on waiting for a batch.
POLL = 5.0
#: Seconds to wait for the rest of an update once a stop is requested: what was computed of it would be lost.
GRACE = 30.0
#: Seconds without a batch that end a run: less than processes.TIMEOUT, after which the others end without a reason.
STARVED = 480.0


class LoaderError(BookError):
    """This process's loader is broken or delivers nothing; unlike bad input, it may be this process's alone."""


class Waiting(Exception):
    """A stop was requested while the process waited for a batch. between: no batch of an update was taken yet."""

    def __init__(self, between: bool):
        super().__init__("told to stop while it waited for images")
        self.between = between

    def describe(self, done: int, folder: Path) -> str:
        """A line for the log. done: updates made; folder: has the checkpoints."""
        if not self.between:
            return f"{self} of step {done + 1}: run again to go on from the last checkpoint in {folder / 'checkpoints'}"
        return f"{self} after step {done}{', of which a checkpoint is saved' if done else ''}: run again to go on"


# --- shared memory ----------------------------------------------------------------------------------------------------


def pages(*sizes: int) -> int:
    """Bytes that tensors of these bytes take in shared memory, each a file of whole pages."""
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def shared_bytes(cfg: Pretrain, plan: Plan) -> int:
    """Bytes that a pretraining's micro-batch takes there at most: images, boxes and flags of each view, and a
    parts.counted.Counted: a row of five numbers and its place a box, three numbers a box and pair of views.
    """
    n, m = plan.micro_batch, plan.micro_batch * cfg.k
    views = sum(pages(n * 3 * size**2, m * 16, m, m * 20, m * 8) for size in cfg.view_sizes)
    return views + len(cfg.views) * pages(m * 8, m * 8, m * 8)


def batches_ahead(most: int, batch: int, workers: int, processes: int, test: int = 0, say: Callable = print) -> int:
    """How many batches each worker may keep ready, at most `most`, so that all fit into what is free of /dev/shm.

    batch: bytes of one (see `pages`). processes: that start here, each with `workers`. test: bytes of a batch of the
    evaluation, whose workers, as many, keep two ready beside the others. Raises BookError when not even one batch a
    worker fits.
    """
    if not (workers > 0 and SHM.is_dir()):
        return most
    free = shutil.disk_usage(SHM).free

    def needed(workers: int, ahead: int) -> int:  # + 1: the batch that is worked on
        each = (workers * ahead + 1) * batch + (2 * workers + 1) * test + (workers + 1) * SPARE
        return processes * each if workers else 0

    fits = next((ahead for ahead in range(most, 0, -1) if needed(workers, ahead) <= free), 0)
    if fits == most:
        return most
    fewer = next(n for n in range(workers, -1, -1) if needed(n, 1) <= free)
    larger = f"enlarge it (docker run --shm-size={math.ceil(needed(workers, most) / 2**30)}g)"
    whose = f"{workers} worker{'s' * (workers > 1)}" + f" of each of {processes} processes" * (processes > 1)
    each = f"at up to {batch / MB:.1f} MB a batch" + f" and {test / MB:.1f} MB a test image" * bool(test)
    require(
        fits > 0,
        f"{SHM} is too small: the loader's {whose} need at least {needed(workers, 1) / MB:.1f} MB there ({each}), "
        f"{free / MB:.1f} MB are free: {larger}, or SET='workers: {fewer}'{' (0 needs none)' if fewer else ''}",
    )
    say(
        f"{SHM} has {free / MB:.1f} MB free, {needed(workers, most) / MB:.1f} MB would be needed: the loader's {whose} "
        f"keep {fits} batch{'es' * (fits > 1)} ready in place of {most} ({each}); {larger} if they cannot keep up",
        flush=True,
    )
    return fits


# --- in a worker ------------------------------------------------------------------------------------------------------


def start_worker(_number: int = 0) -> None:
    """To be called first in a worker: it ends with its process, and a batch that it cannot hand over is an error."""
    end_with_parent(signal.SIGKILL)
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error


def _send_error(queue, error: Exception, item: tuple) -> None:
    """In place of a batch that cannot be put into shared memory: Python drops it, and the run would wait for ever."""
    from torch._utils import ExceptionWrapper  # what a DataLoader raises in its own process; needed by workers only

    failure = LoaderError(f"a loader's worker could not hand a batch over: {_first_line(error)}{_REMEDY}")
    queue.put((item[0], ExceptionWrapper((LoaderError, failure, None))))


# --- waiting ----------------------------------------------------------------------------------------------------------

#: A DataLoader's errors, of its own and of the memory it shares; and how it says that its timeout is over.
_BROKEN = re.compile(r"DataLoader worker \(|Pin memory thread|unable to allocate shared memory|Too many open files")
_TIMED_OUT = re.compile(r"DataLoader timed out")
_REMEDY = (
    f": look at `free -g` and `df -h {SHM}`; more memory, a larger {SHM} (docker run --shm-size=8g) or fewer workers "
    "(SET='workers: 0' shares none) help; run again to go on"
)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(" .")


def reason(error: BaseException) -> BaseException:
    """`error`, or for one that came from a loader's worker, an error of one line in its place."""
    if isinstance(error, RuntimeError) and _BROKEN.match(str(error)):
        return LoaderError(f"the loader broke: {_first_line(error)}{_REMEDY}")
    if str(error).startswith("Caught "):  # and the worker's traceback
        return LoaderError(one_line(error))
    return error


def unexpected(what: str, error: Exception) -> LoaderError:
    """An error for one that nobody foresaw while the image `what` was made ready; its traceback goes to the output."""
    traceback.print_exception(error)
    return LoaderError(f"{what}: {one_line(error)}: look at this file, or leave it out of the data; run again to go on")


class Feed:
    """Iterator over a DataLoader's batches, whose workers it starts. The DataLoader's timeout is POLL where it has
    workers.

    share: batches that make up an update, of which none is lost if it can be helped. stop_requests: not empty once the
    process is asked to stop; if then no batch comes, Waiting is raised. Raises LoaderError after STARVED seconds
    without a batch.
    """

    def __init__(self, batches: Iterable, share: int = 1, stop_requests: Sequence = ()):
        self.loader, self.share, self.stop_requests, self.taken = batches, share, stop_requests, 0
        self.batches = iter(batches)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        began, between, since = time.monotonic(), self.taken % self.share == 0, None
        while True:
            try:
                batch = next(self.batches)
                self.taken += 1
                return batch
            except (RuntimeError, BookError) as error:
                if isinstance(error, BookError) and not isinstance(error, LoaderError):
                    raise LoaderError(one_line(error)) from None  # of this process's images
                if not _TIMED_OUT.match(str(error)):
                    raise reason(error) from None
            except (ConnectionError, EOFError) as error:
                raise LoaderError(f"the loader broke: a worker ended while it handed a batch over{_REMEDY}") from error
            now = time.monotonic()
            since = since or (now if self.stop_requests else None)
            if since and (between or now - since >= GRACE):
                raise Waiting(between)
            pins = getattr(self.batches, "_pin_memory_thread", None)  # a DataLoader with a timeout does not check it
            if pins and not pins.is_alive():
                raise LoaderError(f"the loader broke: the thread that pins its memory has ended{_REMEDY}")
            if now - began >= STARVED:
                raise LoaderError(
                    f"the loader delivered nothing for {now - began:.0f} s: look at whether the images can be read (a "
                    f"stalled network disk?), at `free -g` and at `df -h {SHM}`; SET='workers: 0' reads them without "
                    "workers; run again to go on"
                )


def end_workers() -> None:
    """Kill the workers of this process's loaders: they ignore SIGTERM, and Python waits for them at its end.

    They are the only daemons here. torch's handler of SIGCHLD would raise an error for each.
    """
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    workers, deadline = [child for child in multiprocessing.active_children() if child.daemon], time.monotonic() + POLL
    for worker in workers:
        worker.kill()
    for worker in workers:  # one that hangs in the kernel, on a dead disk, does not even get SIGKILL
        worker.join(max(0.0, deadline - time.monotonic()))
    signal.signal(signal.SIGCHLD, before)
