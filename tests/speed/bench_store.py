"""The proposal store at ImageNet's size: opening, random lookups, memory of loader processes, building from shards.

The boxes are made up; images and boxes an image are as many as selective search leaves of ImageNet. The plain way is
what the authors' release does: one JSON dictionary that each process loads whole. It is measured on few images and
grows in proportion.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from soco_lib.boxes import as_boxes
from soco_lib.data.interchange import export_boxes
from soco_lib.data.shards import Row, shard_range, write_shard
from soco_lib.data.sources import ImageSource
from soco_lib.data.store import ProposalStore, assemble
from tests.speed.timing import Bench, apart

IMAGES, BOXES_AN_IMAGE = 1_280_000, 47  # ImageNet-1k, about 60 M boxes
SMALL = (5_000, 20_000)  # images of the plain way's dictionary
LOOKUPS, WORKERS, REPETITIONS, SHARD = 100_000, 8, 5, 1024
ROLLUP = Path("/proc/self/smaps_rollup")
MiB, GiB, PAGE = 2**20, 2**30, 4096


def run(images: str, quick: bool) -> Bench:
    """Build stores in a temporary folder, and the plain dictionary of the small ones; open both. Needs no `images`."""
    most, small = (20_000, (500,)) if quick else (IMAGES, SMALL)
    repetitions, lookups = (2, 2_000) if quick else (REPETITIONS, LOOKUPS)
    boxes = most * BOXES_AN_IMAGE / 1e6
    data = f"{most} made-up images with about {boxes:.3g} M boxes in a temporary folder"
    bench = Bench("store", "The proposal store", data)
    with tempfile.TemporaryDirectory(prefix="soco-bench-store-") as folder:
        for number in (*small, most):
            path = Path(folder) / str(number)
            (writing, merging), peak = apart(_build, path, number)
            bench.add("shards to store", "s", {"ours": [merging]}, over="images", at=number)
            bench.add("peak memory of building", "MiB", {"ours": [peak / MiB]}, over="images", at=number)
            ways = {"ours": (_open_store, path)}
            if number in small:
                export_boxes(ProposalStore.open(path), path.with_suffix(".json"))
                ways["plain"] = (_open_json, path.with_suffix(".json"))
            _compare(bench, ways, number, number == small[-1], repetitions, lookups, 2 if quick else WORKERS)
            if number == most:
                _goals(bench, number, small[-1], writing, merging, peak)
            shutil.rmtree(path)
    return bench


# --- building


def _build(out: Path, number: int) -> tuple[float, float]:
    """Seconds of writing the shards and of making a store of them; for a process of its own, whose peak is theirs."""
    source = ImageSource("made-up images", out, [f"n{i // 1300:08d}/{i:08d}.JPEG" for i in range(number)])
    times = [time.perf_counter()]

    def make(shards: list[Path]) -> None:
        times.append(time.perf_counter())
        for shard in shards:
            write_shard(shard, _rows(shard_range(shard)))
        times.append(time.perf_counter())

    assemble(out, source, {"generator": "made-up"}, SHARD, make, lambda line: None)
    times.append(time.perf_counter())
    return times[2] - times[1], times[3] - times[2]


def _rows(images: range) -> list[Row]:
    rng = np.random.default_rng(images.start)
    counts = rng.integers(BOXES_AN_IMAGE - 30, BOXES_AN_IMAGE + 31, len(images))
    corners = rng.random((counts.sum(), 4), np.float32) * np.array([200, 150, 300, 220], np.float32)
    corners[:, 2:] += corners[:, :2]
    return [((500, 375), boxes, "paper", "") for boxes in np.split(corners, counts.cumsum()[:-1])]


# --- reading


def _open_store(path: Path):
    return ProposalStore.open(path).boxes


def _open_json(path: Path):
    found = json.loads(path.read_bytes())
    names = [Path(f"{i:08d}.JPEG").stem for i in range(len(found))]
    return lambda index: as_boxes(found[names[index]])


def _private() -> int:
    """Bytes of this process that it shares with no other at this moment; 0 where the system does not tell."""
    if not ROLLUP.exists():
        return 0
    lines = [line.split() for line in ROLLUP.read_text().splitlines()]
    return sum(int(line[1]) * 1024 for line in lines if line[0] in ("Private_Clean:", "Private_Dirty:"))


def _read(opening, path: Path, number: int, lookups: int, together=None) -> dict:
    """In a fresh process: open, look up at random; seconds, microseconds a lookup (median, 99th percentile), private
    bytes more.

    A lookup copies the boxes, so that their bytes are read. `together`: a barrier; memory is read when all have looked
    up.
    """
    order, taken = np.random.default_rng().integers(number, size=lookups).tolist(), np.zeros(lookups)
    if together:
        together.wait(300)  # or pages of the libraries would count as its own until another has them too
    before = _private()
    start = time.perf_counter()
    boxes = opening(path)
    np.array(boxes(order[0]))
    opened = time.perf_counter() - start
    for n, index in enumerate(order):
        start = time.perf_counter_ns()
        np.array(boxes(index))
        taken[n] = time.perf_counter_ns() - start
    if together:
        together.wait(300)
    private = max(_private() - before, PAGE)
    if together:
        together.wait(300)
    median, late = np.quantile(taken / 1000, (0.5, 0.99))
    return {"opened": opened, "lookup": float(median), "late": float(late), "private": private}


def _compare(bench: Bench, ways: dict, number: int, head: bool, repetitions: int, lookups: int, workers: int) -> None:
    """Rows over the number of images; `head`: also the rows that compare the ways, at the size that both have."""
    alone: dict[str, list[dict]] = {way: [] for way in ways}
    for turn in range(repetitions):
        for way in list(ways)[:: -1 if turn % 2 else 1]:
            alone[way].append(apart(_read, *ways[way], number, lookups)[0])
    crowd = {way: _crowd(workers, *given, number, lookups) for way, given in ways.items()}
    growth = {"over": "images", "at": number}
    for what, unit, measured, key, scale in (
        ("open and first lookup", "s", alone, "opened", 1),
        ("random lookup, median", "µs", alone, "lookup", 1),
        ("random lookup, 99 %", "µs", alone, "late", 1),
        (f"private memory of each of {workers} processes", "MiB", crowd, "private", MiB),
    ):
        values = {way: [one[key] / scale for one in found] for way, found in measured.items()}
        bench.add(what, unit, values, more_is_better=False, **growth)
        if head:
            bench.add(f"{what} ({number} images)", unit, values, more_is_better=False)


def _crowd(workers: int, opening, path: Path, number: int, lookups: int) -> list[dict]:
    """`_read` in several processes at once."""
    together = multiprocessing.get_context("spawn").Barrier(workers)
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(apart, _read, opening, path, number, lookups, together) for _ in range(workers)]
        return [one.result()[0] for one in running]


def _goals(bench: Bench, number: int, small: int, writing: float, merging: float, peak: int) -> None:
    of = {row.what: row for row in bench.rows if row.at == number}
    private = next(row for what, row in of.items() if what.startswith("private"))
    bench.goal(f"open and first lookup, {number} images", of["open and first lookup"].median, 1, "s", at_least=False)
    bench.goal(f"random lookup, median, {number} images", of["random lookup, median"].median, 50, "µs", at_least=False)
    bench.goal("peak memory of building", peak / GiB, 1, "GiB", at_least=False)
    if ROLLUP.exists():
        bench.goal(f"{private.what}, the largest", max(private.values), 100, "MiB", at_least=False)
    else:
        bench.notes.append("This system has no /proc/self/smaps_rollup: private memory is not measured.")
    bench.notes += [
        f"Building: one process writes shards of {SHARD} images ({writing:.0f} s, boxes made up meanwhile) and merges "
        f"them ({merging:.0f} s); its peak is of both.",
        "Every repetition of opening is a fresh process, its imports not counted; the files were written just before, "
        "so they are in the page cache: from a cold disk, first touches wait for it. A lookup copies the boxes.",
        "Private memory: Private_Clean + Private_Dirty of /proc/self/smaps_rollup after the lookups, less the same "
        "before opening, when all processes have looked up and none has ended; at least a page. A page that only one "
        "process has touched counts as its own, though the system may drop it.",
        f"The plain way loads the authors' JSON whole, here of at most {small} images; at {number}, in proportion.",
    ]
