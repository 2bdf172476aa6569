"""Proposals of many images, in shards that any number of processes make and a rerun completes.

A shard FIRST-LAST.npz holds images FIRST..LAST-1 of a source: count, status (code into STATUSES), size (width, height),
error, boxes (all images' one after the other), and the seconds of one core that it took. FIRST-LAST.part is the same of
the first images of a shard, which was stopped there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import signal
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from soco_lib import BookError
from soco_lib.data.proposals import STATUSES, ProposalConfig, propose
from soco_lib.data.sources import MAY_PASS, ImageSource
from soco_lib.fields import require
from soco_lib.runs import locks, stop
from soco_lib.runs.files import replacing
from soco_lib.runs.machine import end_with_parent

Say = Callable[[str], None]  # receives a line of progress
#: An image's entry in a shard: (width, height), boxes (n, 4), status, error text.
Row = tuple[tuple[int, int], np.ndarray, str, str]
#: Seconds between two looks at what the others do, and until one that has not begun counts as absent.
POLL, GRACE = 1.0, 60.0
#: So many images in a row that their disk does not give end a build: it has gone, not the images.
GONE = 20


def shard_paths(folder: Path, images: int, size: int) -> list[Path]:
    """The files that hold `images` images, `size` a shard, in order."""
    return [folder / f"{first:09d}-{min(first + size, images):09d}.npz" for first in range(0, images, size)]


def shard_range(shard: Path) -> range:
    """Positions of the shard's images in their source."""
    return range(*map(int, shard.stem.split("-")))


