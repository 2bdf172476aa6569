"""bench-threads: how fast a small run is beside busy processes, with the CPU threads that the book chooses for it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from unittest import mock

from soco_lib.config import Pretrain
from soco_lib.runs import launch, machine
from soco_lib.runs.folder import Run
from tests.speed.bench_startup import toy
from tests.speed.timing import Bench

RATE = "images/s"
#: Steps of a run, of which the first is not counted, and how often each way is taken.
STEPS, REPETITIONS = 8, 3
NOTES = (
    "a run: the toy profile's pretraining as `make pretrain` starts it, median speed of its steps after the first",
    "chosen: as many threads as cores are free when the run starts; others: OMP_NUM_THREADS",
    "busy: processes that compute all the time, one thread each",
)


@contextlib.contextmanager
def busy(processes: int):
    """So many others that compute within the block."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def speed(cfg: Pretrain, results: Path, name: str, threads: int | None) -> float:
    """Images a second of a new run with so many threads, or as many as are chosen."""
    run = Run.start(name, "pretrain", cfg, results)
    with mock.patch.dict(os.environ):
        os.environ.pop("OMP_NUM_THREADS", None)
        launch.launch(run, say=lambda line: None, env={"OMP_NUM_THREADS": str(threads)} if threads else None)
    return statistics.median(row["images_per_s"] for row in Run.read(run.folder).rows()[1:])


def run(images: str, quick: bool) -> Bench:
    """Measure; the runs train on a few of the images that `images` names. Fewer steps, once, if `quick`."""
    bench, cores = Bench("threads", "a run on a machine that others use"), machine.cores()
    ways = {"one": 1, "all": cores, "chosen": None}
    with tempfile.TemporaryDirectory() as scratch:
        cfg = dataclasses.replace(toy(images, Path(scratch)), steps=2 if quick else STEPS)
        for others in (0, 1) if quick else (0, 1, cores):
            rates = defaultdict(list)
            for number in range(1 if quick else REPETITIONS):
                for way in list(ways)[:: -1 if number % 2 else 1]:
                    with busy(others):
                        rates[way].append(speed(cfg, Path(scratch), f"{others}-{way}-{number}", ways[way]))
                    print(f"beside {others} busy, {way}: {rates[way][-1]:.1f} {RATE}", flush=True)
            bench.add(f"a run beside {others} busy", RATE, rates)
            medians = {way: statistics.median(values) for way, values in rates.items()}
            share = medians["chosen"] / max(medians["one"], medians["all"])
            bench.goal(f"beside {others} busy, of the better of one and {cores} threads", share, 0.8, "")
    bench.data = f"toy profile, batch {cfg.batch}, on {cores} cores and a few of {images}"
    bench.notes += NOTES
    return bench