def share(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, count) of this process among the participants, by the variables of torchrun, srun and SLURM arrays.

    (0, 1) without any. An array whose tasks start several processes each counts them all. srun is known by its
    SLURM_STEP_NUM_TASKS: a batch script has SLURM_PROCID and SLURM_NTASKS too, though it runs once. Raises BookError
    for an array with gaps and numbers that do not fit.
    """
    number = lambda name, default: int(environment.get(name, default))
    rank, count = 0, 1
    if "WORLD_SIZE" in environment:
        rank, count = number("RANK", -1), number("WORLD_SIZE", 1)
    elif "SLURM_STEP_NUM_TASKS" in environment:
        rank, count = number("SLURM_PROCID", -1), number("SLURM_STEP_NUM_TASKS", 1)
    require(0 <= rank < count, f"participant {rank} of {count}: ranks count from 0")
    if "SLURM_ARRAY_TASK_ID" in environment:
        beyond = number("SLURM_ARRAY_TASK_ID", 0) - number("SLURM_ARRAY_TASK_MIN", 0)
        task, left = divmod(beyond, number("SLURM_ARRAY_TASK_STEP", 1))
        tasks = number("SLURM_ARRAY_TASK_COUNT", 1)
        remedy = f"give --array=0-{tasks - 1}"
        require(left == 0 and task < tasks, f"an array of {tasks} tasks, one of them {beyond} from the first: {remedy}")
        rank, count = task * count + rank, tasks * count
    return rank, count


def present(rows: Iterable[Row], most: int) -> Iterator[Row]:
    """`rows`, until `most` images one after the other are unavailable: then the disk is, and BookError is raised."""
    missing = 0
    for row in rows:
        missing = missing + 1 if row[2] == "error" and MAY_PASS in row[3] else 0
        gone = f"{missing} images in a row are unavailable, at last {row[3]}: is their disk there? Finished shards stay"
        require(missing < most, f"{gone}: run again when it is, or list the images that there are (list:FILE)")
        yield row


def write_shard(shard: Path, rows: Iterable[Row], seconds: float | None = None, earlier: float = 0.0) -> Path:
    """Write a shard at once, or with fewer rows than images a .part of it; returns the file. A process that dies leaves
    no half of one.

    seconds: of one core that it took (None: this call's, and the images are looked after by `present`), and `earlier`.
    """
    start, count = time.thread_time(), len(shard_range(shard))
    rows = present(rows, min(count, GONE) if count >= 16 else GONE) if seconds is None else rows  # else they are known
    sizes, boxes, status, errors = [*zip(*rows)] or ([], [], [], [])
    if len(sizes) < count:
        shard = shard.with_name(f"{shard_range(shard).start:09d}-{shard_range(shard).start + len(sizes):09d}.part")
    with replacing(shard, "wb") as file:
        np.savez(
            file,
            count=np.array([len(b) for b in boxes], np.int32),
            status=np.array([STATUSES.index(s) for s in status], np.int8),
            size=np.array(sizes, np.int32),
            error=np.array(errors, np.str_),
            boxes=np.concatenate([np.empty((0, 4)), *boxes]).astype(np.float32),
            seconds=earlier + (time.thread_time() - start if seconds is None else seconds),
        )
    return shard


def _parts(shard: Path) -> list[Path]:
    return [*shard.parent.glob(f"{shard.stem.partition('-')[0]}-*.part")]


def _begun(shard: Path) -> tuple[list[Row], float]:
    """What is left of a shard that was stopped: its first rows, none of an image that was unavailable, and seconds."""
    for part in _parts(shard):
        with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(part) as file:
            boxes = np.split(file["boxes"], file["count"].cumsum()[:-1])
            rows = zip(map(tuple, file["size"].tolist()), boxes, map(STATUSES.__getitem__, file["status"]),
                       file["error"].tolist())  # fmt: skip
            return [*itertools.takewhile(lambda row: MAY_PASS not in row[3], rows)], float(file["seconds"])
    return [], 0.0


def _made(shard: Path) -> bool:
    """Whether a shard is there, and made when all of its images were available."""
    if not zipfile.is_zipfile(shard):
        return False
    try:
        with np.load(shard) as file:
            return not any(MAY_PASS in text for text in file["error"].tolist())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def make_shards(shards: list[Path], source: ImageSource, config: ProposalConfig, workers: int, say: Say) -> None:
    """Make those of `shards` that are missing, with up to `workers` processes; `say` gets a progress line now and then.

    Raises BookError when a process dies, Stopped after the running images upon a request to stop; what is made stays, a
    rerun goes on from it.
    """
    missing = [shard for shard in shards if not _made(shard)]
    todo, done, start = sum(len(shard_range(s)) for s in missing), 0, time.monotonic()
    workers, last = min(workers, len(missing)), start
    if len(missing) < len(shards):
        say(f"{len(shards) - len(missing)} of {len(shards)} shards were made before; going on")
    for count in filter(None, _finished(missing, source, config, workers)):
        done, now = done + count, time.monotonic()
        pause = min(30.0, max(2.0, (now - start) / done * todo / 10))  # ten lines, or two a minute
        if done < todo and now - last >= pause:
            rate, last = done / (now - start), now
            left = _clock((todo - done) / rate)
            say(f"proposals: {done}/{todo} images, {rate:.1f} images/s with {workers} workers, {left} to go")


@contextlib.contextmanager
def to_merge(shards: list[Path], done: Path, part: tuple[int, int], make: Callable, say: Say) -> Iterator[bool]:
    """`make` every count-th shard, those of `part` = (rank, count), then wait until all participants' are there.

    Yields True to one participant, who merges while it holds the lock, and False to the others, when the file `done` is
    there. The lock lies among the shards, shared by those who make some, exclusive to who merges; the system frees a
    dead one's. Raises BookError when shards are missing that nobody makes, and for a file system without locks.
    """
    (rank, count), folder, last, idle = part, shards[0].parent, time.monotonic(), None
    with locks.lockable(folder / "lock") as lock:
        if locks.take(lock, shared=True, wait=True):  # waits where somebody merges
            if not done.exists():
                make(shards[rank::count])
            locks.free(lock)
        while not done.exists() and (missing := _missing(shards, lock)) != []:
            now = time.monotonic()
            idle = (idle or now) if missing else None
            if missing and now - idle >= GRACE:
                whose = ", ".join(map(str, sorted({n % count for n in missing})))
                raise BookError(
                    f"{len(missing)} of {len(shards)} shards in {folder} are missing and nobody makes them: those of "
                    f"participant {whose} of 0 to {count - 1}. Start it again, or one process for all; finished shards "
                    "are kept"
                )
            if now - last >= 30:
                last = now
                say(f"waiting for others: {sum(shard.exists() for shard in shards)} of {len(shards)} shards are there")
            time.sleep(POLL)
        yield not done.exists()


def _missing(shards: list[Path], lock: IO) -> list[int] | None:
    """Numbers of missing shards, None while others make or merge them. With [] the caller holds the lock."""
    # Before the lock, or those who wait disturb each other.
    there = {path.name for path in shards[0].parent.glob("*.npz")}
    if not locks.take(lock):  # also where one on another machine has merged and removed it
        return None if there else list(range(len(shards)))
    missing = [n for n, shard in enumerate(shards) if shard.name not in there]
    missing = missing or [n for n, shard in enumerate(shards) if not zipfile.is_zipfile(shard)]
    if missing:
        locks.free(lock)
    return missing


def _finished(shards: list[Path], source: ImageSource, config: ProposalConfig, workers: int) -> Iterator[int]:
    """Number of images of each shard, as it gets ready. Raises Stopped once it is to stop."""
    with stop.requests(urgent=True) as stop_requests:
        # Taken from until a stop is requested.
        todo = iter(lambda: next(rest, None) if not stop_requests else None, None)
        rest, made = iter(shards), 0
        by = functools.partial(_made_by, workers) if workers > 1 else _made_here
        for count in by(todo, source, config, stop_requests):
            made += count > 0
            yield count
        if made < len(shards):
            left = f"shards left to make: {len(shards) - made}"
            raise stop_requests.stopped(f"the proposals were stopped, {left}; run again to go on from what is made")


def _made_here(shards: Iterator[Path], source: ImageSource, config: ProposalConfig, asked: list) -> Iterator[int]:
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        yield from (_make_shard(shard, source, config, lambda: bool(asked)) for shard in shards)
    finally:
        cv2.setNumThreads(threads)


def _made_by(workers: int, shards: Iterator[Path], source: ImageSource, config: ProposalConfig, asked: list
             ) -> Iterator[int]:  # fmt: skip
    spawn = multiprocessing.get_context("spawn")  # a forked copy of a process with threads (notebooks, torch) may hang
    with stop.children_ignore():  # as does the process that looks after what they share
        stopping = spawn.Event()
    with ProcessPoolExecutor(workers, spawn, _start_worker, (source, config, stopping)) as pool:
        try:
            with stop.children_ignore():  # the first shards start the processes
                running = {pool.submit(_worker_shard, shard) for shard in itertools.islice(shards, workers)}
            while running:
                ready, running = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                if asked:
                    stopping.set()
                running |= {pool.submit(_worker_shard, shard) for shard in itertools.islice(shards, len(ready))}
                yield from (future.result() for future in ready)
        except BrokenProcessPool:
            raise BookError(
                "a worker process died (out of memory?); finished shards are kept: run again with workers below "
                f"{workers}"
            ) from None
        except KeyboardInterrupt:  # the second Ctrl-C: not even the running shards are waited for
            for process in [*pool._processes.values()]:
                process.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


#: Of a worker process, sent once and not with every shard: what is made, and whether to stop.
_job: tuple[ImageSource, ProposalConfig, Callable[[], bool]]


def _start_worker(source: ImageSource, config: ProposalConfig, stopping) -> None:
    global _job
    _job = source, config, stopping.is_set
    cv2.setNumThreads(1)  # one core a worker: OpenCV's own pool only fights the other workers
    end_with_parent(signal.SIGKILL)  # a killed parent cannot tell its workers: they would wait for ever


def _worker_shard(shard: Path) -> int:
    return _make_shard(shard, *_job)


def _make_shard(shard: Path, source: ImageSource, config: ProposalConfig, stops: Callable[[], bool]) -> int:
    """Number of its images; 0 where it stopped before the last, and kept what it had made."""
    rows, seconds = _begun(shard)
    left = itertools.takewhile(lambda _: not stops(), shard_range(shard)[len(rows) :])
    made = (_row(source, index, config) for index in left)
    written = write_shard(shard, itertools.chain(rows, made), earlier=seconds)
    for part in {*_parts(shard)} - {written}:
        part.unlink()
    return len(shard_range(shard)) if written == shard else 0


def _row(source: ImageSource, index: int, config: ProposalConfig) -> Row:
    try:
        image = source.load(index)
        boxes, rule = propose(image, source.keys[index], config)
    except (BookError, cv2.error) as error:
        return (0, 0), np.empty((0, 4), np.float32), "error", " ".join(str(error).split())
    return (image.shape[1], image.shape[0]), boxes, rule, ""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    long = f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"
    return long if minutes else f"{seconds} s"
